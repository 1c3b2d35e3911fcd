"""The command `analyze` from end to end: its numbers are those of the functions."""

import json
import shlex
import shutil

import numpy as np
import pytest
import torch
from students import save

from gacd import analysis, checkpoint, data, lineup, models, noise, similarity
from gacd.cli import main
from gacd.data import hold_out
from gacd.information import Pairs, information

QUICK = shlex.split("--n 60 --points 12 --perplexity 4 --fit-images 300 --fit-steps 5 --steps 2 --eps 0.2")


def analyze(*words):
    return main(["analyze", *QUICK, *map(str, words)])


@pytest.fixture(scope="module")
def result(taught):
    assert analyze(taught / "a", taught / "b", "--out", taught / "out") == 0
    return json.loads((taught / "out" / "analysis.json").read_text())


def test_files_say_what_was_measured_on_what(result, taught, digits):
    assert (result["n"], result["data"], result["seed"], result["threat"]["eps"]) == (60, "digits", 0, "0.2")
    assert result["teacher"] == "teacher"
    assert list(result["sources"]) == ["teacher", "a", "b"]
    for name, source in result["sources"].items():
        assert source["sha256"] == checkpoint.digest(checkpoint.load(str(taught / name)))
    assert {"commit", "device", "versions"} <= set(result)
    assert "scikit-learn" in result["versions"]
    points, fixed = result["clusters"]["points"], result["clusters"]["fixed"]
    said = f"features of teacher, a, b: test images of digits, {points[0]} of 0, {points[1]} of 1, and 1 attacked"
    assert said in result["figures"]["clusters.png"] and f"{fixed} that fool a" in result["figures"]["clusters.png"]
    page = (taught / "out" / "analysis.md").read_text()
    for name in ("correlations-natural", "correlations-adversarial", "clusters"):
        assert (taught / "out" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert (taught / "out" / f"{name}.svg").read_text().startswith("<svg")
        assert f"({name}.png)" in page
    assert f"{result['students']['b']['natural']['cka']:.3f}" in page
    assert f"{result['students']['a']['information']['bound']:.2f}".replace("-", "−") in page


def test_numbers_are_those_of_the_functions(result, taught, digits):
    sample = hold_out(digits.test, 60, noise.key(0, "analysis"))[1]
    assert sample.labels.bincount().tolist() == [6] * 10
    t, s = (lineup.Network(n, n, checkpoint.open_source(str(taught / n))) for n in ("teacher", "a"))
    assert t.opened.model.training is False
    options = dict(eps=0.2, step_size=0.05, steps=2, seed=0, chunk=250)
    x_adv = lineup.crafted(s, sample.images, sample.labels, **options)
    assert (x_adv - sample.images / 255).abs().max() <= 0.2 + 1e-6
    for kind, x in dict(natural=sample.images / 255, adversarial=x_adv).items():
        row = result["students"]["a"][kind]
        with torch.no_grad():
            f_t, f_s = t.opened.model.features(x), s.opened.model.features(x)
            logits_t, logits_s = t.opened.model(x), s.opened.model(x)
        r_t, r_s = similarity.correlation(logits_t), similarity.correlation(logits_s)
        assert np.allclose(row["correlation"]["teacher"], r_t, atol=1e-5)
        assert np.allclose(row["correlation"]["student"], r_s, atol=1e-5)
        assert row["correlation"]["difference"] == pytest.approx(similarity.difference(r_t, r_s), abs=1e-5)
        assert row["cka"] == pytest.approx(similarity.cka(f_t, f_s), abs=1e-5)
        predicted = [logits.argmax(1) for logits in (logits_t, logits_s)]
        assert row["errors"] == similarity.inherited(*predicted, sample.labels)
        shares = [float((p == sample.labels).double().mean()) for p in predicted]
        assert list(row["accuracy"].values()) == shares
        assert shares[0] > 0.3
    assert (
        result["students"]["a"]["adversarial"]["errors"]["errors"]
        > result["students"]["a"]["natural"]["errors"]["errors"]
    )


def test_information_is_fitted_on_training_images_and_read_off_test_images(result, taught, digits):
    sample = hold_out(digits.test, 60, noise.key(0, "analysis"))[1]
    fitting = hold_out(digits.train, 300, noise.key(0, "information"))[1]
    t, s = (checkpoint.load(str(taught / n)) for n in ("teacher", "a"))
    made = []
    for split in (fitting, sample):
        x = split.images / 255
        with torch.no_grad():
            w = t(x).softmax(1)[torch.arange(len(x)), split.labels]
            made.append(Pairs(t.features(x), s.features(x), split.labels, w))
    found = information(*made, k=59, steps=5, seed=0)
    said = result["students"]["a"]["information"]
    assert (said["k"], said["fit_images"], said["fit_steps"]) == (59, 300, 5)
    assert [said["bound"], said["eq11"]] == pytest.approx([found["bound"], found["eq11"]], abs=1e-3)


def test_the_fixed_set_fools_its_host_and_is_shown_to_all(result, digits):
    clusters = result["clusters"]
    assert clusters["classes"] == ["0", "1"]
    assert clusters["crafted_on"] == "a"
    assert list(clusters["networks"]) == ["teacher", "a", "b"]
    assert 0 < clusters["fixed"] <= 12
    assert clusters["networks"]["a"]["fixed"]["misclassified"] == clusters["networks"]["a"]["fixed"]["taken"] == 1
    for row in clusters["networks"].values():
        assert row["ratio"] == pytest.approx(row["inter"] / row["intra"])
        assert row["own"]["taken"] <= row["own"]["misclassified"]


def test_the_wrong_cluster_is_the_first_class_of_images_crafted_on_the_network_itself(result, taught, digits):
    sample = hold_out(digits.test, 60, noise.key(0, "analysis"))[1]
    zeros, ones, attacked = analysis.of_two_classes(digits.test, [0, 1], 12)
    originals, aims = attacked.take(torch.arange(12)), torch.zeros(12, dtype=torch.long)
    for name in ("teacher", "b"):
        net = lineup.Network(name, name, checkpoint.open_source(str(taught / name)))
        options = dict(eps=0.2, step_size=0.05, steps=2, seed=0, chunk=250)
        x_adv = lineup.crafted(net, originals.images, aims, loss=lineup.towards, **options)
        with torch.no_grad():
            f = [
                net.opened.model.features(x)
                for x in (sample.images / 255, zeros.images / 255, ones.images / 255, x_adv)
            ]
        zero, one, crafted = (torch.nn.functional.normalize(part - f[0].mean(0)) for part in f[1:])
        wrong = (crafted - zero.mean(0)).norm(dim=1) < (crafted - one.mean(0)).norm(dim=1)
        said = result["clusters"]["networks"][name]
        assert said["own"]["wrong_cluster"] == pytest.approx(float(wrong.double().mean()))


def test_every_number_of_the_page_stands_in_its_column(result, taught):
    lines = (taught / "out" / "analysis.md").read_text().replace("−", "-").splitlines()
    found = [[cell.strip() for cell in line.split("|")[2:-1]] for line in lines if line.startswith("| b |")]
    student, lying = result["students"]["b"], result["clusters"]["networks"]["b"]
    kinds = [student[kind] for kind in ("natural", "adversarial")]
    alike = [f"{kind['correlation']['difference']:.3f}" for kind in kinds] + [f"{kind['cka']:.3f}" for kind in kinds]
    expected = [alike + [f"{student['information'][key]:.2f}" for key in ("bound", "eq11")]]
    for kind, name in zip(kinds, ("natural", "adversarial"), strict=True):
        shares = [kind["errors"][key] for key in ("wrong", "wrong_by_chance", "same", "same_by_chance")]
        expected.append([name, str(kind["errors"]["errors"]), *(f"{100 * share:.1f}" for share in shares)])
    sets, keys = ("before", "fixed", "own"), ("wrong_cluster", "misclassified")
    shares = [lying[images][key] for images in sets for key in keys]
    distances = [f"{lying[key]:.2f}" for key in ("intra", "inter", "ratio")]
    expected.append(distances + [f"{100 * share:.1f}" for share in shares])
    assert found == expected


def test_the_same_command_gives_the_same_files(result, taught, capsys):
    assert analyze(taught / "a", taught / "b", "--out", taught / "again") == 0
    for file in sorted((taught / "out").iterdir()):
        if file.suffix != ".png":
            assert file.read_bytes() == (taught / "again" / file.name).read_bytes()
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert any("lower bound" in line for line in lines)


def test_a_host_that_is_no_student_is_shown_first(taught, digits, tmp_path):
    assert analyze(taught / "a", "--crafted-on", taught / "b", "--classes", "8", "3", "--out", tmp_path) == 0
    clusters = json.loads((tmp_path / "analysis.json").read_text())["clusters"]
    assert list(clusters["networks"]) == ["b", "teacher", "a"]
    assert clusters["classes"] == ["8", "3"]


def test_a_network_beside_itself_differs_in_nothing_and_without_an_attack_nothing_is_fooled(taught, tmp_path, capsys):
    assert analyze(taught / "a", "--teacher", taught / "a", "--eps", "0", "--out", tmp_path) == 0
    assert "there is no fixed set to show" in " ".join(capsys.readouterr().out.split())
    result = json.loads((tmp_path / "analysis.json").read_text())
    (clusters,) = result["clusters"]["networks"].values()
    assert result["clusters"]["fixed"] == 0
    assert clusters["fixed"] is None
    assert clusters["own"] == clusters["before"]
    (row,) = result["students"].values()
    for kind in ("natural", "adversarial"):
        assert row[kind]["correlation"]["difference"] == 0
        assert row[kind]["cka"] == pytest.approx(1)
        assert row[kind]["errors"]["same"] in (1, None)


@pytest.mark.parametrize(
    ("words", "code", "line"),
    [
        (["a", "--teacher", "torch.nn:Identity"], 1, "needs head(features(x)): the network has no features, head"),
        (["nine", "--teacher", "teacher"], 1, "9 classes, but its teacher has 10"),
        (["a", "--teacher", "nine"], 1, "9 classes, but digits has 10"),
        (["a", "--teacher", "renamed"], 1, "other classes than the teacher's, or in another order"),
        (["a", "--classes", "0", "bird"], 2, "unknown class: bird (one of 0, 1,"),
        (["a", "--classes", "3", "3"], 2, "--classes takes two different names"),
        (["a", "--n", "19"], 2, "19 images say nothing of 10 classes: --n (at least 20)"),
        (["a", "--perplexity", "30"], 2, "perplexity 30 does not suit 24 points (--perplexity from 1 to 7)"),
        (["a", "--points", "0"], 2, "points must be at least 1: 0"),
        (["a", "--k", "0"], 2, "k must be at least 1: 0"),
        (["a", "--eps", "8"], 1, "did you mean 8/255?"),
        (["teacher"], 2, "which teacher? the runs name none (--teacher says which)"),
        (["a", "other"], 2, "the runs name different teachers"),
        (["a", "--out", "a/config.yaml"], 2, "--out is no directory: a/config.yaml"),
        (["factory"], 2, "a factory must be typed on the command line"),
        (["a", "missing"], 1, "no such run or file: missing"),
    ],
)
def test_bad_input_is_one_line(words, code, line, taught, digits, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("teacher", "a"):
        shutil.copytree(taught / name, name)
    nine = models.build("resnet8-x0.1", 9, digits.mean, digits.std)
    save(tmp_path / "nine", nine, digits)
    save(tmp_path / "renamed", checkpoint.load("a"), digits)
    record = dict(data="digits", size=8, classes=digits.classes[::-1])
    payload = checkpoint.read(tmp_path / "renamed" / "checkpoints" / "best.pt") | dict(record=record)
    checkpoint.write(tmp_path / "renamed" / "checkpoints" / "best.pt", payload)
    save(tmp_path / "other", checkpoint.load("a"), digits, teacher="a")
    save(tmp_path / "factory", checkpoint.load("a"), digits, teacher="some.module:factory")
    assert main(["analyze", *QUICK, *words]) == code
    (said,) = capsys.readouterr().err.splitlines()
    assert line in said
    assert not (tmp_path / "analysis").exists()


def test_bird_and_truck_are_the_default_where_there_are_any(digits):
    named = data.Dataset("x", digits.train, digits.val, digits.test, ["cat", "truck", "bird"], (0,), (1,))
    assert analysis.two_classes(named, None) == [2, 1]
    assert analysis.two_classes(digits, None) == [0, 1]
