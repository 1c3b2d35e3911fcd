"""The command line: every wrong input is one line and the documented exit code, and leaves nothing behind."""

import json
import os
import shlex
from pathlib import Path

import pytest
import torch
import yaml

from gacd import checkpoint, models
from gacd.cli import COMMANDS, main
from gacd.device import launch

QUICK = "--model resnet8-x0.25 --batch-size 400 --precision 32 --val-steps 0 --epochs 1"


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """A folder with a teacher, one of other classes, a page that is no checkpoint, and some YAML."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GACD_DATA", raising=False)
    torch.manual_seed(0)
    for name, classes, record in (
        ("t", 10, dict(data="digits", val_natural=0.0)),
        ("seven", 7, dict(data="digits")),
        ("liar", 10, dict(data="digits", val_natural=0.9)),
    ):
        model = models.build("resnet8-x0.25", classes, (0.3,), (0.4,))
        payload = dict(model=model.config(), weights=model.state_dict(), record=record)
        checkpoint.write(tmp_path / name / "checkpoints" / "best.pt", payload)
    (tmp_path / "page.pt").write_text("<html>")
    (tmp_path / "unknown.yaml").write_text("epochs: 1\nepss: 8/255\n")
    (tmp_path / "broken.yaml").write_text("eps: [1")
    (tmp_path / "code.yaml").write_text("eps: !!python/object/apply:os.system ['touch executed']\n")
    (tmp_path / "good.yaml").write_text("eps: 4/255\nsteps: 1\nlr: 1e-2\n")
    (tmp_path / "wrong.yaml").write_text("log_every: one\n")
    (tmp_path / "raises.py").write_text("1 / 0\n")
    (tmp_path / "nets.py").write_text("from torch.nn import Flatten as net\n")
    (tmp_path / "t.onnx").touch()
    torch.save(torch.nn.Flatten(), tmp_path / "whole.pt")
    return tmp_path


WRONG = [  # command line ($Q: QUICK), exit code, part of the line
    ("tran", 2, "did you mean train?"),
    ("--versoin", 2, "unknown command"),
    ("distill --out x", 2, "one of adaad, ard, gacd, igdm, kd, rslad"),
    ("train pgdta --out x", 2, "did you mean pgdat?"),
    ("train gacd --out x", 2, "gacd distill gacd"),
    ("distill pgdat --out x", 2, "gacd train pgdat"),
    ("train pgdat $Q --data digits", 2, "required: out"),
    ("train pgdat $Q --data digits --out x --epsilon 3", 2, "--epsilon"),
    ("train pgdat $Q --data digits --out x --step 3", 2, "--step"),  # no abbreviations
    ("train pgdat $Q --data digits --out x --teacher t", 2, "--teacher"),
    ("train pgdat $Q --data digits --out x extra", 2, "extra"),
    ("train pgdat $Q --data digits --out x --eps", 2, "expected one argument"),
    ("train pgdat $Q --data digits --out x --eps eight", 2, "eps"),
    ("train pgdat $Q --data digits --out x --eps 8/0", 2, "eps"),
    ("train pgdat $Q --data digits --out x --eps 8", 1, "did you mean 8/255?"),
    ("train pgdat $Q --data digits --out x --step-size 2", 1, "did you mean 2/255?"),
    ("train pgdat $Q --data digits --out x --eps nan", 1, "eps must be"),
    ("train pgdat $Q --data digits --out x --steps -1", 1, "steps must be"),
    ("train pgdat $Q --data digits --out x --steps 1.5", 2, "steps"),
    ("train pgdat $Q --data digits --out x --epochs 0", 2, "epochs must be"),
    ("train pgdat $Q --data digits --out x --batch-size 0", 2, "batch_size must be"),
    ("train pgdat $Q --data digits --out x --val-every 0", 2, "val_every must be"),
    ("train pgdat $Q --data digits --out x --log-every 0", 2, "log_every must be"),
    ("train pgdat $Q --data digits --out x --lr -1", 2, "lr must be"),
    ("train pgdat $Q --data digits --out x --lr nan", 2, "lr must be"),
    ("train pgdat $Q --data digits --out x --ema 2", 2, "ema must be"),
    ("train pgdat $Q --data digits --out x --devices 0", 2, "devices must be"),
    ("train pgdat $Q --data digits --out x --seed 99999999999999999999", 2, "seed must be"),
    ("train pgdat $Q --data digits --out x --schedule linear", 2, "multistep"),
    ("train pgdat $Q --data digits --out x --augment mixup", 2, "crop-flip"),
    ("train pgdat $Q --data digits --out x --device tpu", 2, "cuda"),
    ("train pgdat $Q --data digits --out x --size 0", 1, "size must be positive"),
    ("train pgdat $Q --data digits --out page.pt", 1, "page.pt"),
    ("train pgdat $Q --data digits --out /proc/run", 1, "/proc/run"),
    ("train pgdat $Q --out x", 2, "--data"),
    ("train pgdat $Q --data cifar --out x", 1, "one of cifar10"),
    ("train pgdat $Q --data ./none --out x", 1, "no such folder"),
    ("train pgdat $Q --data cifar10 --data-dir none --out x", 1, "gacd download cifar10 --data-dir none"),
    ("train pgdat $Q --data cifar10 --data_dir none --out x", 1, "gacd download cifar10 --data-dir none"),
    ("train pgdat --data digits --out x", 2, "--model"),
    ("train pgdat --model resnot --data digits --out x", 1, "did you mean resnet8"),
    ("train pgdat --model resnet18 --init t --out x", 2, "not what --init holds"),
    ("train pgdat $Q --init none --out x", 1, "no such run or file"),
    ("train pgdat $Q --data digits --out x --config none.yaml", 2, "none.yaml"),
    ("train pgdat $Q --data digits --out x --config unknown.yaml", 2, "unknown.yaml (did you mean --eps?)"),
    ("train pgdat $Q --data digits --out x --config wrong.yaml", 2, "--log-every takes INT, not one: wrong.yaml"),
    ("train pgdat $Q --data digits --out x --config broken.yaml", 2, "in broken.yaml, line 1"),
    ("train pgdat $Q --data digits --out x --config=broken.yaml", 2, "in broken.yaml, line 1"),
    ("train pgdat $Q --data digits --out x --config atf", 2, "no such recipe or file: --config atf (one of adaad, aft"),
    ("train pgdat $Q --data digits --out x --config=atf", 2, "no such recipe or file: --config atf (one of adaad, aft"),
    ("train pgdat $Q --data digits --out x --config ard", 2, "(it is for another method)"),
    ("evaluate t --attacks fgsm --attacks pgd2", 2, "given twice: --attacks (all its values after one)"),
    ("evaluate t --config x.yaml", 2, "no such option: --config"),
    ("evaluate t seven eight", 2, "one argument too many: seven"),
    ("train pgdat $Q --data digits --out x --config code.yaml", 2, "config"),
    ("distill kd $Q --data digits --out x", 2, "needs --teacher"),
    ("distill kd $Q --teacher none --out x", 1, "no such run or file"),
    ("distill kd $Q --teacher page.pt --out x", 1, "not a gacd checkpoint"),
    ("distill kd $Q --teacher resnet8:page.pt --data digits --out x", 1, "a web page"),
    ("distill kd $Q --teacher seven --out x", 1, "the teacher knows 7 classes, digits has 10"),
    ("distill kd $Q --teacher liar --out x", 1, "its checkpoint says 90.0%"),
    ("distill kd $Q --teacher t --temperature 0 --out x", 1, "temperature must be > 0"),
    ("distill ard $Q --teacher t --temperature -1 --out x", 1, "temperature must be > 0"),
    ("distill gacd $Q --teacher t --k 500 --temperature 0 --out x", 1, "temperature must be > 0"),
    ("distill gacd $Q --teacher t --k 1296 --out x", 1, "k must be"),
    ("distill gacd $Q --teacher t --k 0 --out x", 1, "k must be"),
    ("evaluate", 2, "required: source"),
    ("evaluate t seven", 2, "seven"),
    ("evaluate t --attacks pdg20", 1, "pgd20"),
    ("evaluate t --attacks pgd0", 1, "pgd0"),
    ("evaluate t --eps 8", 1, "did you mean 8/255?"),
    ("evaluate t --n 0", 2, "at least 1"),
    ("evaluate t --n -1", 2, "at least 1"),
    ("evaluate t --chunk 0", 2, "at least 1"),
    ("evaluate t --norm L1", 2, "--norm takes Linf, L2, not L1"),
    ("evaluate t --n many", 2, "--n takes INT, not many"),
    ("evaluate t --eps 0.1 8/0", 2, "--eps takes NUMBER, not 8/0"),
    ("train pgdat $Q --data digits --out x --weight-decay little", 2, "--weight-decay takes NUMBER, not little"),
    ("train pgdat $Q --data digits --out x --milestones 1 b", 2, "--milestones takes INT, not b"),
    ("evaluate t --attack fgsm", 2, "no such option: --attack (did you mean --attacks?)"),
    ("evaluate t --audit some", 2, "--audits takes quick, full, not some"),
    ("evaluate t --out page.pt", 2, "--out is no directory: page.pt"),
    ("evaluate nets:net --data digits", 2, "a factory in a file is ./nets.py:FACTORY"),
    ("evaluate nets.py --data digits", 1, "nets.py:FACTORY"),
    ("evaluate ./none.py:net --data digits", 1, "no such factory file: ./none.py"),
    ("evaluate ./nets.py:other --data digits", 1, "no such factory: ./nets.py:other"),
    ("evaluate t.onnx --data digits", 1, "gacd verify t.onnx PACK"),
    ("evaluate resnet8:whole.pt --data digits", 1, "whole.pt holds more than tensors"),
    ("evaluate resnet8-x0.25:page.pt --data digits", 1, "a web page"),
    ("evaluate os.path:join --data digits", 1, "os.path:join"),
    ("evaluate seven --n 10", 1, "fewer classes"),
    ("evaluate t --witnesses -1", 2, "from 0 to 10000"),
    ("verify", 2, "required: source"),
    ("verify t none", 1, "no such file: none"),
    ("verify t page.pt", 1, "cannot be read as a witness pack"),
    ("verify t t", 1, "cannot be read as a witness pack: t (after the network come files, t/witnesses-*.safetensors)"),
    ("verify t page.pt --chunk 0", 2, "from 1 to 10000"),
    ("export t", 2, "what shall be written?"),
    ("export t --onnx t.pt", 2, "must end in .onnx"),
    ("export t --onnx t.onnx --half true", 2, "--half is of --out"),
    ("export t --onnx t.onnx --half", 2, "--half is of --out"),
    ("export --half t --onnx t.onnx", 2, "--half takes {true,false}, not t"),
    ("export none --onnx t.onnx", 1, "no such run or file"),
    ("export os.path:join --onnx t.onnx", 1, "os.path:join"),
    ("probe t", 1, "not a run directory"),
    ("probe t --head other", 2, "teacher"),
    ("download cifar11", 1, "one of cifar10"),
    ("download", 2, "required: name"),
    ("check", 2, "required: method"),
    ("check pgdta", 2, "did you mean pgdat?"),
]


@pytest.mark.parametrize(("line", "code", "part"), WRONG, ids=[line for line, *_ in WRONG])
def test_wrong_input_is_one_line(line, code, part, place, capsys):
    before = sorted(place.rglob("*"))
    try:
        returned = main(shlex.split(line.replace("$Q", QUICK)))
    except SystemExit as stop:
        returned = stop.code
    *said, error = capsys.readouterr().err.splitlines()
    assert error.startswith("gacd: error: ")
    assert part in error
    assert returned == code
    assert len(error) < 600
    assert not any("error" in announcement or "Traceback" in announcement for announcement in said)
    assert sorted(place.rglob("*")) == before


def test_a_bug_leaves_its_traceback_in_a_file(monkeypatch, capsys, place):
    monkeypatch.setattr("tempfile.tempdir", str(place))
    monkeypatch.setattr("gacd.transfer.probe", lambda **options: {}["secret"])
    monkeypatch.setitem(COMMANDS, "probe", "")
    monkeypatch.setattr("gacd.cli.Parser.add", lambda *args, **options: None)
    assert main(["probe"]) == 70
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    (file,) = place.glob("gacd-*.txt")
    assert str(file) in error
    assert "KeyError: 'secret'" in file.read_text()


def out_of_gpu(**options):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.\nSee documentation")


@pytest.mark.parametrize(
    ("full", "whose"), [(out_of_gpu, "the GPU's "), (lambda **_: torch.empty(2**62, dtype=torch.uint8), "")]
)
def test_full_memory_is_no_bug(monkeypatch, capsys, place, full, whose):
    monkeypatch.setattr("gacd.transfer.probe", full)
    monkeypatch.setitem(COMMANDS, "probe", "")
    monkeypatch.setattr("gacd.cli.Parser.add", lambda *args, **options: None)
    assert main(["probe"]) == 1
    expected = f"gacd: error: {whose}memory is full: gacd probe (a lower --chunk or --batch-size)\n"
    assert capsys.readouterr().err == expected


def test_float32_is_float32_on_cuda_under_the_commands():
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.deterministic = False
    launch("cpu")
    assert torch.backends.cudnn.deterministic
    assert not torch.backends.cudnn.allow_tf32 and not torch.backends.cuda.matmul.allow_tf32


def test_options_from_yaml_and_fractions(place, capsys):
    argv = ["train", "pgdat", *QUICK.split(), "--data", "digits", "--out", "x", "--config", "good.yaml"]
    with pytest.raises(SystemExit, match="0"):
        main([*argv, "--step_size", "2/255", "--print_config"])
    printed = yaml.safe_load(capsys.readouterr().out)
    assert (printed["eps"], printed["step_size"], printed["steps"], printed["lr"]) == ("4/255", "2/255", 1, 0.01)
    assert not Path("x").exists()
    assert main([*argv, "--step-size", "2/255"]) == 0
    kept = yaml.safe_load(Path("x/config.yaml").read_text())
    assert (kept["eps"], kept["step_size"], kept["steps"], kept["lr"], kept["method"]) == (
        "4/255",
        "2/255",
        1,
        0.01,
        "pgdat",
    )
    again = [word for word in argv if word not in ("--config", "good.yaml")]
    assert main([*again, "--eps", str(4 / 255), "--steps", "1", "--lr", "0.010"]) == 0  # the same numbers
    assert main([*again, "--steps", "1", "--lr", "0.01"]) == 2
    for config in (["--config", "x/config.yaml"], ["--config=x/config.yaml"]):  # the run's own: as it was
        with pytest.raises(SystemExit, match="0"):
            main(["train", "pgdat", "--out", "y", *config, "--lr", "0.02", "--print_config"])
        assert (
            yaml.safe_load(capsys.readouterr().out).items()
            >= (
                {k: v for k, v in kept.items() if v is not None and k not in ("method", "lr", "config")} | dict(lr=0.02)
            ).items()
        )
    assert main(["train", "nfgsm", "--out", "y", "--config", "x/config.yaml"]) == 2
    assert "a run of pgdat, not of nfgsm: --config x/config.yaml" in capsys.readouterr().err


def test_evaluate_adds_to_the_results(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    argv = ["evaluate", "t", "--n", "20", "--attacks", "fgsm"]
    code = main([*argv, "--eps", "8/255", "0.1"])
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    assert "8/255" in out
    rows = json.loads(Path("t/results.json").read_text())["results"]
    # The network has hardly learnt anything: on some processors it says one class, which is suspect.
    codes = {r["eps"]: {"TRUSTED": 0, "SUSPECT": 3}[r["verdict"]] for r in rows if r["attack"] == "fgsm"}
    assert list(codes) == ["8/255", "0.1"]
    assert code == max(codes.values())
    assert len(rows) == 3
    assert main(argv) == codes["8/255"]
    assert len(json.loads(Path("t/results.json").read_text())["results"]) == len(rows)
    assert main(["evaluate", f"resnet8-x0.25:{os.devnull}", "--data", "digits"]) == 1
