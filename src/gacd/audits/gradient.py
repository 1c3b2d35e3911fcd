"""Audits of the network's gradient: there is one, and it is the network's own."""

import copy
import math

import torch
from torch import Tensor
from torch.nn import functional as F

from gacd import noise
from gacd.audits.case import Case, Network, Result
from gacd.losses import margin_loss

STILL = 0.01  # of the pixels


def usable_gradient(case: Case) -> Result:
    """The margin loss has a gradient at every image that is right, and at a random point near it, in nearly all pixels.

    Those without one, as where the network clips its input, stay where they are in a step within Linf. Where they are a
    hundredth or more, moving them must break next to nothing of what the same search leaves otherwise.
    """
    felt = torch.stack([case.on_images["felt"], case.near_images["felt"]]).cpu()
    flat, share = (felt == 0).any(0) & case.right, 1 - float(felt.mean(1).min())
    says = f"{int(flat.sum())} of {int(case.right.sum())} images have no gradient"
    if flat.any():
        return False, says, "gradient attacks cannot start there: attack a smooth version, or without gradients"
    if share < STILL or case.norm != "Linf":
        return True, says, ""

    def freed(z: Tensor) -> Tensor:
        if z.requires_grad:
            z, grey = z.clone(), (0.5 - z.detach()).sign()
            z.register_hook(lambda gradient: torch.where(gradient == 0, 1e-30 * grey, gradient))
        return case.network(z)

    search = case.pgd(margin_loss)
    left = case.survivors & ~case.broken(case.survivors, search)
    bad, of = int(case.broken(left, search, network=freed).sum()), int(left.sum())
    says = f"{share:.0%} of the pixels have no gradient; moved towards grey they break {bad} more of {of}"
    return bad <= case.slack, f"{says}, {case.slack} allowed", "is the input clipped? attacks stand still there"


def true_gradient(case: Case) -> Result:
    """Finite differences along random directions agree with the gradient: their mean correlation is at least 0.9.

    For random directions the correlation estimates the cosine between the gradient and the true one. A twin in
    float64, where the model has one, allows differences too short to cross a ReLU's kink.
    """
    m = min(32, case.n)
    z, y = 0.01 + 0.98 * case.start[:m], case.y[:m]  # off the box's faces, where clamping has one-sided slopes
    z.requires_grad_()
    gradient = torch.autograd.grad(margin_loss(case.network(z), y).sum(), z)[0].double()
    z = z.detach()
    network, kind = _twin(case, z)
    words = noise.normal(noise.key(case.seed, "directions"), torch.arange(8 * m, device=z.device), tuple(z.shape[1:]))
    directions = words.sign().double().view(8, *z.shape)
    predicted = torch.stack([(gradient * u).flatten(1).sum(1) for u in directions], 1)
    best, tested = -math.inf, 0
    for length in (1e-6, 1e-4) if kind == torch.float64 else (1e-3, 1e-2, 1e-4):
        ends = [[(z.double() + sign * length * u).to(kind) for u in directions] for sign in (1, -1)]
        with torch.no_grad():
            up, down = (torch.stack([margin_loss(network(end), y).double() for end in side], 1) for side in ends)
        measured = (up - down) / (2 * length)
        flat = ((measured != 0).double().mean(1) < 0.5) & (predicted == 0).all(1)  # but for a rounding's jumps
        cosine = F.cosine_similarity(predicted, measured, dim=1, eps=1e-300).nan_to_num(0.0)
        tested = int((~flat).sum())
        if tested:
            best = max(best, float(cosine[~flat].mean()))
        if best >= 0.9 or not tested:
            break
    if not tested:
        return None, f"the network is flat at {m} images", ""
    says = f"finite differences and gradients correlate at {best:.3f} over {tested} images"
    return best >= 0.9, says, "the gradient is not the network's own: custom backward?"


def _twin(case: Case, z: Tensor) -> tuple[Network, torch.dtype]:
    """The network in float64 with that type; itself in float32 where it has no such twin, or is in half precision.

    That may cast its images itself, in any twin: differences shorter than its rounding say nothing.
    """
    if any(t.dtype in (torch.float16, torch.bfloat16) for t in case.model.parameters()):
        return case.network, torch.float32
    try:
        twin = copy.deepcopy(case.model).double().eval()
        with torch.no_grad():
            theirs, ours = twin(z.double()), case.network(z)
        close = (theirs - ours).abs().max() <= 1e-3 * ours.abs().max()
    except Exception:  # whatever a network raises that was not made to be copied
        return case.network, torch.float32
    same = theirs.dtype == torch.float64 and bool(close)
    return (twin, torch.float64) if same else (case.network, torch.float32)
