"""Two processes compute what one does; stopped and resumed, they end with the same bits."""

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from students import network, save
from torch import nn

from gacd import checkpoint, data, locks, methods
from gacd.cli import main
from gacd.device import launch
from gacd.errors import InputError
from gacd.models import Classifier
from gacd.models.base import conv
from gacd.training import fit


class Plain(Classifier):
    """Without batch norm, whose statistics are each process's own."""

    def __init__(self, seed: int):
        super().__init__("plain", (0.3,), (0.4,))
        torch.manual_seed(seed)
        self.convs = nn.Sequential(conv(1, 8), nn.Tanh(), conv(8, 16, stride=2), nn.Tanh())
        self.fc = nn.Linear(16, 10)

    def maps(self, x):
        return self.convs(x)


def train(out: str, method: str, **options: object) -> None:
    """Some steps in float64; every process leaves its method's state."""
    fabric, _ = launch("cpu", precision="64")
    images = data.load("digits", val_size=0)
    images.train = images.train.take(torch.arange(0, len(images.train), 11))  # 131: banks are visited again
    built = methods.load(method)(Plain(0), Plain(1), labels=images.train.labels, **options)
    torch.manual_seed(100 + fabric.global_rank)  # which nothing may depend on
    fit(built, images, Path(out), fabric, epochs=2, batch_size=24, lr=0.05, schedule="cosine", log_every=1)
    torch.save(built.state_dict(), f"{out}/rank{fabric.global_rank}.pt")


def command(*argv: str, stop_at: int = 0) -> None:
    """main(argv); process 1 alone gets SIGTERM before it has done so many steps."""
    from gacd import runs

    agreed, steps = runs.Stopping.agreed, []

    def counting(self, save):
        steps.append(save)
        if len(steps) == stop_at and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGTERM)
        return agreed(self, save)

    runs.Stopping.agreed = counting
    sys.exit(main(list(argv)))


