"""The command `probe` from end to end: a head of a run's own, and one for other images in a run apart."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from gacd import checkpoint, records
from gacd.cli import main
from gacd.data import load
from gacd.heads import regress
from gacd.models import build
from gacd.probe import features
from gacd.readers import PUBLIC

QUICK = "--model resnet8-x0.25 --batch-size 400 --precision 32 --val-steps 0 --epochs 1"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a run on digits, and grey and coloured images of their size and of another."""
    root = tmp_path_factory.mktemp("place")
    assert main(f"train standard --data digits {QUICK} --out {root}/run".split()) == 0
    rng = np.random.default_rng(0)
    for folder, shape, n in (("grey", (12, 12), 20), ("coloured", (8, 8, 3), 20), ("few", (8, 8), 3)):
        for label, name in enumerate(("ant", "bee", "cat")):
            (root / folder / name).mkdir(parents=True)
            for i in range(n):
                image = rng.integers(0, 90, shape) + 60 * label
                Image.fromarray(image.astype(np.uint8)).save(root / folder / name / f"{i}.png")
    torch.save(build("resnet8-x0.25", 10, (0.4,) * 3, (0.25,) * 3).state_dict(), root / "foreign.pt")
    return root


@pytest.fixture
def there(place, monkeypatch):
    monkeypatch.chdir(place)
    return place


def files(run):
    """What a run holds, but for what probes of it hold."""
    return {p: p.read_bytes() for p in run.rglob("*") if p.is_file() and "probe-" not in str(p)}


def test_a_probe_of_other_images_is_a_run_of_its_own(there, capsys):
    before = files(there / "run")
    line = "probe run --data grey --weight-decays 0.1 0.01 --steps 2 --eps 4/255 --seed 3"
    assert main(line.split()) == 0
    assert files(there / "run") == before
    out = Path("run/probe-grey")
    said = capsys.readouterr().err
    assert "0.01" in said
    assert f"written to {out}/checkpoints/probe.pt" in said
    assert said.splitlines()[-1] == f"{out}: done. Next: gacd evaluate {out} --attacks pgd7"

    config = yaml.safe_load((out / "config.yaml").read_text())
    expected = dict(method="probe", init="run", data="grey", size=8, val_size=1000, solver="lbfgs", select="robust")
    expected |= dict(weight_decays=[0.1, 0.01], epochs=None, eps="4/255", step_size="1/255", steps=2, seed=3)
    assert config | expected == config
    source, opened = checkpoint.open_source("run").model, checkpoint.open_source(str(out))
    record = opened.record
    assert (record["data"], record["size"], record["classes"]) == ("grey", 8, ["ant", "bee", "cat"])
    assert (record["method"], record["head"], len(record["front"])) == ("probe", "linear", 2)
    assert record["val_natural"] in [row["val_natural"] for row in record["front"] if row["kept"]]
    weights = opened.model.state_dict()
    same = [torch.equal(value, weights[name]) for name, value in source.state_dict().items() if "fc." not in name]
    assert all(same)
    assert torch.equal(opened.model.mean, source.mean)
    assert opened.model.num_classes == 3
    images = load("grey", size=8, seed=3)
    expected = regress(features(source, images.train), images.train.labels, 3, record["weight_decay"])
    assert torch.allclose(opened.model.head.weight, expected.weight, atol=2e-3)  # weights of up to 2

    assert main(f"evaluate {out} --attacks pgd7 margin20".split()) == 0
    assert {r["attack"] for r in json.loads((out / "results.json").read_text())["results"]} >= {"pgd7", "margin20"}
    (found,) = [run for run in records.collect(["run"]) if run.name == "probe-grey"]
    assert (found.warning, {m.data for m in found.measured}) == ("", {"grey"})

    written = (out / "checkpoints" / "probe.pt").read_bytes()
    assert main(line.split()) == 0
    assert (out / "checkpoints" / "probe.pt").read_bytes() == written
    assert main([*line.split(), "--select", "natural", "--device", "cpu"]) == 2
    assert "select robust -> natural" in capsys.readouterr().err
    assert main(["probe", "run", "--data", "grey", "--out", "run"]) == 2
    assert "method standard -> probe" in capsys.readouterr().err
    assert main(["probe", str(out)]) == 1
    assert "nothing was trained in this run" in capsys.readouterr().err
    assert files(there / "run") == before


