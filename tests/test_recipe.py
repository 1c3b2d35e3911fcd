"""What of a recipe is missing, and what that needs."""

import json
from pathlib import Path

import pytest

from gacd import checkpoint
from gacd.errors import UsageError
from gacd.models import build
from gacd.recipe import check, missing


def finish(run, results=(), weights=True):
    run = Path(run)
    run.mkdir(exist_ok=True)
    (run / "run.json").write_text(json.dumps(dict(seconds=1)))
    if weights:
        checkpoint.write(run / "checkpoints/best.pt", dict(model=NETWORK.config(), weights=NETWORK.state_dict()))
    if results:
        (run / "results.json").write_text(json.dumps(dict(results=[entry(name) for name in results])))


NETWORK = build("resnet8-x0.1")


def entry(attack, **other):
    what = dict(sha256=checkpoint.digest(NETWORK), data="digits", n=100, split_n=100, accuracy=0.5)
    return what | dict(attack=attack, norm="Linf", eps="8/255") | other


def lines(text):
    return [line.split() for line in text.strip().splitlines()]


CHAIN = lines("""
train nfgsm --out t
export t --out t.safetensors
distill kd --teacher t.safetensors --out s
evaluate s --attacks pgd20
train pgdat --cost-of s --out p
evaluate p --attacks pgd20 margin20
""")


def left(chain=CHAIN):
    return [" ".join(task.argv[:2]) for task in missing(chain)]


def test_only_what_is_missing_and_what_it_needs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert len(left()) == 6
    finish("s", ["natural", "pgd20"], weights=False)  # a committed result: nothing that led to it is needed
    assert left() == ["train pgdat", "evaluate p"]
    finish("p", ["pgd20"])
    assert left() == ["evaluate p"]  # margin20 is missing
    finish("p", ["pgd20", "margin20"])
    assert left() == []
    (tmp_path / "s/results.json").unlink()  # its weights are needed again, and so is the teacher
    assert left() == ["train nfgsm", "export t", "distill kd", "evaluate s"]
    (tmp_path / "t.safetensors").touch()
    assert left() == ["distill kd", "evaluate s"]
    finish("s")
    assert left() == ["evaluate s"]
    (tmp_path / "s/run.json").write_text("{}")  # stopped half-way
    assert left() == ["distill kd", "evaluate s"]


def test_what_is_trained_anew_is_measured_anew(tmp_path, monkeypatch):
    """Its numbers would be of other bits; an analysis is of all its runs, and of those whose results are there."""
    monkeypatch.chdir(tmp_path)
    chain = lines("""
        train nfgsm --out a
        evaluate a --attacks pgd20
        train pgdat --init a --out b
        evaluate b --attacks pgd20
        distill kd --out c
        evaluate c --attacks pgd20
        analyze b c --out found
    """)

    def analysed(sha256):
        (tmp_path / "found").mkdir(exist_ok=True)
        sources = dict(b=dict(source="b", sha256=sha256), c=dict(source="c", sha256=checkpoint.digest(NETWORK)))
        (tmp_path / "found/analysis.json").write_text(json.dumps(dict(sources=sources)))

    for name in "abc":
        finish(name, ["pgd20"], weights=False)
    analysed(checkpoint.digest(NETWORK))
    assert left(chain) == []
    (tmp_path / "b/results.json").unlink()
    everything = ["train nfgsm", "evaluate a", "train pgdat", "evaluate b", "distill kd", "evaluate c", "analyze b"]
    assert left(chain) == everything
    finish("b", ["pgd20"], weights=False)
    analysed("of weights that were withdrawn")
    assert left(chain) == everything
    finish("a", ["pgd20"])
    finish("b", ["pgd20"])
    finish("c", ["pgd20"])
    assert left(chain) == ["analyze b"]


