"""A run cannot be lost: stopped, killed, damaged or out of disk, it ends as if nothing had happened, or says why."""

import errno
import inspect
import json
import math
import multiprocessing
import os
import signal
import sys
import time

import pytest
import torch
from torch.utils._pytree import keystr, tree_flatten_with_path

import gacd.__main__
from gacd import checkpoint, commands, methods, models, probe, runs
from gacd.cli import main
from gacd.training import decay

RUN = ["--data=digits", "--model=resnet8-x0.25", "--batch-size=216", "--precision=32", "--val-steps=1"]
RUN += ["--log-every", "2", "--epochs", "2"]
SHORT = {"steps": "1", "k": "500"}  # options that a method may have, and quick values of them


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    run = tmp_path_factory.mktemp("teacher") / "run"
    assert main(["train", "standard", *RUN, "--epochs", "3", "--lr", "0.3", "--val-steps", "0", "--out", str(run)]) == 0
    return run


def command(method, out, teacher):
    taught = method in methods.names(teacher=True)
    known = inspect.signature(methods.load(method)).parameters
    options = [f"--{name}={value}" for name, value in SHORT.items() if name in known]
    options += [*RUN, *(["--teacher", str(teacher)] if taught else [])]
    return ["distill" if taught else "train", method, *options, "--ema", "0.9", "--clip", "5", "--out", str(out)]


def contents(run):
    """Everything that a run must reproduce to the bit, by name."""
    files = {name: checkpoint.read(run / "checkpoints" / f"{name}.pt") for name in ("last", "best")}
    leaves = {keystr(path): leaf for path, leaf in tree_flatten_with_path(files)[0]}
    leaves = {k: leaf.numpy().tobytes() if isinstance(leaf, torch.Tensor) else leaf for k, leaf in leaves.items()}
    return leaves | {"metrics": (run / "metrics.jsonl").read_bytes()}


def differing(one, two):
    """Names of what two runs do not have in common."""
    one, two = contents(one), contents(two)
    return [name for name in one.keys() | two.keys() if one.get(name) != two.get(name)]


def stop_at(monkeypatch, step, number=signal.SIGTERM):
    """Sends this process a signal after so many steps."""
    steps = []

    def agreed(self, save):
        steps.append(save)
        if len(steps) == step:
            os.kill(os.getpid(), number)
        return save, self.signal

    monkeypatch.setattr(runs.Stopping, "agreed", agreed)


def standard(out, *options):
    """Standard training that saves at every step."""
    return main(["train", "standard", *RUN, "--save-every", "0", *options, "--out", str(out)])


