"""What training costs: floating-point operations counted on the method itself, in units of a student's forward."""

import copy
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from gacd.data import Dataset, pixels
from gacd.errors import InputError
from gacd.methods.base import Method
from gacd.runs import UNFINISHED, config, finished, resumable, run_of, story, unfinished

LONG = "--epochs says how long to train"
IMAGES = 4  # that are counted, too few for `models.side_by_side`; the operations per image hardly depend on the batch


def price(method: Method, data: Dataset, *, epochs: int, init: str | None, aim: str | None) -> dict[str, Any]:
    """The cost of a training that is about to start.

    Args:
        method: ready to train.
        data: its training images count.
        epochs: of the training, unless `aim` sets them.
        init: source of the weights it starts from; if a run, its cost is part of the total.
        aim: a run whose total cost the epochs are to bring this one nearest to.

    Returns:
        What `count` returns, with "images" per epoch, "epochs", and "before": the operations that went into `init`,
        None if they are not known.

    Raises:
        InputError: `aim` or the run of `init` has no record of its cost or has not ended, or starting alone costs as
            much.
    """
    before = 0.0 if init is None else spent(run_of(init))
    found: dict[str, Any] = dict(count(method, data), images=len(data.train), epochs=epochs, before=before)
    if aim is not None:
        wanted = spent(Path(aim))
        if wanted is None:
            what = UNFINISHED if unfinished(Path(aim)) else "no record of the cost"
            raise InputError(what, f"{aim}/run.json", LONG)
        if before is None:
            raise InputError("no record of a finished training's cost", f"--init {init}", LONG)
        found["epochs"] = round((wanted - before) / (found["flops"] * found["images"]))
        if found["epochs"] < 1:
            raise InputError(f"nothing is left of the cost of {aim}: {wanted:.3g} operations", f"--init {init}")
    return found


def plan(
    method: Method, data: Dataset, run: Path, options: dict[str, Any], *, init: str | None, aim: str | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """`price`, and the options of `fit` with the epochs and milestones that `aim` sets or, in a resume, has set."""
    if aim and resumable(run):  # wherever the run that was aimed at is now
        aim, kept = None, config(run)
        options = options | {name: kept.get(name) for name in ("epochs", "milestones")}
    found = price(method, data, epochs=options["epochs"], init=init, aim=aim)
    if aim and options["milestones"]:
        scale = found["epochs"] / options["epochs"]
        options = options | dict(milestones=[round(m * scale) for m in options["milestones"]])
    return found, options | dict(epochs=found["epochs"])


def spent(run: Path) -> float | None:
    """Operations of a run's training and of those before it, from its run.json; None where it has not ended."""
    if not finished(run):
        return None
    try:
        cost = story(run)["cost"]
        return cost["before"] + cost["flops"] * cost["images"] * cost["epochs"]
    except (KeyError, TypeError):
        return None


def count(method: Method, data: Dataset) -> dict[str, float]:
    """Operations of one training step and of the student's forward, per image (a multiply-add is two).

    A copy of the method, beside its own teacher, takes two steps on real images; the second is counted, since a first
    may prepare things.

    Args:
        method: any; it is left as it is.
        data: its first training images are used.

    Returns:
        "flops" of a step, "forward" of the student, and their ratio "forwards": 2n+3 for PGD-AT with n steps.
    """
    method = copy.deepcopy(method, {id(method.teacher): method.teacher}).train()  # which need not be copiable
    split = data.train.take(torch.arange(min(IMAGES, len(data.train))))
    weight = next(method.student.parameters())
    x, y = pixels(split.images.to(weight.device)).to(weight.dtype), split.labels.to(weight.device)
    index = torch.arange(len(x), device=weight.device)
    for _ in range(2):
        with Operations() as counter:
            method(x, y, index)["loss"].backward()
    with Operations() as forward, torch.no_grad():
        method.student(x)
    step, once = counter.total / len(x), forward.total / len(x)
    return dict(flops=step, forward=once, forwards=step / once)


class Operations(TorchDispatchMode):
    """Counts what runs inside by torch's own formulas; its FlopCounterMode cannot follow `autograd.grad`."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if formula := flop_registry.get(func._overloadpacket):
            self.total += formula(*args, **(kwargs or {}), out_val=result)
        return result
