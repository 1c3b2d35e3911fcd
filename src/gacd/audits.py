"""The audits one by one: each looks at a `Case` and says whether it passed, in one sentence, and what to do if not."""

import copy
import math
import random
import re
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gacd import noise
from gacd.attacks.loop import evaluating, projection, steepest
from gacd.attacks.pool import sweep
from gacd.attacks.search import FGSM, PGD, Search, run, uniform_in_ball
from gacd.losses import cross_entropy, margin_loss
from gacd.models import Classifier

MODE = "mode and side effects"
CROSS_ENTROPY = re.compile(r"fgsm|pgd\d*(x\d+)?|apgd-ce\d*(x\d+)?")  # attacks that a scale of the logits can blind
Result = tuple[bool | None, str, str]  # passed (None: skipped), one sentence, and what to do about it
Network = Callable[[Tensor], Tensor]  # images (B,C,H,W) -> logits (B,K)


@dataclass
class Case:
    """A network, images, and what an evaluation said of them.

    Attributes:
        model: images in [0,1] -> logits.
        x: (n,C,H,W) float32, on the model's device.
        y: (n,).
        norm, eps, step_size, chunk, seed: of the evaluation.
        given: "natural" and each attack -> (n,) bool; None: PGD-20 takes their place.
        given_x_adv: (n,C,H,W) found for them.
        teacher: whose adversarial images are tried on the model.
        noises: random points an image.
    """

    model: nn.Module
    x: Tensor
    y: Tensor
    norm: str
    eps: float
    step_size: float
    chunk: int
    seed: int
    given: dict[str, Tensor] | None
    given_x_adv: Tensor | None
    teacher: nn.Module | None
    noises: int

    @property
    def n(self) -> int:
        return len(self.y)

    @property
    def slack(self) -> int:
        """Images that another attack may break by luck."""
        return max(3, self.n // 200)

    @property
    def tolerance(self) -> float:
        """Rounding between batches, relative to the largest logit."""
        fast = torch.backends.cudnn.allow_tf32 or torch.backends.cuda.matmul.allow_tf32
        return 1e-3 if self.x.device.type == "cuda" and fast else 1e-5

    @cached_property
    def natural(self) -> Tensor:
        """The images' logits, (n,K)."""
        return self.ask(self.x)

    @cached_property
    def headline(self) -> tuple[dict[str, Tensor], Tensor | None]:
        """The verdicts under audit, (n,) each, and the images they rest on, (n,C,H,W)."""
        if self.given is not None:
            return self.given, self.given_x_adv
        right = (self.natural.argmax(1) == self.y).cpu()
        broken, x_adv = self.attack(self.pgd(cross_entropy), right)
        return {"natural": right, "pgd20": right & ~broken}, x_adv

    @property
    def correct(self) -> dict[str, Tensor]:
        return self.headline[0]

    @property
    def x_adv(self) -> Tensor | None:
        return self.headline[1]

    @property
    def survivors(self) -> Tensor:
        """(n,) bool: what the headline calls robust."""
        return torch.stack(list(self.correct.values())).all(0)

    @property
    def cross_entropy_alone(self) -> bool:
        """Whether no attack of the headline has another loss."""
        return all(CROSS_ENTROPY.fullmatch(name) for name in self.correct if name != "natural")

    @cached_property
    def start(self) -> Tensor:
        """A random point of each image's ball and the box, (n,C,H,W), off the points where the data lie."""
        key = noise.key(self.seed, "audit")
        points = uniform_in_ball(self.x, self.norm, self.eps, key, torch.arange(self.n, device=self.x.device))
        return projection(self.x, self.eps, self.norm)(points)

    def network(self, z: Tensor) -> Tensor:
        """The model in float32; where no gradient reaches z, one that is zero everywhere."""
        logits = self.model(z).float()
        if torch.is_grad_enabled() and z.requires_grad:
            logits = logits + 0 * z.flatten(1).sum(1, keepdim=True)
        return logits

    @torch.no_grad()
    def ask(self, z: Tensor, network: Network | None = None) -> Tensor:
        """Logits (N,K) by chunks of one shape, the last one padded."""
        return torch.cat([(network or self.network)(part)[:kept] for part, kept in self.chunks(z)])

    def gradient(self, z: Tensor, loss: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """Of each image's loss with its label, (N,C,H,W): z (N,C,H,W) are the first N images, moved."""
        rows = []
        for (part, kept), (labels, _) in zip(self.chunks(z), self.chunks(self.y[: len(z)]), strict=True):
            part = part.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(loss(self.network(part), labels).sum(), part)
            rows.append(gradient[:kept])
        return torch.cat(rows)

    def chunks(self, z: Tensor) -> list[tuple[Tensor, int]]:
        parts = z.split(self.chunk)
        return [
            (torch.cat([part, part[-1:].repeat(self.chunk - len(part), *[1] * (z.ndim - 1))]), len(part))
            for part in parts
        ]

    def pgd(self, loss: Callable[[Tensor, Tensor], Tensor], **options: Any) -> PGD:
        """PGD-20 at the evaluation's threat, but for the options."""
        threat: dict[str, Any] = dict(norm=self.norm, eps=self.eps, seed=self.seed, step_size=self.step_size)
        return PGD(**threat | dict(loss=loss) | options)

    def attack(self, search: Search, which: Tensor, network: Network | None = None) -> tuple[Tensor, Tensor]:
        """Attacks images `which` (n,) bool: the broken ones, (n,) bool, and what was found, (n,C,H,W), else x.

        The verdict is the model's own, also where another network is searched.
        """
        x_adv, broken = self.x.clone(), torch.zeros(self.n, dtype=torch.bool)

        def fetch(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            rows = rows.to(self.x.device)
            return self.x[rows], self.y[rows], self.natural[rows]

        rows = which.nonzero()[:, 0]
        for where, found, _ in sweep(search, network or self.network, fetch, rows, self.chunk, nullcontext):
            x_adv[where.to(x_adv.device)] = found
        if len(rows):
            there = rows.to(x_adv.device)
            broken[rows] = (self.ask(x_adv[there]).argmax(1) != self.y[there]).cpu()
        return broken, x_adv

    def differ(self, logits: Tensor, y: Tensor, right: Tensor) -> Tensor:
        """Where logits (m,K) contradict verdicts (m,) by more than rounding, (m,) bool."""
        margin = margin_loss(logits, y)
        certain = ~(margin.abs() <= self.tolerance * logits.abs().amax(1))  # NaN is a contradiction
        return ((margin < 0).cpu() != right.cpu()) & certain.cpu()


def mode(case: Case) -> Result:
    """No submodule trains; a forward and a gradient change nothing. Sees the model as it was handed over."""
    model = case.model
    training = [name or type(model).__name__ for name, module in model.named_modules() if module.training]
    if training:
        return False, f"{len(training)} submodules are in training mode, such as {training[0]}", "call model.eval()"
    x = case.x[: case.chunk].clone()
    before, given = _state(model), x.clone()
    with torch.no_grad():
        model(x)
    z = x.clone().requires_grad_()
    torch.autograd.grad(case.network(z).sum(), z)
    after = _state(model)
    changed = [name for name in before.keys() | after.keys() if not _same(before.get(name), after.get(name))]
    changed += [] if torch.equal(x, given) else ["the images it was given"]
    says = f"a forward changes {len(changed)} things" + (f", such as {min(changed)}" if changed else "")
    return not changed, says, "" if not changed else "a network under test must not write to anything"


def determinism(case: Case) -> Result:
    """Five forwards of one chunk are equal to the bit."""
    part, _ = case.chunks(case.x)[0]
    first, *others = (case.ask(part) for _ in range(5))
    differing = sum(not _same(first, other) for other in others)
    fix = "switch randomness off, or attack its expectation and say so" if differing else ""
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
    largest = float(alone.abs().max())
    worst = max(float((batch - alone).abs().max()) for batch in batches) / max(largest, 1e-30)
    passed = worst <= case.tolerance
    says = f"an image's logits alone and in other batches differ by {worst:.1e} of the largest"
    return passed, says, "" if passed else "statistics of the batch in the forward? it must depend on the image alone"


def finite(case: Case) -> Result:
    """No NaN or infinity in logits, losses, gradients: on the images, at random points near them, where beaten."""
    places = {"the images": case.x, "random points near them": case.start}
    if case.x_adv is not None:
        places["the adversarial images"] = case.x_adv
    for name, z in places.items():
        values = {"logits": case.ask(z)}
        values |= {"cross-entropy's gradients": case.gradient(z, cross_entropy)}
        values |= {"the margin's gradients": case.gradient(z, margin_loss)}
        for what, value in values.items():
            bad = int((~value.isfinite()).flatten(1).any(1).sum())
            if bad:
                return False, f"{what} are not finite for {bad} of {case.n}, on {name}", "an attack cannot use them"
    return True, f"logits and gradients of {case.n} images are finite, on them and near them", ""


def logits(case: Case) -> Result:
    """Logits, not probabilities, nor saturated, nor rounded; else the margin loss must break no more."""
    z, odd, certain = case.natural, [], True
    if bool((z >= 0).all()) and bool(((z.sum(1) - 1).abs() < 1e-3).all()):
        odd.append("probabilities")
    if torch.equal(z, z.half().float()) or torch.equal(z, z.bfloat16().float()):
        odd.append("rounded to half precision")
    if z.unique().numel() < z.numel() / 2:
        odd.append("rounded or clipped")
    saturated = int((cross_entropy(z, case.y) == 0).sum())
    if not odd and saturated > case.n // 10:  # healthy networks may be so sure: this alone counts for nothing
        odd, certain = [f"so large that cross-entropy is 0 for {saturated} of {case.n}"], False
    if not odd:
        return True, "logits are neither probabilities nor rounded nor saturated", ""

    def rescaled(images: Tensor) -> Tensor:
        asked = case.network(images)
        if "probabilities" in odd:
            return asked.clamp_min(1e-30).log()
        return asked * (10 / z.abs().amax(1).median().clamp_min(1e-30))

    broken, _ = case.attack(case.pgd(margin_loss), case.survivors, rescaled)
    says = (
        f"logits are {', '.join(odd)}; the margin loss breaks {int(broken.sum())} more of {int(case.survivors.sum())}"
    )
    passed = int(broken.sum()) <= case.slack and not (case.cross_entropy_alone and certain)
    return passed, says, "" if passed else "return plain logits, and attack with a margin loss: --attacks margin20"


def usable_gradient(case: Case) -> Result:
    """The margin loss has a gradient at every image that is right, and at a random point near it."""
    right = case.natural.argmax(1) == case.y
    zero = torch.zeros_like(right)
    for z in (case.x, case.start):
        zero |= (case.gradient(z, margin_loss) == 0).flatten(1).all(1)
    bad, of = int((zero & right).sum()), int(right.sum())
    fix = "gradient attacks cannot start there: attack a smooth version, or without gradients" if bad else ""
    return not bad, f"{bad} of {of} images have no gradient", fix


def true_gradient(case: Case) -> Result:
    """Finite differences along random directions agree with the gradient: their mean correlation is at least 0.9.

    For random directions the correlation estimates the cosine between the gradient and the true one. A twin in
    float64, where the model has one, allows differences too short to cross a ReLU's kink.
    """
    m = min(32, case.n)
    z, y = 0.01 + 0.98 * case.start[:m], case.y[:m]  # off the box's faces, where clamping has one-sided slopes
    gradient = case.gradient(z, margin_loss).double()
    function, exact = _twin(case, z)
    shape = (m, *z.shape[1:])
    words = noise.normal(noise.key(case.seed, "directions"), torch.arange(8 * m, device=z.device), tuple(z.shape[1:]))
    directions = words.sign().double().view(8, *shape)
    predicted = torch.stack([(gradient * u).flatten(1).sum(1) for u in directions], 1)
    best, tested = -math.inf, 0
    for length in (1e-6, 1e-4) if exact else (1e-3, 1e-2, 1e-4):
        ends = [[(z.double() + sign * length * u).to(function[1]) for u in directions] for sign in (1, -1)]
        with torch.no_grad():
            up, down = (torch.stack([margin_loss(function[0](e), y).double() for e in part], 1) for part in ends)
        measured = (up - down) / (2 * length)
        flat = ((measured != 0).double().mean(1) < 0.5) & (predicted == 0).all(1)  # but for a rounding's jumps
        cosine = torch.nn.functional.cosine_similarity(predicted, measured, dim=1, eps=1e-300).nan_to_num(0.0)
        tested = int((~flat).sum())
        if tested:
            best = max(best, float(cosine[~flat].mean()))
        if best >= 0.9 or not tested:
            break
    if not tested:
        return None, f"the network is flat at {m} images", ""
    says = f"finite differences and gradients correlate at {best:.3f} over {tested} images"
    return best >= 0.9, says, "" if best >= 0.9 else "the gradient is not the network's own: custom backward?"


def huge_budget(case: Case) -> Result:
    """With every image allowed (Linf 1), no image withstands."""
    eps = 1.0 if case.norm == "Linf" else math.sqrt(case.x[0].numel())
    left = (case.natural.argmax(1) == case.y).cpu()
    of = int(left.sum())
    for restart, step in enumerate((0.25, 0.1, 0.02, 0.5)):
        if left.any():
            options = dict(eps=eps, step_size=step * eps, restart=restart, steps=20 if not restart else 50)
            broken, _ = case.attack(case.pgd(margin_loss, **options), left)
            left &= ~broken
    bad = int(left.sum())
    constant = case.natural.argmax(1).unique().numel() == 1
    fix = "it gives all images one class" if constant else "the attack does not get through: look at the gradients"
    return not bad, f"{bad} of {of} images withstand eps = {eps:.3g}, which allows every image", fix if bad else ""


def no_budget(case: Case) -> Result:
    """An attack of radius 0 returns the images, and the verdict on them is the clean one."""
    search = case.pgd(cross_entropy, eps=0.0, steps=2)
    x_adv = torch.cat(
        [
            run(search, case.network, x, y)[:kept]
            for (x, kept), (y, _) in zip(case.chunks(case.x), case.chunks(case.y), strict=True)
        ]
    )
    moved = int((x_adv != case.x).flatten(1).any(1).sum())
    clean = case.correct["natural"]
    differ = int((case.differ(case.natural, case.y, clean) | case.differ(case.ask(x_adv), case.y, clean)).sum())
    fix = "" if not moved + differ else "was it this network, in this mode, that was evaluated?"
    return not moved + differ, f"at eps = 0, {moved} images move and {differ} verdicts are not the clean one", fix


def one_step(case: Case) -> Result:
    """A single step breaks next to nothing that the iterative attacks left."""
    iterative = [mask for name, mask in case.correct.items() if name not in ("natural", "fgsm")]
    if not iterative:
        return None, "no iterative attack was run", "--attacks pgd20 margin20"
    robust = torch.stack([case.correct["natural"], *iterative]).all(0)
    broken, _ = case.attack(FGSM(norm=case.norm, eps=case.eps), robust)
    bad, passed = int(broken.sum()), int(broken.sum()) <= case.slack
    says = f"one step (FGSM) breaks {bad} of the {int(robust.sum())} images iterations left, {case.slack} allowed"
    return passed, says, "" if passed else "the iterative attack is caught: other steps, restarts or loss"


def ball_and_box(case: Case) -> Result:
    """Every adversarial image is inside its ball and in [0,1], in exact arithmetic."""
    if case.x_adv is None:
        return None, "no adversarial images were handed over", ""
    z, x = case.x_adv.double(), case.x.double()
    outside = ~((z >= 0) & (z <= 1))  # NaN is outside
    if case.norm == "Linf":
        outside |= ~((z - x).abs() <= case.eps)
        bad, what = int(outside.sum()), "coordinates"
    else:
        # fsum rounds once; a square or a difference of doubles each at most by 2^-53
        lengths = [math.fsum(row) for row in (z - x).flatten(1).square().tolist()]
        far = torch.tensor([not length <= case.eps**2 * (1 + 4e-16) for length in lengths])
        bad, what = int((far | outside.flatten(1).any(1).cpu()).sum()), "images"
    return not bad, f"{bad} {what} outside the ball or [0,1]", "project, then round inwards" if bad else ""


def eps_ladder(case: Case) -> Result:
    """What is broken at one radius stays broken at larger ones, each attacked on its own."""
    right, rungs = case.correct["natural"], []
    for factor in (0.5, 1.0, 1.5, 2.0):
        eps = min(factor * case.eps, 1.0) if case.norm == "Linf" else factor * case.eps
        broken, _ = case.attack(case.pgd(margin_loss, eps=eps, step_size=eps / 4), right)
        rungs.append(broken | (right & ~case.survivors) if factor == 1 else broken)
    dropped = torch.stack([low & ~high for low, high in pairwise(rungs)]).any(0)
    bad, passed = int(dropped.sum()), int(dropped.sum()) <= case.slack
    counts = ", ".join(str(int(broken.sum())) for broken in rungs)
    says = f"{bad} images broken at one radius withstand a larger; broken at 0.5, 1, 1.5, 2 eps: {counts}"
    return passed, says, "" if passed else "the attack gets caught: more steps, other step sizes"


def doubled(case: Case) -> Result:
    """Forty steps and two restarts, with the headline's losses, break next to nothing more."""
    left = case.survivors.clone()
    losses = [cross_entropy] if case.cross_entropy_alone else [cross_entropy, margin_loss]
    for loss in losses:
        for restart in (1, 2):
            broken, _ = case.attack(case.pgd(loss, steps=40, restart=restart), left)
            left &= ~broken
    bad = int((case.survivors & ~left).sum())
    passed = bad <= case.slack
    says = f"twice the steps and restarts break {bad} of {int(case.survivors.sum())} more, {case.slack} allowed"
    return passed, says, "" if passed else "the headline's attack had not converged"


def other_means(case: Case) -> Result:
    """What needs no gradient of the model breaks nothing that its gradients left."""
    left, said = case.survivors, []
    taken = torch.zeros_like(left)
    try:
        from gacd.attacks.square import Square
    except ImportError:
        said.append("Square not there")
    else:
        broken, _ = case.attack(Square(norm=case.norm, eps=case.eps, seed=case.seed, steps=1000), left)
        taken |= broken
        said.append(f"Square {int(broken.sum())}")
    if case.teacher is None:
        said.append("no teacher")
    else:
        teacher = case.teacher
        with evaluating(teacher):
            broken, _ = case.attack(case.pgd(margin_loss), left, lambda z: teacher(z).float())
        taken |= broken
        said.append(f"transfer {int(broken.sum())}")
    rows = left.nonzero()[:, 0]
    margin = margin_loss(case.natural, case.y).cpu()[rows]
    rows = rows[margin.argsort(descending=True)[:100]]  # the most doubtful
    broken = _noise(case, rows)
    taken[rows] |= broken
    said.append(f"{case.noises} noises each {int(broken.sum())} of {len(rows)}")
    bad = int(taken.sum())
    passed = bad <= case.slack
    says = f"of {int(left.sum())} images called robust {bad} are broken without gradients: {', '.join(said)}"
    return passed, says, "" if passed else "the gradients hide something"


def planted_region(case: Case) -> Result:
    """A region planted in the ball by refitting the last layer is found (Zimmermann et al., 2022).

    For each image a new linear layer on the features gives 0 at 100 points well inside the ball and another class at
    one on its edge. An attack that means what it says finds the region: at least 99 % of them.
    """
    if not isinstance(case.model, Classifier):
        return None, "only a Classifier's last layer can be refitted", ""
    model, rows = case.model, case.correct["natural"].nonzero()[:100, 0].to(case.x.device)
    found = planted = 0
    for row in rows.tolist():
        x = case.x[row : row + 1]
        readout = _plant(case, model, x, row)
        if readout is None:
            continue
        planted += 1
        project = projection(x, case.eps, case.norm)
        for restart in range(3):
            index = torch.tensor([row], device=x.device)
            key = noise.key(case.seed, "planted", restart)
            z, hit = project(uniform_in_ball(x, case.norm, case.eps, key, index)), False
            for _ in range(20):
                z = z.detach().requires_grad_()
                value = readout(model.features(z))
                hit = bool((value > 0).all())
                if hit or not value.requires_grad:
                    break
                (gradient,) = torch.autograd.grad(value.sum(), z)
                z = project(z.detach() + case.step_size * steepest(gradient, case.norm))
            if hit:
                break
        found += hit
    if not planted:
        return None, "no region could be planted: the features do not tell points of a ball apart", ""
    passed = found >= 0.99 * planted
    return passed, f"PGD finds {found} of {planted} planted regions", "" if passed else "the gradients hide something"


def _plant(case: Case, model: Classifier, x: Tensor, row: int) -> Callable[[Tensor], Tensor] | None:
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


def _twin(case: Case, z: Tensor) -> tuple[tuple[Network, torch.dtype], bool]:
    """The network in float64 with that type, and True; itself in float32 and False where it has no such twin."""
    own = (case.network, torch.float32), False
    try:
        twin = copy.deepcopy(case.model).double().eval()
        with torch.no_grad():
            theirs, ours = twin(z.double()), case.network(z)
        close = (theirs - ours).abs().max() <= 1e-3 * ours.abs().max()
    except Exception:  # whatever a network raises that was not made to be copied
        return own
    return ((twin, torch.float64), True) if theirs.dtype == torch.float64 and bool(close) else own


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
