"""A network asked about images of which a square is new: what the square cannot change is not computed again.

A 3x3 convolution carries a change one pixel further, so most of the first feature maps stays what it was.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from gacd import noise
from gacd.models import Classifier

STEP = 5  # pixels; squares are rounded up to a multiple, since each size is a forward of its own
WHOLE = 0.7  # of a map's side: where a window is larger, the map is computed whole
KNOWN = ("gacd.models.", "torch.nn.")  # whose modules do the same whatever they see
MEMORY = 2**30  # bytes that are kept at most; those of a forward come on top

Size = Sequence[int]  # height, width


def localised(model: Any, x: Tensor) -> Local | None:
    """The network with a slot for each of the images x (B,C,H,W); None where it would be wrong, or not worth it.

    For our own families: what a network does must not depend on the images, which no try can show. Not on a GPU, where
    many small kernels take longer to launch than they save.
    """
    side = min(x.shape[2:])
    if not isinstance(model, Classifier) or x.device.type != "cpu" or _grown(STEP, (1,)) > WHOLE * side:
        return None
    if not all(type(module).__module__.startswith(KNOWN) for module in model.modules()):
        return None
    slot = torch.arange(2)
    local, z = Local(model, len(slot)), noise.uniform(0, slot, tuple(x.shape[1:])).to(x.dtype)
    try:
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            for corner, pixels in ((0, side), (0, 1), (side - 1, 1), (side // 3, STEP), (side // 4, STEP + 1)):
                square = torch.tensor([[corner, corner, pixels]]).expand(len(z), 3)
                inside = slice(corner, corner + pixels)
                z[:, :, inside, inside] = 1 - z[:, :, inside, inside]
                logits, expected = local(z, slot, square), model(z)
                if not bool((logits - expected).abs().max() <= 1e-4 * expected.abs().max()):
                    return None
                local.keep(slot)
    except Exception:  # of any type: modules may have been changed for others
        return None
    size = sum(kept.nbytes for kept in local.maps) // len(z) * len(x)
    return Local(model, len(x)) if len(local.maps) > 1 and size <= MEMORY else None


class Local:
    """A network that keeps the feature maps of some images.

    Args:
        model: images (B,C,H,W) -> logits (B,K), in eval mode, no image's depending on another.
        slots: images that it keeps the maps of.
    """

    def __init__(self, model: Callable[[Any], Any], slots: int):
        self.model, self.slots = model, slots
        self.maps: list[Tensor] = []  # (slots * (H+2) * (W+2), C) each, with zeros around every map
        self.slot = torch.empty(0)  # (B,) of the present forward's images, and what it has seen of the maps
        self.seen: list[tuple[Tensor, Tensor, Size]] = []  # window, corner, size
        self.last: list[tuple[Tensor, Tensor, list[tuple[Tensor, Tensor, Size]]]] = []  # rows, slot, seen

    def __call__(self, z: Tensor, slot: Tensor, square: Tensor) -> Tensor:
        """Logits (B,K).

        Args:
            z: (B,C,H,W).
            slot: (B,) which of the kept images each is like, but for a square.
            square: (B,3) int64, its first row, first column and side; the whole image where none is kept yet.
        """
        size = z.shape[2:]
        sides = -(square[:, 2] // -STEP) * STEP
        sides = torch.where(sides > WHOLE * min(size), max(size), sides)
        logits, self.last = z.new_empty(0), []
        for side in sorted(set(sides.tolist()), reverse=True):
            where = (sides == side).nonzero()[:, 0]
            rows = torch.cat([where, where[-1:].expand(len(z) - len(where))])  # forwards of one shape
            corner = torch.minimum(square[rows, :2], torch.tensor(size) - side).clamp_min(0)
            window = z[rows] if side == max(size) else _cut(_pixels(z), size, rows, corner, (side, side))
            self.slot, self.seen = slot[rows], []
            found = _plain(self.model(Map(self, window, corner, size)))
            logits = logits if len(logits) else found.new_empty(len(z), found.shape[1])
            logits[where] = found[: len(where)]
            self.last.append((rows, self.slot, self.seen))
        return logits

    def keep(self, which: Tensor) -> None:
        """Puts those of the last images that have the numbers (b,), each of another slot, in their slots' place."""
        for rows, slot, seen in self.last:
            chosen = torch.isin(rows, which)
            if chosen.any():
                for kept, (window, corner, size) in zip(self.maps, seen, strict=True):
                    start = _start(slot[chosen], corner[chosen] + 1, _ringed(size))
                    kept[_cells(start, window.shape[2:], _ringed(size))] = _pixels(window[chosen])


