"""MobileNetV2 (Sandler et al., 2018) for 32x32 images, in the two variants that papers on distillation use."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from gacd.models.base import Classifier, conv, widen

# expansion, channels, blocks, stride of the first block
STAGES = ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


def mobilenetv2(
    name: str, num_classes: int, mean: Sequence[float], std: Sequence[float], width: float = 1
) -> Classifier:
    """Half as wide it is RepDistiller's network, which the papers on CIFAR-100 use; else the usual one."""
    return (MobileHalf if width == 0.5 else MobileNetV2)(name, num_classes, mean, std, width)


class MobileNetV2(Classifier):
    """The usual one for CIFAR: stride 1 in the first layer, and 1x1 shortcuts where only the channels change.

    Args:
        width: factor on all channels; the last layer keeps at least its 1280.
    """

    head_name = "linear"

    def __init__(self, name: str, num_classes: int, mean: Sequence[float], std: Sequence[float], width: float):
        super().__init__(name, mean, std)
        c, last = widen(32, width), widen(1280, max(width, 1))
        self.conv1 = conv(self.channels, c)
        self.bn1 = nn.BatchNorm2d(c)
        blocks = []
        for expansion, planes, n, first in STAGES:
            for stride in [first] + [1] * (n - 1):
                c_in, c = c, widen(planes, width)
                blocks.append(Block(c_in, c, expansion, stride))
        self.layers = nn.Sequential(*blocks)
        self.conv2 = conv(c, last, 1)
        self.bn2 = nn.BatchNorm2d(last)
        self.head = nn.Linear(last, num_classes)

    def maps(self, x: Tensor) -> Tensor:
        x = self.layers(F.relu(self.bn1(self.conv1(x)), inplace=True))
        return F.relu(self.bn2(self.conv2(x)), inplace=True)


class Block(nn.Module):
    """Expand (1x1), filter each channel (3x3), project (1x1, no activation); a shortcut unless the size changes."""

    def __init__(self, c_in: int, c_out: int, expansion: int, stride: int):
        super().__init__()
        c = expansion * c_in
        self.stride = stride
        self.conv1 = conv(c_in, c, 1)
        self.bn1 = nn.BatchNorm2d(c)
        self.conv2 = conv(c, c, 3, stride, groups=c)
        self.bn2 = nn.BatchNorm2d(c)
        self.conv3 = conv(c, c_out, 1)
        self.bn3 = nn.BatchNorm2d(c_out)
        same = stride == 2 or c_in == c_out
        self.shortcut = nn.Sequential(*([] if same else [conv(c_in, c_out, 1), nn.BatchNorm2d(c_out)]))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = self.bn3(self.conv3(F.relu(self.bn2(self.conv2(y)), inplace=True)))
        if self.stride == 1:
            y += self.shortcut(x)
        return y


class MobileHalf(Classifier):
    """RepDistiller's: stride 2 in the first layer, and shortcuts only where the shape stays."""

    head_name = "classifier.0"

    def __init__(self, name: str, num_classes: int, mean: Sequence[float], std: Sequence[float], width: float = 0.5):
        super().__init__(name, mean, std)
        c = widen(32, width)
        self.conv1 = nn.Sequential(*_layer(self.channels, c, 3, 2))
        self.blocks = nn.Sequential()
        for expansion, planes, n, first in STAGES:
            stage = nn.Sequential()
            for stride in [first] + [1] * (n - 1):
                c_in, c = c, widen(planes, width)
                stage.append(HalfBlock(c_in, c, expansion, stride))
            self.blocks.append(stage)
        self.conv2 = nn.Sequential(*_layer(c, 1280, 1))
        self.classifier = nn.Sequential(nn.Linear(1280, num_classes))

    def maps(self, x: Tensor) -> Tensor:
        return self.conv2(self.blocks(self.conv1(x)))


class HalfBlock(nn.Module):
    """`Block`, with a shortcut only where the shape stays."""

    def __init__(self, c_in: int, c_out: int, expansion: int, stride: int):
        super().__init__()
        c = expansion * c_in
        project = conv(c, c_out, 1), nn.BatchNorm2d(c_out)
        self.conv = nn.Sequential(*_layer(c_in, c, 1), *_layer(c, c, 3, stride, groups=c), *project)
        self.same = stride == 1 and c_in == c_out

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        if self.same:
            y += x
        return y


def _layer(c_in: int, c_out: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    return [conv(c_in, c_out, kernel, stride, groups), nn.BatchNorm2d(c_out), nn.ReLU(inplace=True)]
