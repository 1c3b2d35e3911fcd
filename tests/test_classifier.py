"""Anyone's network: measured as it is, whatever it calls its parts and however it reads its images."""

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn
from torch.nn.utils import prune

from gacd import checkpoint, data, noise, onnx_file
from gacd.audit import audit
from gacd.checkpoint import Opened
from gacd.cli import main
from gacd.errors import InputError
from gacd.evaluation import evaluate
from gacd.methods import GACD
from gacd.models import build, rebuildable

NETS = """
import torch
from torch import nn
from gacd.models import build, rebuildable
from gacd.models.resnet import ResNet

class LeNet(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.channels, self.num_classes = 16, 1000  # what others may mean by these names
        self.conv, self.fc = nn.Conv2d(1, 16, 3), nn.Linear(16 * 6 * 6, 10)

    def forward(self, x):
        return self.fc(torch.relu(self.conv(x)).view(len(x), -1))

class Standardised(LeNet):
    def forward(self, x):
        w = self.conv.weight
        flat = w.view(len(w), -1)
        w = ((flat - flat.mean(1, keepdim=True)) / flat.std(1, keepdim=True)).view_as(w)
        return self.fc(nn.functional.conv2d(x, w, self.conv.bias).flatten(1))

class Inner(ResNet):
    def maps(self, x):
        return super().maps(2 * x)

def named():
    made = inner()
    made.name = "my-net"
    return made

def inner():
    return Inner("resnet8-x0.25", 10, (0,), (1,), depth=8, width=0.25)

def empty():
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(10))

class Squeezing(LeNet):
    def forward(self, x):
        return super().forward(x).squeeze()

class Featured(LeNet):
    feature_dim = 16 * 6 * 6

    @property
    def head(self):
        return self.fc

    def features(self, x):
        return torch.relu(self.conv(x)).view(len(x), -1)

class Parted(LeNet):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 2, 3))

class Unpooled(Featured):
    def features(self, x):
        return torch.relu(self.conv(x))

def colour():
    return build("resnet8-x0.25")

class Spectral(LeNet):
    def forward(self, x):
        return super().forward(torch.fft.ifft2(torch.fft.fft2(x)).real)
"""

QUICK = "--model resnet8-x0.25 --epochs 1 --batch-size 256 --val-steps 1 --precision 32"


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("nets.py").write_text(NETS)
    return tmp_path


def digits(n=60):
    split = data.load("digits").test
    return data.pixels(split.images[:n]), split.labels[:n]


@pytest.mark.parametrize("name", ["LeNet", "Standardised"])
def test_a_network_may_read_memory_in_order(place, name, capsys):
    model, (x, y) = checkpoint.load(f"./nets.py:{name}"), digits()
    result = evaluate(model, (x, y), ["pgd3"])
    assert result.natural == float((model(x).argmax(1) == y).double().mean())
    assert not model._forward_pre_hooks and not [f for f in audit(model, x, y).findings if "images?" in f.fix]
    source = f"./nets.py:{name}"
    options = ["--data", "digits", "--n", "60", "--attacks", "pgd3", "--precision", "32", "--out", "found"]
    assert main(["evaluate", source, *options]) in (0, 3)
    entries = json.loads(Path("found/results.json").read_text())["results"]
    found = {entry["attack"]: entry["accuracy"] for entry in entries}
    assert found["natural"] == result.natural and found["pgd3"] == result.robust["pgd3"]


def test_a_teacher_s_attributes_are_its_own_business(place, capsys, monkeypatch):
    monkeypatch.setattr(
        "gacd.prepare.evaluate", lambda *args: type("Measured", (), dict(natural=0.9))
    )  # it is untrained
    quick = f"{QUICK} --teacher ./nets.py:LeNet --data digits --out taught"
    for _ in range(2):  # the second goes on with it: there is nothing left to do
        assert main(["distill", "kd", *quick.split()]) == 0
    assert "the teacher is not what" not in capsys.readouterr().err


def test_images_of_other_channels_are_not_broadcast():
    x, y = digits()
    with pytest.raises(InputError, match="the network takes 3 channels: the images have 1"):
        evaluate(build("resnet8-x0.25"), (x, y))


