"""Costs counted on the methods themselves equal the counts by hand; epochs for an equal cost; run.json."""

import inspect
import json
import shutil
import threading

import pytest
import torch

from gacd import cost, methods, models
from gacd.cli import main
from gacd.data import Dataset
from gacd.readers import Split
from gacd.runs import config

# A method with n attack steps, in forwards of the student; r: the teacher's forward. GACD's contrast comes on top.
BY_HAND = {
    "standard": (lambda n, r: 3),
    "nfgsm": (lambda n, r: 5),
    "pgdat": (lambda n, r: 2 * n + 3),
    "trades": (lambda n, r: 2 * n + 7),
    "kd": (lambda n, r: 3 + r),
    "ard": (lambda n, r: 2 * n + 3 + r),
    "rslad": (lambda n, r: 2 * n + 6 + r),
    "adaad": (lambda n, r: 2 * n + 3 + (2 * n + 1) * r),
    "igdm": (lambda n, r: 2 * n + 6 + (2 * n + 2) * r),
    "gacd": (lambda n, r: 2 * n + 4 + r),
}
N = 3


def made(n, size=16):
    images = torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(n))
    return Split(images, torch.arange(n) % 10)


DATA = Dataset("made", made(40), made(10), made(10), [str(k) for k in range(10)], (0,) * 3, (1,) * 3)


def forward(model):
    with cost.Operations() as operations, torch.no_grad():
        model(torch.rand(1, 3, 16, 16))
    return operations.total


def test_every_method_is_counted_by_hand():
    assert set(BY_HAND) == set(methods.names())


@pytest.mark.parametrize("name", BY_HAND)
def test_counted_equals_by_hand(name):
    cls, student, teacher = methods.load(name), models.build("resnet8"), models.build("resnet8-x2")
    options = dict(steps=N) if "steps" in inspect.signature(cls).parameters else {}
    networks = [student, teacher] if "teacher" in inspect.signature(cls).parameters else [student]
    method = cls(*networks, labels=DATA.train.labels, **options)
    expected = BY_HAND[name](N, forward(teacher) / forward(student))
    before = {k: v.clone() for k, v in method.state_dict().items()}
    found = cost.count(method, DATA)
    assert found["forwards"] == pytest.approx(expected, rel=0.02)  # no gradient of the pixels in the update
    assert all(torch.equal(v, before[k]) for k, v in method.state_dict().items() if not v.isnan().any())
    assert all(p.grad is None for p in method.parameters())


def test_a_teacher_need_not_let_itself_be_copied():
    teacher = models.build("resnet8")
    teacher.guard = threading.Lock()
    assert cost.count(methods.KD(models.build("resnet8"), teacher), DATA)["flops"] > 0


def test_a_convolution_and_a_product_are_counted_as_two_per_multiply_add():
    with cost.Operations() as operations:
        torch.nn.Conv2d(3, 5, 3, bias=False)(torch.rand(2, 3, 8, 8))
        torch.rand(4, 6) @ torch.rand(6, 7)
    assert operations.total == 2 * (2 * 5 * 6 * 6 * 3 * 9) + 2 * (4 * 6 * 7)


QUICK = ["--model", "resnet8-x0.25", "--batch-size", "400", "--precision", "32", "--val-steps", "0"]


def test_equal_cost_over_a_chain(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "pgdat", "--data", "digits", "--epochs", "6", "--steps", "1", *QUICK, "--out", "a"]) == 0
    late = ["--epochs", "20", "--milestones", "10", "16"]
    assert main(["train", "standard", "--data", "digits", "--cost-of", "a", *late, *QUICK, "--out", "b"]) == 0
    read = {name: json.loads((tmp_path / name / "run.json").read_text()) for name in "ab"}
    assert read["b"]["cost"]["epochs"] == 10  # 6 epochs of 5 forwards in forwards of 3
    assert config(tmp_path / "b")["milestones"] == [5, 8]
    assert read["a"]["seconds"] >= 0
    assert read["a"]["starts"][0]["versions"]["torch"] == torch.__version__
    shutil.rmtree("a/checkpoints")  # as in what others committed: a training anew owes nothing to that one
    assert main(["train", "pgdat", "--data", "digits", "--epochs", "6", "--steps", "1", *QUICK, "--out", "a"]) == 0
    assert len(json.loads((tmp_path / "a" / "run.json").read_text())["starts"]) == 1
    assert main(["train", "standard", "--init", "b", "--cost-of", "a", "--out", "c"]) == 1
    assert "nothing is left of the cost of a" in capsys.readouterr().err
    assert main(["train", "standard", "--data", "digits", "--epochs", "3", *QUICK, "--out", "d"]) == 0
    assert main(["train", "pgdat", "--steps", "1", "--init", "d", "--cost-of", "a", *QUICK[2:], "--out", "e"]) == 0
    told = json.loads((tmp_path / "e" / "run.json").read_text())
    common = dict(model="resnet8-x0.25", teacher=None, data="digits", weights=None)
    assert told["stages"] == [dict(method=name, **common) for name in ("standard", "pgdat")]
    chain = told["cost"]
    assert chain["epochs"] == 4  # (30 - 9) / 5
    assert cost.spent(tmp_path / "e") == pytest.approx(cost.spent(tmp_path / "a"), rel=0.05)
    assert main(["train", "standard", "--data", "digits", "--cost-of", "nowhere", *QUICK, "--out", "f"]) == 1
    assert "no record of the cost: nowhere/run.json" in capsys.readouterr().err
    assert not (tmp_path / "f").exists()
