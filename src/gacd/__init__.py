"""Distil adversarial robustness from a teacher network into a smaller student.

>>> import gacd
>>> model = gacd.load("runs/teacher")
>>> gacd.evaluate(model, "cifar10", attacks=["pgd20"]).robust
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gacd.attacks import fgsm, margin, maximize, pgd
    from gacd.checkpoint import load
    from gacd.evaluation import evaluate

__all__ = ["evaluate", "fgsm", "load", "margin", "maximize", "methods", "models", "pgd"]

_HOMES = dict(load="checkpoint", evaluate="evaluation", pgd="attacks", fgsm="attacks", margin="attacks")
_HOMES |= dict(maximize="attacks")


def __getattr__(name: str) -> Any:
    """Imported when asked for, so that `gacd --help` need not wait for torch."""
    if name in _HOMES:
        return getattr(import_module(f"gacd.{_HOMES[name]}"), name)
    if name in ("methods", "models"):
        return import_module(f"gacd.{name}")
    raise AttributeError(f"module 'gacd' has no attribute {name!r}")
