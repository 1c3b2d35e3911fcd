"""Witness packs: the same after a kill and for several processes, re-scored from the file alone; tampered ones."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from kills import evaluated, unaudited
from students import network, save
from tampered import CONTENTS, FILES, drawing
from test_distributed import in_processes

from gacd import assess, checkpoint, data, witness
from gacd.audit import Audit
from gacd.cli import main
from gacd.errors import InputError, Invalid, NotFinite
from gacd.evaluation import evaluate
from gacd.journal import Journal
from gacd.results import fingerprint
from gacd.verify import score, verify

ARGV = ["evaluate", "t", "--n", "60", "--attacks", "fgsm", "pgd4", "margin4", "--chunk", "16", "--precision", "32"]
ARGV += ["--device", "cpu"]  # whose bits are compared


@pytest.fixture(scope="module")
def made(digits, tmp_path_factory):
    """A folder with an evaluated run, another run, and the files that the evaluation left in the first."""
    place = tmp_path_factory.mktemp("made")
    save(place / "t", network("resnet8-x0.5", 0, digits), digits)
    save(place / "other", network("resnet8-x0.5", 1, digits), digits)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setattr("gacd.assess.audit", unaudited)
        assert main([*ARGV, "--eps", "8/255", "0.02"]) == 0
    return place


@pytest.fixture
def place(made, tmp_path, monkeypatch):
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("gacd.assess.audit", unaudited)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("GACD_DATA", raising=False)
    return tmp_path


def packs(folder):
    return sorted(Path(folder).glob("witnesses-*.safetensors"))


def pack_at_8(folder="t"):
    return next(path for path in packs(folder) if path.name.startswith("witnesses-Linf-8-255-"))


def test_each_radius_has_its_pack_and_the_same_one_again_is_the_same_file(place, capsys):
    before = {path.name: path.read_bytes() for path in packs("t")}
    assert len(before) == 2
    assert main([*ARGV, "--eps", "0.02"]) == 0
    assert {path.name: path.read_bytes() for path in packs("t")} == before
    assert main([*ARGV, "--norm", "L2", "--eps", "0.5"]) == 0
    assert len(packs("t")) == 3
    assert main([*ARGV, "--out", "none", "--witnesses", "0"]) == 0
    assert not packs("none")
    assert main([*ARGV, "--out", "few", "--witnesses", "7"]) == 0
    assert witness.read(pack_at_8("few")).about["n"] == 7
    shutil.copytree("t", odd := "実験\u3000\u200d")
    assert main(["evaluate", odd, *ARGV[2:], "--out", "odd"]) == 0
    assert main(["verify", "t", str(pack_at_8("odd"))]) == 0
    assert main(["verify", "t", str(pack_at_8("few"))]) == 0
    capsys.readouterr()
    assert main(["verify", "t", *map(str, packs("t"))]) == 0
    assert capsys.readouterr().out.count("VERIFIED") == 3
    assert main([*ARGV, "--witnesses", "10001"]) == 2


def test_its_numbers_are_those_of_the_results(place):
    rows = json.loads(Path("t/results.json").read_text())["results"]
    pack = witness.read(pack_at_8())
    found = {row["attack"]: row["correct"] for row in rows if row.get("eps", "8/255") == "8/255"}
    assert pack.about["correct"] == found == pack.counts
    assert 10 < found["worst"] < found["fgsm"] < found["natural"] < 60
    assert pack.about["weights_sha256"] == rows[0]["sha256"]


def test_a_killed_evaluation_leaves_the_same_pack(place, monkeypatch):
    note, calls = Journal.note, []

    def dies(self, *args):
        calls.append(args)
        if len(calls) == 8:
            raise KeyboardInterrupt
        note(self, *args)

    monkeypatch.setattr(Journal, "note", dies)
    assert main([*ARGV, "--out", "killed"]) == 130
    assert not packs("killed")
    assert main([*ARGV, "--out", "killed"]) == 0
    assert pack_at_8("killed").read_bytes() == pack_at_8().read_bytes()


def test_two_processes_leave_the_same_pack(place):
    assert in_processes(2, evaluated, *ARGV, "--out", "two") == [0, 0]
    assert pack_at_8("two").read_bytes() == pack_at_8().read_bytes()


def test_none_is_left_where_the_audits_find_it_invalid(place, monkeypatch):
    monkeypatch.setattr(Audit, "exit_code", 4)
    monkeypatch.setattr("gacd.assess.audit", unaudited)
    assert main([*ARGV, "--out", "bad"]) == 4
    assert not packs("bad")


@pytest.mark.parametrize("chunk", ["1", "16"])
def test_a_sound_pack(place, chunk, capsys):
    assert main(["verify", "t", str(pack_at_8()), "--chunk", chunk]) == 0
    out = capsys.readouterr().out
    worst = witness.read(pack_at_8()).counts["worst"]
    assert f"VERIFIED: at most {worst} of 60 images" in out
    assert "those of digits" in out
    assert f"0 of {60 + len(witness.read(pack_at_8()).tensors['beaten'])} verdicts rest on less" in out


def test_what_cannot_be_asked_or_read_is_one_line(place, capsys):
    Path("fussy").mkdir()
    Path("fussy/nets.py").write_text(
        "import torch\nclass Net(torch.nn.Module):\n    def forward(self, x):\n        raise ValueError('not these')\n"
    )
    assert main(["verify", "fussy.nets:Net", str(pack_at_8()), "--other-weights", "true"]) == 1
    assert main(["verify", "t", "nowhere.safetensors"]) == 1
    said = capsys.readouterr().err
    assert "not these" in said and "no such file: nowhere.safetensors" in said and said.count("\n") == 2


def test_other_weights(place, capsys):
    pack = str(pack_at_8())
    assert main(["verify", "other", pack]) == 4
    assert "--other-weights true" in capsys.readouterr().err
    assert main(["verify", "other", pack, "--other-weights", "true"]) == 4
    assert "judged otherwise" in capsys.readouterr().err
    assert main(["export", "t", "--half", "true", "--out", "half.safetensors"]) == 0
    assert main(["verify", "half.safetensors", pack]) == 4
    capsys.readouterr()
    code = main(["verify", "half.safetensors", pack, "--other-weights", "true"])
    said = capsys.readouterr()
    assert "the images alone count" in said.out
    assert code == 0 or "do not fool" in said.err or "judged otherwise" in said.err


def test_without_the_data_set_the_rest_is_checked(place, capsys):
    pack = witness.read(pack_at_8())
    for name, said in (("cifar10", "not at hand"), ("./photos", "not looked for")):
        pack.about["data"] = name
        witness.save(place / "moved.safetensors", pack)
        assert main(["verify", "t", "moved.safetensors", "--data-dir", "none"]) == 0
        assert said in capsys.readouterr().out
    assert main(["verify", "t", "moved.safetensors", "--data", "digits"]) == 0
    assert main(["verify", "t", "moved.safetensors", "--data", "cifar10", "--data-dir", "none"]) == 1


BALLS = [("Linf", 0.0123456789, "fab-t2"), ("L2", 0.7, "pgd2"), ("L2", 20.0, "pgd2")]  # the last is larger than the box


@pytest.mark.parametrize(("norm", "eps", "attack"), BALLS)
def test_balls_at_any_radius(digits, tmp_path, norm, eps, attack):
    split, model = digits.test.take(torch.arange(50)), network("resnet8-x0.5", 0, digits)
    journal = Journal(tmp_path, {})
    result = evaluate(model, split, ["margin5", attack], norm=norm, eps=eps, chunk=16, journal=journal)
    path = tmp_path / witness.file_name(norm, eps, journal.name)
    told = dict(norm=norm, eps=eps, data="digits", data_sha256=fingerprint(split), evaluated=50)
    told |= dict(source="t", weights="best", weights_sha256=checkpoint.digest(model), architecture=model.name)
    witness.write(path, split, result, journal.witnesses(), **told, verdict="TRUSTED", device="cpu")
    pack = witness.read(path)
    assert pack.eps == eps
    assert 0 < len(pack.tensors["beaten"]) < 50
    rows, unproven = score(pack, model.eval())
    assert dict(rows)["natural"].startswith(f"{result.correct['natural'].sum()} of 50")
    assert unproven == 0


def test_logits_that_say_nothing_are_no_proof(made):
    pack = witness.read(pack_at_8(made / "t"))
    for value, said in ((torch.nan, "not finite"), (0.0, "undecided"), (torch.inf, "not finite")):
        with pytest.raises(Invalid, match=said):
            score(pack, lambda x, value=value: torch.full((len(x), 10), value))
    with pytest.raises(Invalid, match="10 classes"):
        score(pack, lambda x: torch.zeros(len(x), 9))
    with pytest.raises(InputError, match="must return logits: tuple"):
        score(pack, lambda x: (torch.zeros(len(x), 10), x))


def test_a_verdict_within_rounding_is_counted_apart(made):
    pack, model = witness.read(pack_at_8(made / "t")), checkpoint.load(str(made / "t"))
    row = int(pack.tensors["beaten"][0])
    label = pack.tensors["labels"][row]

    def by_a_hair(x):
        with torch.no_grad():
            logits = model(x)
        if torch.equal(x[0], pack.tensors["witnesses"][0]):
            logits[0, label] = logits[0].max() * (1 + above)
            if masked:
                logits[0, logits[0].argmin()] = -1e9
        return logits

    above, masked = 1e-5, False
    rows, unproven = score(pack, by_a_hair)
    assert unproven == 1
    assert dict(rows)["within rounding"].endswith("1 differ")
    above = 1e-3
    with pytest.raises(Invalid, match="1 of 25 witnesses do not fool"):
        score(pack, by_a_hair)
    masked = True
    with pytest.raises(Invalid, match="1 of 25 witnesses do not fool"):
        score(pack, by_a_hair)


def test_what_is_not_finite_where_no_audit_looked_is_invalid(place, monkeypatch, capsys):
    def breaks(*args, **options):
        raise NotFinite("the network's logits or gradients are not finite")

    monkeypatch.setattr(assess, "measure", breaks)
    assert main([*ARGV, "--out", "none"]) == 4
    assert "TRUSTED" not in capsys.readouterr().out
    assert not Path("none/results.json").exists()
    assert not packs("none")


def deep(about, tensors):
    about["more"] = []
    for _ in range(600):
        about["more"] = [about["more"]]


def huge(about, tensors):
    for told in (about, *about["threats"].values()):
        told |= dict(norm="L2", eps="1e200")


def more_than_there_are(about, tensors):
    about |= dict(evaluated=5000, data_sha256=fingerprint(data.load("digits").test))
    tensors["positions"][-1] = 4000


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda about, tensors: about.update(architecture="x[/]", data="x[/]"), 0),
        (deep, 0),
        (huge, 4),
        (more_than_there_are, 4),
    ],
    ids=["markup", "deep", "huge", "more than there are"],
)
def test_odd_packs_are_no_bug(place, change, code, capsys):
    pack = witness.read(pack_at_8())
    change(pack.about, pack.tensors)
    witness.save(Path("odd.safetensors"), pack)
    assert main(["verify", "t", "odd.safetensors"]) == code
    assert ("x[/], the SHA-256" in capsys.readouterr().out) == (pack.about["architecture"] == "x[/]")


@pytest.mark.parametrize(("kind", "seed"), [(kind, seed) for kind, times in FILES.items() for seed in range(times)])
def test_a_damaged_file_is_caught(made, tmp_path, kind, seed):
    path = Path(shutil.copy(pack_at_8(made / "t"), tmp_path))
    kind(path, drawing(kind, seed))
    assert path.read_bytes() != pack_at_8(made / "t").read_bytes()
    with pytest.raises((InputError, Invalid)):
        verify(str(made / "t"), [str(path)])


@pytest.mark.parametrize(("kind", "seed"), [(kind, seed) for kind, times in CONTENTS.items() for seed in range(times)])
def test_a_tampered_pack_is_caught_though_its_hash_was_made_anew(made, tmp_path, kind, seed, capsys):
    pack = witness.read(pack_at_8(made / "t"))
    kind(pack.about, pack.tensors, drawing(kind, seed))
    witness.save(tmp_path / "pack.safetensors", pack)
    with pytest.raises(Invalid, match=r"^INVALID, the pack proves nothing: ") as caught:
        verify(str(made / "t"), [str(tmp_path / "pack.safetensors")])
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 600
    assert "VERIFIED" not in capsys.readouterr().out
