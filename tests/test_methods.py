"""The contract, for every file of methods and for one of the user's own; each way of breaking it is named."""

import shutil
import textwrap

import pytest
from students import network, save

from gacd import methods
from gacd.check import check
from gacd.cli import main
from gacd.errors import InputError, UsageError

MINE = '''
"""Someone's own method."""

import torch
from torch import nn
from torch.nn import functional as F

from gacd.methods.base import Method


class Mine(Method):
    """Imitates the teacher's logits near x.

    Args:
        weight: of the imitation.
        eps: radius of the noise, in pixel units.
    """

    def __init__(self, student, teacher, labels=None, *, weight: float = 1.0, eps: float = 8 / 255):
        super().__init__(student, teacher, labels)
        self.weight, self.eps = weight, eps

    def attack(self, x, y, index=None):
        return (x + self.eps * self.noise(x, index, "uniform", "near")).clamp(0, 1)

    def forward(self, x, y, index=None):
        x_adv = self.attack(x, y, index)
        with torch.no_grad():
            t = self.teacher(x_adv)
        soft = F.mse_loss(self.student(x_adv), t)
        return dict(loss=F.cross_entropy(self.student(x), y) + self.weight * soft, soft=soft)
'''

VIOLATIONS = {  # what is replaced in MINE, by what, and what the contract says of it
    "positional option": ("*, weight", "weight", "signature: __init__ takes"),
    "untyped": ("weight: float = 1.0", "weight=1.0", "signature: weight has no type"),
    "no default": ("weight: float = 1.0", "weight: float", "signature: weight has no default"),
    "undocumented": ("        weight: of the imitation.\n", "", "signature: weight is not in the class's docstring"),
    "NaN": ("dict(loss=", "dict(loss=0 * torch.log(-y.max()) +", "loss: loss is nan"),
    "not a scalar": ("soft=soft)", "soft=t)", "loss: soft is not a scalar"),
    "detached": ("y) + self.weight * soft", "y).detach()", "loss: the loss has no gradient"),
    "teacher gets gradient": ("with torch.no_grad()", "with torch.enable_grad()", "gradient: it reaches the teacher's"),
    "trunk frozen": (
        "self.student(x",
        "self.student.head(self.student.features(x).detach()) if 1 else (x",
        "gradient: ",
    ),
    "teacher trained": ("t = self.teacher(x_adv)", "t = self.teacher.train()(x_adv)", "teacher: "),
    "teacher changed": ("t = self.t", "self.teacher.head.bias.add_(1); t = self.t", "teacher: changed by training"),
    "teacher in the state": (
        "        self.weight,",
        "        self.guide = teacher\n        self.weight,",
        "teacher: in (training mode|the method's state)",
    ),
    "copy of the teacher": (
        "        self.weight,",
        '        self.register_buffer("w", teacher.layer1[0].conv1.weight.detach().clone())\n        self.weight,',
        "teacher: in the method's state_dict, as w",
    ),
    "state outside the state": (
        "        soft =",
        "        self.n = getattr(self, 'n', 0) + 1\n        soft = self.n *",
        "state: the next loss is",
    ),
    "loss rises": ("self.weight * soft", "soft - 1e3 * self.student(x).square().mean()", "falls: |loss: "),
    "outside the box": (".clamp(0, 1)", "", "attack: x_adv leaves"),
    "mode changed": (
        "        return (x +",
        "        self.student.eval()\n        return (x +",
        "attack: the student's mode",
    ),
    "global generator": (
        'self.noise(x, index, "uniform", "near")',
        "torch.rand_like(x)",
        "state: the next loss|randomness: a global random generator",
    ),
    "numpy's generator": (
        "        soft =",
        "        import numpy as np\n        np.random.rand()\n        soft =",
        "randomness: a global random generator",
    ),
    "noise by the place in the batch": (
        "self.noise(x, index,",
        "self.noise(x, torch.arange(len(x)),",
        "randomness: noise is drawn by something else than",
    ),
    "raises": (
        "        soft =",
        "        soft = 1 / 0 #",
        r"Mine|fails: loss: ZeroDivisionError: division by zero \(.*mine",
    ),
}


