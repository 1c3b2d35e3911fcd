"""The audits by name, in the order in which they run: each looks at a `Case` and says what it saw in one sentence."""

from collections.abc import Callable
from typing import NamedTuple

from gacd.audits.attack import ball_and_box, huge_budget, no_budget, one_step
from gacd.audits.case import Case, Result
from gacd.audits.full import doubled, eps_ladder, other_means, planted_region
from gacd.audits.gradient import true_gradient, usable_gradient
from gacd.audits.network import batch_independence, determinism, finite, logits, mode, recheck


class Kind(NamedTuple):
    """An audit and what its failing means."""

    look: Callable[[Case], Result]
    fails: str  # "suspect" or "invalid"


QUICK = {
    "mode and side effects": Kind(mode, "invalid"),
    "determinism": Kind(determinism, "invalid"),
    "batch independence": Kind(batch_independence, "invalid"),
    "finite": Kind(finite, "invalid"),
    "logits": Kind(logits, "suspect"),
    "usable gradient": Kind(usable_gradient, "suspect"),
    "true gradient": Kind(true_gradient, "invalid"),
    "huge budget": Kind(huge_budget, "suspect"),
    "eps = 0": Kind(no_budget, "invalid"),
    "one step": Kind(one_step, "suspect"),
    "ball and box": Kind(ball_and_box, "invalid"),
    "re-check": Kind(recheck, "invalid"),
}
FULL = {
    "eps ladder": Kind(eps_ladder, "suspect"),
    "steps and restarts doubled": Kind(doubled, "suspect"),
    "black box, transfer, noise": Kind(other_means, "suspect"),
    "planted region": Kind(planted_region, "suspect"),
}