class Map:
    """Feature maps (B,C,H,W) that differ from the kept ones in a window each; functions take it as they take a tensor.

    Args:
        local: the network that keeps the rest of it.
        window: (B,C,h,w).
        corner: (B,2), its first row and column.
        size: H and W.
        path: strides of the convolutions that led here, on which the window's side depends.
    """

    def __init__(self, local: Local, window: Tensor, corner: Tensor, size: Size, path: tuple[int, ...] = ()):
        self.local, self.window, self.corner, self.size, self.path = local, window, corner, tuple(size), path
        self._number: int | None = None

    @property
    def kept(self) -> Tensor:
        """The map of the local's that holds the rest, from now on: every forward asks for the same ones in turn."""
        if self._number is None:
            self._number = len(self.local.seen)
            self.local.seen.append((self.window, self.corner, self.size))
            if len(self.local.seen) > len(self.local.maps):
                h, w = _ringed(self.size)
                self.local.maps.append(self.window.new_zeros(self.local.slots * h * w, self.window.shape[1]))
        return self.local.maps[self._number]

    def like(self, window: Tensor) -> Map:
        return Map(self.local, window, self.corner, self.size, self.path)

    def tensor(self) -> Tensor:
        """All of it, (B,C,H,W)."""
        return self.region(torch.zeros_like(self.corner), self.size)

    def region(self, corner: Tensor, size: Size) -> Tensor:
        """A window (B,C,h,w) around its own; it may begin one pixel before the map and end one after it."""
        kept = self.kept
        if self.window.shape[2:] == self.size:
            return self.window
        found = _cut(kept, _ringed(self.size), self.local.slot, corner + 1, size)
        start = _start(torch.arange(len(corner)), self.corner - corner, size)
        _pixels(found)[_cells(start, self.window.shape[2:], size)] = _pixels(self.window)
        return found

    def filtered(self, stride: int, compute: Callable[[Tensor, bool], Tensor]) -> Map | Tensor:
        """By 3x3 pixels; `compute` is given images with what lies around them or, if True, without."""
        size = [(side - 1) // stride + 1 for side in self.size]
        path, limit = (*self.path, stride), WHOLE * min(size)
        side = _grown(self.window.shape[2], (stride,))
        if self.window.shape[2:] == self.size or side > limit:
            found = compute(self.tensor(), True)
            if _grown(STEP, path) > limit:  # so is the smallest square's
                return found
            return Map(self.local, found, torch.zeros_like(self.corner), size, path)
        corner = self.corner - 1 if stride == 1 else self.corner // 2
        corner = torch.minimum(corner, torch.tensor(size) - side).clamp_min(0)
        around = (side - 1) * stride + 3
        found = compute(self.region(corner * stride - 1, (around, around)), False)
        return Map(self.local, found, corner, size, path)

    def dim(self) -> int:
        return self.window.dim()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tensor(), name)

    def __add__(self, other: Any) -> Any:
        return torch.add(self, other)  # type: ignore[call-overload]

    def __sub__(self, other: Any) -> Any:
        return torch.sub(self, other)  # type: ignore[call-overload]

    def __mul__(self, other: Any) -> Any:
        return torch.mul(self, other)  # type: ignore[arg-type]

    def __truediv__(self, other: Any) -> Any:
        return torch.div(self, other)  # type: ignore[arg-type]

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        rule = RULES.get(function)
        found = rule(function, *args, **(kwargs or {})) if rule else NotImplemented
        return function(*_plain(args), **(kwargs or {})) if found is NotImplemented else found


def _each_pixel(function: Any, x: Map, *args: Any, **kwargs: Any) -> Any:
    return x.like(function(x.window, *args, **kwargs))


