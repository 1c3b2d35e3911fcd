"""A network asked about images of which a square is new: what the square cannot change is not computed again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from gacd import noise
from gacd.attacks.windows import WHOLE, Frame, Network, Program, Window
from gacd.losses import gap
from gacd.models import Classifier

MEMORY = 2**30  # bytes that are kept at most; those of a forward come on top
AROUND = ("forward", "features", "normalised", "pooled", "classify")  # of a Classifier, whose `maps` alone are traced


def localised(model: Any, x: Tensor, chunk: int) -> Local | None:
    """The network with twice as many slots as a chunk has rows, or as many; None where it would be wrong or no gain.

    Windows are small beside maps: their forwards are fastest with more of them. For our own families; not on a GPU,
    where many small kernels take longer to launch than they save.

    Args:
        model: in eval mode.
        x: (B,C,H,W), images of the size that it will be asked about.
        chunk: rows of the network's other forwards.
    """
    if not isinstance(model, Classifier) or x.device.type != "cpu":
        return None
    own = all(getattr(type(model), name) is getattr(Classifier, name) for name in AROUND)
    if not own or model._forward_hooks or model._forward_pre_hooks:
        return None
    slot, (h, w) = torch.arange(2), x.shape[2:]
    z = noise.uniform(0, slot, tuple(x.shape[1:])).to(x.dtype)
    try:
        local = Local(model, len(slot), (h, w))
        if not local.smallest.saved:
            return None
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            for top, left, side in ((0, 0, max(h, w)), (0, 0, 1), (h - 1, w - 1, 1), (h // 3, w // 4, min(h, w) // 4)):
                z[:, :, top : top + side, left : left + side] = 1 - z[:, :, top : top + side, left : left + side]
                logits = local(z, slot, torch.tensor([[top, left, side]]).expand(2, 3))
                expected = model(z)
                if not bool((gap(logits, expected) <= 1e-4).all()):
                    return None
                local.keep(slot)
    except Exception:  # of any type: modules may have been changed for others, and not every code can be traced
        return None
    each = sum(kept.nbytes for kept in local.maps.values()) // len(slot)
    return next((Local(model, n, (h, w)) for n in (2 * chunk, chunk) if n * each <= MEMORY), None)


class Local:
    """A network that keeps the feature maps of some images.

    Args:
        model: in eval mode.
        slots: images that it keeps the maps of.
        size: height and width of the images.
    """

    def __init__(self, model: Classifier, slots: int, size: Sequence[int]):
        self.model, self.slots, self.size = model, slots, (size[0], size[1])
        self.network = Network(model)
        self.graph = fx.Tracer().trace(self.network)
        # For a square of one pixel, with the halvings that save most: it decides which maps are kept and where windows
        # lie. A larger square's program that would need others computes all.
        self.smallest = max((self._program(1, halvings) for halvings in range(3)), key=lambda program: program.saved)
        self.programs: dict[int, Program] = {}  # by the square's side, 0 for whole images
        self.maps: dict[fx.Node, Tensor] = {}  # (slots, H+2*ring, W+2*ring, C) each, with zeros around every map
        self.last: list[tuple[Tensor, Forward]] = []  # of the last call: the images' numbers, and their forward

    def __call__(self, z: Tensor, slot: Tensor, square: Tensor) -> Tensor:
        """Logits (B,K).

        Args:
            z: (B,C,H,W).
            slot: (B,) which of the kept images each is like, but for a square.
            square: (B,3) int64, its first row, first column and side; the whole image where none is kept yet.
        """
        sides = torch.where(square[:, 2] > WHOLE * min(self.size), 0, square[:, 2])
        logits, self.last = z.new_empty(0), []
        for side in sorted(set(sides.tolist())):
            if side not in self.programs:
                program = self._program(side, self.smallest.halvings)
                fits = program.crossed == self.smallest.crossed[: len(program.crossed)]
                fits = fits and set(program.kept) <= set(self.smallest.kept)
                self.programs[side] = program if fits else self._program(0, 0)
            where = (sides == side).nonzero()[:, 0]
            rows = torch.cat([where, where[-1:].expand(len(z) - len(where))])  # forwards of one shape
            run = Forward(self, self.programs[side], slot[rows], square[rows, :2])
            found = self.model.classify(self.model.pooled(run.maps(z, rows)))
            logits = logits if len(logits) else found.new_empty(len(z), found.shape[1])
            logits[where] = found[: len(where)]
            self.last.append((where, run))
        return logits

    def keep(self, which: Tensor) -> None:
        """Puts those of the last images that have the numbers (b,), each of another slot, in their slots' place."""
        for where, run in self.last:
            chosen = torch.isin(where, which).nonzero()[:, 0]
            if len(chosen):
                run.keep(chosen)

    def _program(self, square: int, halvings: int) -> Program:
        return Program(self.network, self.graph, self.size, square, halvings)


