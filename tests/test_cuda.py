"""What a GPU can break: invariance to the bit, agreement with the CPU, files that travel between the two.

Where there is one, the rest of the suite runs its commands on it too; this file is what the CPU alone cannot ask.
"""

import json

import pytest
import torch
from sounds import EPS
from students import network, save
from test_journal import ALL, masks
from test_pool import runs
from test_training import RUN, command, differing, stop_at

from gacd import checkpoint, noise
from gacd.attacks import pool
from gacd.attacks.graph import captured
from gacd.attacks.loop import box, inside, projection
from gacd.attacks.names import searches
from gacd.audit import audit
from gacd.cli import main
from gacd.device import exact_on_cuda
from gacd.evaluation import evaluate
from gacd.models import build
from gacd.models.folding import attackable

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
SEARCHES = {"32": torch.float32, "bf16": torch.bfloat16}


@pytest.fixture(autouse=True)
def exact():
    """As every command has it."""
    exact_on_cuda()


def searching(precision):
    return lambda: torch.autocast("cuda", SEARCHES[precision], enabled=precision != "32")


@pytest.fixture(scope="module")
def small():
    """A small network and 200 images that it mostly knows."""
    torch.manual_seed(0)
    model, x = build("resnet8-x0.25", 3).cuda(), noise.uniform(7, torch.arange(200), (3, 8, 8))
    with torch.no_grad():
        for _ in range(10):
            model(x.cuda())
        y = model.eval()(x.cuda()).argmax(1).cpu()
    y[::9] = (y[::9] + 1) % 3
    return model, x, y


@pytest.mark.parametrize("precision", SEARCHES)
def test_order_shards_and_a_second_time_are_equal_to_the_bit(small, precision):
    options = dict(attacks=ALL, search=searching(precision))
    whole, order = masks(small, **options), noise.permutation(3, 200)
    assert torch.equal(masks(small, **options), whole)
    assert torch.equal(masks(small, order, **options), whole[:, order])
    for count in (2, 4):
        parts = [masks(small, shard=(i, count), **options) for i in range(count)]
        assert torch.equal(torch.stack(parts).any(0), whole)


@pytest.mark.parametrize("precision", SEARCHES)
@pytest.mark.parametrize("name", ["fgsm", "pgd10", "apgd-ce10", "apgd-t5", "fab-t5", "square60"])
def test_a_replayed_search_finds_the_same_bits(small, monkeypatch, name, precision):
    model, x, y = small
    (search,) = searches(name, norm="Linf", eps=EPS, step_size=EPS / 4, seed=0, classes=3)
    replayed, found = [], []

    def noted(turn, rows):
        replayed.append(captured(turn, rows))
        return replayed[-1]

    for way in (noted, lambda turn, rows: turn):
        monkeypatch.setattr(pool, "captured", way)
        with torch.no_grad(), attackable(model, x[:1].cuda()) as quick:
            found.append(runs(search, quick, x.cuda(), y.cuda(), torch.arange(200), 50, searching(precision)))
    assert {turn.__name__ for turn in replayed} == {"replay"}
    for i, (image, doubts) in found[1].items():
        assert torch.equal(found[0][i][0], image) and found[0][i][1] == doubts


