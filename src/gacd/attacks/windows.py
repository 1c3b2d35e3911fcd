"""What of a network's feature maps is computed for images that changed in a square: windows, growing layer by layer.

A 3x3 convolution carries a change one pixel further. So a map is needed in a window around the square, made from a
larger part of the map before, which beyond its own window is what it was. Windows may reach beyond the map, where all
is zero as padding is: so they lie alike around the corners of all images.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from gacd.models import Classifier

if TYPE_CHECKING:
    from gacd.attacks.local import Forward

WHOLE = 0.8  # of a map's side: where a window is larger, the map is computed whole
SMALL = 12  # pixels a side: and where the map is smaller than this

Step = Callable[["Forward"], Any]  # gives a node's value


@dataclass
class Frame:
    """Maps of one resolution; windows lie around a corner in each of them.

    Attributes:
        size: height and width.
        least: no corner's row or column is below minus this.
        last: nor above the size plus this.
        margin, end: pixels before the corner and from there on that windows have at most.
    """

    size: tuple[int, int]
    least: int
    last: int = -1
    margin: int = 0
    end: int = 0

    def hold(self, window: Window) -> Window:
        """The window, which will be used."""
        self.margin, self.end = max(self.margin, window.margin), max(self.end, window.side - window.margin)
        return window

    @property
    def ring(self) -> int:
        """How far windows may reach beyond a map."""
        return max(self.least + self.margin, self.last + self.end)


class Window(NamedTuple):
    """`side` x `side` pixels, the first of them `margin` rows and columns before the corner of the frame `level`."""

    level: int
    margin: int
    side: int


class Network(nn.Module):
    """From normalised images to the last maps."""

    def __init__(self, model: Classifier):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model.maps(x)


class Program:
    """A network's steps where a square has changed.

    Args:
        network: in eval mode; its weights are used as they are, and under autocast as that casts them.
        graph: of it, traced.
        size: of the images.
        square: pixels a side; 0 if all is new.
        halvings: of the resolution that windows go through at most.

    Attributes:
        places: of each node the window that is computed, or None for all.
        steps: nodes in their order, what each is made by, and which ones nothing needs after it.
        kept: nodes of which more is read than their windows.
        frames: by resolution.
        crossed: of each frame but the last, the margin of the windows that lead to the next: whose corner is half of
            this one's less the margin.
        saved: multiplications an image that are not made.
    """

    def __init__(self, network: Network, graph: fx.Graph, size: tuple[int, int], square: int, halvings: int):
        self.halvings, self.saved = halvings, 0
        self.places: dict[fx.Node, Window | None] = {}
        self.steps: list[tuple[fx.Node, Step, list[fx.Node]]] = []
        self.kept: list[fx.Node] = []
        self.frames = [Frame(size, 2**halvings - 1)]
        self.crossed: list[int] = []
        known: dict[fx.Node, Any] = {}
        for node in graph.nodes:
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda x: known.get(x, x))
            if node.op == "placeholder":
                self.input = node
                self.places[node] = self.fitting(Window(0, 0, square + 2**halvings - 1)) if square else None
            elif node.op == "get_attr":
                known[node] = operator.attrgetter(node.target)(network)
            elif node.op == "output":
                self.output = self.keep(args[0])
            else:
                function, kind = _called(network, node)
                made = RULES.get(kind, _anything)(self, function, *args, **kwargs)
                self.places[node], step = made or _anything(self, function, *args, **kwargs)
                done = [x for x in node.all_input_nodes if x in self.places and max(x.users) is node]
                self.steps.append((node, step, done))

    def residue(self) -> int:
        """Of the first corners modulo 2**halvings, so that those of every frame are whole numbers."""
        return sum(margin << level for level, margin in enumerate(self.crossed))

    def fitting(self, window: Window) -> Window | None:
        """The window, to be used from now on, unless it is nearly all of the map."""
        frame = self.frames[window.level]
        too_large = window.side > WHOLE * min(frame.size) or min(frame.size) < SMALL
        return None if too_large else frame.hold(window)

    def reading(self, node: fx.Node, window: Window) -> Step:
        """What gives a window that holds the node's own."""
        if window == self.places[node]:
            return lambda run: run.values[node]
        self.frames[window.level].hold(window)
        self.keep(node)
        return lambda run: run.part(node, window)

    def keep(self, node: fx.Node) -> fx.Node:
        """Notes that more of it is needed than what is computed."""
        if self.places[node] and node not in self.kept:
            self.kept.append(node)
        return node

    def filtered(
        self, node: fx.Node, stride: int, cost: int, compute: Callable[[Tensor, int], Tensor]
    ) -> tuple[Window | None, Step]:
        """By 3x3 pixels; `compute` is given a map and the zeros that it has to put around.

        Args:
            cost: multiplications a pixel.
        """
        place = self.places[node]
        made = self.grown(place, stride) if place else None
        if not (place and made):
            self.keep(node)
            return None, lambda run: compute(run.whole(node), 1)
        h, w = self.frames[made.level].size
        self.saved += cost * (h * w - made.side**2)
        part = self.reading(node, Window(place.level, place.margin + 3 - stride, (made.side - 1) * stride + 3))
        return made, lambda run: compute(part(run), 0)

    def grown(self, place: Window, stride: int) -> Window | None:
        """What a filter of 3x3 pixels makes of it."""
        if stride == 1:
            return self.fitting(Window(place.level, place.margin + 1, place.side + 2))
        level = place.level + 1
        if level == len(self.frames) <= self.halvings:
            frame, margin = self.frames[-1], place.margin
            h, w = ((side + 1) // 2 for side in frame.size)
            self.frames.append(Frame((h, w), (frame.least + margin + 1) // 2, (frame.last - margin) // 2))
            self.crossed.append(place.margin)
        if level == len(self.frames) or self.crossed[place.level] != place.margin:
            return None
        return self.fitting(Window(level, 0, place.side // 2 + 1))


def _called(network: nn.Module, node: fx.Node) -> tuple[Callable[..., Any], Any]:
    """What the node calls, and under what `RULES` has it, if so."""
    if node.op == "call_module":
        module = network.get_submodule(str(node.target))
        return module, None if module._forward_hooks or module._forward_pre_hooks else type(module)
    if node.op == "call_method":
        return lambda x, *args, **kwargs: getattr(x, str(node.target))(*args, **kwargs), None
    return node.target, node.target  # type: ignore[return-value]


def _anything(program: Program, function: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[None, Step]:
    fx.node.map_arg((args, kwargs), program.keep)
    return None, lambda run: function(*fx.node.map_arg(args, run.whole), **fx.node.map_arg(kwargs, run.whole))


def _each_pixel(program: Program, function: Callable[..., Any], x: Any, *args: Any, **kwargs: Any) -> Any:
    return program.places[x], lambda run: function(run.values[x], *args, **kwargs)


def _batch_norm(program: Program, norm: nn.BatchNorm2d, x: fx.Node) -> Any:
    return None if norm.training or norm.running_mean is None else _each_pixel(program, norm, x)


def _conv_module(program: Program, conv: nn.Conv2d, x: fx.Node) -> Any:
    if conv.padding_mode != "zeros":
        return None
    return _conv(
        program, torch.conv2d, x, conv.weight, conv.bias, conv.stride, conv.padding, conv.dilation, conv.groups
    )


def _conv(
    program: Program,
    function: Callable[..., Any],
    x: fx.Node,
    weight: Tensor,
    bias: Any,
    stride: Any,
    padding: Any,
    dilation: Any = (1, 1),
    groups: int = 1,
) -> Any:
    if torch.is_autocast_enabled("cpu"):  # once instead of in every forward
        dtype = torch.get_autocast_dtype("cpu")
        weight, bias = weight.to(dtype), None if bias is None else bias.to(dtype)
    kind = (*weight.shape[2:], *padding, *dilation)
    if (*kind, *stride) == (1, 1, 0, 0, 1, 1, 1, 1):
        return _each_pixel(program, function, x, weight, bias, groups=groups)
    if kind == (3, 3, 1, 1, 1, 1) and stride in ((1, 1), (2, 2)):
        return program.filtered(
            x, stride[0], weight.numel(), lambda z, zeros: function(z, weight, bias, stride, zeros, 1, groups)
        )
    return None


def _pool(
    program: Program,
    function: Callable[..., Any],
    x: fx.Node,
    kernel: Any,
    stride: Any = None,
    *args: Any,
    **kwargs: Any,
) -> Any:
    if (kernel, stride, args, kwargs) != (1, 2, (), {}):
        return None
    return program.filtered(x, 2, 0, lambda z, zeros: function(z if zeros else z[:, :, 1:-1, 1:-1], 1, 2))


def _both(program: Program, function: Callable[..., Any], a: Any, b: Any) -> Any:
    one, other = (program.places.get(x) if isinstance(x, fx.Node) else None for x in (a, b))
    if not (one and other and one.level == other.level):
        return None
    margin = max(one.margin, other.margin)
    end = max(one.side - one.margin, other.side - other.margin)
    window = program.fitting(Window(one.level, margin, margin + end))
    if not window:
        return None
    left, right = program.reading(a, window), program.reading(b, window)
    return window, lambda run: function(left(run), right(run))


RULES: dict[Any, Callable[..., Any]] = {
    nn.Conv2d: _conv_module,
    torch.conv2d: _conv,
    F.avg_pool2d: _pool,
    nn.BatchNorm2d: _batch_norm,
    **dict.fromkeys((nn.Identity, nn.ReLU, nn.SiLU, F.relu, F.silu), _each_pixel),
    operator.add: _both,  # += too
}
