"""Sources of weights: each kind loads, anything else is one line; files are replaced whole or not at all."""

import errno
import hashlib
import os
import pickle

import pytest
import safetensors.torch
import torch

import gacd.checkpoint
from gacd import models
from gacd.checkpoint import MARK, digest, load, open_source, read, read_newest, replace, write
from gacd.cli import main
from gacd.errors import GacdError, InputError

NAME, MEAN, STD = "resnet8-x0.25", (0.3, 0.4, 0.5), (0.2, 0.3, 0.4)


def network(seed=0):
    torch.manual_seed(seed)
    return models.build(NAME, 7, MEAN, STD).eval()


def save(path, model, **record):
    write(path, dict(model=model.config(), weights=model.state_dict(), record=record))


@pytest.fixture
def run(tmp_path):
    """A run whose last, best and probe weights differ."""
    for seed, name in enumerate(("previous", "last", "best", "probe")):
        save(tmp_path / "run/checkpoints" / f"{name}.pt", network(seed), data="digits", seed=seed)
    return tmp_path / "run"


def test_own_sources(run):
    x = torch.rand(2, 3, 8, 8)
    for seed, name in ((3, "probe"), (2, "best"), (1, "last"), (0, "previous")):
        path = run / "checkpoints" / f"{name}.pt"
        for source in (str(run), str(path)):
            opened = open_source(source)
            assert (opened.weights, opened.run, opened.record) == (name, run, dict(data="digits", seed=seed))
            assert torch.equal(opened.model(x), network(seed)(x))
            assert not opened.model.training
            assert opened.model.config() == network().config()
        assert open_source(str(run)).notes == [f"{run}: {name} weights"]
        path.unlink()
    with pytest.raises(InputError, match="no checkpoint in run"):
        load(str(run))


@pytest.mark.parametrize("suffix", ["pt", "pth", "safetensors"])
def test_foreign_sources(tmp_path, suffix):
    model, path, x = network(), tmp_path / f"weights.{suffix}", torch.rand(2, 3, 8, 8)
    if suffix == "safetensors":
        safetensors.torch.save_file(model.state_dict(), path)
    else:
        torch.save({"state_dict": model.state_dict()}, path)
    opened = open_source(f"ResNet8_x0.25:{path}")
    assert torch.equal(opened.model(x), model(x))
    assert (opened.weights, opened.run) == (path.name, None)
    other = load(f"{NAME}:{path}", mean=[0.0] * 3, std=[1.0] * 3)
    as_normalised = x * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None]
    assert torch.allclose(other(x), model(as_normalised), atol=1e-5)
    with pytest.raises(InputError, match=f"a foreign file is read as ARCH:FILE, such as resnet18:{path}"):
        load(str(path))


def test_factory(tmp_path, monkeypatch):
    package = tmp_path / "a_package_of_mine"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "nets.py").write_text(
        "import torch\n\ndef net():\n    return torch.nn.Flatten()\n\ndef number():\n    return 3\n\nthing = 4\n\n"
        "class Odd(torch.nn.Flatten):\n    def get_extra_state(self):\n        return 4, 'bits'\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    opened = open_source("a_package_of_mine.nets:net")
    assert isinstance(opened.model, torch.nn.Flatten)
    assert not opened.model.training
    for name, message in (
        ("number", "must return an nn.Module"),
        ("nothing", "no such factory"),
        ("thing", "no such factory"),
        ("Odd", "state must be tensors"),
    ):
        with pytest.raises(InputError, match=message):
            load(f"a_package_of_mine.nets:{name}")
    with pytest.raises(InputError, match="cannot import"):
        load("no.such.package:net")


class Hostile:
    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def test_hostile_pickles_are_not_executed(tmp_path):
    trace, path = tmp_path / "executed", tmp_path / "checkpoints/best.pt"
    hostile = Hostile(f"touch {trace}")
    torch.save({"weights": hostile}, tmp_path / "a.pt")
    (tmp_path / "b.pth").write_bytes(pickle.dumps(hostile))
    for name in ("a.pt", "b.pth"):
        with pytest.raises(InputError, match="cannot be read safely"):
            load(f"resnet8:{tmp_path / name}")
    write(path, {"weights": hostile})  # its hash is right
    with pytest.raises(InputError, match="cannot be read safely"):
        load(str(path))
    assert not trace.exists()


def altered(**changes):
    model = network()
    state = model.state_dict() | changes
    return dict(model=model.config(), weights={k: v for k, v in state.items() if v is not None}, record={})


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (altered(**{"fc.bias": None}), 'Missing key.*"fc.bias"'),
        (altered(other=torch.zeros(1)), 'Unexpected key.*"other"'),
        (altered(**{"fc.bias": torch.zeros(8)}), "size mismatch"),
        (altered(**{"fc.bias": torch.full((7,), float("nan"))}), "not finite.*fc.bias"),
        (altered() | {"model": dict(name="os.system", num_classes=3)}, "unknown model"),
        (altered() | {"model": dict(name="resnet18", num_classes=7)}, "do not fit"),
        (altered() | {"model": dict(function="os.system")}, "do not fit"),
        ({"record": {}}, "do not fit"),
    ],
)
def test_own_file_that_does_not_fit(tmp_path, payload, message):
    write(tmp_path / "best.pt", payload)
    with pytest.raises(InputError, match=message) as error:
        load(str(tmp_path / "best.pt"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 2\n", "git lfs pull"),
        (b"\n <!DOCTYPE html><html></html>", "a web page"),
        (b"whatever else " * 99, "cannot be read safely"),
        ("truncated", "cannot be read safely"),
        ("directory", "no such file"),
        ("absent", "no such file"),
        (dict(weights=3), "not dense"),
        ([1, 2], "not a state_dict"),
    ],
)
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_foreign_file_that_is_none(tmp_path, content, message, suffix):
    path = tmp_path / f"weights.{suffix}"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content == "truncated":
        torch.save(network().state_dict(), path)
        path.write_bytes(path.read_bytes()[:3000])
    elif content == "directory":
        path.mkdir()
    elif content != "absent":
        torch.save(content, path)
        message = message if suffix == "pt" else "cannot be read safely"
    with pytest.raises(InputError, match=message) as error:
        load(f"{NAME}:{path}")
    assert "\n" not in str(error.value)
    if isinstance(content, bytes):
        with pytest.raises(InputError, match="not a gacd checkpoint"):
            load(str(path))


