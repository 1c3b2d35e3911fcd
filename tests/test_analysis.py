"""The analysis: numbers against literal twins, both bounds where the truth is known, the command end to end."""

import itertools
import json
import math
import shlex
import shutil

import numpy as np
import pytest
import torch
import yaml
from torch.nn import functional as F

from gacd import analysis, checkpoint, data, lineup, models, noise, plots, similarity
from gacd.cli import main
from gacd.data import hold_out
from gacd.errors import InputError, UsageError
from gacd.information import Estimator, Pairs, begin, fit, information, log_odds, right_side


def numbers(*shape, key=0):
    """Reproducible normals, float64."""
    return noise.normal(key, torch.arange(shape[0]), shape[1:]).double()


def test_correlation_is_pearson_s():
    logits = numbers(30, 4) * torch.tensor([1e-3, 1, 50, 3]) + torch.tensor([0, 5, -900, 1])
    r = similarity.correlation(logits)
    for i, j in itertools.product(range(4), repeat=2):
        a, b = logits[:, i] - logits[:, i].mean(), logits[:, j] - logits[:, j].mean()
        assert r[i, j].item() == pytest.approx(float((a * b).sum() / ((a * a).sum() * (b * b).sum()).sqrt()), abs=1e-12)
    assert np.allclose(r, np.corrcoef(logits.T))
    assert torch.equal(r.diagonal(), torch.ones(4).double())


def test_a_constant_logit_correlates_with_nothing():
    logits = numbers(30, 4)
    logits[:, 2] = 0.1
    with pytest.raises(InputError, match="class 2"):
        similarity.correlation(logits)


def test_difference_leaves_out_the_diagonal():
    a, b = numbers(4, 4), numbers(4, 4, key=1)
    off = [abs(float(a[i, j] - b[i, j])) for i in range(4) for j in range(4) if i != j]
    assert similarity.difference(a, b) == pytest.approx(sum(off) / 12)
    assert similarity.difference(a, a + torch.eye(4)) == 0


def hsic(x, y):
    """HSIC_1 of linear kernels, as Song et al. print it, but for its constant factor."""
    n, k, m = len(x), x @ x.T, y @ y.T
    k, m = k - k.diag().diag(), m - m.diag().diag()
    one = torch.ones(n).double()
    return (k @ m).trace() + (one @ k @ one) * (one @ m @ one) / ((n - 1) * (n - 2)) - 2 / (n - 2) * (one @ k @ m @ one)


def test_cka_equals_its_formula_on_gram_matrices():
    x, y = numbers(12, 5) + 3, numbers(12, 7, key=1)
    y[:, :5] += x
    expected = hsic(x, y) / (hsic(x, x) * hsic(y, y)).sqrt()
    assert similarity.cka(x, y) == pytest.approx(float(expected), abs=1e-12)


def test_cka_does_not_see_rotation_shift_or_scale():
    x, y = numbers(40, 6), numbers(40, 9, key=1)
    y[:, :6] += x
    turned = y @ torch.linalg.qr(numbers(9, 9, key=2))[0]
    assert similarity.cka(x, 1e-6 * turned) == pytest.approx(similarity.cka(x, y), abs=1e-9)
    assert similarity.cka(x + 100, 1e8 * turned - 7) == pytest.approx(similarity.cka(x, y), abs=1e-9)
    assert similarity.cka(x, x @ torch.linalg.qr(numbers(6, 6, key=3))[0]) == pytest.approx(1)
    assert similarity.cka(y, x) == pytest.approx(similarity.cka(x, y))


def test_cka_of_independent_features_is_0_on_average_even_of_many():
    found = [similarity.cka(numbers(50, 200, key=i), numbers(50, 200, key=-i - 1)) for i in range(30)]
    assert abs(np.mean(found)) < 3 * np.std(found) / 30**0.5 < 0.1


@pytest.mark.parametrize("x", [torch.ones(10, 3), numbers(3, 3)])
def test_cka_needs_features_that_vary_on_enough_images(x):
    with pytest.raises(InputError, match="4 images"):
        similarity.cka(x, x)


