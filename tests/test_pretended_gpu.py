"""Every command on a pretended GPU (pretend.py): nothing may be left on the CPU, or made there, that meets the rest."""

import json
import shutil

import pytest
import torch
from pretend import GPU, Pretend, launch
from test_training import RUN, command

from gacd import cost, methods, verify
from gacd.cli import main

COMMANDS = ("commands", "assess", "transfer", "analysis", "verify")


@pytest.fixture
def gpu(monkeypatch):
    """Commands find the pretended GPU, which knows no autocast."""
    for name in COMMANDS:
        monkeypatch.setattr(f"gacd.{name}.launch", launch)
    autocast = torch.autocast
    monkeypatch.setattr(torch, "autocast", lambda kind, *a, **o: autocast("cpu" if kind == "meta" else kind, *a, **o))
    enabled = torch.is_autocast_enabled
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind: enabled("cpu" if kind == "meta" else kind))
    monkeypatch.setitem(verify.ROUNDING, "meta", 1e-3)
    with Pretend():
        yield


@pytest.fixture
def teacher(tmp_path):
    run = tmp_path / "teacher"
    assert main(["train", "standard", *RUN, "--epochs", "3", "--lr", "0.3", "--val-steps", "0", "--out", str(run)]) == 0
    return run


@pytest.mark.parametrize("method", methods.names())
def test_every_method_trains_there(method, teacher, tmp_path, monkeypatch, gpu):
    places = []

    def price(method, *args, **options):
        networks = [method.student] if method.teacher is None else [method.student, method.teacher]
        places.extend(next(network.parameters()).device for network in networks)
        return counted(method, *args, **options)

    counted = cost.price
    monkeypatch.setattr(cost, "price", price)
    assert main(command(method, tmp_path / "run", teacher)) == 0
    assert set(places) == {GPU}


@pytest.fixture(scope="module")
def runs(taught, tmp_path_factory):
    """taught's copies, for commands that write into them."""
    place = tmp_path_factory.mktemp("pretended")
    shutil.copytree(taught, place, dirs_exist_ok=True)
    return place


ATTACKS = ["fgsm", "pgd2", "margin2x2", "apgd-ce2", "apgd-t2", "fab-t2", "square3"]


@pytest.mark.parametrize("norm", [["--norm", "Linf", "--eps", "0.05"], ["--norm", "L2", "--eps", "0.5"]])
def test_evaluate_there(runs, monkeypatch, gpu, norm):
    monkeypatch.chdir(runs)
    attacks = ATTACKS[:3] if "L2" in norm else ATTACKS
    argv = ["evaluate", "a", "--n", "16", "--attacks", *attacks, "--audits", "full", "--teacher", "teacher", *norm]
    out = f"out-{norm[1]}"
    assert main([*argv, "--out", out]) in (0, 3)  # two steps find less than an audit
    findings = json.loads((runs / out / "results.json").read_text())["results"][-1]["doubts"]
    assert not any("could not be carried out" in finding for finding in findings)


def test_a_compiled_search_is_another(runs, monkeypatch, gpu):
    monkeypatch.chdir(runs)
    asked = []
    monkeypatch.setattr(torch, "compile", lambda model, **options: asked.append(options) or model)
    argv = ["evaluate", "a", "--n", "40", "--eps", "0.05", "--attacks", "margin5", "--out", "compiled"]
    assert main([*argv, "--compile", "true"]) in (0, 3)
    rows = json.loads((runs / "compiled/results.json").read_text())["results"]
    assert asked == [dict(dynamic=False)] and {row["search"] for row in rows} == {"32, compiled"}


@pytest.fixture
def pack(runs, monkeypatch):
    """Made on the CPU."""
    monkeypatch.chdir(runs)
    assert main(["evaluate", "a", "--n", "40", "--eps", "0.05", "--attacks", "margin5", "--out", "out"]) in (0, 3)
    return next((runs / "out").glob("witnesses-*.safetensors"))


def test_verify_there(runs, pack, gpu):
    assert main(["verify", "a", str(pack)]) == 0


@pytest.mark.parametrize("solver", ["lbfgs", "sgd", "adversarial"])
def test_probe_there(runs, tmp_path, gpu, solver):
    short = [] if solver == "lbfgs" else ["--epochs", "1"]
    argv = ["probe", str(runs / "a"), "--solver", solver, *short, "--steps", "1", "--weight-decays", "0.1"]
    assert main([*argv, "--out", str(tmp_path / "probe")]) == 0


def test_analyze_there(runs, tmp_path, monkeypatch, gpu):
    monkeypatch.chdir(runs)
    sizes = "--n 40 --points 12 --steps 2 --fit-images 60 --fit-steps 4 --perplexity 5"
    assert main(["analyze", "a", "b", "--teacher", "teacher", *sizes.split(), "--out", str(tmp_path / "x")]) == 0


def test_it_notices_what_a_gpu_would():
    here = torch.ones(3)
    with Pretend():
        there = here.to(GPU)
        assert (there + 1).tolist() == [2, 2, 2] and there[here > 0].device == GPU and not (there.cpu() - here).any()
        for mixed in (lambda: there + here, lambda: here[there > 0], lambda: torch.cat([there, here])):
            with pytest.raises(RuntimeError, match="on the GPU and on the CPU"):
                mixed()