def _batch_norm(function: Any, x: Map, *args: Any, training: bool, **kwargs: Any) -> Any:
    return NotImplemented if training else x.like(function(x.window, *args, training=False, **kwargs))


def _conv(
    function: Any, x: Map, weight: Any, bias: Any, stride: Any, padding: Any, dilation: Any = (1, 1), groups: int = 1
) -> Any:
    kind = (*weight.shape[2:], *padding, *dilation)
    if (*kind, *stride) == (1, 1, 0, 0, 1, 1, 1, 1):
        return x.like(function(x.window, weight, bias, groups=groups))
    if kind == (3, 3, 1, 1, 1, 1) and stride in ((1, 1), (2, 2)):
        return x.filtered(stride[0], lambda z, bare: function(z, weight, bias, stride, int(bare), 1, groups))
    return NotImplemented


def _pool(function: Any, x: Map, kernel: Any, stride: Any = None, *args: Any) -> Any:
    if (kernel, stride, args) != (1, 2, ()):
        return NotImplemented
    return x.filtered(2, lambda z, bare: z[:, :, ::2, ::2] if bare else z[:, :, 1::2, 1::2])


def _both(function: Any, a: Any, b: Any) -> Any:
    if isinstance(a, Map) and (not isinstance(b, Map | Tensor) or (isinstance(b, Tensor) and b.shape[-2:] == (1, 1))):
        return a.like(function(a.window, b))
    if not (isinstance(a, Map) and isinstance(b, Map)):
        return NotImplemented
    short, long = sorted((a, b), key=lambda each: len(each.path))
    if long.path[: len(short.path)] != short.path:
        return NotImplemented
    if short.path == long.path:
        return a.like(function(a.window, b.window))
    wide = short.region(long.corner, long.window.shape[2:])
    return long.like(function(wide, b.window) if short is a else function(a.window, wide))


RULES: dict[Any, Callable[..., Any]] = {
    torch.conv2d: _conv,
    F.avg_pool2d: _pool,
    F.batch_norm: _batch_norm,
    F.relu: _each_pixel,
    F.silu: _each_pixel,
    **dict.fromkeys((torch.add, torch.sub, torch.mul, torch.div), _both),
}


def _grown(side: int, path: tuple[int, ...]) -> int:
    """What windows of a side become after 3x3 convolutions of these strides."""
    for stride in path:
        side = side + 2 if stride == 1 else (side + 1) // 2 + 1
    return side


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(map(_plain, value))
    return value.tensor() if isinstance(value, Map) else value


def _ringed(size: Size) -> Size:
    return size[0] + 2, size[1] + 2


def _pixels(window: Tensor) -> Tensor:
    """(B,C,h,w) -> (B*h*w,C), a view if channels_last."""
    return window.permute(0, 2, 3, 1).reshape(-1, window.shape[1])


def _cut(pixels: Tensor, size: Size, image: Tensor, corner: Tensor, side: Size) -> Tensor:
    """Windows (B,C,*side), channels_last, of images (B,) of a size, whose pixels (N,C) are one after the other."""
    c, reach = pixels.shape[1], (side[0] - 1) * size[1] + side[1]
    every = pixels.as_strided((len(pixels) - reach + 1, side[0], side[1] * c), (c, size[1] * c, 1))
    return every.index_select(0, _start(image, corner, size)).view(-1, *side, c).permute(0, 3, 1, 2)


def _start(image: Tensor, corner: Tensor, size: Size) -> Tensor:
    """Numbers (B,) of pixels (B,2) among all of images (B,) of a size."""
    return (image * size[0] + corner[:, 0]) * size[1] + corner[:, 1]


def _cells(start: Tensor, side: Size, size: Size) -> Tensor:
    """Numbers of the pixels in windows that begin at some (B,), images being of a size: (B*h*w,)."""
    return (start[:, None] + _pattern(*side, size[1])).flatten()


@cache
def _pattern(h: int, w: int, width: int) -> Tensor:
    return (torch.arange(h)[:, None] * width + torch.arange(w)).flatten()
