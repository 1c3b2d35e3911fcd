"""The contract that every method passes, without naming any: `gacd check METHOD`, and a test of each file of methods.

A small batch, two tiny networks and the labels of 20,000 images that do not exist stand in for a training run.
"""

import functools
import inspect
import io
import math
import random
import traceback
import typing
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gacd import methods, models, noise
from gacd.errors import GacdError, InputError
from gacd.methods.base import Clock, Method

KEEP = "what a method remembers belongs in buffers, and its random numbers come from self.noise"
CLASSES, TRAINING, BATCH, STEPS = 10, 20_000, 16, 20


def check(method: str) -> Iterator[str]:
    """Runs the contract on a method.

    Args:
        method: its name, "./mine.py", "./mine.py:Class" or "package.module:Class".

    Yields:
        A line for each part of the contract that it keeps.

    Raises:
        InputError: at the first part that it breaks.
    """
    case = Case(_guarded("import", method, lambda: methods.load(method)))
    for name, part in CONTRACT.items():
        yield f"{name:14}{_guarded(name, method, functools.partial(part, case))}"


class Broken(Exception):
    """A part of the contract does not hold."""


class Case:
    """A method, and what it is tried on.

    Its attributes are the class, `labels` (20000,) of the training set, and a batch x (16,3,8,8), y, index (16,) of it.
    """

    def __init__(self, cls: type[Method]):
        self.cls, self.taught = cls, methods.taught(cls)
        self.labels = torch.arange(TRAINING) % CLASSES
        self.index = noise.permutation(noise.key("check"), TRAINING)[:BATCH]
        self.x, self.y = noise.uniform(noise.key("images"), self.index, (3, 8, 8)), self.labels[self.index]

    def make(self, seed: int = 0) -> Method:
        """The method with its defaults (a short attack), ready to train; student and teacher drawn from the seed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            networks = [models.build("resnet8-x0.5", CLASSES) for _ in range(1 + self.taught)]
            options: dict[str, Any] = dict(labels=self.labels)
            if "steps" in inspect.signature(self.cls).parameters:
                options["steps"] = 3  # of an attack
            method = self.cls(*networks, **options).train()  # type: ignore[arg-type]
        method.student.head.requires_grad_(method.trains_head)
        return method

    def values(self, method: Method, step: int = 0) -> dict[str, Tensor]:
        method.clock = Clock(seed=0, epoch=0, step=step, progress=step / STEPS)
        return method(self.x, self.y, self.index)

    def train(self, method: Method, steps: int) -> list[float]:
        """Some steps of SGD on the batch; the loss before each."""
        optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], 0.02, momentum=0.9)
        losses = []
        for step in range(steps):
            optimizer.zero_grad()
            loss = self.values(method, step)["loss"]
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        return losses


def signature(case: Case) -> str:
    """(student, [teacher], labels=None, *, typed and documented hyper-parameters with defaults)."""
    from docstring_parser import parse

    parameters = inspect.signature(case.cls).parameters
    networks = ["student", "teacher", "labels"] if case.taught else ["student", "labels"]
    positional = [name for name, p in parameters.items() if p.kind is not p.KEYWORD_ONLY]
    _expect(positional == networks, f"__init__ takes ({', '.join(positional)}), not ({', '.join(networks)}), first")
    _expect(parameters["labels"].default is None, "labels has no default None")
    options = [name for name in parameters if name not in networks]
    hints = typing.get_type_hints(case.cls.__init__)
    documented = {p.arg_name for p in parse(inspect.getdoc(case.cls) or "").params if p.description}
    for name in options:
        _expect(parameters[name].default is not inspect.Parameter.empty, f"{name} has no default")
        _expect(name in hints, f"{name} has no type")
        _expect(name in documented, f"{name} is not in the class's docstring, under Args")
    return f"{len(options)} options: {', '.join(options)}" if options else "no options"


def loss(case: Case) -> str:
    """A dict of finite scalars; the loss has a gradient."""
    values = case.values(case.make())
    _expect(isinstance(values, dict) and "loss" in values, 'forward returns no dict with "loss"')
    for name, value in values.items():
        _expect(isinstance(value, Tensor) and value.ndim == 0, f"{name} is not a scalar tensor")
        _expect(math.isfinite(float(value.detach())), f"{name} is {float(value.detach())}")
    _expect(values["loss"].requires_grad, "the loss has no gradient")
    return ", ".join(f"{name} {float(value.detach()):.4g}" for name, value in values.items())


def gradient(case: Case) -> str:
    """It reaches the student's trunk, and its head if trains_head, and never the teacher."""
    method = case.make()
    case.values(method)["loss"].backward()
    wanted = {name: p for name, p in method.student.named_parameters() if p.requires_grad}
    missing = [name for name, p in wanted.items() if p.grad is None or not bool(p.grad.any())]
    _expect(not missing, f"none reaches the student's {', '.join(missing[:3])}")
    infinite = [name for name, p in method.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
    _expect(not infinite, f"not finite at {', '.join(infinite[:3])}")
    if case.taught:
        reached = [name for name, p in method.teacher.named_parameters() if p.grad is not None]
        _expect(not reached, f"it reaches the teacher's {', '.join(reached[:3])}")
    return f"reaches {len(wanted)} of the student's parameters" + ", not the teacher" * case.taught


def teacher(case: Case) -> str:
    """Bit-identical after training, always in eval mode, not in the state."""
    if not case.taught:
        return "none"
    method = case.make()
    before = {name: value.clone() for name, value in method.teacher.state_dict().items()}
    case.train(method, 2)
    _expect(not any(m.training for m in method.train().teacher.modules()), "in training mode after method.train()")
    changed = [name for name, value in method.teacher.state_dict().items() if not torch.equal(value, before[name])]
    _expect(not changed, f"changed by training: {', '.join(changed[:3])}")
    matrices = [value for value in before.values() if value.ndim > 1 and value.numel() > CLASSES]
    held = [
        name
        for name, value in method.state_dict().items()
        if any(value.shape == matrix.shape and torch.equal(value, matrix) for matrix in matrices)
    ]
    _expect(not held, f"in the method's state_dict, as {', '.join(held[:3])}")
    return "unchanged, in eval mode, not in the state"


def state(case: Case) -> str:
    """Saved after some steps and loaded into a fresh instance, the next loss is equal to the bit."""
    method, file = case.make(), io.BytesIO()
    case.train(method, 2)
    torch.save(method.state_dict(), file)
    file.seek(0)
    fresh = case.make(seed=1)
    if case.taught:
        fresh.teacher.load_state_dict(method.teacher.state_dict())
    fresh.load_state_dict(torch.load(file, weights_only=True))
    losses = [float(case.values(m, step=2)["loss"].detach()) for m in (method, fresh)]
    _expect(losses[0] == losses[1], f"the next loss is {losses[1]!r} after a restart, {losses[0]!r} without; {KEEP}")
    return "a restart changes no bit"


def falls(case: Case) -> str:
    """The loss falls in 20 steps of SGD on one batch."""
    losses = case.train(case.make(), STEPS)
    first, last = sum(losses[:3]) / 3, sum(losses[-3:]) / 3
    _expect(last < first, f"the loss goes from {first:.4g} to {last:.4g} in {STEPS} steps on one batch")
    return f"{first:.4g} to {last:.4g} in {STEPS} steps on one batch"


def attack(case: Case) -> str:
    """x_adv is finite and in [0,1]; the student's mode and gradients are as they were."""
    method = case.make()
    first = next(m for m in method.student.modules() if isinstance(m, nn.BatchNorm2d)).eval()
    modes, x = [m.training for m in method.student.modules()], case.x.clone()
    x_adv = method.attack(x, case.y, case.index)
    _expect(isinstance(x_adv, Tensor) and x_adv.shape == x.shape, "x_adv is not of the images' shape")
    _expect(bool(x_adv.isfinite().all()), "x_adv is not finite")
    _expect(bool(((x_adv >= 0) & (x_adv <= 1)).all()), "x_adv leaves [0,1]")
    _expect(not x_adv.requires_grad, "x_adv is not detached")
    _expect(torch.equal(x, case.x), "x was changed in place")
    _expect(
        modes == [m.training for m in method.student.modules()] and not first.training, "the student's mode changed"
    )
    _expect(all(p.grad is None for p in method.parameters()), "it leaves gradients in .grad")
    return f"moves pixels by up to {float((x_adv - x).abs().max()) * 255:.3g}/255"


def randomness(case: Case) -> str:
    """No global generator is used; the same clock and index give the same values."""
    one, two = case.make(), case.make()
    before = _generators()
    values = case.values(one)
    asked, draw = list[Tensor | None](), one.noise

    def told(x: Tensor, index: Tensor | None, kind: str, purpose: str) -> Tensor:
        asked.append(index)
        return draw(x, index, kind, purpose)

    one.noise = told  # type: ignore[method-assign]
    x_adv = one.attack(case.x, case.y, case.index)
    strange = [index for index in asked if index is not None and not bool(torch.isin(index, case.index).all())]
    _expect(not strange, "noise is drawn by something else than the images' index, such as their place in the batch")
    _expect(_generators() == before, "a global random generator was used; self.noise(...) needs none")
    again = case.values(two)
    for name, value in values.items():
        _expect(torch.equal(value, again[name]), f"the same clock and images give two values of {name}")
    _expect(torch.equal(x_adv, two.attack(case.x, case.y, case.index)), "the same clock and images give two attacks")
    _expect(torch.equal(x_adv, two.attack(case.x, case.y, case.index)), "an attack depends on those before it")
    return "a function of the clock and the images"


def moves(case: Case) -> str:
    """`.to()` takes everything along, the teacher too."""
    method = case.make().double()
    tensors = [*method.parameters(), *method.buffers()] + ([*method.teacher.parameters()] if case.taught else [])
    _expect(all(t.dtype == torch.float64 for t in tensors if t.is_floating_point()), ".double() left something behind")
    method.clock = Clock()
    value = method(case.x.double(), case.y, case.index)["loss"]
    _expect(bool(value.isfinite()), f"the loss in float64 is {float(value.detach())}")
    return f"float64: {float(value.detach()):.6g}"


CONTRACT: dict[str, Callable[[Case], str]] = {
    f.__name__: f for f in (signature, loss, gradient, teacher, state, falls, attack, randomness, moves)
}


def _expect(holds: bool, reason: str) -> None:
    if not holds:
        raise Broken(reason)


def _guarded(name: str, method: str, part: Callable[[], Any]) -> Any:
    """One line from whatever someone's method raises."""
    try:
        return part()
    except Broken as error:
        raise InputError(f"{method} breaks the contract", f"{name}: {error}") from None
    except GacdError as error:
        raise error if name == "import" else InputError(f"{method} breaks the contract", f"{name}: {error}") from None
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{frame.filename}:{frame.lineno}"
        raise InputError(f"{method} fails", f"{name}: {type(error).__name__}: {error}"[:300], place) from None


def _generators() -> tuple[Any, ...]:
    """The states of the three global generators."""
    numpy: Any = np.random.get_state()
    return torch.get_rng_state().tolist(), random.getstate(), numpy[1].tolist(), numpy[2]