def test_a_run_s_own_images_may_have_a_probe_apart_and_training_goes_on_from_it(there, capsys):
    line = "probe run --out apart --solver adversarial --epochs 1 --steps 1 --weight-decays 0.01"
    assert main(line.split()) == 0
    config = yaml.safe_load(Path("apart/config.yaml").read_text())
    assert (config["data"], config["solver"], config["epochs"], config["lr"]) == ("digits", "adversarial", 1, 1.0)
    assert not Path("run/checkpoints/probe.pt").exists()
    assert main(f"train pgdat --init apart {QUICK} --steps 1 --lr 1e-9 --out tuned".split()) == 0
    tuned, apart = checkpoint.load("tuned"), checkpoint.load("apart")
    assert torch.allclose(tuned.head.weight, apart.head.weight, atol=1e-5)
    assert main(f"train pgdat --data digits {QUICK} --out again".split()) == 0
    assert main(["probe", "again", "--solver", "sgd", "--epochs", "2", "--steps", "1", "--weight-decays", "0.01"]) == 0
    assert capsys.readouterr().err.splitlines()[-1].endswith("Next: gacd evaluate again --attacks pgd7")
    record = checkpoint.open_source("again").record
    assert (record["data"], record["method"], record["solver"]) == ("digits", "pgdat", "sgd")
    assert (Path("again/checkpoints/probe.pt").exists(), Path("again/probe-digits").exists()) == (True, False)


def test_a_shipped_file_says_which_images_were_held_out(there, capsys):
    assert main(f"train standard --data digits {QUICK} --seed 5 --val-size 60 --out five".split()) == 0
    assert main(["export", "five", "--out", "five.safetensors"]) == 0
    for source, out in (("five", "by-run"), ("five.safetensors", "by-file")):
        assert main(f"probe {source} --weight-decays 0.01 --steps 2 --out {out}".split()) == 0
    apart, shipped = (checkpoint.read(there / out / "checkpoints/probe.pt") for out in ("by-run", "by-file"))
    assert shipped["record"]["front"] == apart["record"]["front"]
    assert all(torch.equal(value, apart["weights"][name]) for name, value in shipped["weights"].items())
    assert main(["probe", "five.safetensors", "--out", "other", "--val-size", "50"]) == 2
    assert "only what the run held out may choose" in capsys.readouterr().err


@pytest.fixture
def stl10(tmp_path, monkeypatch):
    """Generated files in STL-10's format, columns before rows: class k is lighter than class k - 1."""
    (tmp_path / "stl10_binary").mkdir()
    sums, rng = {}, np.random.default_rng(0)
    for part, n in (("train", 40), ("test", 20)):
        labels = np.arange(n) % 10
        images = rng.integers(0, 50, (n, 3, 96, 96)) + 20 * labels.reshape(-1, 1, 1, 1)
        contents = {"X": images.astype(np.uint8).tobytes(), "y": (labels + 1).astype(np.uint8).tobytes()}
        for name, content in contents.items():
            (tmp_path / "stl10_binary" / f"{part}_{name}.bin").write_bytes(content)
            sums[f"{part}_{name}.bin"] = hashlib.md5(content).hexdigest()
    monkeypatch.setitem(PUBLIC, "stl10", (*PUBLIC["stl10"][:3], sums))
    monkeypatch.setenv("GACD_DATA", str(tmp_path))


@pytest.mark.usefixtures("stl10")
def test_stl10_is_resized_to_what_the_network_knows(there):
    network = build("resnet8-x0.25", 7, (0.4,) * 3, (0.25,) * 3)
    payload = dict(model=network.config(), weights=network.state_dict(), record=dict(data="cifar10", size=24))
    checkpoint.write(there / "known" / "checkpoints" / "best.pt", payload)
    quick = "--data stl10 --steps 1 --weight-decays 0.1"
    assert main(f"probe known {quick}".split()) == 0
    assert main(f"probe resnet8-x0.25:foreign.pt {quick} --mean .4 .4 .4 --std .2 .2 .2 --out foreign".split()) == 0
    assert main(f"probe known/checkpoints/best.pt {quick} --size 16 --val-size 2 --out small".split()) == 0
    for run, size in (("known/probe-stl10", 24), ("foreign", 32), ("small", 16)):
        opened = checkpoint.open_source(run)
        assert (opened.record["data"], opened.record["size"], opened.model.num_classes) == ("stl10", size, 10)
    assert checkpoint.load("foreign").std.flatten().tolist() == pytest.approx([0.2] * 3)
    assert main(["evaluate", "known/probe-stl10", "--attacks", "pgd7"]) == 0
    row = json.loads(Path("known/probe-stl10/results.json").read_text())["results"][0]
    assert (row["data"], row["n"]) == ("stl10", 20)


