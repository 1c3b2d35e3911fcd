"""ONNX files: what the network computes, at any batch size, or no file."""

import json
import sys
from pathlib import Path

import onnx
import pytest
import students
import torch
from torch import nn

from gacd import assess, checkpoint, data, noise, onnx_file, witness
from gacd.audit import Audit
from gacd.cli import main
from gacd.errors import GacdError
from gacd.models import build
from gacd.onnx_file import Session, compare, graph


def network(name, channels=3, size=32, mean=0.4):
    """With statistics that are no identities."""
    torch.manual_seed(0)
    model = build(name, 10, [mean] * channels, [0.2] * channels)
    with torch.no_grad():
        for _ in range(3):
            model(noise.uniform(1, torch.arange(8), (channels, size, size)))
    return model.eval()


@pytest.fixture
def run(tmp_path, monkeypatch):
    """An evaluated run on the digits."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(assess, "audit", lambda *args, **options: Audit())
    monkeypatch.setenv("COLUMNS", "200")
    images = data.load("digits")
    students.save(tmp_path / "t", students.network("resnet8-x0.5", 0, images), images)
    assert (
        main(["evaluate", "t", "--n", "60", "--attacks", "pgd2", "margin2", "--eps", "8/255", "--precision", "32"]) == 0
    )
    return tmp_path / "t"


@pytest.mark.parametrize(
    "name", ["resnet8", "resnet18-x0.1", "wrn-10-1", "dm-wrn-10-1", "mobilenetv2-x0.1", "mobilenetv2-x0.5"]
)
def test_every_family(name):
    model = network(name)
    x = noise.uniform(2, torch.arange(9), (3, 32, 32))
    raw = graph(model, x, {})
    assert compare(model, Session(raw), x) < 1e-5
    assert raw == graph(model, x, {})
    assert not any(folder.encode() in raw for folder in ("site-packages", "/src/"))


def test_other_logits_beside_a_masked_class_are_other_logits():
    def logits(x, more=0.0):
        return torch.cat([x.flatten(1)[:, :3] + more, torch.full((len(x), 1), -1e9)], 1)

    x = noise.uniform(2, torch.arange(9), (3, 2, 2))
    assert compare(logits, lambda part: logits(part, 1e-6), x) < 1e-4
    with pytest.raises(GacdError, match="0 of 9 classes differ"):
        compare(logits, lambda part: logits(part, 1e-2), x)


def test_a_run_s_file(run, capsys):
    assert main(["export", "t", "--onnx", "t.onnx", "--out", "t.safetensors", "--half", "true"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert "t.safetensors" in said[-1]
    (pack,) = run.glob("witnesses-*.safetensors")
    beaten = len(witness.read(pack).tensors["beaten"])
    assert beaten > 5
    assert f"100 digits images and {beaten} witnesses" in said[-2]
    proto = onnx.load("t.onnx")
    onnx.checker.check_model(proto, full_check=True)
    about = {entry.key: entry.value for entry in proto.metadata_props}
    model = checkpoint.load("t")
    assert about["weights_sha256"] == checkpoint.digest(model)
    assert about["architecture"] == "resnet8-x0.5"
    assert json.loads(about["class_names"]) == [str(digit) for digit in range(10)]
    assert (about["num_classes"], about["channels"], about["input_size"]) == ("10", "1", "8")
    assert about["pixel_range"] == "[0, 1]"
    (pixels,) = proto.graph.input
    assert [dim.dim_param or dim.dim_value for dim in pixels.type.tensor_type.shape.dim] == ["batch", 1, 8, 8]
    assert main(["verify", "t.onnx", str(pack)]) == 0
    said = capsys.readouterr().out
    assert "the SHA-256 is the pack's" in said
    assert "VERIFIED" in said


def test_a_file_that_computes_something_else_is_invalid(run, capsys):
    (pack,) = run.glob("witnesses-*.safetensors")
    x = noise.uniform(2, torch.arange(2), (1, 8, 8))
    bare, claims = {}, dict(weights_sha256=checkpoint.digest(checkpoint.load("t")))
    for about, other, code in ((bare, False, 0), (bare, True, 4), (claims, True, 4)):
        model = students.network("resnet8-x0.5", 1, data.load("digits")) if other else checkpoint.load("t")
        (run / "x.onnx").write_bytes(graph(model, x, about))
        capsys.readouterr()
        assert main(["verify", "t/x.onnx", str(pack)]) == code
        said = capsys.readouterr()
        assert ("the images alone count" in said.out) == (about is bare)
        assert not other or "judged otherwise" in said.err or "do not fool" in said.err


class Changed(nn.Module):
    def __init__(self, model, change):
        super().__init__()
        self.model, self.change = model, change

    def forward(self, x):
        return self.change(self.model(x))


@pytest.mark.parametrize("change", [lambda z: z * 1.001, lambda z: z.roll(1, 1), lambda z: z / 0], ids=range(3))
def test_a_mismatch_is_an_error_and_leaves_no_file(run, monkeypatch, capsys, change):
    monkeypatch.setattr(onnx_file, "graph", lambda model, x, about: graph(Changed(model, change), x, about))
    assert main(["export", "t", "--onnx", "t.onnx"]) == 1
    assert "other logits than torch" in capsys.readouterr().err
    assert not list(run.parent.glob("*t.onnx*"))


@pytest.mark.parametrize(
    ("node", "kind", "code"),
    [
        (dict(op_type="ReduceSum", inputs=["pixels"], keepdims=0), onnx.TensorProto.FLOAT, 4),
        (dict(op_type="NonZero", inputs=["pixels"]), onnx.TensorProto.INT64, 4),
        (dict(op_type="Constant", inputs=[], value_string=b"a"), onnx.TensorProto.STRING, 1),
    ],
    ids=["one number", "of no fixed size", "a text"],
)
def test_a_file_that_gives_no_logits(run, capsys, node, kind, code):
    helper, (pack,) = onnx.helper, run.glob("witnesses-*.safetensors")
    pixels = helper.make_tensor_value_info("pixels", onnx.TensorProto.FLOAT, ["batch", 1, 8, 8])
    logits = helper.make_tensor_value_info("logits", kind, None)
    drawn = helper.make_graph([helper.make_node(**node, outputs=["logits"])], "odd", [pixels], [logits])
    model = helper.make_model(drawn, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, {"weights_sha256": "[/]\x1b[31m"})
    onnx.save(model, "odd.onnx")
    capsys.readouterr()
    assert main(["verify", "odd.onnx", str(pack), "--other-weights", "true"]) == code
    said = capsys.readouterr()
    assert "SHA-256 [/]" in said.out
    assert "\x1b" not in said.out + said.err


def test_nan_is_a_mismatch():
    x = noise.uniform(2, torch.arange(7), (1, 8, 8))
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 1, bias=False))  # one class: no other can be named
    with pytest.raises(GacdError, match="other logits"):
        compare(model, lambda part: model(part).detach() * torch.nan, x)


def test_a_batch_size_written_into_the_graph_is_found():
    class Written(nn.Module):
        def forward(self, x):
            return x.reshape(int(x.shape[0]), -1)[:, :3]

    x = noise.uniform(2, torch.arange(9), (1, 8, 8))
    with pytest.raises(GacdError, match=r"other logits.*len.x. and int.* fix the batch"):
        compare(Written(), Session(graph(Written(), x, {})), x)

    class Through(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(64, 3)

        def forward(self, x):
            return self.head(x.view(len(x), -1))

    with pytest.raises(GacdError, match=r"len.x. and int.* fix the batch"):
        compare(Through(), Session(graph(Through(), x, {})), x)


def test_without_data_images_are_made_of_the_size_asked_for(run, tmp_path, capsys):
    torch.save(network("resnet8-x0.25").state_dict(), tmp_path / "a.pt")
    assert main(["export", "resnet8-x0.25:a.pt", "--onnx", "a.onnx"]) == 2
    assert "--size" in capsys.readouterr().err
    assert main(["export", "resnet8-x0.25:a.pt", "--onnx", "a.onnx", "--size", "16"]) == 0
    assert "100 made images and 0 witnesses" in capsys.readouterr().out
    x = noise.uniform(3, torch.arange(3), (3, 16, 16))
    own = Session(tmp_path / "a.onnx")(x)
    assert own.shape == (3, 10)
    grey = ["--mean", *["0.1"] * 3, "--std", *["0.5"] * 3]
    assert main(["export", "resnet8-x0.25:a.pt", "--onnx", "b.onnx", "--size", "16", *grey]) == 0
    theirs = Session(tmp_path / "b.onnx")(0.1 + 0.5 * (x - 0.4) / 0.2)
    assert torch.allclose(own, theirs, rtol=1e-4, atol=1e-4)
    (pack,) = run.glob("witnesses-*.safetensors")
    assert main(["verify", "a.onnx", str(pack)]) == 4  # by its digest
    assert main(["verify", "a.onnx", str(pack), "--other-weights", "true"]) == 1
    assert "does not take these images" in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"", b"<html>", b"\x08\x07" * 100])
def test_files_that_are_none(run, content, capfd):
    (pack,) = run.glob("witnesses-*.safetensors")
    (run / "x.onnx").write_bytes(content)
    capfd.readouterr()
    assert main(["verify", "t/x.onnx", str(pack)]) == 1
    assert capfd.readouterr().err.count("\n") == 1


def test_without_the_extra(run, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert main(["export", "t", "--onnx", "t.onnx", "--out", "t.safetensors"]) == 1
    assert "pip install 'gacd[onnx]'" in capsys.readouterr().err
    assert not list(run.parent.glob("t.*"))


def test_any_network_of_a_factory_in_a_file(run, capsys):
    code = "from gacd import checkpoint\nfrom torch import nn\n\n"
    Path("nets.py").write_text(code + "def net():\n    return nn.Sequential(checkpoint.load('t'), nn.Identity())\n")
    argv = ["evaluate", "./nets.py:net", "--data", "digits", "--n", "60", "--attacks", "pgd2", "--precision", "32"]
    assert main([*argv, "--out", "r"]) == 0
    assert main(["export", "./nets.py:net", "--data", "digits", "--onnx", "net.onnx"]) == 0
    about = Session(Path("net.onnx")).about
    assert (about["architecture"], about["num_classes"], about["channels"]) == ("Sequential", "10", "1")
    assert json.loads(about["class_names"]) == [str(i) for i in range(10)]
    assert main(["verify", "net.onnx", *map(str, Path("r").glob("witnesses-*"))]) == 0
    assert main(["export", "./nets.py:net", "--onnx", "other.onnx"]) == 2
    assert main(["export", "./nets.py:net", "--data", "cifar10", "--out", "net.safetensors"]) == 1
    assert "--size" in (said := capsys.readouterr().err) and "--onnx takes any network" in said


def test_wrong_options(run):
    for options in ([], ["--onnx", "t.pt"], ["--out", "t.onnx"], ["--onnx", "t.onnx", "--half", "true"]):
        assert main(["export", "t", *options]) == 2
    assert main(["export", "t", "--onnx", "t.onnx", "--data", "cifar10", "--data-dir", "none"]) == 1
    assert not list(run.parent.glob("t.*"))
