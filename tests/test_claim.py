"""RobustBench's form: what files say is filled in, what they do not say is unknown, and nothing is claimed."""

from pathlib import Path

import pytest

from gacd.claim import UNKNOWN, claims
from gacd.parser import Ratio
from gacd.records import Measured, Run
from gacd.sections import Section

FIELDS = (
    "Paper Title, Paper URL, Paper authors, Architecture, Threat Model, eps, Clean accuracy, Robust accuracy, "
    "Additional data, Evaluation method, Checkpoint and code"
)


def form(shares, data="cifar10", n=10_000, eps="8/255", **options):
    run = Run("a", Path("r/a"), dict(method="ard", data=data) | options, "resnet18", 11_173_962)
    row = dict(weights="best", sha256="f00", commit="c0ffee")
    run.measured = [Measured(data, n, name, "Linf", Ratio(eps), share, row) for name, share in shares.items()]
    return claims([Section(data, [run])])


def field(text, name):
    return text.split(f"- **{name}**: ")[1].splitlines()[0]


def test_what_is_known_is_filled_in():
    text = form({"natural": 0.8123, "pgd20": 0.5, "autoattack": 0.4567})
    for name in FIELDS.split(", "):
        assert field(text, name)
    assert field(text, "Architecture") == "resnet18 (11,173,962 parameters)"
    assert (field(text, "Threat Model"), field(text, "eps")) == ("Linf", "8/255")
    assert field(text, "Clean accuracy") == "81.23 % of 10000 images"
    assert field(text, "Robust accuracy") == "45.67 % of 10000 images"
    assert field(text, "Evaluation method") == "AutoAttack; beside it pgd20"
    assert field(text, "Additional data") == "false"
    assert "SHA-256 f00" in text and "c0ffee" in text and "    gacd train ard" in text
    assert "Before it is sent" not in text
    assert field(text, "Paper Title") == UNKNOWN


def test_without_autoattack_no_robust_accuracy_is_given():
    text = form({"natural": 0.8, "pgd20": 0.5})
    assert field(text, "Robust accuracy") == UNKNOWN
    assert field(text, "Evaluation method") == "pgd20; AutoAttack was not run"
    assert "AutoAttack was not run, and RobustBench ranks by it. 50.00 %" in text


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (dict(n=1000), "Only the first 1000 of 10000"),
        (dict(eps="4/255"), "ranks only"),
        (dict(data="digits"), "ranks only"),
    ],
)
def test_what_is_no_claim_is_said(options, said):
    assert said in form({"natural": 0.8, "autoattack": 0.4}, **options)


def test_a_lower_number_than_that_of_autoattack_is_said():
    assert "found more than AutoAttack: 40.00 %" in form({"natural": 0.8, "autoattack": 0.5, "worst": 0.4})


def test_the_data_of_a_teacher_are_unknown():
    assert field(form({"natural": 0.8}, teacher="r/t"), "Additional data").startswith(f"{UNKNOWN}: false if r/t had")
    assert field(form({"natural": 0.8}, data="x").replace("r/t", ""), "Additional data") == "false"


def test_a_run_that_was_not_attacked_or_not_measured():
    assert field(form({"natural": 0.8}), "Clean accuracy").startswith("80.00")
    assert field(form({"pgd20": 0.8}), "Clean accuracy") == UNKNOWN


def test_every_board_that_autoattack_was_run_for_has_a_block():
    """Though most runs were attacked otherwise."""
    row = dict(weights="best", sha256="f00", commit="c0ffee")
    runs = [Run(name, Path("r", name), dict(method="ard", data="cifar10"), "resnet18", 1) for name in "abc"]
    tried = {("autoattack", "Linf", "8/255"): 0.5, ("autoattack", "L2", "0.5"): 0.6, ("pgd20", "Linf", "4/255"): 0.7}
    for run in runs:
        some = tried if run.name == "a" else {("pgd20", "Linf", "4/255"): 0.7}
        natural = Measured("cifar10", 10_000, "natural", "", Ratio(0), 0.9, row)
        run.measured = [
            natural,
            *(Measured("cifar10", 10_000, a, norm, Ratio(e), s, row) for (a, norm, e), s in some.items()),
        ]
    blocks = claims([Section("cifar10", runs)]).split("## Model: ")[1:]
    assert [(text[0], field(text, "Threat Model"), field(text, "Robust accuracy")[:5]) for text in blocks] == [
        ("a", "Linf", "50.00"), ("a", "L2", "60.00"), ("b", "Linf", UNKNOWN[:5]), ("c", "Linf", UNKNOWN[:5]),
    ]  # fmt: skip
    assert "AutoAttack was not run" not in blocks[0] + blocks[1]


def test_doubts_may_be_anything():
    for doubts in (5, None, [], "x", ["a hidden gradient"]):
        run = Run("a", Path("r/a"), {}, "resnet18")
        row = dict(verdict="SUSPECT", doubts=doubts)
        run.measured = [Measured("cifar10", 10, "pgd20", "Linf", Ratio("8/255"), 0.5, row)]
        assert "unverified upper bound" in claims([Section("cifar10", [run])])
