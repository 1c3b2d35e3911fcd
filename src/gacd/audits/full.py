"""Full audits of the attack: what costs more than a PGD-20 pass each."""

from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise

import torch
from torch import Tensor

from gacd import noise
from gacd.attacks.loop import evaluating, projection, steepest
from gacd.attacks.names import STEPS, parse_attack
from gacd.attacks.search import PGD, Rows, uniform_in_ball
from gacd.attacks.square import Square
from gacd.audits.case import Case, Result
from gacd.errors import InputError
from gacd.losses import cross_entropy, margin_loss
from gacd.models import Classifier

Readout = Callable[[Tensor], Tensor]  # features (B,D) -> (B,), positive inside the planted region


class ToTheEnd(PGD):
    """PGD whose every step is taken: what only just fools one network fools no other."""

    def candidates(self, rows: Rows) -> Tensor:
        return torch.zeros_like(rows["y"], dtype=torch.bool)


def eps_ladder(case: Case) -> Result:
    """What is broken at one radius stays broken at larger ones, each attacked on its own."""
    right, rungs = case.correct["natural"], []
    for factor in (0.5, 1.0, 1.5, 2.0):
        eps = min(factor * case.eps, 1.0) if case.norm == "Linf" else factor * case.eps
        broken = case.broken(right, case.pgd(margin_loss, eps=eps, step_size=eps / 4))
        rungs.append(broken | (right & ~case.survivors) if factor == 1 else broken)
    bad = int(torch.stack([low & ~high for low, high in pairwise(rungs)]).any(0).sum())
    counts = ", ".join(str(int(broken.sum())) for broken in rungs)
    says = f"{bad} images broken at one radius withstand a larger; broken at 0.5, 1, 1.5, 2 eps: {counts}"
    return bad <= case.slack, says, "the attack gets caught: more steps, other step sizes"


def doubled(case: Case) -> Result:
    """Twice the headline's steps and restarts, with cross-entropy and the margin loss, break next to nothing more."""
    steps, restarts = 20, 1
    for name in case.correct:
        with suppress(InputError):  # "natural", or the name of an attack from elsewhere
            attack = parse_attack(name)
            restarts = max(restarts, attack.restarts)
            if attack.family != "square":  # it counts queries
                steps = max(steps, attack.steps or STEPS["apgd-ce"])
    kinds = [(loss, restarts + restart) for loss in (cross_entropy, margin_loss) for restart in range(2 * restarts)]
    searches = [case.pgd(loss, steps=2 * steps, restart=restart) for loss, restart in kinds]
    bad, of = int(case.broken(case.survivors, *searches).sum()), int(case.survivors.sum())
    says = f"twice the steps and restarts break {bad} of {of} more, {case.slack} allowed"
    return bad <= case.slack, says, "the headline's attack had not converged, or follows the wrong loss"


def other_means(case: Case) -> Result:
    """What needs no gradient of the model breaks nothing that its gradients left."""
    left, taken, said = case.survivors, torch.zeros(case.n, dtype=torch.bool), []
    if case.norm == "Linf":
        key = noise.key(case.seed, "other means")  # or it would draw the headline's squares again
        taken = case.broken(left, Square(eps=case.eps, seed=key, steps=1000))
        said.append(f"Square {int(taken.sum())}")
    if case.teacher is None:
        said.append("no teacher")
    else:
        teacher = case.teacher
        with evaluating(teacher):
            broken = case.broken(left, case.pgd(margin_loss, ToTheEnd), network=lambda z: teacher(z).float())
        taken |= broken
        said.append(f"transfer {int(broken.sum())}")
    rows = left.nonzero()[:, 0]
    margin = margin_loss(case.natural, case.y).cpu()[rows]
    rows = rows[margin.argsort(descending=True)[:100]]  # the most doubtful
    broken = _noise(case, rows)
    taken[rows] |= broken
    said.append(f"{case.noises} noises each {int(broken.sum())} of {len(rows)}")
    bad = int(taken.sum())
    says = f"of {int(left.sum())} images called robust {bad} are broken without gradients: {', '.join(said)}"
    return bad <= case.slack, says, "the gradients hide something"