@pytest.mark.parametrize("how", ["waits", "copies"])
def test_a_network_that_no_graph_can_hold_is_attacked_without_one(small, how):
    model, x, y = small

    class Odd(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.network = model

        def forward(self, z):
            if how == "waits":
                return self.network(z) if float(z.detach().sum()) > -1 else z
            return self.network(z - torch.tensor([0.0], device=z.device))

    names = ["pgd10", "fab-t5", "square50"]
    odd, plain = (evaluate(each, (x, y), names, eps=0.01) for each in (Odd(), model))
    assert 0.1 < plain.worst < plain.natural
    for name, mask in plain.correct.items():
        assert int((mask != odd.correct[name]).sum()) <= 1, name


@pytest.mark.parametrize("precision", SEARCHES)
def test_verdicts_are_the_cpu_s(sound, images, precision):
    names = ["fgsm", "pgd20", "margin20", "apgd-ce20", "fab-t2", "square50"]
    on_cpu = evaluate(sound.cpu(), images, names, eps=EPS)
    on_gpu = evaluate(sound.cuda(), images, names, eps=EPS, search=searching(precision))
    assert 0.1 < on_cpu.worst < on_cpu.natural
    for name, mask in on_cpu.correct.items():
        assert int((mask != on_gpu.correct[name]).sum()) <= 1, name


def test_a_sound_network_passes_its_full_audits(sound, images):
    x, y = images
    found = evaluate(sound.cuda(), (x, y), eps=EPS)
    result = audit(sound, x, y, eps=EPS, chunk=30, correct=found.correct, full=True, noises=300)
    assert (result.verdict, [str(trouble) for trouble in result.troubles]) == ("TRUSTED", [])


def test_noise_has_the_same_bits():
    rows = torch.arange(50)
    assert torch.equal(noise.bits(7, rows.cuda(), 99).cpu(), noise.bits(7, rows, 99))
    assert torch.equal(noise.uniform(7, rows.cuda(), (3, 11)).cpu(), noise.uniform(7, rows, (3, 11)))
    assert torch.equal(noise.permutation(7, 999, "cuda").cpu(), noise.permutation(7, 999))


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_projections_are_exact(norm):
    rows = torch.arange(40, device="cuda")
    x = noise.uniform(1, rows, (3, 16, 16))
    for eps in (8 / 255, 0.5):
        z = projection(x, eps, norm)(x + noise.normal(2, rows, (3, 16, 16)))
        assert bool(inside(x, z, eps, norm).all())
        assert all(torch.equal(a.cpu(), b) for a, b in zip(box(x, eps), box(x.cpu(), eps), strict=True))


@pytest.mark.parametrize("method", ["pgdat", "gacd"])
def test_in_bfloat16_too_a_stopped_run_ends_as_one_that_was_not(tmp_path, monkeypatch, digits, method):
    save(tmp_path / "teacher", network("resnet8-x0.5", 0, digits), digits)
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    argv = [option for option in command(method, whole, tmp_path / "teacher") if option not in RUN]
    argv = [*argv, *(option for option in RUN if "precision" not in option), "--precision", "bf16"]
    assert main(argv) == 0
    with monkeypatch.context() as patch:
        stop_at(patch, 5)
        assert main([*argv, "--out", str(stopped)]) == 143
    assert main([*argv, "--out", str(stopped)]) == 0
    assert differing(whole, stopped) == []


@pytest.mark.filterwarnings("default")  # importing torch's compiler warns of torch's own deprecations
def test_a_compiled_search_beats_the_same_images(tmp_path, monkeypatch, digits):
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "t", network("resnet8-x0.5", 0, digits), digits)
    found = []
    for compile in ("false", "true"):
        argv = ["evaluate", "t", "--eps", "0.02", "--attacks", "pgd20", "margin20", "square50", "--compile", compile]
        assert main([*argv, "--out", compile]) == 0
        found.append(json.loads((tmp_path / compile / "results.json").read_text())["results"])
    assert [{row["search"] for row in rows} for rows in found] == [{"bf16"}, {"bf16, compiled"}]
    for one, other in zip(*found, strict=True):
        # Of 359 images; on an H200 single attacks differed on up to 4, two seeds' searches by as many.
        assert abs(one["correct"] - other["correct"]) <= (1 if one["attack"] in ("natural", "worst") else 5)


def test_a_pack_made_on_one_device_is_verified_on_the_other(tmp_path, monkeypatch, digits):
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "t", network("resnet8-x0.5", 0, digits), digits)
    for made, checked in (("cuda", "cpu"), ("cpu", "cuda")):
        argv = ["evaluate", "t", "--n", "200", "--eps", "0.02", "--attacks", "margin20", "--audits", "quick"]
        assert main([*argv, "--device", made, "--out", made]) == 0
        (pack,) = (tmp_path / made).glob("witnesses-*.safetensors")
        assert main(["verify", "t", str(pack), "--device", checked]) == 0
    assert checkpoint.digest(checkpoint.load("t").cuda()) == checkpoint.digest(checkpoint.load("t"))