@pytest.mark.parametrize("method", methods.names())
def test_resumed_equals_uninterrupted(method, teacher, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(commands, "fit_head", lambda *args, **options: None)
    straight, broken = tmp_path / "a", tmp_path / "b"
    assert main(command(method, straight, teacher)) == 0
    for step, number in ((5, signal.SIGTERM), (4, signal.SIGINT)):  # of 10: at an epoch's end, near the run's
        with monkeypatch.context() as patch:
            stop_at(patch, step, number)
            assert main(command(method, broken, teacher)) == 128 + number
        assert capsys.readouterr().err.splitlines()[-1].startswith("gacd: error: stopped, saved: ")
    assert main(command(method, broken, teacher)) == 0
    assert differing(straight, broken) == []
    rows = (broken / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == [2, 4, 5, 6, 8, 10, 10]


def test_kill_terminate_and_interrupt(tmp_path, monkeypatch):
    argv = ["train", "pgdat", *RUN, "--steps", "1", "--save-every", "0", "--epochs", "8", "--out"]
    assert main([*argv, str(tmp_path / "a")]) == 0
    context, run = multiprocessing.get_context("forkserver"), tmp_path / "b"
    context.set_forkserver_preload(["gacd.commands", "gacd.training", "jsonargparse", "sklearn.datasets"])
    saved = run / "checkpoints" / "last.pt"
    for number, expected in ((signal.SIGKILL, -9), (signal.SIGTERM, 143), (signal.SIGINT, 130)):
        before = saved.stat().st_mtime_ns if saved.exists() else 0
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", ["gacd", *argv, str(run)])
            process = context.Process(target=gacd.__main__.run)
            process.start()
        until = time.monotonic() + 120
        while not (saved.exists() and saved.stat().st_mtime_ns > before) and time.monotonic() < until:
            time.sleep(0.002)
        if number == signal.SIGTERM:  # while it is alive, nobody else may go on with the run
            os.kill(process.pid, signal.SIGSTOP)
            assert main([*argv, str(run)]) == 75
            os.kill(process.pid, signal.SIGCONT)
        os.kill(process.pid, number)
        process.join(120)
        assert process.exitcode == expected
        assert checkpoint.read(saved)["step"] < 40
    assert main([*argv, str(run)]) == 0
    assert differing(tmp_path / "a", run) == []


def test_a_run_without_a_classifier_ends_with_one(teacher, tmp_path, monkeypatch):
    monkeypatch.setattr(probe, "WEIGHT_DECAYS", (0.001,))
    assert main(command("gacd", tmp_path / "a", teacher)) == 0
    opened = checkpoint.open_source(str(tmp_path / "a"))
    assert (opened.weights, opened.record["head"]) == ("probe", "linear")
    assert opened.record["front"][0]["kept"]
    best = checkpoint.load(str(tmp_path / "a/checkpoints/best.pt"))
    assert torch.equal(best.conv1.weight, opened.model.conv1.weight)
    assert not torch.equal(best.fc.weight, opened.model.fc.weight)


def test_nan_stops_before_the_weights_change(tmp_path, monkeypatch, capsys):
    cls = methods.load("standard")
    original = cls.forward

    def forward(self, x, y, index):
        values = original(self, x, y, index)
        return values | dict(loss=values["loss"] * (math.nan if self.clock.step == 3 else 1))

    with monkeypatch.context() as patch:
        patch.setattr(cls, "forward", forward)
        assert standard(tmp_path / "a") == 80
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("gacd: error: loss or gradient not finite at step 3: training images ")
    assert len(error.split(",")) == 216
    state = checkpoint.read(tmp_path / "a/checkpoints/last.pt")
    assert state["step"] == 3
    assert all(bool(value.isfinite().all()) for value in state["weights"].values())
    assert standard(tmp_path / "a") == 0
    assert standard(tmp_path / "b") == 0
    assert differing(tmp_path / "a", tmp_path / "b") == []


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_damaged_checkpoints(tmp_path, monkeypatch, capsys):
    assert standard(tmp_path / "a") == 0
    with monkeypatch.context() as patch:
        stop_at(patch, 6)
        assert standard(tmp_path / "b") == 143
    last, previous = (tmp_path / "b/checkpoints" / name for name in ("last.pt", "previous.pt"))
    flip(last)
    capsys.readouterr()
    assert standard(tmp_path / "b") == 0
    assert f"gacd: warning: damaged checkpoint, its SHA-256 does not match: {last}\n" in capsys.readouterr().err
    assert differing(tmp_path / "a", tmp_path / "b") == []
    flip(last)
    flip(previous)
    assert standard(tmp_path / "b") == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("gacd: error: no readable checkpoint: ")
    last.unlink()
    assert standard(tmp_path / "b") == 1  # never a silent start from zero


def test_full_disk_keeps_the_previous_checkpoint(tmp_path, monkeypatch, capsys):
    real, calls = os.fsync, []

    def fsync(number):
        calls.append(number)
        if len(calls) > 7:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(number)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        assert standard(tmp_path / "a") == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "No space left on device (what was saved before is still there)" in error
    assert 0 < checkpoint.read(tmp_path / "a/checkpoints/last.pt")["step"] < 10
    assert not list((tmp_path / "a").rglob("*.tmp"))
    assert standard(tmp_path / "a") == 0
    assert standard(tmp_path / "b") == 0
    assert differing(tmp_path / "a", tmp_path / "b") == []


def test_changed_options_are_named_once_there_is_a_checkpoint(tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr(methods.load("standard"), "forward", lambda self, x, y, index: 1 / 0)
        patch.setattr("tempfile.tempdir", str(tmp_path))
        assert standard(tmp_path / "a", "--epochs", "1", "--ema", "0.5") == 70
    assert standard(tmp_path / "a", "--epochs", "1") == 0
    assert "ema: 0.0\n" in (tmp_path / "a/config.yaml").read_text()
    capsys.readouterr()
    assert standard(tmp_path / "a", "--epochs", "1", "--clip", "1", "--lr", "0.2") == 2
    assert "clip 0.0 -> 1.0, lr 0.1 -> 0.2: " in capsys.readouterr().err.splitlines()[-1]
    before = contents(tmp_path / "a")
    assert standard(tmp_path / "a", "--epochs", "1", "--log-every", "7") == 0  # may change; the run was finished
    assert contents(tmp_path / "a") == before


def test_init_with_other_classes(tmp_path, capsys):
    old = models.build("resnet8-x0.25", 7, (0.3,), (0.4,))
    torch.save(old.state_dict(), tmp_path / "old.pt")
    argv = [o for o in RUN if o not in ("--model", "resnet8-x0.25")]
    source = f"resnet8-x0.25:{tmp_path / 'old.pt'}"
    argv = ["train", "standard", *argv, "--epochs", "1", "--lr", "1e-9", "--size", "12", "--init", source, "--out"]
    assert main([*argv, str(tmp_path / "a")]) == 0
    assert "7 classes, data 10: trunk kept, head made afresh" in " ".join(capsys.readouterr().err.split())
    new = checkpoint.load(str(tmp_path / "a"))
    assert new.num_classes == 10
    assert torch.allclose(new.conv1.weight, old.conv1.weight, atol=1e-6)
    assert torch.equal(new.mean, old.mean)
    assert new.bn1.num_batches_tracked == 5
    assert not torch.allclose(new.bn1.running_mean, old.bn1.running_mean, atol=1e-3)


@pytest.mark.parametrize(("method", "by"), [("standard", "val_natural"), ("pgdat --steps 1", "val_robust")])
def test_the_best_weights(tmp_path, method, by):
    """Of an undefended network naturally the best: under attack it is best before it knows anything."""
    options = "--model resnet8-x0.25 --data digits --epochs 3 --batch-size 200 --precision 32 --val-steps 2"
    assert main(["train", *method.split(), *options.split(), "--out", str(tmp_path / "a")]) == 0
    rows = [json.loads(line) for line in (tmp_path / "a/metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if by in row]
    best = checkpoint.read(tmp_path / "a/checkpoints/best.pt")["record"]
    assert len(rows) == 3
    assert best[by] == max(row[by] for row in rows)
    assert best["epoch"] == max(row["epoch"] for row in rows if row[by] == best[by])
    opened = checkpoint.open_source(str(tmp_path / "a"))
    assert (opened.weights, opened.record["data"], opened.record["method"]) == ("best", "digits", method.split()[0])


@pytest.mark.parametrize(
    ("schedule", "milestones", "expected"),
    [
        ("multistep", None, {0: 1, 74.9: 1, 75: 0.1, 89.9: 0.1, 90: 0.01, 99.9: 0.01}),
        ("multistep", [50, 20], {19: 1, 20: 0.1, 50: 0.01}),
        ("cosine", None, {0: 1, 50: 0.5, 100: 0}),
        ("onecycle", None, {0: 0, 20: 0.5, 40: 1, 70: 0.5, 100: 0}),
    ],
)
def test_schedules(schedule, milestones, expected):
    for epoch, rate in expected.items():
        assert decay(schedule, epoch, 100, milestones) == pytest.approx(rate, abs=1e-12)


def test_short_runs_begin_at_the_full_rate():
    assert [decay("multistep", 0.1, epochs, None) for epochs in (1, 2, 3)] == [1, 1, 1]


def test_ema_and_clip(tmp_path):
    """The averaged weights are the literal formula's; a tiny clip leaves the weights almost where they were."""
    options = ["--epochs", "1", "--weight-decay", "0", "--schedule", "cosine"]
    assert standard(tmp_path / "ema", *options, "--ema", "0.5") == 0
    last, previous = (checkpoint.read(tmp_path / "ema/checkpoints" / f"{n}.pt") for n in ("last", "previous"))
    for name, value in last["weights"].items():
        if value.is_floating_point():
            expected = 0.5 * previous["weights"][name] + 0.5 * last["method"][f"student.{name}"]
            assert torch.allclose(value, expected, rtol=1e-5, atol=1e-7), name
    weights = []
    for name, more in (("tiny", ["--clip", "1e-6"]), ("still", ["--lr", "1e-12"]), ("free", [])):
        assert standard(tmp_path / name, *options, *more) == 0
        weights.append(checkpoint.read(tmp_path / name / "checkpoints/last.pt")["weights"]["fc.weight"])
    tiny, still, free = weights
    assert 0 < (tiny - still).abs().max() < 1e-5 < 1e-3 < (free - still).abs().max()