def in_processes(n: int, target, *args, **options) -> list[int | None]:
    """Runs target in n processes, as torchrun would; their exit codes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["gacd.commands", "gacd.training", "jsonargparse", "sklearn.datasets"])
    processes = []
    for rank in range(n):
        environment = dict(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=n, LOCAL_WORLD_SIZE=n, GROUP_RANK=0)
        environment |= dict(MASTER_ADDR="127.0.0.1", MASTER_PORT=port, TORCHELASTIC_RUN_ID="test", OMP_NUM_THREADS=1)
        processes.append(context.Process(target=_launched, args=(environment, target, args, options)))
        processes[-1].start()
    for process in processes:
        process.join(120)
        process.kill()
        process.join()
    return [process.exitcode for process in processes]


def _launched(environment: dict[str, object], target, args, options) -> None:
    os.environ.update({name: str(value) for name, value in environment.items()})
    torch.set_num_threads(1)
    try:
        target(*args, **options)
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def test_two_processes_equal_one(tmp_path):
    for name, method, options in (
        ("gacd", "gacd", dict(k=50, dim=16, steps=3, temperature=0.5, distance="ot", ce=0.5)),
        ("ard", "ard", dict(steps=2, alpha=0.5, temperature=2.0)),
    ):
        one, two = tmp_path / f"{name}1", tmp_path / f"{name}2"
        assert in_processes(1, train, str(one), method, **options) == [0]
        assert in_processes(2, train, str(two), method, **options) == [0, 0]
        expected = torch.load(one / "rank0.pt", weights_only=True)
        assert {"log_z", "bank_t.rows", "bank_s.rows", "embed_s.weight"} <= expected.keys() or name == "ard"
        start = Plain(0).double().state_dict()
        assert not torch.allclose(expected["student.convs.0.weight"], start["convs.0.weight"], atol=1e-4)
        for rank in (0, 1):
            state = torch.load(two / f"rank{rank}.pt", weights_only=True)
            assert state.keys() == expected.keys()
            for key, value in state.items():
                assert torch.allclose(value, expected[key], rtol=1e-9, atol=1e-9), (name, rank, key)
        alone, rows = (
            [json.loads(row) for row in (run / "metrics.jsonl").read_text().splitlines()] for run in (one, two)
        )
        assert [row["step"] for row in rows] == list(range(1, 11))
        assert rows == [pytest.approx(row, rel=1e-5) for row in alone]  # float32 means of all processes


def test_two_processes_stop_together_and_resume(tmp_path):
    argv = "train pgdat --data digits --model resnet8-x0.25 --batch-size 216 --steps 1 --precision 32 --epochs 2"
    argv = [*argv.split(), "--val-steps", "1", "--log-every", "2", "--out"]
    assert in_processes(2, command, *argv, str(tmp_path / "a")) == [0, 0]
    assert in_processes(2, command, *argv, str(tmp_path / "b"), stop_at=6) == [143, 143]
    assert checkpoint.read(tmp_path / "b/checkpoints/last.pt")["step"] == 6
    assert in_processes(2, command, *argv, str(tmp_path / "b")) == [0, 0]
    assert (tmp_path / "a/metrics.jsonl").read_bytes() == (tmp_path / "b/metrics.jsonl").read_bytes()
    states = [checkpoint.read(tmp_path / run / "checkpoints/last.pt")["method"] for run in "ab"]
    assert [name for name, value in states[0].items() if not torch.equal(value, states[1][name])] == []


def test_two_processes_audit_a_file_that_is_no_run(tmp_path, digits):
    save(tmp_path / "net", network("resnet8-x0.5", 1, digits), digits)
    line = ["evaluate", str(tmp_path / "shipped.safetensors"), "--data", "digits", "--attacks", "fgsm", "pgd4"]
    assert main(["export", str(tmp_path / "net"), "--out", str(tmp_path / "shipped.safetensors")]) == 0
    assert in_processes(2, command, *line, "--n", "60", "--chunk", "16", "--precision", "32") == [0, 0]


def test_where_one_process_cannot_go_on_the_others_leave_with_its_exit_code(tmp_path, digits):
    save(tmp_path / "net", network("resnet8-x0.5", 1, digits), digits)
    line = f"evaluate {tmp_path}/net --attacks fgsm --n 60 --chunk 16 --precision 32 --out {tmp_path}/out"
    (tmp_path / "out/results.json").mkdir(parents=True)
    assert in_processes(2, command, *line.split()) == [1, 1]
    (tmp_path / "out/results.json").rmdir()
    (journal,) = (tmp_path / "out").glob(".evaluation-*")
    for verdicts in journal.glob("*.pt"):
        verdicts.unlink()
    with locks.owned(journal):
        assert in_processes(2, command, *line.split()) == [75, 75]
    assert [path.name for path in journal.iterdir()] == [".lock"]
    train = "train pgdat --data digits --model resnet8-x0.25 --steps 1 --epochs 1 --out"
    with locks.owned(tmp_path / "new"):
        assert in_processes(2, command, *train.split(), str(tmp_path / "new")) == [75, 75]


def test_more_processes_than_images_are_refused(tmp_path, digits, monkeypatch, capsys):
    save(tmp_path / "net", network("resnet8-x0.25", 1, digits), digits)
    monkeypatch.setattr("gacd.assess.launch", lambda *args, **options: (SimpleNamespace(world_size=4), "32"))
    assert main(["evaluate", str(tmp_path / "net"), "--n", "3"]) == 2
    assert "more processes than images" in capsys.readouterr().err


def test_torchrun_evaluates_as_one_process_does(tmp_path, digits):
    save(tmp_path / "net", network("resnet8-x0.5", 1, digits), digits)
    line = f"evaluate {tmp_path}/net --attacks fgsm pgd5 margin5x2 --eps 0.1 --n 150 --chunk 40 --precision 32 --out"
    assert in_processes(1, command, *line.split(), str(tmp_path / "one")) == [0]
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "--",
        "gacd",
    ]
    argv = [*torchrun, *line.split(), str(tmp_path / "two")]
    done = subprocess.run(argv, env=os.environ | dict(OMP_NUM_THREADS="1"), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    one, two = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("one", "two"))
    assert two == one
    assert [row["attack"] for row in one["results"]] == ["natural", "fgsm", "pgd5", "margin5x2", "worst"]
    assert 0 < one["results"][-1]["accuracy"] < one["results"][0]["accuracy"] < 1


def test_there_are_no_more_processes_than_gpus(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    with pytest.raises(InputError, match="fewer GPUs than processes: 1 < 2"):
        launch("cuda", 2)


def test_the_other_processes_end_with_the_first(tmp_path):
    """Killed as by `timeout` or for memory; what it had locked is another's then."""
    code = """
import os, sys, time
from gacd.device import launch
fabric, _ = launch("cpu", 2)
open(sys.argv[1] + f"/{fabric.global_rank}", "w").write(str(os.getpid()))
time.sleep(120)
"""
    (tmp_path / "run.py").write_text(code)
    argv = [sys.executable, str(tmp_path / "run.py"), str(tmp_path)]
    first = subprocess.Popen(argv, env=os.environ | dict(OMP_NUM_THREADS="1"))
    until = time.monotonic() + 120
    while not ((tmp_path / "1").exists() and (tmp_path / "1").read_text()) and time.monotonic() < until:
        time.sleep(0.1)
    first.kill()
    first.wait()
    state = "R"
    while state != "Z" and time.monotonic() < until:
        try:
            state = Path(f"/proc/{(tmp_path / '1').read_text()}/stat").read_text().split(") ")[1][0]
        except OSError:  # it is gone
            return
        time.sleep(0.1)
    assert state == "Z"