def test_images_are_not_the_network_s_to_change():
    class Shifting(nn.Module):
        def forward(self, x):
            x -= 0.5
            return x.flatten(1)[:, :10]

    with pytest.raises(InputError, match="in-place"):
        evaluate(Shifting(), digits())


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("export ./nets.py:inner --out a.safetensors", "only networks of gacd's own grammar can be rebuilt: Inner"),
        ("train pgdat --init ./nets.py:inner --data digits --out a", "--init needs a network of gacd's own grammar"),
        ("export ./nets.py:named --out a.safetensors", "only networks of gacd's own grammar can be rebuilt: Inner"),
        ("evaluate ./nets.py:Squeezing --data digits", "must return logits (B,K), floats: torch.float32 (10,)"),
        (
            "distill gacd --teacher ./nets.py:Featured --data digits --model resnet8 --out a",
            "features(x) does not take",
        ),
        (
            "distill gacd --teacher ./nets.py:Unpooled --data digits --model resnet8 --out a",
            "features(x) has the shape (2, 16, 6, 6), not (2, 576): features (pool and flatten)",
        ),
        ("distill kd --teacher ./nets.py:Parted --data digits --model resnet8 --out a", "is no better than chance"),
        (
            "distill kd --teacher ./nets.py:colour --data digits --model resnet8 --out a",
            "teacher ./nets.py:colour takes 3",
        ),
        ("evaluate ./nets.py:LeNet --data digits --eps 8/x", "--eps takes NUMBER, not 8/x"),
        ("export ./nets.py:Spectral --data digits --onnx a.onnx", "torch cannot write this network as ONNX"),
        ("evaluate ./nets.py:empty --data digits", "no quantized, lazy or meta ones"),
        ("evaluate ./nets.py:none --data digits", "no such factory: ./nets.py:none"),
        ("evaluate nets.py:LeNet.made --data digits", "a factory in a file is ./nets.py:FACTORY"),
        ("evaluate below/nets.pt --data digits", "such as resnet18:below/nets.pt"),
    ],
)
def test_what_cannot_be_done_is_one_line(place, capfd, line, says):
    Path("below").mkdir()
    Path("below/nets.pt").write_bytes(b"weights")
    assert main(line.split()) in (1, 2)
    out, err = capfd.readouterr()
    assert (
        says in err
        and [line for line in err.splitlines() if "error" in line] == err.splitlines()[-1:]
        and "graph" not in out
    )
    assert not list(place.glob("a*"))


def test_what_build_would_not_make_again():
    changed = [build("resnet8-x0.25") for _ in range(3)]
    changed[0].fc = nn.Sequential(changed[0].fc)
    changed[1].conv1 = nn.Conv2d(3, 4, 5, padding=2)
    prune.l1_unstructured(changed[2].fc, "weight", 0.5)
    assert rebuildable(build("resnet8-x0.25")) and not any(map(rebuildable, [*changed, nn.Flatten()]))


def test_an_onnx_file_has_the_network_s_classes(tmp_path):
    model, names = build("resnet8-x0.25", 10, (0,), (1,)).eval(), [f"class {i}" for i in range(10)]
    opened = Opened(model, "best", record=dict(classes=names, size=8))
    with pytest.raises(InputError, match="made for other classes than digits, or another order"):
        onnx_file.ship(opened, tmp_path / "a.onnx", data="digits")
    onnx_file.ship(opened, tmp_path / "a.onnx")
    assert json.loads(onnx_file.Session(tmp_path / "a.onnx").about["class_names"]) == names


def test_half_rounds_matrices_and_filters_alone(tmp_path):
    model = build("resnet8-x0.25", 10, (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616))
    mean = model.mean.clone()
    checkpoint.ship(Opened(model.eval(), "best"), tmp_path / "a.safetensors", half=True)
    state = safetensors.torch.load_file(tmp_path / "a.safetensors")
    assert {name for name, t in state.items() if t.dtype == torch.float16} == {
        name for name, t in build("resnet8-x0.25").state_dict().items() if t.ndim in (2, 4)
    }
    assert torch.equal(checkpoint.load(str(tmp_path / "a.safetensors")).mean, mean)


def test_a_teacher_of_features_and_a_head_will_do():
    class Own(nn.Module):
        feature_dim = 48

        def __init__(self):
            super().__init__()
            self.head = nn.Linear(48, 10)

        def features(self, x):
            return x.flatten(1)

        def forward(self, x):
            return self.head(self.features(x))

    x, y = noise.uniform(3, torch.arange(8), (3, 4, 4)), torch.arange(8) % 3
    method = GACD(build("resnet8-x0.25"), Own().eval(), torch.arange(8) % 3, k=4, dim=8, ce=1.0, steps=1)
    assert method(x, y, torch.arange(8))["loss"].isfinite()
