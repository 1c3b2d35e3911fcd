"""Can this number be believed? Audits of a network and of what an attack found on it (docs/trust.md).

After Carlini et al. (2019), "On Evaluating Adversarial Robustness", AutoAttack's checks (Croce and Hein, 2020) and
Zimmermann et al. (2022); the true gradient's check is our own.
"""

import time
from collections.abc import Collection, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from gacd.attacks.loop import RADII, check_threat, evaluating
from gacd.audits import FULL, QUICK, Kind
from gacd.audits.case import Case
from gacd.audits.fresh import Fresh
from gacd.audits.network import mode
from gacd.classifier import device_of, lay_out
from gacd.data import on_device
from gacd.device import exactly
from gacd.errors import InputError
from gacd.evaluation import rows_on

MOST = 1000  # images that are looked at
FAILED = "could not be carried out"
OUTCOMES = {"passed": 0, "skipped": 0, "suspect": 3, "invalid": 4}  # with the exit codes they lead to
VERDICTS = {0: "TRUSTED", 3: "SUSPECT", 4: "INVALID"}


def audit(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    norm: str = "Linf",
    eps: float | None = None,
    step_size: float | None = None,
    chunk: int | None = None,
    seed: int = 0,
    correct: Mapping[str, Tensor] | None = None,
    x_adv: Tensor | None = None,
    fresh: Fresh | None = None,
    teacher: nn.Module | None = None,
    full: bool = False,
    noises: int = 10_000,
    only: Collection[str] | None = None,
) -> "Audit":
    """Looks for what makes robust accuracy wrong; the first 1000 images are enough.

    Args:
        model: images in [0,1] -> logits (B,K), in the mode in which it was evaluated: one in training mode is refused.
        x: (N,C,H,W) test images, floats in [0,1].
        y: (N,) labels.
        norm, eps, step_size: the threat, in pixel units; 8/255, in L2 0.5, with steps of eps / 4 if absent.
        chunk: rows of every forward, as in the evaluation; `rows_on` the device if absent.
        seed: of the audits' random points.
        correct: "natural" and each attack's name -> (N,) bool, as `Evaluation.correct`. If absent, PGD-20 with
            cross-entropy is run here and takes the headline's place.
        x_adv: (N,C,H,W) what the verdicts rest on: where an image was beaten, the image that beat it; elsewhere any
            that was tried, or x itself.
        fresh: a process that loads the network by itself, `with Fresh("runs/a") as fresh`.
        teacher: a network from which attacks are transferred.
        full: also the audits that cost more than a PGD-20 pass each.
        noises: random points tried for each of at most 100 images.
        only: names of the audits that are wanted, as in `QUICK` and `FULL`; all if absent.

    Returns:
        An `Audit`: what each audit found, and the verdict.
    """
    eps = RADII.get(norm, 0.0) if eps is None else eps
    step_size = eps / 4 if step_size is None else step_size
    check_threat(norm=norm, eps=eps, step_size=step_size)
    n = min(len(y), MOST)
    if correct is not None and (
        (x_adv is not None and len(x_adv) < n) or any(len(mask) < n for mask in correct.values())
    ):
        raise InputError("an audit needs each image's verdict and adversarial image", f"{n} images")
    if correct is not None and "natural" not in correct:
        raise InputError('an audit needs the verdicts on the images themselves, "natural"', sorted(correct))
    device = device_of(model)
    case = Case(
        model=model,
        x=on_device(x[:n].detach(), device),
        y=y[:n].long().to(device),
        norm=norm,
        eps=eps,
        step_size=step_size,
        chunk=min(chunk or rows_on(device), n),
        seed=seed,
        given=None if correct is None else {name: mask[:n].cpu() for name, mask in correct.items()},
        given_x_adv=None if x_adv is None or correct is None else on_device(x_adv[:n].detach(), device),
        fresh=fresh,
        teacher=teacher,
        noises=noises,
    )
    result = Audit()
    began = time.perf_counter()
    modes = [module.training for module in model.modules()]
    with torch.enable_grad(), exactly(), lay_out(model, case.x):
        for name, kind in (QUICK | (FULL if full else {})).items():
            if only is None or name in only:
                result.findings.append(_finding(name, kind, case))
    for module, training in zip(model.modules(), modes, strict=False):
        module.training = training  # a forward of its own may have changed it: that was said above
    result.seconds, result.n = time.perf_counter() - began, n
    return result


class Finding(NamedTuple):
    """What one audit found.

    Args:
        name: the audit's, as in docs/trust.md.
        outcome: "passed", "suspect", "invalid" or "skipped".
        says: one sentence with its numbers.
        fix: what to do about it.
    """

    name: str
    outcome: str
    says: str
    fix: str = ""

    def __str__(self) -> str:
        return f"{self.outcome}: {self.name}: {self.says}" + (f" ({self.fix})" if self.fix else "")


@dataclass
class Audit:
    """What all the audits found on n images, and what they took."""

    findings: list[Finding] = field(default_factory=list)
    n: int = 0
    seconds: float = 0.0

    @property
    def exit_code(self) -> int:
        """0 trusted, 3 suspect, 4 invalid."""
        return max((OUTCOMES[finding.outcome] for finding in self.findings), default=0)

    @property
    def verdict(self) -> str:
        """TRUSTED; SUSPECT: an unverified upper bound; INVALID: no number at all."""
        return VERDICTS[self.exit_code]

    @property
    def unfinished(self) -> bool:
        """Whether it is INVALID only for audits that failed, as for lack of memory: they may pass another time."""
        against = [finding for finding in self.troubles if finding.outcome == "invalid"]
        return bool(against) and all(finding.says.startswith(FAILED) for finding in against)

    @property
    def troubles(self) -> list[Finding]:
        """The findings that stand against the number, the worst first."""
        against = [finding for finding in self.findings if OUTCOMES[finding.outcome]]
        return sorted(against, key=lambda finding: -OUTCOMES[finding.outcome])


def _finding(name: str, kind: Kind, case: Case) -> Finding:
    """One audit; whatever someone else's network raises in it is its finding."""
    try:
        with nullcontext() if kind.look is mode else evaluating(case.model):
            passed, says, fix = kind.look(case)
    except Exception as error:  # of any type: it is not our code that was called
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        return Finding(name, kind.fails, f"{FAILED}, {reason}", "does the network take these images?")
    if passed:
        return Finding(name, "passed", says)
    return Finding(name, "skipped" if passed is None else kind.fails, says, fix)
