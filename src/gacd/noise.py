"""Random numbers as a pure function of (key, index): no generator, no state.

A key is made of the seed, a purpose and the epoch; the index is the image's. So neither the order of the images, nor
the number of processes, nor a resume changes what is drawn, and the bits are the same on every device; but `normal`
takes logarithms and cosines, which round as the device does.
The hash is a 32-bit multiply-and-xorshift finaliser with the constants of Wellons' hash-prospector, over a counter.
"""

import hashlib
import math

import torch
from torch import Tensor


def uniform(key: int, index: Tensor, shape: tuple[int, ...] = ()) -> Tensor:
    """Uniform on [0, 1), float32, multiples of 2^-24.

    Args:
        key: from `key`.
        index: (B,) integers, one an image.
        shape: of one image's numbers.

    Returns:
        (B, *shape) on index's device.
    """
    words = bits(key, index, math.prod(shape))
    return words.bitwise_and_(0xFFFFFF).float().mul_(2.0**-24).view(len(index), *shape)


def normal(key: int, index: Tensor, shape: tuple[int, ...] = ()) -> Tensor:
    """Standard normal, float32 (Box and Muller's pairs): arguments and shape as for `uniform`."""
    n = math.prod(shape)
    u = uniform(key, index, (2, (n + 1) // 2))
    radius = (1 - u[:, 0]).log_().mul_(-2).sqrt_()
    angle = u[:, 1] * (2 * math.pi)
    return torch.cat([radius * angle.cos(), radius * angle.sin()], 1)[:, :n].view(len(index), *shape)


def permutation(key: int, n: int, device: torch.device | str | None = None) -> Tensor:
    """A random order of 0..n-1, (n,) int64: the argsort of n hashes, ties (2^-32 each) by position."""
    return bits(key, torch.zeros(1, dtype=torch.int32, device=device), n)[0].argsort(stable=True)


def key(*parts: int | str) -> int:
    """A signed 32-bit key from any integers and strings, such as (seed, "start", epoch)."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:4], "little", signed=True)


def fingerprint(x: Tensor) -> Tensor:
    """(B,) int32 made from the images' own bits: stands in for an index where there is none."""
    words = x.detach().float().contiguous().flatten(1).view(torch.int32)
    place = torch.arange(words.shape[1], dtype=torch.int32, device=x.device)
    return _mix(words ^ _mix(place)).sum(1, dtype=torch.int32)


def bits(key: int, index: Tensor, n: int) -> Tensor:
    """n hashed 32-bit words an image, (B, n) int32."""
    row = _mix(_mix(index.to(torch.int32)[:, None]) ^ key)
    counter = torch.arange(n, dtype=torch.int32, device=index.device) * -1640531527  # 2^32 / golden ratio: Weyl
    return _mix(row + counter)


def _mix(h: Tensor) -> Tensor:
    for shift, mask, factor in ((16, 0xFFFF, 0x21F0AAAD), (15, 0x1FFFF, 0xD35A2D97 - 2**32)):
        h = torch.bitwise_right_shift(h, shift).bitwise_and_(mask).bitwise_xor_(h).mul_(factor)
    return torch.bitwise_right_shift(h, 15).bitwise_and_(0x1FFFF).bitwise_xor_(h)