def test_a_run_made_with_other_options_than_its_line_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line = "train nfgsm --data digits --model resnet8 --init a --epochs 3 --lr 0.2 --eps 8/255 --out r".split()  # noqa: SIM905
    check([line])  # there is no run yet
    Path("r").mkdir()
    made = "data: digits\nmodel: resnet8\ninit: /elsewhere/a\nepochs: 3\nlr: 0.2\neps: 8/255\nema: 0.5\n"
    Path("r/config.yaml").write_text(made)
    check([line])
    check([[*line, "--precision", "auto", "--devices", "2"]])
    with pytest.raises(UsageError, match=r"other options: ema 0\.5 -> 0\.9, epochs 3 -> 30: r "):
        check([[*line, "--epochs", "30", "--ema=0.9"]])
    check([[*line, "--epochs", "30", "--cost-of", "b"]])  # which sets the epochs

    with pytest.raises(UsageError, match="data digits -> cifar10"):
        check([["cifar10" if word == "digits" else word for word in line]])


def test_a_run_s_options_may_be_an_earlier_line_s(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    chain = lines("""
train pgdat --data digits --model resnet8 --out a
train pgdat --config a/config.yaml --seed 1 --out b
""")
    check(chain)
    first, second = missing(chain)
    assert second.needs(first)
    with pytest.raises(UsageError, match="no such option: --sead"):
        check([chain[0], [*chain[1], "--sead", "2"]])
    with pytest.raises(UsageError, match=r"none/config\.yaml"):
        check([["train", "pgdat", "--config", "none/config.yaml", "--out", "b"]])


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("train pgdat --out r --epoch 3", "gacd train pgdat --out r --epoch 3: no such option: --epoch "),
        ("train", "which method.: train"),
        ("trane pgdat --out r", "unknown command: trane"),
        ("evaluate r --attacks pdg20", "unknown attack: pdg20"),
        ("evaluate r --n many", "--n takes INT"),
        ("evaluate --help", "makes nothing: gacd evaluate --help"),
    ],
)
def test_a_wrong_line_is_refused_before_the_first_is_run(line, says):
    with pytest.raises(UsageError, match=f"a line of the recipe .*{says}"):
        check([["export", "t", "--out", "t.safetensors"], line.split()])


@pytest.mark.parametrize(
    ("asked", "found", "enough"),
    [
        ("", {}, True),
        ("", dict(n=50), False),
        ("--n 50", dict(n=50), True),
        ("--n 500", {}, True),  # more than there are
        ("", dict(eps="4/255"), False),
        ("--eps 4/255", dict(eps="4/255"), True),
        ("--eps 4/255 8/255", {}, False),
        ("", dict(norm="L2"), False),
        ("--data cifar10", {}, False),
        ("--data digits", {}, True),
        ("", dict(seed=1), False),
        ("--seed 1", dict(seed=1), True),
        ("--step-size 2/255", dict(step_size="2/255"), True),
        ("--step-size 1/255", dict(step_size="2/255"), False),
        ("", dict(step_size="1/255"), False),
        ("", dict(step_size="2/255"), True),
        ("--chunk 8", dict(chunk=16), False),
        ("--audits full", dict(audits="quick"), False),
        ("--audits full", dict(audits="full"), True),
        ("--audits full", dict(audits="full", doubts=["suspect: earlier, full audits: planted region: 3"]), False),
        ("", dict(audits="full"), True),
    ],
)
def test_a_result_counts_for_what_it_was_measured_on(tmp_path, monkeypatch, asked, found, enough):
    monkeypatch.chdir(tmp_path)
    finish("s")
    (tmp_path / "s/results.json").write_text(json.dumps(dict(results=[entry("pgd20", **found)])))
    assert [task.argv for task in missing([["evaluate", "s", "--attacks", "pgd20", *asked.split()]])] == [
        ["evaluate", "s", "--attacks", "pgd20", *asked.split()]
    ] * (not enough)


def test_a_probe_of_a_run_waits_for_its_training(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train, probe, evaluate = missing([["train", "--out", "r"], ["probe", "r"], ["evaluate", "r"]])
    assert probe.needs(train) and evaluate.needs(train) and evaluate.needs(probe)
    assert not any(task.needs(task) for task in (train, probe, evaluate))
