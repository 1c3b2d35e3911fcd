"""The paper's numbers, and which of them belong to a run."""

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

PAPER = Path(__file__).parent / "paper.json"
STUDENTS, TEACHERS = {"cifar10": "table1", "cifar100": "table2"}, "table3"
ADVERSARIAL = ("pgdat", "trades", "nfgsm")  # how a teacher may be trained; the paper names no method
KEYS = ("method", "model", "teacher", "data", "weights")


def table(name: str) -> dict[str, Any]:
    """A table's "title", "attack", perhaps a "note", and "cells": row -> natural and robust accuracy in per cent."""
    return _tables().get(name, dict(title=name, attack="pgd20", cells={}))


@cache
def _tables() -> dict[str, Any]:
    return json.loads(PAPER.read_text(encoding="utf-8"))


def of(stages: Sequence[Any], data: str) -> tuple[float, float] | None:
    """The paper's natural and PGD-20 accuracy in per cent for the same data, networks and methods; None if it has none.

    Args:
        stages: of a run's training, from its run.json.
        data: that the run was evaluated on.
    """
    if data not in STUDENTS:
        return None
    students, teachers = ({_own(cell): v for cell, v in table(t)["cells"].items()} for t in (STUDENTS[data], TEACHERS))
    teachers = {name: v for name, v in teachers.items() if any(cell.startswith(f"{name}/") for cell in students)}
    found = (students | teachers).get(_row(stages, data))
    return (found[0], found[1]) if found else None


def _row(stages: Sequence[Any], data: str) -> str:
    """teacher/student/method, or the network alone if nobody taught it; "" for what the paper has not."""
    words = [[stage.get(key) for key in KEYS] if isinstance(stage, dict) else [] for stage in stages]
    match words:
        case [[str(method), str(model), None, str(on), _]] if on == data:
            return model if method in ADVERSARIAL else ""
        case [[str(method), str(model), str(teacher), str(on), weights]] if on == data:
            if data == "cifar100":  # the paper's is CRD's there
                model = {"mobilenetv2-x0.5": "mobilenetv2", "mobilenetv2": ""}.get(model, model)
            usual = weights == {"gacd": "probability", "ard": "none"}.get(method)
            return f"{teacher}/{model}/{method}" if usual else ""
        case [_, ["pgdat", str(model), None, str(on), _]] if on == data and words[0][1:2] == [model]:
            return f"{_row(stages[:1], data)}+aft"
    return ""


def _own(cell: str) -> str:
    """The paper's name of a row with gacd's names of networks and methods."""
    return cell.lower().replace("resnet-", "resnet")
