"""Audits of the network: what it gives and does when it is asked."""

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gacd import noise
from gacd.audits.case import NEEDED, Case, Result
from gacd.audits.fresh import Killed
from gacd.errors import GacdError
from gacd.losses import cross_entropy, magnitude, margin_loss

RECHECKED = 100  # images


def mode(case: Case) -> Result:
    """No submodule trains; a forward and a gradient change nothing. Sees the model as it was handed over.

    A first forward may make what was not there, as a cache; it must stay as it was made.
    """
    model = case.model
    training = [name or type(model).__name__ for name, module in model.named_modules() if module.training]
    if training:
        return False, f"{len(training)} submodules are in training mode, such as {training[0]}", "call model.eval()"
    given = case.x[: case.chunk]
    before, x = _state(model), given.clone()
    with torch.no_grad():
        model(x)
    kept = _state(model) | before
    z = x.clone().requires_grad_()
    torch.autograd.grad(case.network(z).sum(), z)
    after = _state(model)
    changed = [name for name in kept.keys() | after.keys() if not _same(kept.get(name), after.get(name))]
    changed += [] if torch.equal(x, given) else ["the images it was given"]
    says = f"a forward changes {len(changed)} things" + (f", such as {min(changed)}" if changed else "")
    return not changed, says, "a network under test must not write to anything"


def determinism(case: Case) -> Result:
    """Five forwards of one chunk are equal to the bit."""
    first, *others = (case.ask(case.x[: case.chunk]) for _ in range(5))
    differing = sum(not _same(first, other) for other in others)
    fix = "switch randomness off, or attack its expectation and say so"
    return not differing, f"{differing} of 4 repeated forwards differ in their bits", fix


def batch_independence(case: Case) -> Result:
    """An image's logits alone are those in three other batches, but for rounding."""
    m = min(16, case.n)
    x, rest = case.x[:m], case.x[m : case.chunk]
    with torch.no_grad():
        alone = torch.cat([case.network(image[None]) for image in x])
        batches = [
            case.network(torch.cat([x, rest]))[:m],
            case.network(torch.cat([1 - rest, 1 - x, x.flip(0)]))[-m:].flip(0),  # other neighbours, other places
            torch.cat([case.network(torch.stack([image, 0 * image]))[:1] for image in x]),
        ]
    usual = magnitude(alone).median().clamp_min(1e-30)
    worst = float(
        torch.stack([((batch - alone).abs() / alone.abs().clamp_min(usual)).max() for batch in batches]).max()
    )
    says = f"an image's logits alone and in other batches differ by {worst:.1e} of the usual largest"  # NaN if any is
    return worst <= case.tolerance, says, "statistics of the batch in the forward? it must depend on the image alone"


def finite(case: Case) -> Result:
    """No NaN or infinity in logits, losses, gradients: on the images, at random points near them, where beaten."""
    places = {"the images": case.on_images, "random points near them": case.near_images}
    if case.x_adv is not None:
        places["the adversarial images"] = case.look(case.x_adv)
    for name, seen in places.items():
        for what in NEEDED:
            if bad := int(seen[what].sum()):
                return False, f"{what} are not finite for {bad} of {case.n}, on {name}", "an attack cannot use them"
    return True, f"logits and gradients of {case.n} images are finite, on them and near them", ""


