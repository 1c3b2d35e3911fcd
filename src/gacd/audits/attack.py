"""Audits of the attack: what it finds at radii whose answer is known, and where what it found lies."""

import math

import torch

from gacd.attacks.loop import inside
from gacd.attacks.search import FGSM, run
from gacd.audits.case import Case, Result
from gacd.losses import cross_entropy, margin_loss


def huge_budget(case: Case) -> Result:
    """With every image allowed (Linf 1), no image withstands; a network that knows one class alone is none."""
    eps = 1.0 if case.norm == "Linf" else math.sqrt(case.x[0].numel())
    searches = [
        case.pgd(margin_loss, eps=eps, step_size=step * eps, restart=restart, steps=50 if restart else 20)
        for restart, step in enumerate((0.25, 0.1, 0.02, 0.5))
    ]
    bad, of = int((case.right & ~case.broken(case.right, *searches)).sum()), int(case.right.sum())
    constant = case.natural.argmax(1).unique().numel() == 1 and case.n >= 10 and 2 * of < case.n
    says = f"{bad} of {of} images withstand eps = {eps:.3g}, which allows every image"
    if constant:
        says = f"all {case.n} images are given one class, which is right for {of}; {says}"
        return False, says, "a network that has learned nothing"
    return not bad, says, "the attack does not get through: look at the gradients"


def no_budget(case: Case) -> Result:
    """An attack of radius 0 returns the images, and the verdict on them is the clean one."""
    search = case.pgd(cross_entropy, eps=0.0, steps=1)
    parts = zip(case.chunks(case.x), case.chunks(case.y), strict=True)
    x_adv = torch.cat([run(search, case.network, x, y)[:kept] for (x, kept), (y, _) in parts])
    moved = int((x_adv != case.x).flatten(1).any(1).sum())
    differing = case.differ(case.natural, case.y, case.correct["natural"])
    if moved:
        differing |= case.differ(case.ask(x_adv), case.y, case.correct["natural"])
    differ = int(differing.sum())
    says = f"at eps = 0, {moved} images move and {differ} verdicts are not the clean one"
    return not moved + differ, says, "was it this network, in this mode, that was evaluated?"


def one_step(case: Case) -> Result:
    """A single step breaks next to nothing that the iterative attacks left."""
    iterative = [mask for name, mask in case.correct.items() if name not in ("natural", "fgsm")]
    if "fgsm" in case.correct and not iterative:
        return False, "one step alone (FGSM) is no measure of robustness", "--attacks pgd20 margin20"
    if not iterative:
        return None, "no attack was run", "--attacks pgd20 margin20"
    robust = torch.stack([case.correct["natural"], *iterative]).all(0)
    broken = case.broken(robust, FGSM(norm=case.norm, eps=case.eps))  # on the network itself, in float32
    bad = int((broken | (robust & ~case.correct.get("fgsm", robust))).sum())
    says = f"one step (FGSM) breaks {bad} of the {int(robust.sum())} images iterations left, {case.slack} allowed"
    return bad <= case.slack, says, "the iterative attack is caught: other steps, restarts or loss"


def ball_and_box(case: Case) -> Result:
    """Every adversarial image is inside its ball and in [0,1], in exact arithmetic."""
    if case.x_adv is None:
        return None, "no adversarial images were handed over", ""
    bad = int((~inside(case.x, case.x_adv, case.eps, case.norm)).sum())
    return not bad, f"{bad} of {case.n} images outside the ball or [0,1]", "project, then round inwards"
