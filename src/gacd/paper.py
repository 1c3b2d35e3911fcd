"""The paper's numbers, and which of them belong to a run."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PAPER = Path(__file__).parent / "paper.json"
STUDENTS, TEACHERS = {"cifar10": "table1", "cifar100": "table2"}, "table3"


def table(name: str) -> dict[str, Any]:
    """A table's "title", "attack", perhaps a "note", and "cells": row -> natural and robust accuracy in per cent."""
    known = json.loads(PAPER.read_text(encoding="utf-8"))
    return known.get(name, dict(title=name, attack="pgd20", cells={}))


def of(stages: Sequence[Any], data: str) -> tuple[float, float] | None:
    """The paper's natural and PGD-20 accuracy in per cent of the same network, trained likewise; None if it has none.

    Args:
        stages: of a run's training, from its run.json.
        data: that the run was evaluated on.
    """
    try:
        if data not in STUDENTS or not stages or any(stage["data"] != data for stage in stages):
            return None
        row = _row(stages)
    except (AttributeError, KeyError, TypeError):  # not as gacd writes it
        return None
    students, teachers = ({_own(cell): v for cell, v in table(t)["cells"].items()} for t in (STUDENTS[data], TEACHERS))
    teachers = {name: v for name, v in teachers.items() if any(cell.startswith(f"{name}/") for cell in students)}
    found = (students | teachers).get(row)
    return (found[0], found[1]) if found else None


def _row(stages: Sequence[Any]) -> str:
    """teacher/student/method, or the network alone if nobody taught it; "" for what the paper has not."""
    *before, last = stages
    taught, model = last["teacher"], last["model"]
    if (model, last["data"]) == ("mobilenetv2-x0.5", "cifar100"):  # CRD's, as in the preset paper
        model = "mobilenetv2"
    if not before:
        return f"{taught}/{model}/{last['method']}" if taught else model if last["method"] != "standard" else ""
    tuned = last["method"] == "pgdat" and not taught and len(before) == 1 and last["model"] == before[0]["model"]
    return f"{_row(before)}+aft" if tuned else ""


def _own(cell: str) -> str:
    """The paper's name of a row with gacd's names of networks and methods."""
    return cell.lower().replace("resnet-", "resnet")
