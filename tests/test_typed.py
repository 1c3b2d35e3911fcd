"""Code of one's own: factories and methods, where they lie and when they have changed."""

import sys
from pathlib import Path

import pytest
from students import network, save

from gacd import checkpoint
from gacd.cli import main
from gacd.journal import code_of_all


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


NETS = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(64, 10)

    def forward(self, x):
        return self.layer(x.mean(1).flatten(1))BROKEN

def made():
    return nn.Sequential(nn.Identity(), Net())
"""


def test_a_network_of_which_nothing_can_be_followed_is_no_bug_of_ours(place, capsys):
    """Its gradient is cut off: the audits say so."""
    Path("cuts").mkdir()
    Path("cuts/off.py").write_text(NETS.replace("BROKEN", ".detach()"))
    assert (
        main(
            [
                "evaluate",
                "cuts.off:Net",
                "--data",
                "digits",
                "--n",
                "60",
                "--attacks",
                "pgd4",
                "--precision",
                "32",
                "--out",
                "cut",
            ]
        )
        == 4
    )
    assert "the gradient" in " ".join(capsys.readouterr().out.split())


def test_verdicts_of_a_stopped_evaluation_are_not_another_code_s(place, monkeypatch):
    monkeypatch.syspath_prepend(str(place))
    seen = set()
    for name, broken in (("sound", ""), ("scaled", " * 2")):
        Path("nets_of_mine").mkdir(exist_ok=True)
        Path(f"nets_of_mine/{name}.py").write_text(NETS.replace("BROKEN", broken))
        for made in ("Net", "made"):  # a factory's network may be torch's own modules around its own
            checkpoint.load(f"nets_of_mine.{name}:{made}")
        seen.add(code_of_all())
    helped = NETS.replace("import torch\n", "import torch\n\nfrom nets_of_mine.helper import g\n", 1)
    Path("nets_of_mine/whole.py").write_text(helped.replace("BROKEN", " * g()"))
    for number in "23":
        Path("nets_of_mine/helper.py").write_text(f"def g():\n    return {number}\n")
        checkpoint.load("nets_of_mine.whole:Net")
        seen.add(code_of_all())
    for factor in (2, 3):
        Path("a_file.py").write_text(NETS.replace("BROKEN", f" * {factor}"))
        checkpoint.load("./a_file.py:made")
        seen.add(code_of_all())
    assert len(seen) == 6
    own = code_of_all()
    assert own in seen
    for name in ("assess.py", "attack.py"):
        (place / name).write_text("")
    monkeypatch.setattr("gacd.journal.__file__", str(place / "assess.py"))
    assert code_of_all() != own


BREAKS = """
from gacd.attacks.loop import maximize
from gacd.methods import KD
from helper_of_mine import loss

class Breaks(KD):
    def forward(self, x, y, index=None):
        return maximize(x, lambda z: loss(z, y), eps=0.1, step_size=0.1, steps=1)
"""


def test_an_error_in_code_of_one_s_own_is_said_to_be_there(place, monkeypatch, capsys, digits):
    """Its neighbours are found; a bug in gacd it is none."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr("tempfile.tempdir", str(place))
    monkeypatch.setattr("gacd.typed._folders", set())
    monkeypatch.setattr("gacd.typed.methods", [])
    Path("sub").mkdir()
    Path("sub/breaks.py").write_text(BREAKS)
    Path("sub/helper_of_mine.py").write_text("def loss(z, y):\n    return z.no_such_thing\n")
    save(place / "t", network("resnet8-x0.25", 0, digits), digits)
    argv = ["distill", "./sub/breaks.py", "--teacher", "t", "--data", "digits", "--model", "resnet8-x0.25"]
    assert main([*argv, "--out", "x"]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("gacd: error: sub/helper_of_mine.py:2: AttributeError: ")
    assert "no_such_thing" in error and "a bug in gacd" not in error
    (file,) = place.glob("gacd-*.txt")
    assert f"its traceback is in {file}; gacd check ./sub/breaks.py tries it" in error
    assert "helper_of_mine.py" in file.read_text()
    short = "from gacd.methods import KD\n\nclass Short(KD):\n    def forward(self, x, y):\n        pass\n"
    Path("sub/breaks.py").write_text(short)
    assert main([*argv, "--out", "x"]) == 70  # nothing of it is on the stack
    assert "a bug in gacd, unless gacd check ./sub/breaks.py finds one there" in capsys.readouterr().err
    Path("other").mkdir()
    Path("other/helper_of_mine.py").write_text("")
    Path("other/breaks.py").write_text("from helper_of_mine import loss")
    assert main(["check", "./other/breaks.py"]) == 1
    assert "two typed files have neighbours of one name" in capsys.readouterr().err


def test_factories_and_methods_may_lie_where_they_are_typed(place, monkeypatch, capsys):
    (place / "of_mine").mkdir()
    net = "import gacd\n\ndef net():\n    return gacd.models.build('resnet8-x0.25', 10, (0,), (1,))\n"
    (place / "of_mine/nets.py").write_text(net)
    (place / "of_mine/ways.py").write_text("from gacd.methods import KD\n\nclass Mine(KD):\n    pass\n")
    before = [path for path in sys.path if path]
    monkeypatch.setattr(sys, "path", list(before))
    assert main(["evaluate", "of_mine.nets:net", "--data", "digits", "--n", "20", "--attacks", "fgsm"]) in (0, 3, 4)
    main(["check", "of_mine.ways:Mine"])
    assert sys.path == [*before, str(place)]
    assert "cannot import" not in capsys.readouterr().err
