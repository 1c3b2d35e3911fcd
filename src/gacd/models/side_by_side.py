"""Convolutions of small feature maps for attacks: many images side by side in one wide map, on CPUs with AMX.

oneDNN reads a convolution's filters again for each image. Where they outgrow the second cache and the maps are small,
that takes longer than such a CPU computes: side by side, 4x4 maps of 512 channels take half the time in bfloat16 and
two thirds in float32. With AVX2 alone they take longer.
"""

from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_input

CACHE = 2**21  # bytes: such processors' second cache, or twice that
SMALL = {torch.float32: 16, torch.bfloat16: 64}  # pixels of a map; in larger ones the filters are used often enough
FEW, WIDEST = 8, 256  # images and columns: fewer would gain little, wider maps are slower again


def lay_side_by_side(conv: nn.Module) -> None:
    """Lets a 3x3 convolution do so where that is faster, if it is one; no gradient reaches its parameters then."""
    vars(conv).pop("_conv_forward", None)  # of what it may have been before
    if type(conv) is not nn.Conv2d or conv.padding_mode != "zeros" or conv.stride not in ((1, 1), (2, 2)):
        return
    if (conv.kernel_size, conv.padding, conv.dilation, conv.groups) == ((3, 3), (1, 1), (1, 1), 1):
        conv._conv_forward = partial(_convolved, conv.stride[0])  # type: ignore[method-assign]


def _convolved(stride: int, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """(B,C,H,W) -> (B, C', H/stride, W/stride), rounded up."""
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
    images = _images(stride, x, weight, dtype)
    if images == 1:
        return F.conv2d(x, weight, bias, stride, 1)
    weight, bias = weight.to(dtype), None if bias is None else bias.to(dtype)
    result: Tensor = _SideBySide.apply(x.to(dtype), weight, bias, stride, images)
    return result


def _images(stride: int, x: Tensor, weight: Tensor, dtype: torch.dtype) -> int:
    """How many of x (B,C,H,W) stand side by side in a wide map, for filters (C',C,3,3) in a computation in dtype."""
    if x.device.type != "cpu" or torch.compiler.is_compiling() or x.ndim != 4 or x.dtype not in SMALL:
        return 1
    if len(x) < FEW or not x.is_contiguous(memory_format=torch.channels_last):  # as its result will be
        return 1
    height, width = x.shape[-2:]
    small = -(-height // stride) * -(-width // stride) <= SMALL.get(dtype, 0) and width % stride == 0
    if not small or weight.numel() * dtype.itemsize <= CACHE or not _outpaces():
        return 1
    most = max(k for k in range(1, WIDEST // (width + stride) + 1) if len(x) % k == 0)
    return most if most >= FEW else 1


@cache
def _outpaces() -> bool:
    """Whether the processor has AMX, and so computes faster than it reads filters from beyond its second cache."""
    probe = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return bool(probe and probe())


class _SideBySide(torch.autograd.Function):
    """A function of its own, lest the wide map is kept for the gradient, which does not need it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, images: int) -> Tensor:
        wide = _joined(x, images, stride)
        ctx.save_for_backward(weight)
        ctx.stride, ctx.images, ctx.width, ctx.wide = stride, images, x.shape[-1], wide.shape
        return _parted(F.conv2d(wide, weight, bias, stride, 1), images, x.shape[-1] // stride)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        (weight,) = ctx.saved_tensors
        wide = conv2d_input(ctx.wide, weight, _joined(gradient, ctx.images, 1), ctx.stride, 1)
        return _parted(wide, ctx.images, ctx.width), None, None, None, None


def _joined(x: Tensor, images: int, gap: int) -> Tensor:
    """(B,C,H,W) -> (B/images, C, H, images x (W+gap)), channels_last, with zeros in the gaps."""
    b, c, h, w = x.shape
    wide = x.new_zeros(b // images, h, images, w + gap, c)
    wide[:, :, :, :w] = x.permute(0, 2, 3, 1).reshape(b // images, images, h, w, c).transpose(1, 2)
    return wide.view(b // images, h, -1, c).permute(0, 3, 1, 2)


def _parted(wide: Tensor, images: int, width: int) -> Tensor:
    """What was joined, if images of that width; channels_last."""
    n, c, h, _ = wide.shape
    x = torch.empty(n * images, c, h, width, dtype=wide.dtype, memory_format=torch.channels_last)
    parts = wide.permute(0, 2, 3, 1).view(n, h, images, -1, c)[:, :, :, :width].transpose(1, 2)
    x.permute(0, 2, 3, 1).view(n, images, h, width, c).copy_(parts)
    return x
