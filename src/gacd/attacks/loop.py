"""The attack loop of training, written once: an inner maximisation is an objective and a start; and balls."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from gacd.errors import InputError
from gacd.parser import Ratio

Objective = Callable[[Tensor], Tensor]  # images (B,C,H,W) -> one value per image (B,)
RADII = {"Linf": 8 / 255, "L2": 0.5}  # those of the field, in pixel units


def maximize(
    x: Tensor,
    objective: Objective,
    *,
    eps: float | str,
    step_size: float | str,
    steps: int,
    norm: str = "Linf",
    start: Tensor | None = None,
) -> Tensor:
    """Projected gradient ascent (Madry et al., 2018) on any objective.

    Args:
        x: (B,C,H,W) pixels in [0,1], the centres of the balls.
        objective: images -> (B,), made larger. Their sum is differentiated: no value may depend on another image.
        eps: radius, in pixel units, such as 0.1 or "8/255".
        step_size: length of a step in the same norm.
        steps: number of gradient steps; the last iterate is returned.
        norm: "Linf" or "L2".
        start: (B,C,H,W) first iterate, projected; x itself if absent.

    Returns:
        (B,C,H,W), detached: inside the ball and the box [0,1] in exact arithmetic; NaN where a gradient was not finite.

    Raises:
        InputError: pixels outside [0,1], or a radius, step or norm that makes no sense.
    """
    eps, step_size = in_pixels(eps), in_pixels(step_size)
    check_threat(norm=norm, eps=eps, step_size=step_size, steps=steps)
    x = x.detach()
    check_pixels(x)
    project = projection(x, eps, norm)
    x_adv = project(x if start is None else start.detach())
    for _ in range(steps):
        x_adv.requires_grad_()
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(objective(x_adv).sum(), x_adv)  # none for parameters
        x_adv = project(x_adv.detach() + step_size * steepest(gradient, norm))
    return x_adv


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode inside, each submodule's own mode again after."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def in_pixels(length: float | str) -> float:
    """A radius or step, such as 0.1 or "8/255"; InputError if it is no number."""
    try:
        return float(Ratio(length))
    except (TypeError, ValueError):
        raise InputError("no length in pixel units", repr(length), 'such as 0.1 or "8/255"') from None


def check_threat(*, norm: str = "Linf", eps: float, step_size: float = 0.0, steps: int = 0) -> None:
    """Refuses what cannot be meant, such as eps 8 for 8/255, and where there are no gradients."""
    if torch.is_inference_mode_enabled():
        raise InputError("attacks need gradients", "torch.inference_mode()", "torch.no_grad() is fine")
    if norm not in ("Linf", "L2"):
        raise InputError("unknown norm", norm, "one of Linf, L2")
    for name, value in (("eps", eps), ("step_size", step_size)):
        if isinstance(value, str) or not value >= 0 or value == float("inf"):
            raise InputError(f"{name} must be a number >= 0", value)
        if norm == "Linf" and value > 1:
            raise InputError(f"{name} is larger than the pixels' range [0,1]", value, f"did you mean {value:g}/255?")
    if steps < 0:
        raise InputError("steps must be >= 0", steps)


def check_pixels(x: Tensor) -> None:
    """Refuses what is no float in [0,1], as images that were normalised."""
    if not x.is_floating_point():
        raise InputError("pixels must be floats in [0,1]", x.dtype, "divide them by 255")
    if not x.numel():
        return
    low, high = torch.stack(torch.aminmax(x)).tolist()  # waits for a GPU once
    if not 0 <= low <= high <= 1:
        fix = "the model normalises: give pixels as they are, divided by 255"
        raise InputError("pixels must be in [0,1]", f"from {low:g} to {high:g}", fix)


def projection(x: Tensor, eps: float, norm: str) -> Callable[[Tensor], Tensor]:
    """Images -> the nearest in the ball around x and the box [0,1], in exact arithmetic."""
    if norm == "L2":
        return _sphere(x, eps)
    low, high = box(x, eps)
    return lambda z: torch.clamp(z, low, high)


def steepest(gradient: Tensor, norm: str) -> Tensor:
    """The unit step along a gradient, (B,C,H,W); NaN where it is not finite, lest a broken network look robust."""
    if norm == "Linf":
        return torch.where(gradient.isfinite(), gradient.sign(), torch.nan)
    exact = gradient.double()  # squares of small float32 gradients vanish
    length = exact.flatten(1).norm(dim=1).clamp_min(1e-300).view(-1, 1, 1, 1)
    return (exact / length).to(gradient.dtype)


def box(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The ends of the Linf ball within [0,1], each like x; rounding of x +- eps is undone inwards."""
    exact = x.double()
    low, high = (exact - eps).to(x.dtype), (exact + eps).to(x.dtype)
    low = torch.where(exact - low.double() > eps, low.nextafter(torch.ones_like(low)), low).clamp_(0, 1)
    high = torch.where(high.double() - exact > eps, high.nextafter(torch.zeros_like(high)), high).clamp_(0, 1)
    return low, high


def inside(x: Tensor, x_adv: Tensor, eps: float, norm: str) -> Tensor:
    """Which images (B,C,H,W) lie in their balls around x and in [0,1], in exact arithmetic, (B,) bool; NaN does not."""
    z, delta = x_adv.double(), (x_adv.double() - x.double()).flatten(1)
    if norm == "Linf":
        near = (delta.abs() <= eps).all(1)
    else:
        # fsum rounds once; a square or a difference of doubles each at most by 2^-53
        within = [math.fsum(row.square().tolist()) <= eps * eps * (1 + 4e-16) for row in delta]
        near = torch.tensor(within, dtype=torch.bool, device=x.device)
    return near & ((z >= 0) & (z <= 1)).flatten(1).all(1)


def _sphere(x: Tensor, eps: float) -> Callable[[Tensor], Tensor]:
    """Projection on the L2 ball, then on [0,1], which only shortens; rounding is undone towards x."""
    exact = x.double()

    def project(z: Tensor) -> Tensor:
        delta = z.double() - exact
        length = delta.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        outside = length > eps
        delta = delta * ((1 - 1e-12) * eps / length.clamp_min(1e-300))
        near = (exact + delta).to(x.dtype)
        near = torch.where((near.double() - exact).abs() > delta.abs(), near.nextafter(x), near)
        return torch.where(outside, near, z).clamp(0, 1)

    return project