def test_chance_is_the_mean_over_every_shuffle_within_classes():
    y = torch.tensor([0, 0, 0, 1, 1, 1])
    t, s = torch.tensor([1, 2, 0, 1, 0, 2]), torch.tensor([1, 2, 0, 0, 0, 1])
    found = similarity.inherited(t, s, y)
    wrong, same = [], []
    for a, b in itertools.product(itertools.permutations(range(3)), itertools.permutations(range(3, 6))):
        shuffled = s[torch.tensor([*a, *b])]
        wrong.append(np.mean([shuffled[i] != y[i] for i in (0, 1, 4, 5)]))
        same.append(np.mean([shuffled[i] == t[i] for i in (0, 1, 4, 5)]))
    assert found["errors"] == 4
    assert (found["wrong"], found["same"]) == (0.75, 0.75)
    assert found["wrong_by_chance"] == pytest.approx(np.mean(wrong))
    assert found["same_by_chance"] == pytest.approx(np.mean(same))


def test_a_teacher_without_errors_passes_none_on():
    y = torch.arange(4)
    found = similarity.inherited(y, y.flip(0), y)
    assert found.pop("errors") == 0
    assert set(found.values()) == {None}


def test_distances_and_nearest_centroids_by_hand():
    a, b, points = (similarity.directions(numbers(n, 3, key=n) + shift, torch.ones(3)) for n, shift in SHAPES)
    assert torch.allclose(a.norm(dim=1), torch.ones(5).double())
    distances = [[(x - y).norm().item() for y in b] for x in a]
    within = [np.mean([(x - y).norm().item() for x, y in itertools.combinations(c, 2)]) for c in (a, b)]
    found = similarity.separation(a, b)
    assert found == pytest.approx(
        dict(intra=np.mean(within), inter=np.mean(distances), ratio=np.mean(distances) / np.mean(within))
    )
    expected = [bool((p - a.mean(0)).norm() < (p - b.mean(0)).norm()) for p in points]
    assert similarity.nearer(points, a, b).tolist() == expected
    assert {True, False} == set(expected)
    with pytest.raises(InputError, match="all the same"):
        similarity.separation(a[:1].expand(4, 3), b[:1].expand(4, 3))


SHAPES = (5, 1.0), (7, -1.0), (20, 0.0)


def test_tsne_is_the_same_twice_and_leaves_the_global_generators_alone():
    points = similarity.directions(numbers(40, 5), torch.zeros(5))
    np.random.seed(1)
    state = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    first = similarity.tsne(points, perplexity=5, seed=3)
    assert torch.equal(first, similarity.tsne(points, perplexity=5, seed=3))
    assert first.shape == (40, 2)
    assert torch.equal(state[0], torch.random.get_rng_state())
    assert np.array_equal(state[1], np.random.get_state()[1])
    with pytest.raises(UsageError, match=r"perplexity 14 does not suit 40 points.*from 1 to 13"):
        similarity.tsne(points, perplexity=14)


# Mutual information


def pairs(n, key=0, classes=10, know="nothing", dims=(12, 9)):
    """Features of which the truth is known: independent, of the class alone, or the same but for little noise."""
    index = torch.arange(n)
    y = (noise.uniform(noise.key("y", key), index) * classes).long()
    t, s = (noise.normal(noise.key(side, key), index, (d,)) for side, d in zip("ts", dims, strict=True))
    if know == "class":
        t, s = (8 * noise.normal(noise.key("of", side), y, (d,)) for side, d in zip("ts", dims, strict=True))
    if know == "all":
        s = t[:, : dims[1]] + 0.1 * s
    return Pairs(t, s, y, torch.full((n,), 0.44))


def slow_right_side(e, p, k, printed):
    """Eq. 11, or the bound that holds, a pair at a time in Python's floats."""

    def embed(weight, bias, f):
        e = [sum(w * x for w, x in zip(row, f.tolist(), strict=True)) + b for row, b in zip(weight, bias, strict=True)]
        return [x / math.sqrt(sum(x * x for x in e)) for x in e]

    t = [embed(e.weight_t.tolist(), e.bias_t.tolist(), f) for f in p.t]
    s = [embed(e.weight_s.tolist(), e.bias_s.tolist(), f) for f in p.s]

    def h(i, j):
        score = math.exp(sum(a * b for a, b in zip(t[i], s[j], strict=True)) / 0.1)
        return score / (score + k * math.exp(float(e.log_z)))

    total = 0.0
    for i in range(len(t)):
        negatives = [j for j in range(len(s)) if (p.y[j] != p.y[i] if printed else j != i)]
        mean = sum(math.log(1 - h(i, j)) for j in negatives) / len(negatives)
        total += (float(p.w[i]) if printed else 1.0) * (math.log(h(i, i)) + k * mean)
    return math.log(k) + total / len(t)