def planted_region(case: Case) -> Result:
    """A region planted in the ball by refitting the last layer is found (Zimmermann et al., 2022).

    For each image a new linear layer on the features gives 0 at 100 points well inside the ball and another class at
    one on its edge. An attack that means what it says finds the region; of fifty or more it may miss one. Measured by
    benchmarks/trust.py: twenty starts find 999 of 1000 on ten sound networks, at most one of a network's hundred is
    missed; where pixels are rounded, 6 to 8 %, and through a shattered gradient 68 to 80 %.
    """
    if not isinstance(case.model, Classifier):
        return None, "only a Classifier's last layer can be refitted", ""
    found = planted = 0
    for row in case.correct["natural"].nonzero()[:100, 0].tolist():
        x = case.x[row : row + 1]
        readout = _plant(case, case.model, x, row)
        if readout is not None:
            planted += 1
            found += any(_finds(case, case.model, readout, x, row, restart) for restart in range(20))
    if not planted:
        return None, "no region could be planted: the features do not tell points of a ball apart", ""
    says = f"PGD finds {found} of {planted} planted regions"
    return planted - found <= (planted >= 50), says, "the gradients hide something"


def _finds(case: Case, model: Classifier, readout: Readout, x: Tensor, row: int, restart: int) -> bool:
    """Whether PGD from a random start meets a point of x's ball where the readout is positive."""
    project, index = projection(x, case.eps, case.norm), torch.tensor([row], device=x.device)
    z = project(uniform_in_ball(x, case.norm, case.eps, noise.key(case.seed, "planted", restart), index))
    for _ in range(20):
        z = z.detach().requires_grad_()
        value = readout(model.features(z))
        if bool((value > 0).all()):
            return True
        if not value.requires_grad:
            return False
        (gradient,) = torch.autograd.grad(value.sum(), z)
        z = project(z.detach() + case.step_size * steepest(gradient, case.norm))
    return False


def _plant(case: Case, model: Classifier, x: Tensor, row: int) -> Readout | None:
    """A linear readout, positive at a point on the edge of x's ball and negative at 100 inside; None if none is."""
    index = torch.arange(100, device=x.device) + 100 * row
    project = projection(x, case.eps, case.norm)
    inside = x + 0.9 * (uniform_in_ball(x.expand(100, -1, -1, -1), case.norm, case.eps, 1, index) - x)
    inside = torch.cat([x, inside.clamp(0, 1)])
    for attempt in range(3):
        way = noise.normal(noise.key(case.seed, "edge", attempt), index[:1], tuple(x.shape[1:])).to(x.dtype)
        edge = project(x + case.eps * steepest(way, case.norm))
        with torch.no_grad():
            f = model.features(torch.cat([inside, edge])).double()
        centred = f[:-1] - f[:-1].mean(0)
        spread = centred.T @ centred / len(centred)
        ridge = (1e-3 * spread.trace() / len(spread)).clamp_min(1e-30) * torch.eye(len(spread)).to(spread)
        w = torch.linalg.solve(spread + ridge, f[-1] - f[:-1].mean(0))
        scores = f @ w
        if bool(scores[-1] > scores[:-1].max()):
            b = (scores[-1] + scores[:-1].max()) / 2
            return lambda features: features.double() @ w - b
    return None


@torch.no_grad()
def _noise(case: Case, rows: Tensor) -> Tensor:
    """Which images (m,) one of many random points of their balls breaks, uniform inside and on the corners by turns."""
    broken = torch.zeros(len(rows), dtype=torch.bool)
    for i, row in enumerate(rows.tolist()):
        x = case.x[row : row + 1].expand(case.chunk, -1, -1, -1)
        project = projection(x, case.eps, case.norm)
        for first in range(0, case.noises, case.chunk):
            index = torch.arange(first, first + case.chunk, device=x.device)
            key = noise.key(case.seed, "noise", row)
            points = uniform_in_ball(x, case.norm, case.eps, key, index)
            if first // case.chunk % 2:
                points = x + case.eps * steepest(points - x, case.norm)
            if bool((case.network(project(points)).argmax(1) != case.y[row]).any()):
                broken[i] = True
                break
    return broken