class Forward:
    """A forward of one program.

    Args:
        local: keeps the maps.
        program: for squares of one size.
        slot: (B,).
        corner: (B,2) of the squares.
    """

    def __init__(self, local: Local, program: Program, slot: Tensor, corner: Tensor):
        self.local, self.program, self.slot = local, program, slot
        self.values: dict[fx.Node, Any] = {}  # in their windows, or whole
        self.parts: dict[tuple[fx.Node, Window | None], Tensor] = {}
        self.inner: dict[fx.Node, Tensor] = {}  # values that are zero beyond the map
        self.masks: dict[tuple[int, int, torch.dtype], Tensor] = {}
        self.corners = [corner - (corner - program.residue()) % 2**program.halvings]
        for margin in program.crossed:
            self.corners.append((self.corners[-1] - margin) // 2)

    def maps(self, z: Tensor, rows: Tensor) -> Tensor:
        """The network's last maps of the images z (N,C,H,W) that have the numbers (B,)."""
        program, kept = self.program, self.local.smallest.kept
        window = program.places[program.input]
        self.values[program.input] = self.local.model.normalised(self._window(z, rows, window) if window else z[rows])
        for node, step, done in program.steps:
            self.values[node] = step(self)
            for old in done:
                if old not in kept:
                    del self.values[old]
        last = self.whole(program.output)
        self.parts.clear()
        return last

    def part(self, node: fx.Node, window: Window) -> Tensor:
        """(B,C,side,side) around the node's own window."""
        if (node, window) not in self.parts:
            own, maps = self.program.places[node], self._maps(node)
            assert own is not None
            found = _windows(maps, window.side, window.side, self._before(window))
            found = found.index_select(0, self._start(window.level, maps))
            found = found.view(-1, window.side, window.side, maps.shape[3]).permute(0, 3, 1, 2)
            inside = slice(window.margin - own.margin, window.margin - own.margin + own.side)
            self.inner[node] = found[:, :, inside, inside]
            torch.mul(self.values[node], self._mask(own, maps), out=self.inner[node])
            self.parts[node, window] = found
        return self.parts[node, window]

    def whole(self, node: fx.Node) -> Any:
        """All of its map, (B,C,H,W)."""
        window = self.program.places[node]
        if window is None:
            return self.values[node]
        if (node, None) not in self.parts:
            maps, frame, b = self._maps(node), self._frame(window.level), len(self.slot)
            (h, w), c = frame.size, maps.shape[3]
            found = maps.new_empty(b * h * w + 1, c)  # the last one for what is beyond the map
            first = self.slot * (maps.shape[1] * maps.shape[2])
            torch.index_select(_windows(maps, h, w, frame.ring), 0, first, out=found[:-1].view(b, h, w * c))
            found[self._cells(window)] = _pixels(self.values[node]).reshape(-1, c)
            self.parts[node, None] = found[:-1].view(b, h, w, c).permute(0, 3, 1, 2)
        return self.parts[node, None]

    def keep(self, chosen: Tensor) -> None:
        """Puts the images (b,) in their slots' place."""
        starts: dict[int, Tensor] = {}
        for node in self.local.smallest.kept:
            window, maps = self.program.places[node], self._maps(node)
            if window is None:
                ring = self._frame(self._level(node)).ring
                new = _pixels(self.values[node])[chosen]
                maps[self.slot[chosen]] = 0  # a broken network's ring too
                maps[self.slot[chosen], ring : ring + new.shape[1], ring : ring + new.shape[2]] = new
                continue
            if node not in self.inner:
                self.inner[node] = self.values[node] * self._mask(window, maps)
            if window.level not in starts:
                starts[window.level] = self._start(window.level, maps)[chosen]
            new = _pixels(self.inner[node]).index_select(0, chosen).view(len(chosen), window.side, -1)
            old = _windows(maps, window.side, window.side, self._before(window))
            old.index_copy_(0, starts[window.level], new)

    def _window(self, z: Tensor, rows: Tensor, window: Window) -> Tensor:
        """Of images z (N,C,H,W); beyond them, their last pixels once more."""
        c, h, w = z.shape[1:]
        place = self.corners[0][:, :, None] + torch.arange(window.side)  # its margin is 0
        row, column = place[:, 0].clamp(0, h - 1), place[:, 1].clamp(0, w - 1)
        first = (rows[:, None] * c + torch.arange(c)) * (h * w)
        cells = first[:, None, None] + (row[:, :, None] * w + column[:, None])[..., None]
        return z.reshape(-1).index_select(0, cells.flatten()).view(cells.shape).permute(0, 3, 1, 2)

    def _maps(self, node: fx.Node) -> Tensor:
        maps = self.local.maps
        if node not in maps:
            frame, value = self._frame(self._level(node)), self.values[node]
            h, w = (side + 2 * frame.ring for side in frame.size)
            maps[node] = value.new_zeros(self.local.slots, h, w, value.shape[1])
        return maps[node]

    def _level(self, node: fx.Node) -> int:
        window = self.local.smallest.places[node]
        assert window is not None
        return window.level

    def _frame(self, level: int) -> Frame:
        return self.local.smallest.frames[level]

    def _before(self, window: Window) -> int:
        """From where `_start` counts to the window, in rows and in columns."""
        frame = self._frame(window.level)
        return frame.ring - frame.least - window.margin

    def _start(self, level: int, maps: Tensor) -> Tensor:
        """Numbers (B,) of the corners among the pixels of all maps, each less the frame's `least`, plus `_before`."""
        corner = self.corners[level] + self._frame(level).least
        return (self.slot * maps.shape[1] + corner[:, 0]) * maps.shape[2] + corner[:, 1]

    def _mask(self, window: Window, maps: Tensor) -> Tensor:
        """(B,C,side,side): 1 on the map, 0 beyond."""
        frame, key = self.program.frames[window.level], (window.level, maps.shape[3], maps.dtype)
        if key not in self.masks:
            inside = self._place(Window(window.level, frame.margin, frame.margin + frame.end))[1].to(maps.dtype)
            self.masks[key] = inside[..., None].expand(-1, -1, -1, maps.shape[3]).contiguous().permute(0, 3, 1, 2)
        part = slice(frame.margin - window.margin, frame.margin - window.margin + window.side)
        return self.masks[key][:, :, part, part]

    def _cells(self, window: Window) -> Tensor:
        """Numbers (B*side*side,) of pixels in the maps one after the other; what is beyond comes after the last."""
        (h, w), (place, inside) = self._frame(window.level).size, self._place(window)
        row = torch.arange(len(place))[:, None] * h + place[:, 0]
        return torch.where(inside, row[:, :, None] * w + place[:, 1, None], len(place) * h * w).flatten()

    def _place(self, window: Window) -> tuple[Tensor, Tensor]:
        """The window's rows and columns (B,2,side), and whether its pixels are on the map, (B,side,side)."""
        place = self.corners[window.level][:, :, None] + (torch.arange(window.side) - window.margin)
        inside = (place >= 0) & (place < torch.tensor(self._frame(window.level).size)[:, None])
        return place, inside[:, 0, :, None] & inside[:, 1, None]


def _pixels(x: Tensor) -> Tensor:
    """(B,C,H,W) -> (B,H,W,C)."""
    return x.permute(0, 2, 3, 1)


def _windows(maps: Tensor, h: int, w: int, before: int) -> Tensor:
    """All windows (N,h,w*C) of maps (slots,H,W,C): number n is `before` rows and columns after pixel n of all."""
    width, c = maps.shape[2:]
    first, reach = before * (width + 1) * c, ((h - 1) * width + w) * c
    return maps.as_strided(((maps.numel() - first - reach) // c + 1, h, w * c), (c, width * c, 1), first)