def write(path, old="", new=""):
    assert old in MINE
    path.write_text(MINE.replace(old, new))
    return str(path)


@pytest.mark.parametrize("method", methods.names())
def test_contract(method):
    assert len(list(check(method))) == 9


def test_a_method_of_ones_own(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "mine.py")
    assert main(["check", "./mine.py"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 9
    assert main(["check", "./mine.py:Mine"]) == 0
    with pytest.raises(SystemExit, match="0"):
        main(["distill", "./mine.py", "--help"])
    assert "of the imitation" in capsys.readouterr().out
    assert main(["train", "./mine.py", "--out", "x"]) == 2
    assert "needs a teacher" in capsys.readouterr().err


def test_a_method_may_leave_its_radius_open(tmp_path, monkeypatch, digits):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "mine.py", "eps: float = 8 / 255", "eps: float | None = None")
    text = (tmp_path / "mine.py").read_text().replace("self.eps * self", "(self.eps or 0.1) * self")
    (tmp_path / "mine.py").write_text(text.replace("    def attack", "    trains_head = False\n\n    def attack"))
    save(tmp_path / "t", network("resnet8-x0.5", 1, digits), digits)
    quick = "--teacher t --model resnet8-x0.25 --epochs 1 --batch-size 400 --val-steps 1 --precision 32 --out a"
    assert main(["distill", "./mine.py", *quick.split()]) == 0
    assert main(["probe", "a", "--weight-decays", "0.1", "--steps", "1"]) == 0  # as the training itself did


@pytest.mark.parametrize("name", VIOLATIONS)
def test_violation_is_named(name, tmp_path, monkeypatch, capsys):
    old, new, reason = VIOLATIONS[name]
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "mine.py", old, new)
    with pytest.raises(InputError, match=reason):
        list(check("./mine.py"))
    if name == "NaN":
        assert main(["check", "./mine.py"]) == 1
        assert capsys.readouterr().err == "gacd: error: ./mine.py breaks the contract: loss: loss is nan\n"


@pytest.mark.parametrize(
    ("method", "error", "message"),
    [
        ("pgdta", UsageError, "did you mean pgdat"),
        ("./none.py", InputError, "no such method file"),
        ("no.where:Thing", InputError, "cannot import"),
        ("gacd.methods.kd:Nothing", InputError, "expected one subclass"),
        ("./two.py", InputError, "found 2"),
        ("./broken.py", InputError, "SyntaxError"),
    ],
)
def test_no_such_method(method, error, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "two.py", "class Mine", "class Other(Method):\n    pass\n\n\nclass Mine")
    (tmp_path / "broken.py").write_text("def (")
    with pytest.raises(error, match=message):
        list(check(method))


def test_adding_a_file_adds_a_command(tmp_path, monkeypatch, capsys):
    here = shutil.copytree(methods.HERE, tmp_path / "methods")
    (here / "mine.py").write_text(textwrap.dedent(MINE))
    (here / "zero.py").write_text('"""Not a method yet, and never imported."""\nimport nowhere\n')
    monkeypatch.setattr(methods, "HERE", here)
    monkeypatch.setattr(methods, "__path__", [str(here)])
    assert main(["distill", "--help"]) == 0
    assert "  mine       Someone's own method." in capsys.readouterr().out.splitlines()
    assert main(["train"]) == 0
    out = capsys.readouterr().out
    assert "mine " not in out
    assert "zero " in out
    assert len(list(check("mine"))) == 9
    assert methods.Mine.__name__ == "Mine"
    with pytest.raises(SystemExit, match="0"):
        main(["distill", "mine", "--help"])
    assert "--weight NUMBER" in capsys.readouterr().out