def test_other_architecture(tmp_path):
    torch.save(network().state_dict(), tmp_path / "a.pt")
    with pytest.raises(InputError, match="these are not the weights of wrn-10-1"):
        load(f"wrn-10-1:{tmp_path / 'a.pt'}")
    with pytest.raises(InputError, match="unknown model: 'resnet9'"):
        load(f"resnet9:{tmp_path / 'a.pt'}")


@pytest.mark.parametrize("source", ["", "runs/none", "a\0b", "resnet8:", ":", "http://a.b/c.pt"])
def test_no_source(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError):
        load(source)


def test_torch_alone_opens_a_checkpoint(tmp_path):
    model = network()
    save(tmp_path / "a.pt", model, data="digits")
    payload = torch.load(tmp_path / "a.pt", weights_only=True)
    assert payload["record"] == dict(data="digits")
    assert all(torch.equal(value, payload["weights"][name]) for name, value in model.state_dict().items())


def test_every_bit_counts(tmp_path):
    path = tmp_path / "a.pt"
    save(path, network())
    data = path.read_bytes()
    body = data[: -64 - len(MARK)]
    assert data == body + MARK + hashlib.sha256(body).hexdigest().encode()
    for place in torch.randperm(len(data), generator=torch.Generator().manual_seed(0))[:60].tolist():
        flipped = data[:place] + bytes([data[place] ^ 1 << place % 8]) + data[place + 1 :]
        path.write_bytes(flipped if place % 2 else data[:place])
        with pytest.raises(InputError):
            read(path)


def test_newest_readable(tmp_path, capsys):
    last, previous = tmp_path / "last.pt", tmp_path / "previous.pt"
    assert read_newest(last, previous) is None
    write(last, dict(step=1), previous=previous)
    write(last, dict(step=2), previous=previous)
    assert (read_newest(last, previous)["step"], read(previous)["step"]) == (2, 1)
    last.write_bytes(b"x")
    assert read_newest(last, previous)["step"] == 1
    assert capsys.readouterr().err.count("\n") == 1
    previous.write_bytes(b"")
    with pytest.raises(InputError, match="move the directory away"):
        read_newest(last, previous)


@pytest.mark.parametrize("call", ["fsync", "replace", "open"])
def test_failed_write_keeps_the_old_file_and_leaves_no_other(tmp_path, monkeypatch, call):
    path = tmp_path / "a.pt"
    replace(path, b"old")

    def full(*args, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(gacd.checkpoint if call == "open" else os, call, full, raising=False)
    with pytest.raises(GacdError, match=r"cannot write: .*a\.pt: No space left on device"):
        replace(path, b"new")
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.pt"]


def test_digest_is_of_the_weights_alone(tmp_path):
    model = network()
    torch.save(model.state_dict(), tmp_path / "a.pt")
    assert digest(load(f"{NAME}:{tmp_path / 'a.pt'}")) == digest(model) == digest(network())
    assert digest(network(1)) != digest(model)
    with torch.no_grad():
        model.fc.bias[0] += 1e-7
    assert digest(model) != digest(network())


def test_digest_tells_apart_what_no_state_dict_holds():
    def other(shift, note):
        class Noted(torch.nn.Linear):
            def get_extra_state(self):
                return dict(note=note)

        model = Noted(2, 2, device="meta").to_empty(device="cpu").requires_grad_(False)
        model.weight.zero_(), model.bias.zero_()
        model.register_buffer("shift", torch.tensor(shift), persistent=False)
        return digest(model)

    assert other(0.0, "a") == other(0.0, "a") != other(0.5, "a")
    assert other(0.0, "a") != other(0.0, "b")


def test_shipped_file(tmp_path, capsys):
    model = network()
    payload = dict(model=model.config(), weights=model.state_dict(), record=dict(data="digits", size=8))
    write(tmp_path / "a/checkpoints/best.pt", payload)
    for name, half in (("whole", "false"), ("half", "true")):
        path = tmp_path / f"{name}.safetensors"
        assert main(["export", str(tmp_path / "a"), "--out", str(path), "--half", half]) == 0
        opened = open_source(str(path))
        assert opened.record == dict(data="digits", size=8)
        assert (digest(opened.model) == digest(model)) == (name == "whole")
        assert all(
            torch.allclose(a, b, rtol=1e-3, atol=1e-6)
            for a, b in zip(opened.model.parameters(), model.parameters(), strict=True)
        )
    assert path.stat().st_size < 0.7 * (tmp_path / "whole.safetensors").stat().st_size
    flipped = bytearray(path.read_bytes())
    flipped[-40] ^= 1
    path.write_bytes(flipped)
    with pytest.raises(InputError, match="SHA-256 does not match"):
        open_source(str(path))
    assert main(["export", str(tmp_path / "a"), "--out", str(tmp_path / "x.onnx")]) == 2
    assert "must end in .safetensors" in capsys.readouterr().err
