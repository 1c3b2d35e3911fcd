"""Wide residual networks (Zagoruyko and Komodakis, 2016), and DeepMind's variant (Gowal et al., 2020); the names are
those of RobustBench's WideResNet and DMWideResNet."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from gacd.models.base import Classifier, conv


class WideResNet(Classifier):
    """Three stages of pre-activation blocks.

    Args:
        depth: 6n+4, with n blocks a stage.
        width: the stages have 16, 32 and 64 times as many channels.
    """

    def __init__(
        self, name: str, num_classes: int, mean: Sequence[float], std: Sequence[float], depth: int, width: int
    ):
        super().__init__(name, mean, std)
        n, c = (depth - 4) // 6, 16 * width
        self.conv1 = conv(self.channels, 16)
        self.block1 = Stage(n, 16, c, 1)
        self.block2 = Stage(n, c, 2 * c, 2)
        self.block3 = Stage(n, 2 * c, 4 * c, 2)
        self.bn1 = nn.BatchNorm2d(4 * c)
        self.head = nn.Linear(4 * c, num_classes)

    def maps(self, x: Tensor) -> Tensor:
        return F.relu(self.bn1(self.block3(self.block2(self.block1(self.conv1(x))))))


class Stage(nn.Module):
    """n blocks under the name `layer`, the first of which changes the shape."""

    def __init__(self, n: int, c_in: int, c_out: int, stride: int):
        super().__init__()
        self.layer = nn.Sequential(Block(c_in, c_out, stride), *(Block(c_out, c_out, 1) for _ in range(n - 1)))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class Block(nn.Module):
    """Normalise, activate, convolve, twice; where the channels change, the shortcut too starts from the activation."""

    def __init__(self, c_in: int, c_out: int, stride: int):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(c_in)
        self.conv1 = conv(c_in, c_out, stride=stride)
        self.bn2 = nn.BatchNorm2d(c_out)
        self.conv2 = conv(c_out, c_out)
        self.convShortcut = conv(c_in, c_out, 1, stride) if c_in != c_out else None

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(x))
        skip = x if self.convShortcut is None else self.convShortcut(y)
        return skip + self.conv2(F.relu(self.bn2(self.conv1(y)), inplace=True))


class DMWideResNet(Classifier):
    """The same stages with SiLU, TensorFlow's SAME padding and slower batch-norm statistics."""

    head_name = "logits"

    def __init__(
        self, name: str, num_classes: int, mean: Sequence[float], std: Sequence[float], depth: int, width: int
    ):
        super().__init__(name, mean, std)
        n, c = (depth - 4) // 6, 16 * width
        self.init_conv = conv(self.channels, 16)
        self.layer = nn.Sequential(DMStage(n, 16, c, 1), DMStage(n, c, 2 * c, 2), DMStage(n, 2 * c, 4 * c, 2))
        self.batchnorm = _norm(4 * c)
        self.head = nn.Linear(4 * c, num_classes)

    def maps(self, x: Tensor) -> Tensor:
        return F.silu(self.batchnorm(self.layer(self.init_conv(x))))


class DMStage(nn.Module):
    """n blocks under the name `block`, the first of which changes the shape."""

    def __init__(self, n: int, c_in: int, c_out: int, stride: int):
        super().__init__()
        self.block = nn.Sequential(DMBlock(c_in, c_out, stride), *(DMBlock(c_out, c_out, 1) for _ in range(n - 1)))

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)


class DMBlock(nn.Module):
    """`Block` with SiLU, padded as TensorFlow pads."""

    def __init__(self, c_in: int, c_out: int, stride: int):
        super().__init__()
        self.batchnorm_0 = _norm(c_in)
        self.conv_0 = conv(c_in, c_out, stride=stride, padding=1 if stride == 1 else 0)
        self.batchnorm_1 = _norm(c_out)
        self.conv_1 = conv(c_out, c_out)
        self.shortcut = conv(c_in, c_out, 1, stride) if c_in != c_out else None

    def forward(self, x: Tensor) -> Tensor:
        y = F.silu(self.batchnorm_0(x))
        skip = x if self.shortcut is None else self.shortcut(y)
        return skip + self.conv_1(F.silu(self.batchnorm_1(self.conv_0(self._pad(y)))))

    def _pad(self, y: Tensor) -> Tensor:
        """Before a stride of 2: one row and column at the end, and at the start too where the size is odd."""
        if self.conv_0.stride[0] == 1:
            return y
        h, w = y.shape[2:]
        return F.pad(y, (w % 2, 1, h % 2, 1))


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, momentum=0.01)
