"""Which of the paper's numbers stand beside a run."""

import csv
import json

import pytest
from pages import entry, make

from gacd import paper
from gacd.cli import main

OURS = {"ResNet-18": "resnet18", "WRN-34-10": "wrn-34-10", "MobileNetV2": "mobilenetv2", "ResNet-56": "resnet56"}
OURS |= {"ResNet-32": "resnet32", "WRN-40-2": "wrn-40-2", "WRN-16-2": "wrn-16-2"}


def stage(method="pgdat", model="resnet18", teacher=None, data="cifar10", weights=""):
    usual = dict(gacd="probability", ard="none").get(method if isinstance(method, str) else "")
    return dict(method=method, model=model, teacher=teacher, data=data, weights=usual if weights == "" else weights)


@pytest.mark.parametrize(("name", "data"), [("table1", "cifar10"), ("table2", "cifar100")])
def test_every_cell_is_found_by_what_it_is_trained_from(name, data):
    for cell, numbers in paper.table(name)["cells"].items():
        teacher, student, method = cell.split("/")
        model = OURS[student] + "-x0.5" * (student == "MobileNetV2" and data == "cifar100")
        stages = [stage(method.removesuffix("+AFT").lower(), model, OURS[teacher], data)]
        stages += [stage("pgdat", model, None, data)] * method.endswith("+AFT")
        assert paper.of(stages, data) == tuple(numbers), cell


def test_teachers_are_found_on_their_own_data():
    assert paper.of([stage()], "cifar10") == (76.54, 44.46)
    assert paper.of([stage("trades", "wrn-40-2", None, "cifar100")], "cifar100") == (60.27, 22.40)


@pytest.mark.parametrize(
    "stages",
    [
        [],
        [stage("standard")],
        [stage("./mine.py")],
        [stage("gacd", "resnet18", "resnet18", weights="none")],
        [stage("ard", "resnet18", "resnet18", weights="probability"), stage()],
        [stage(model=["resnet18"])],
        [stage("kd", "resnet8", "resnet18")],
        [stage("kd", "resnet18", "resnet20")],
        [stage("kd", "mobilenetv2-x0.5", "resnet18")],  # the paper's on CIFAR-100
        [stage("rslad", "resnet18", "resnet18")],
        [stage("kd", "resnet18", "resnet18", "cifar100")],  # evaluated on other images than it was trained on
        [stage("gacd", "resnet18", "resnet18"), stage("trades")],
        [stage("gacd", "resnet18", "resnet18"), stage(model="wrn-34-10")],
        [stage("gacd", "resnet18", "resnet18"), stage(), stage()],
        [{}, stage()],
        [stage("kd", ["resnet18"], "resnet18")],
        ["resnet18"],
        [None],
        [stage(None, "resnet18", 18)],
    ],
)
def test_other_runs_have_none(stages):
    assert paper.of(stages, "cifar10") is None
    assert paper.of([stage(data="digits")], "digits") is None
    assert paper.of([stage("kd", "mobilenetv2", "resnet56", "cifar100")], "cifar100") is None  # twice CRD's width


def test_the_report_has_them_beside_the_runs_that_they_belong_to(tmp_path):
    rows = [entry("natural", 0.8), entry("pgd20", 0.5, "8/255")]
    for name, stages in {
        "a": [stage("gacd", "resnet18", "resnet18"), stage()],
        "b": [stage("adaad", teacher="x")],
    }.items():
        (make(tmp_path, name, rows) / "run.json").write_text(json.dumps(dict(stages=stages)))
    assert main(["report", str(tmp_path), "--formats", "csv", "html", "md"]) == 0
    read = {row["run"]: row for row in csv.DictReader((tmp_path / "report.csv").read_text().splitlines())}
    assert [read[run]["paper: natural"] for run in "ab"] == ["82.73", ""]
    assert [read[run]["paper: pgd20"] for run in "ab"] == ["52.75", ""]
    assert "Paper: what the GACD paper reports" in (tmp_path / "report.html").read_text()
    make(tmp_path / "other", "c", [entry("natural", 0.8), entry("pgd20", 0.5, "4/255")])
    (tmp_path / "other" / "c" / "run.json").write_text(json.dumps(dict(stages=[stage()])))
    assert main(["report", str(tmp_path / "other"), "--formats", "md"]) == 0
    assert "paper" not in (tmp_path / "other" / "report.md").read_text().lower()
