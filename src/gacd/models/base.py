"""What every network is: pixels in, features and a linear head."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gacd.errors import InputError


class Classifier(nn.Module):
    """A network on pixels in [0,1]: `head(features(x))`.

    A family sets `head_name` to where the published checkpoints keep the head, fills `head` and defines `maps`.
    Activations and sums overwrite what nothing else uses: a hook that keeps a batch norm's output should copy it.

    Args:
        name: canonical, from `parse`.
        mean: per channel, subtracted from the pixels.
        std: per channel, divides them.
    """

    head_name = "fc"
    mean: Tensor
    std: Tensor

    def __init__(self, name: str, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        numbers = [*mean, *std]
        if not (0 < len(mean) == len(std) <= 64 and all(map(math.isfinite, numbers)) and min(std) > 0):
            raise InputError("mean and std need one finite number per channel, std above 0", f"{mean}, {std}")
        self.name = name
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Pixels (B, C, H, W) in [0,1], H and W from 8 to 96 -> logits (B, num_classes)."""
        return self.classify(self.features(x))

    def classify(self, features: Tensor) -> Tensor:
        """Features (B, feature_dim) -> logits (B, num_classes), in autocast too of the head's own type."""
        with torch.autocast(features.device.type, enabled=False):  # in bfloat16 most small changes round to none
            return self.head(features.to(self.head.weight.dtype))

    def features(self, x: Tensor) -> Tensor:
        """Pixels (B, C, H, W) in [0,1] -> the penultimate features (B, feature_dim)."""
        return self.pooled(self.maps(self.normalised(x)))

    def normalised(self, x: Tensor) -> Tensor:
        """What the first layer sees of pixels (B, C, H, W) in [0,1], with the same shape."""
        return (x - self.mean) / self.std

    def pooled(self, maps: Tensor) -> Tensor:
        """The last feature maps (B, feature_dim, h, w) -> the penultimate features (B, feature_dim)."""
        pixels = maps.permute(0, 2, 3, 1).flatten(1, 2)  # so that the gradient is channels_last too
        return pixels.mean(1, dtype=torch.promote_types(maps.dtype, torch.float32))

    def maps(self, x: Tensor) -> Tensor:
        """Normalised images (B, C, H, W) -> the last feature maps (B, feature_dim, h, w)."""
        raise TypeError(f"{type(self).__name__} defines no maps(x)")

    @property
    def head(self) -> nn.Linear:
        """Features (B, feature_dim) -> logits (B, num_classes)."""
        return cast(nn.Linear, self.get_submodule(self.head_name))

    @head.setter
    def head(self, linear: nn.Linear) -> None:
        parent, _, leaf = self.head_name.rpartition(".")
        setattr(self.get_submodule(parent), leaf, linear)

    def __setattr__(self, name: str, value: Any) -> None:
        # nn.Module would register a second module, "head", instead of calling the property.
        if name == "head":
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    @property
    def num_classes(self) -> int:
        return self.head.out_features

    @property
    def feature_dim(self) -> int:
        return self.head.in_features

    @property
    def channels(self) -> int:
        return len(self.mean)

    def fresh_head(self, num_classes: int) -> None:
        """Replaces the head, in place, by a new one for other classes."""
        weight = self.head.weight
        self.head = nn.Linear(self.feature_dim, num_classes, device=weight.device, dtype=weight.dtype)

    def config(self) -> dict[str, Any]:
        """What `build(**config)` needs to make this network again."""
        mean, std = _floats(self.mean), _floats(self.std)
        return {"name": self.name, "num_classes": self.num_classes, "mean": mean, "std": std}


def classify(network: Any, features: Tensor) -> Tensor:
    """Features (B, feature_dim) -> logits (B, num_classes) of a Classifier, or of one's own network with a `head`."""
    return getattr(network, "classify", network.head)(features)


def conv(
    c_in: int, c_out: int, kernel: int = 3, stride: int = 1, groups: int = 1, padding: int | None = None
) -> nn.Conv2d:
    """A convolution without bias, padded to keep the size, with He et al.'s initialisation over the fan-out."""
    padding = kernel // 2 if padding is None else padding
    if (kernel, groups, padding) == (1, 1, 0) and stride > 1:
        module: nn.Conv2d = Thinned(c_in, c_out, stride)
    else:
        module = nn.Conv2d(c_in, c_out, kernel, stride, padding, groups=groups, bias=False)
    if not module.weight.is_meta:  # a shape only; torch would import its compiler (4 s) to fill it
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return module


def widen(channels: int, width: float) -> int:
    return max(1, round(channels * width))


def _floats(values: Tensor) -> list[float]:
    """The shortest decimals that are the same in float32: 0.4914 rather than 0.49140000343322754."""
    return [float(str(value)) for value in values.detach().flatten().float().cpu().numpy()]


class Thinned(nn.Conv2d):
    """A 1x1 convolution with stride `every`: what nn.Conv2d(c_in, c_out, 1, every, bias=False) computes.

    On AVX2 processors torch 2.13 writes the weights' gradient of that one past its end where c_in < 8. And unlike a
    slice's, a pooling's gradient is channels_last where x is.
    """

    def __init__(self, c_in: int, c_out: int, every: int):
        super().__init__(c_in, c_out, 1, bias=False)
        self.every = every

    def forward(self, x: Tensor) -> Tensor:
        # On a GPU the pooling takes a fifth of a ResNet-18's attack step, unless torch.compile fuses it.
        if next(self.parameters()).is_cuda and not torch.compiler.is_compiling():
            return F.conv2d(x, self.weight, self.bias, self.every)
        return super().forward(F.avg_pool2d(x, 1, self.every))