def logits(case: Case) -> Result:
    """Logits, not probabilities, nor saturated, nor rounded; else, rescaled, the losses must break no more."""
    odd, certain = [], True
    size = magnitude(case.natural)
    z = case.natural[:, (case.natural.abs() <= size[:, None]).any(0)]  # without masked classes
    if bool((z >= 0).all()) and bool(((z.sum(1) - 1).abs() < 1e-3).all()):
        odd.append("probabilities")
    if torch.equal(z, z.half().float()) or torch.equal(z, z.bfloat16().float()):
        odd.append("rounded to half precision")
    if z.unique().numel() < z.numel() / 2:
        odd.append("rounded or clipped")
    saturated = int((cross_entropy(case.natural, case.y) == 0).sum())
    if not odd and saturated > case.n // 10:  # healthy networks may be so sure: this alone counts for nothing
        odd, certain = [f"so large that cross-entropy is 0 for {saturated} of {case.n}"], False
    if not odd:
        return True, "logits are neither probabilities nor rounded nor saturated", ""

    def rescaled(images: Tensor) -> Tensor:
        asked = case.network(images)
        if "probabilities" in odd:
            return asked.clamp_min(1e-30).log()
        return asked * (10 / size.median().clamp_min(1e-30))

    left = case.survivors & ~case.broken(case.survivors, case.pgd(margin_loss), network=rescaled)
    blind = left & ~case.broken(left, case.pgd(cross_entropy))
    left &= ~case.broken(blind, case.pgd(cross_entropy), network=rescaled)
    bad, of = int((case.survivors & ~left).sum()), int(case.survivors.sum())
    passed = bad <= case.slack and not (case.cross_entropy_alone and certain)
    says = f"logits are {', '.join(odd)}; rescaled, the losses break {bad} more of {of}"
    return passed, says, "return plain logits, and attack with a margin loss: --attacks margin20"


def _state(model: nn.Module) -> dict[str, Any]:
    """All that a forward could change by mistake, copied."""
    state: dict[str, Any] = {
        "torch's random numbers": torch.get_rng_state(),
        "Python's random numbers": random.getstate(),
        "numpy's random numbers": repr(np.random.get_state()),
        "whether gradients are on": torch.is_grad_enabled(),
        "the default type": torch.get_default_dtype(),
    }
    if torch.cuda.is_initialized():
        state["CUDA's random numbers"] = torch.cuda.get_rng_state()
    for name, module in model.named_modules():
        state[f"the mode of {name or 'the network'}"] = module.training
    for name, buffer in model.named_buffers():
        state[f"buffer {name}"] = buffer.detach().clone()
    for name, parameter in model.named_parameters():
        state[f"parameter {name}"] = parameter.detach().clone()
        state[f"the gradient of {name}"] = None if parameter.grad is None else parameter.grad.detach().clone()
        state[f"whether {name} is trained"] = parameter.requires_grad
    return state


def _same(a: Any, b: Any) -> bool:
    """Equal to the bit, NaN to NaN."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())
    return type(a) is type(b) and not isinstance(a, Tensor) and bool(a == b)


def recheck(case: Case) -> Result:
    """A fresh process gives the same verdicts one image at a time."""
    if case.fresh is None:
        return None, "the network is only in memory: no other process can load it", "evaluate from a run or a file"
    if case.x_adv is None:
        return None, "no adversarial images were handed over", ""
    beaten = case.correct["natural"] & ~case.survivors  # half of them, as far as there are, else one kind fills up
    order = noise.permutation(noise.key(case.seed, "recheck"), case.n)
    first = torch.cat([order[beaten[order]][: RECHECKED // 2], order[case.survivors[order]][: RECHECKED // 2]])
    rows = torch.cat([first, order[~torch.isin(order, first)]])[:RECHECKED]
    try:
        logits = case.fresh.logits(case.x_adv[rows.to(case.x.device)])
    except Killed as error:
        return None, str(error), "give it more time or memory"
    except GacdError as error:
        return False, str(error), "can the source be loaded again?"
    differ = case.differ(logits, case.y[rows.to(case.y.device)].cpu(), case.survivors[rows])
    says = f"{int(differ.sum())} of {len(rows)} verdicts differ in a fresh process, one image at a time"
    if differ.any() and case.fresh.replaced:
        return None, f"{says}, but its weights were written anew meanwhile", "evaluate it once it is trained"
    return not differ.any(), says, "were these the weights that were evaluated?"
