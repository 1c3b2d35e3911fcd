import argparse
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from gacd import methods, noise
from gacd.memory import Bank, draw
from gacd.methods.ard import ARD
from gacd.methods.gacd import GACD
from gacd.models import build

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import contrastive
import evaluation
import peers
import training
import trust


def unit(*shape):
    return F.normalize(torch.randn(*shape, dtype=torch.float64), dim=1)


@pytest.mark.parametrize("classes", [2, 5])
def test_crd_layout_is_our_contrast_in_value_given_its_negatives_and_live_positives(classes):
    torch.manual_seed(0)
    size, k, dim, index = 60, 25, 8, torch.tensor([3, 17, 4, 41])
    labels = torch.arange(size) % classes
    method = GACD(build("resnet8-x0.1"), build("resnet8-x0.1"), labels, k=k, dim=dim).double()
    crd = peers.CRDMemory(size, dim, tiny=0.0).double()
    for _ in range(2):  # Z comes from the first, and holds for the second
        t, s = unit(4, dim), unit(4, dim)
        for live, ours, theirs in ((t, method.bank_t, crd.rows_t), (s, method.bank_s, crd.rows_s)):
            ours.rows[index] = live  # CRD takes even the positive from the memory
            theirs.copy_(ours.rows)
        columns, keep = draw(labels, labels[index], k, noise.key(0, "negatives", 0))
        places = torch.stack([torch.cat([i[None], columns[row > 0]]) for i, row in zip(index, keep, strict=True)])
        assert places.shape == (4, k + 1)
        loss = method.contrast(t, s, labels[index], torch.ones(4, dtype=torch.float64)).mean()
        torch.testing.assert_close(crd(t, s, places), loss, rtol=1e-7, atol=0)


def test_crd_update_is_ours():
    bank, crd, index = Bank(9, 4, "any").double(), peers.CRDMemory(9, 4).double(), torch.tensor([2, 5])
    crd.rows_t.copy_(bank.rows)
    embeddings = unit(2, 4)
    bank.update(index, embeddings, 0.5)
    crd.update(crd.rows_t, index, embeddings)
    torch.testing.assert_close(crd.rows_t, bank.rows, rtol=1e-14, atol=1e-16)


@pytest.mark.parametrize("k", [5, 40])
def test_class_pools_draw_other_classes_with_replacement_only_if_they_must(k):
    labels = torch.arange(30) % 3
    places = peers.ClassPools(labels.tolist(), k).batch(torch.tensor([4, 7, 29]))
    assert places.shape == (3, k + 1)
    assert places[:, 0].tolist() == [4, 7, 29]
    assert (labels[places[:, 1:]] != labels[places[:, :1]]).all()
    assert all((len(row.unique()) == k) == (k <= 20) for row in places[:, 1:])


@pytest.mark.parametrize("parameter_gradients", [False, True])
def test_public_ard_loop_is_ard_attacking_in_train_mode(parameter_gradients):
    torch.manual_seed(0)
    student, teacher = build("resnet8-x0.25").double(), build("resnet8-x0.25").double().eval().requires_grad_(False)
    x, y = 0.2 + 0.6 * torch.rand(6, 3, 16, 16, dtype=torch.float64), torch.arange(6)
    ours = ARD(student, teacher, attack_mode="train", steps=3)
    index = torch.arange(6)
    start = x + 8 / 255 * ours.noise(x, index, "uniform", "start")
    loss = peers.ard_loss(student, teacher, x, y, steps=3, start=start, parameter_gradients=parameter_gradients)
    torch.testing.assert_close(loss, ours(x, y, index)["loss"], rtol=1e-9, atol=0)


def test_pil_images_are_windows_of_the_padded_image_some_of_them_flipped():
    torch.manual_seed(0)
    image = torch.randint(0, 256, (1, 3, 8, 8), dtype=torch.uint8)
    padded = F.pad(image[0].float() / 255, (4, 4, 4, 4))
    windows = padded.unfold(1, 8, 1).unfold(2, 8, 1).permute(1, 2, 0, 3, 4).flatten(0, 1)
    x = torch.stack([peers.PILImages(image, torch.tensor([7]))[0][0] for _ in range(40)])
    straight, flipped = ((z[:, None] == windows).flatten(2).all(2).any(1) for z in (x, x.flip(3)))
    assert (straight | flipped).all()
    assert straight.any()
    assert flipped.any()


@pytest.mark.parametrize("name", methods.names())
def test_every_method_can_be_measured(name):
    options = argparse.Namespace(student="resnet8-x0.1", teacher="resnet8-x0.1")
    assert training.method(name, options, torch.arange(20) % 10).student.num_classes == 10


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is read from Linux's /proc")
def test_contrastive_end_to_end(tmp_path):
    out = tmp_path / "results" / "contrastive.json"
    sizes = "--batch 4 --k 20 --images 100 --dim 8 --repeats 2 --rounds 1 --threads 1"
    contrastive.main([*sizes.split(), "--out", str(out)])
    result = json.loads(out.read_text())
    assert {"speedup", "memory_ratio", "ours", "crd", "threads", "command", "commit", "device", "versions"} <= set(
        result
    )
    assert result["sizes"] == dict(batch=4, k=20, images=100, dim=8, classes=10)
    assert result["crd"]["ms_with_drawing"] > result["crd"]["ms"] > 0
    assert result["speedup"] == result["crd"]["ms"] / result["ours"]["ms"]