@pytest.mark.parametrize("printed", [False, True])
def test_both_bounds_equal_a_literal_loop(printed):
    p = Pairs(*(v.double() if v.is_floating_point() else v for v in pairs(9, classes=3)))
    p = p._replace(w=torch.linspace(0.1, 0.9, 9).double())
    e = Estimator(*(v.detach().double() for v in begin(12, 9, 0)))
    e = e._replace(bias_t=numbers(128, key=5), log_z=torch.tensor(1.7).double())
    expected = slow_right_side(e, p, 40, printed)
    assert float(right_side(e, p, k=40, printed=printed)) == pytest.approx(expected, rel=1e-12)


def test_log_odds_are_those_of_the_paper_s_h():
    e, p = begin(12, 9, 0), pairs(5)
    u = log_odds(e._replace(log_z=torch.tensor(0.3)), p.t, p.s, k=7)
    cosine = F.cosine_similarity(F.linear(p.t, e.weight_t)[:, None], F.linear(p.s, e.weight_s)[None], dim=2)
    h = (cosine / 0.1).exp() / ((cosine / 0.1).exp() + 7 * math.exp(0.3))
    assert torch.allclose(u.sigmoid(), h, atol=1e-6)


SMALL = dict(k=299, steps=150)


def test_independent_features_share_nothing_whatever_eq_11_says():
    found = information(pairs(1500), pairs(300, key=1), **SMALL)
    assert found["bound"] < 0
    assert found["eq11"] > 1, "the truth is 0"


def test_features_that_know_the_class_alone_share_at_most_its_entropy():
    found = information(pairs(1500, know="class"), pairs(300, key=1, know="class")._replace(w=torch.ones(300)), **SMALL)
    assert 0.8 < found["bound"] < math.log(10)
    assert found["eq11"] > math.log(10) + 1, "negatives of other classes only are told apart by the class"


def test_features_that_share_more_have_a_higher_bound():
    found = information(pairs(1500, know="all"), pairs(300, key=1, know="all"), **SMALL)
    assert 3 < found["bound"] <= math.log(299)


def test_information_is_deterministic_and_leaves_the_global_generator_alone():
    state = torch.random.get_rng_state()
    fitted, held_out = pairs(300), pairs(40, key=1)
    first = information(fitted, held_out, k=39, steps=3, seed=1)
    assert information(fitted, held_out, k=39, steps=3, seed=1) == first
    assert information(fitted, held_out, k=39, steps=3, seed=2) != first
    assert torch.equal(state, torch.random.get_rng_state())
    assert torch.equal(fitted.t, pairs(300).t)


def test_fitting_makes_the_right_side_larger():
    p = pairs(400, know="all")
    long, short = (float(right_side(fit(p, k=50, steps=n), p, k=50)) for n in (100, 1))
    assert long > short + 1


def test_images_of_one_class_have_no_negatives_of_others():
    p = pairs(40)._replace(y=torch.zeros(40).long())
    with pytest.raises(InputError, match="no negatives"):
        information(p, p, k=39, steps=1)
    with pytest.raises(InputError, match="at least 1"):
        information(p, p, k=0, steps=1)


# The command