def test_a_factory_is_a_source_where_it_can_be_rebuilt(there, monkeypatch, capsys):
    monkeypatch.syspath_prepend(there)
    Path("factories").mkdir()
    Path("factories/nets.py").write_text(FACTORIES)
    line = "probe factories.nets:{} --data coloured --size 8 --steps 1 --weight-decays 0.1 --out made-by-{}"
    assert main(line.replace("{}", "plain").split()) == 0
    assert checkpoint.load("made-by-plain").num_classes == 3
    capsys.readouterr()
    for name in ("other", "changed", "renamed"):
        assert main(line.replace("{}", name).split()) == 1
        assert capsys.readouterr().err.count("\n") == 1
        assert not Path(f"made-by-{name}").exists()


FACTORIES = """
import torch
from gacd.models import build
from gacd.models.resnet import ResNet

class Changed(ResNet):
    def features(self, x):
        return -super().features(x)

def plain():
    return build("resnet8-x0.25", 10, (0.4,) * 3, (0.25,) * 3)

def other():
    return torch.nn.Identity()

def changed():
    return Changed("resnet8-x0.25", 10, (0.4,) * 3, (0.25,) * 3, depth=8, width=0.25)

def renamed():
    return ResNet("mine", 10, (0.4,) * 3, (0.25,) * 3, depth=8)
"""
WRONG = [  # command line, exit code, part of the line
    ("probe run --data coloured", 1, "the network takes 1 channels: coloured has 3"),
    ("probe run --data few", 2, "needs held-out images"),
    ("probe run --data grey --val-size 0", 2, "needs held-out images"),
    ("probe run --out x --val-size 5", 2, "only what the run held out may choose"),
    ("probe run --size 16", 2, "keep their size"),
    ("probe run --data grey --head teacher", 2, "class means"),
    ("probe run --epochs 2", 2, "lbfgs has no epochs"),
    ("probe run --data grey --lr 1", 2, "lbfgs has no epochs"),
    ("probe run --data grey --solver sgd --epochs 0", 2, "epochs must be"),
    ("probe run --data grey --solver sgd --lr -1", 2, "lr must be"),
    ("probe run --data grey --solver adam", 2, "adversarial"),
    ("probe run --data grey --select best", 2, "robust"),
    ("probe run --data grey --eps 8", 1, "did you mean 8/255?"),
    ("probe run --data grey --step-size 2", 1, "did you mean 2/255?"),
    ("probe run --data grey --steps 0", 2, "steps must be at least 1"),
    ("probe run --data grey --weight-decays -1", 2, "weight decays must be"),
    ("probe run --data grey --size 0", 1, "size must be positive"),
    ("probe run --data grey --mean 0.5", 2, "knows its normalisation"),
    ("probe run --data grey --out foreign.pt", 1, "cannot use run directory"),
    ("probe run --data ./none", 1, "no such folder"),
    ("probe run --data stl10 --data-dir none", 1, "gacd download stl10"),
    ("probe none --data grey", 1, "no such run or file"),
    ("probe resnet8-x0.25:foreign.pt --data coloured", 2, "needs --out"),
    ("probe resnet8-x0.25:foreign.pt --out x", 2, "which images?"),
    ("probe resnet8-x0.25:foreign.pt --data grey --out x", 1, "takes 3 channels"),
    ("probe torch.nn:Identity --data grey --out x", 1, "Identity"),
]


@pytest.mark.parametrize(("line", "code", "part"), WRONG, ids=[line for line, *_ in WRONG])
def test_wrong_input_is_one_line(line, code, part, there, capsys):
    before = sorted(there.rglob("*"))
    assert main(line.split()) == code
    *said, error = capsys.readouterr().err.splitlines()
    assert error.startswith("gacd: error: ")
    assert part in error
    assert not any("error" in line or "Traceback" in line for line in said)
    assert sorted(there.rglob("*")) == before