def test_training_end_to_end(tmp_path):
    out = tmp_path / "training.json"
    sizes = "--student resnet8-x0.25 --teacher resnet8-x0.25 --images 64 --batch-size 4 --repeats 1 --matrix 64"
    training.main([*sizes.split(), "--device", "cpu", "--methods", "standard", "ard", "gacd", "--out", str(out)])
    result = json.loads(out.read_text())
    assert {"command", "commit", "device", "versions", "matmul_gflops"} <= set(result)
    precisions = {result["auto"], "32"}
    assert set(result["matmul_gflops"]) == precisions
    assert {(row["method"], row["precision"]) for row in result["rows"]} == {
        (name, p) for name in ("standard", "ard", "gacd") for p in precisions
    }
    assert all({"images_per_s", "gflops", "share_of_matmul"} <= set(row) for row in result["rows"])
    assert min(result["ard_speedup"], result["ard_speedup_float32"]) > 0


def test_sides_are_compared_with_the_peer_image_by_image():
    peer, ours = torch.tensor([True, True, False, False, True]), torch.tensor([True, False, False, True, False])
    sides = evaluation.race({"peer": lambda: peer, "gacd": lambda: ours}, "peer", 3)["sides"]
    assert [sides["peer"]["robust"], sides["gacd"]["robust"]] == [pytest.approx(0.6), pytest.approx(0.4)]
    assert [sides["gacd"]["only_peer_beats"], sides["gacd"]["only_gacd_beats"]] == [[3], [1, 4]]
    assert [len(sides[name]["seconds"]) for name in sides] == [3, 3]
    assert sides["gacd"]["speedup"] == sorted(sides["peer"]["seconds"])[1] / sorted(sides["gacd"]["seconds"])[1]


@pytest.mark.parametrize("processes", [1, 2])
def test_evaluation_end_to_end(tmp_path, monkeypatch, taught, processes):
    """Beside a peer that attacks nothing: what it calls robust is what the network knows."""

    class PGD:
        def __init__(self, model, *, eps, alpha, steps):
            assert (eps, alpha, steps) == (8 / 255, 2 / 255, 20)

        def __call__(self, x, y):
            return x

    monkeypatch.setitem(sys.modules, "torchattacks", SimpleNamespace(PGD=PGD))
    out, source = tmp_path / "evaluation.json", str(taught / "a")
    out.write_text(json.dumps(dict(rate="of an earlier run")))
    sizes = ["--n", "90", "--batch", "40", "--rounds", "1", "--threads", str(torch.get_num_threads())]
    sizes += ["--processes", str(processes)]
    evaluation.main(["--parts", "pgd", "--networks", source, *sizes, "--out", str(out)])
    result = json.loads(out.read_text())
    assert result["rate"] == "of an earlier run"
    assert {"command", "commit", "device", "versions", "threads"} <= set(result["pgd"])
    (row,) = result["pgd"]["networks"]
    model, split = evaluation.opened(source, 90, "cpu")
    natural = (model(split.images / 255).argmax(1) == split.labels).double().mean()
    assert (row["network"], row["n"], row["sides"]["torchattacks"]["robust"]) == (source, 90, float(natural))
    ours = [side for name, side in row["sides"].items() if name.startswith("gacd")]
    assert len(ours) == len(evaluation.precisions("cpu"))
    assert all(side["robust"] < natural and not side["only_peer_beats"] and side["only_gacd_beats"] for side in ours)
    assert all(side["cpu_seconds"][0] > 0.1 for side in ours)  # the workers' too


def test_trust_end_to_end(tmp_path, monkeypatch, taught):
    monkeypatch.setattr("planted.measured", lambda regions: iter([("sound", [1, 3, 0][:regions]), ("masked", [])]))
    out = tmp_path / "trust.json"
    trust.main(["--network", str(taught / "a"), "--n", "70", "--regions", "2", "--out", str(out)])
    result = json.loads(out.read_text())
    for precision in evaluation.precisions("cpu"):
        pairs = result["chunks"][precision]
        assert list(pairs) == ["16 and 64", "16 and 250", "64 and 250"]
        assert all(pair["equal"] > 0.98 and len(pair["images"]) <= 3 for pair in pairs.values())
    assert result["planted"]["sound"] == dict(planted=2, found=2, latest_start=3)
    assert result["planted"]["masked"] == dict(planted=0, found=0, latest_start=0)
    accuracy = result["defensive"]["accuracy"]
    assert accuracy["pgd20"] > 0.3 and accuracy["margin20"] == accuracy["worst"] < 0.05
    assert all("command" in part and "commit" in part for part in result.values())