def network(name, seed, images):
    """Random features, whose statistics are those of the digits, and a head by least squares."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = models.build(name, 10, images.mean, images.std)
    x = images.train.images / 255
    with torch.no_grad():
        for _ in range(20):
            model(x)
        f = torch.cat([model.eval().features(x), torch.ones(len(x), 1)], 1).double()
        solved = torch.linalg.lstsq(f, F.one_hot(images.train.labels, 10).double()).solution
        model.head.weight.copy_(solved[:-1].T * 10)
        model.head.bias.copy_(solved[-1] * 10)
    return model


def save(run, model, images, **options):
    record = dict(data="digits", size=8, classes=images.classes)
    payload = dict(model=model.config(), weights=model.state_dict(), record=record)
    checkpoint.write(run / "checkpoints" / "best.pt", payload)
    (run / "config.yaml").write_text(yaml.safe_dump(dict(method="ard", data="digits") | options))
    return model


@pytest.fixture(scope="module")
def images():
    return data.load("digits")


@pytest.fixture(scope="module")
def runs(tmp_path_factory, images):
    """teacher, a (taught by it), b (--init a, so taught by it too)."""
    root = tmp_path_factory.mktemp("runs")
    save(root / "teacher", network("resnet8-x0.5", 0, images), images, method="pgdat")
    save(root / "a", network("resnet8-x0.25", 1, images), images, teacher=str(root / "teacher"))
    save(root / "b", network("resnet8-x0.25", 2, images), images, init=str(root / "a"), method="pgdat", teacher=None)
    return root


QUICK = shlex.split("--n 60 --points 12 --perplexity 4 --fit-images 300 --fit-steps 5 --steps 2 --eps 0.2")


def analyze(*words):
    return main(["analyze", *QUICK, *map(str, words)])


@pytest.fixture(scope="module")
def result(runs):
    assert analyze(runs / "a", runs / "b", "--out", runs / "out") == 0
    return json.loads((runs / "out" / "analysis.json").read_text())


def test_files_say_what_was_measured_on_what(result, runs, images):
    assert (result["n"], result["data"], result["seed"], result["threat"]["eps"]) == (60, "digits", 0, "0.2")
    assert result["teacher"] == "teacher"
    assert list(result["sources"]) == ["teacher", "a", "b"]
    for name, source in result["sources"].items():
        assert source["sha256"] == checkpoint.digest(checkpoint.load(str(runs / name)))
    assert {"commit", "device", "versions"} <= set(result)
    assert "scikit-learn" in result["versions"]
    page = (runs / "out" / "analysis.md").read_text()
    for name in ("correlations-natural", "correlations-adversarial", "clusters"):
        assert (runs / "out" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert (runs / "out" / f"{name}.svg").read_text().startswith("<svg")
        assert f"({name}.png)" in page
    assert f"{result['students']['b']['natural']['cka']:.3f}" in page
    assert f"{result['students']['a']['information']['bound']:.2f}".replace("-", "−") in page


def test_numbers_are_those_of_the_functions(result, runs, images):
    sample = hold_out(images.test, 60, noise.key(0, "analysis"))[1]
    assert sample.labels.bincount().tolist() == [6] * 10
    t, s = (lineup.Network(n, n, checkpoint.open_source(str(runs / n))) for n in ("teacher", "a"))
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


def test_information_is_fitted_on_training_images_and_read_off_test_images(result, runs, images):
    sample = hold_out(images.test, 60, noise.key(0, "analysis"))[1]
    fitting = hold_out(images.train, 300, noise.key(0, "information"))[1]
    t, s = (checkpoint.load(str(runs / n)) for n in ("teacher", "a"))
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


def test_the_fixed_set_fools_its_host_and_is_shown_to_all(result, images):
    clusters = result["clusters"]
    assert clusters["classes"] == ["0", "1"]
    assert clusters["crafted_on"] == "a"
    assert list(clusters["networks"]) == ["teacher", "a", "b"]
    assert 0 < clusters["fixed"] <= 12
    assert clusters["networks"]["a"]["fixed"]["misclassified"] == clusters["networks"]["a"]["fixed"]["taken"] == 1
    for row in clusters["networks"].values():
        assert row["ratio"] == pytest.approx(row["inter"] / row["intra"])
        assert row["own"]["taken"] <= row["own"]["misclassified"]


def test_the_same_command_gives_the_same_files(result, runs, capsys):
    assert analyze(runs / "a", runs / "b", "--out", runs / "again") == 0
    for file in sorted((runs / "out").iterdir()):
        if file.suffix != ".png":
            assert file.read_bytes() == (runs / "again" / file.name).read_bytes()
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert any("lower bound" in line for line in lines)


def test_a_host_that_is_no_student_is_shown_first(runs, images, tmp_path):
    assert analyze(runs / "a", "--crafted-on", runs / "b", "--classes", "8", "3", "--out", tmp_path) == 0
    clusters = json.loads((tmp_path / "analysis.json").read_text())["clusters"]
    assert list(clusters["networks"]) == ["b", "teacher", "a"]
    assert clusters["classes"] == ["8", "3"]


def test_a_network_beside_itself_differs_in_nothing_and_without_an_attack_nothing_is_fooled(runs, tmp_path, capsys):
    assert analyze(runs / "a", "--teacher", runs / "a", "--eps", "0", "--out", tmp_path) == 0
    assert "there is no fixed set to show" in " ".join(capsys.readouterr().out.split())
    result = json.loads((tmp_path / "analysis.json").read_text())
    (clusters,) = result["clusters"]["networks"].values()
    assert result["clusters"]["fixed"] == 0
    assert clusters["fixed"] is None
    assert clusters["own"]["misclassified"] == clusters["misclassified_before"]
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
        (["factory"], 2, "a factory must be typed on the command line"),
        (["a", "missing"], 1, "no such run or file: missing"),
    ],
)
def test_bad_input_is_one_line(words, code, line, runs, images, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("teacher", "a"):
        shutil.copytree(runs / name, name)
    nine = models.build("resnet8-x0.1", 9, images.mean, images.std)
    save(tmp_path / "nine", nine, images)
    save(tmp_path / "renamed", checkpoint.load("a"), images)
    record = dict(data="digits", size=8, classes=images.classes[::-1])
    payload = checkpoint.read(tmp_path / "renamed" / "checkpoints" / "best.pt") | dict(record=record)
    checkpoint.write(tmp_path / "renamed" / "checkpoints" / "best.pt", payload)
    save(tmp_path / "other", checkpoint.load("a"), images, teacher="a")
    save(tmp_path / "factory", checkpoint.load("a"), images, teacher="some.module:factory")
    assert main(["analyze", *QUICK, *words]) == code
    (said,) = capsys.readouterr().err.splitlines()
    assert line in said
    assert not (tmp_path / "analysis").exists()


def test_two_classes_are_the_least(images):
    net = lineup.Network("a", "a", checkpoint.Opened(models.build("resnet8-x0.1", 1, [0], [1]), "best"))
    one = data.Dataset("one", images.train, images.val, images.test, ["only"], (0,), (1,))
    with pytest.raises(InputError, match="at least two classes"):
        lineup.check(net, net, one)
    with pytest.raises(InputError, match="four of the second"):
        analysis.of_two_classes(images.test.take(torch.tensor([0, 1])), [0, 1], 10)


def test_bird_and_truck_are_the_default_where_there_are_any(images):
    named = data.Dataset("x", images.train, images.val, images.test, ["cat", "truck", "bird"], (0,), (1,))
    assert analysis.two_classes(named, None) == [2, 1]
    assert analysis.two_classes(images, None) == [0, 1]


def test_names_are_as_short_as_tells_them_apart():
    named = lineup.short_names(["runs/a", "other/a", "runs/b-0.1", "x:y/c.pt", "a", "runs/b-0.1/checkpoints/last.pt"])
    assert list(named.values()) == ["runs/a", "other/a", "b-0.1", "c", "a", "b-0.1/last"]
    assert list(lineup.short_names(["x/t.pt", "x/t.pth"]).values()) == ["x/t.pt", "x/t.pth"]


def test_foreign_teachers_are_normalised_as_the_run_s_own_was(runs, images, tmp_path, monkeypatch):
    torch.save(checkpoint.load(str(runs / "a")).state_dict(), tmp_path / "t.pt")
    state = {k: v for k, v in torch.load(tmp_path / "t.pt").items() if k not in ("mean", "std")}
    torch.save(state, tmp_path / "t.pt")
    source = f"resnet8-x0.25:{tmp_path / 't.pt'}"
    save(tmp_path / "s", checkpoint.load(str(runs / "a")), images, teacher=source, mean=[0.25], std=[0.5])
    _, teacher, host = lineup.networks([str(tmp_path / "s")], None, None, None, None)
    assert teacher.opened.model.mean.item() == 0.25
    assert host.name == "s"
    _, teacher, _ = lineup.networks([str(tmp_path / "s")], None, None, [0.75], [0.5])
    assert teacher.opened.model.mean.item() == 0.75


def test_figures_name_classes_only_where_they_can_be_read():
    r = np.eye(3)
    rows = [plots.Pair("a", r, r / 2, 0.1), plots.Pair("b", r, -r, 0.2)]
    figure = plots.correlations(rows, "teacher", ["x", "y", "a very long class name"], 0.5)
    grid = figure.axes[:6]
    assert [t.get_text() for t in grid[0].get_yticklabels()] == ["x", "y", "a very long c…"]
    assert [ax.get_title() for ax in grid[3:]] == ["teacher", "b", "difference, mean size 0.200"]
    assert [ax.images[0].get_clim() for ax in grid[:3]] == [(-1, 1), (-1, 1), (-0.5, 0.5)]
    assert not plots.correlations(rows, "teacher", None, 0.5).axes[0].get_yticklabels()
