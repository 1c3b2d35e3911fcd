"""Residual networks for small images: ResNet-18 (He et al., 2016; named as RobustBench names it) and the narrow
ResNets of depth 6n+2 (named as RepDistiller names them)."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from gacd.models.base import Classifier, conv, widen


class ResNet(Classifier):
    """A 3x3 stem without pooling, then stages of basic blocks, each after the first at half the resolution.

    Args:
        depth: 18, or 6n+2.
        width: factor on all channels.
    """

    def __init__(
        self,
        name: str,
        num_classes: int,
        mean: Sequence[float],
        std: Sequence[float],
        depth: int,
        width: float = 1,
    ):
        super().__init__(name, mean, std)
        planes: tuple[int, ...]
        if depth == 18:
            planes, blocks, skip, self.head_name = (64, 128, 256, 512), 2, "shortcut", "linear"
        else:
            planes, blocks, skip, self.head_name = (16, 32, 64), (depth - 2) // 6, "downsample", "fc"
        c = widen(planes[0], width)
        self.conv1 = conv(self.channels, c)
        self.bn1 = nn.BatchNorm2d(c)
        self.stages = [f"layer{i + 1}" for i in range(len(planes))]
        for stage, plane in zip(self.stages, planes, strict=True):
            c_in, c = c, widen(plane, width)
            first = Block(c_in, c, 1 if stage == "layer1" else 2, skip)
            self.add_module(stage, nn.Sequential(first, *(Block(c, c, 1, skip) for _ in range(blocks - 1))))
        self.head = nn.Linear(c, num_classes)

    def maps(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        for stage in self.stages:
            x = getattr(self, stage)(x)
        return x


class Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut, which is a 1x1 convolution where the shape changes.

    Args:
        skip: what the shortcut is called in published checkpoints.
    """

    def __init__(self, c_in: int, c_out: int, stride: int, skip: str):
        super().__init__()
        self.conv1 = conv(c_in, c_out, stride=stride)
        self.bn1 = nn.BatchNorm2d(c_out)
        self.conv2 = conv(c_out, c_out)
        self.bn2 = nn.BatchNorm2d(c_out)
        same = stride == 1 and c_in == c_out
        self.skip = skip
        self.add_module(skip, nn.Sequential(*([] if same else [conv(c_in, c_out, 1, stride), nn.BatchNorm2d(c_out)])))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)), inplace=True)))
        y += getattr(self, self.skip)(x)
        return F.relu(y, inplace=True)
