"""Witness packs: the same after a kill and for several processes, re-scored from the file alone; tampered ones."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from test_distributed import in_processes

from gacd import assess, checkpoint, data, noise, witness
from gacd.audit import Audit
from gacd.cli import main
from gacd.errors import InputError, Invalid
from gacd.evaluation import evaluate
from gacd.heads import linear
from gacd.journal import Journal
from gacd.models import build
from gacd.results import fingerprint
from gacd.verify import score, verify

EPS = 8 / 255
ARGV = ["evaluate", "t", "--n", "60", "--attacks", "fgsm", "pgd4", "margin4", "--chunk", "16", "--precision", "32"]


def fitted(images, seed=0):
    """A random trunk whose head was fitted to the digits: right on four in five of them."""
    torch.manual_seed(seed)
    model = build("resnet8-x0.5", 10, images.mean, images.std)
    with torch.no_grad():
        for _ in range(20):
            model(data.pixels(images.train.images[:300]))
        model.eval()
        f, y = model.features(data.pixels(images.train.images)), images.train.labels
        f = torch.cat([f, torch.ones(len(f), 1)], 1).double()
        gram = f.T @ f + torch.eye(f.shape[1])
        w = torch.linalg.solve(gram, f.T @ torch.nn.functional.one_hot(y, 10).double()).float().T
        model.head = linear(w[:, :-1].contiguous(), w[:, -1].contiguous())
    return model


def keep(model, place):
    payload = dict(model=model.config(), weights=model.state_dict(), record=dict(data="digits", size=8))
    checkpoint.write(place / "checkpoints/best.pt", payload)


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


@pytest.fixture(scope="module")
def made(digits, tmp_path_factory):
    """A folder with an evaluated run, another run, and the files that the evaluation left in the first."""
    place = tmp_path_factory.mktemp("made")
    keep(fitted(digits), place / "t")
    keep(fitted(digits, 1), place / "other")
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


def unaudited(*args, **options):
    return Audit()


def evaluated(*argv):
    """A process's main(argv), without audits."""
    assess.audit = unaudited
    sys.exit(main(list(argv)))


def packs(folder):
    return sorted(Path(folder).glob("witnesses-*.safetensors"))


def pack_at_8(folder="t"):
    return next(path for path in packs(folder) if path.name.startswith("witnesses-Linf-8-255-"))


def test_each_radius_has_its_pack_and_the_same_one_again_is_the_same_file(place):
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
    assert main(["verify", "t", str(pack_at_8("few"))]) == 0
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
    assert in_processes(2, evaluated, *ARGV, "--out", "two", "--device", "cpu") == [0, 0]
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
    assert "0 natural images" in out


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


@pytest.mark.parametrize(("norm", "eps", "attack"), [("Linf", 0.0123456789, "fab-t2"), ("L2", 0.7, "pgd2")])
def test_balls_at_any_radius(digits, tmp_path, norm, eps, attack):
    split, model = digits.test.take(torch.arange(50)), fitted(digits)
    journal = Journal(tmp_path, {})
    result = evaluate(model, split, ["margin5", attack], norm=norm, eps=eps, chunk=16, journal=journal)
    path = tmp_path / witness.file_name(norm, eps, journal.name)
    told = dict(norm=norm, eps=eps, data="digits", data_sha256=fingerprint(split), evaluated=50)
    told |= dict(source="t", weights="best", weights_sha256=checkpoint.digest(model), architecture=model.name)
    witness.write(path, split, result, journal.witnesses(), **told, verdict="TRUSTED", device="cpu")
    pack = witness.read(path)
    assert pack.eps == eps
    assert 0 < len(pack.tensors["beaten"]) < 50
    rows = dict(score(pack, model))
    assert rows["natural"].startswith(f"{result.correct['natural'].sum()} of 50")
    blind = score(pack, lambda x: torch.full((len(x), 10), torch.nan))
    with pytest.raises(Invalid, match="not finite"):
        list(blind)


def flipped(path, draw):
    raw = bytearray(path.read_bytes())
    raw[draw(len(raw))] ^= 1 << draw(8)
    path.write_bytes(raw)


def truncated(path, draw):
    path.write_bytes(path.read_bytes()[: draw(path.stat().st_size)])


def lengthened(path, draw):
    path.write_bytes(path.read_bytes() + bytes(1 + draw(20)))


def bare(path, draw):
    path.write_bytes(safetensors_of(witness.read(path).tensors, {"other": "{}"} if draw(2) else None))


def other_content(path, draw):
    """Labels changed under the old hash."""
    pack = witness.read(path)
    pack.tensors["labels"][draw(60)] += 1
    about = pack.about | dict(content_sha256=witness.content(witness.read(path).about, witness.read(path).tensors))
    path.write_bytes(safetensors_of(pack.tensors, {witness.KEY: json.dumps(about)}))


def safetensors_of(tensors, metadata):
    from safetensors.torch import save

    return save(tensors, metadata)


def label(about, tensors, draw):
    row = draw(60)
    tensors["labels"][row] = (tensors["labels"][row] + 1 + draw(9)) % 10


def label_outside(about, tensors, draw):
    tensors["labels"][draw(60)] = (-1, 10, 2**40)[draw(3)]


def label_and_fingerprint(about, tensors, draw):
    label(about, tensors, draw)
    about["data_sha256"] = fingerprint(data.Split(tensors["images"], tensors["labels"]))


def pixel_and_fingerprint(about, tensors, draw):
    tensors["images"][draw(60), 0, draw(8), draw(8)] ^= 1
    about["data_sha256"] = fingerprint(data.Split(tensors["images"], tensors["labels"]))


def position(about, tensors, draw):
    about["evaluated"] = 100
    tensors["positions"][draw(60) :] += 1


def duplicate(about, tensors, draw):
    row = 1 + draw(59)
    tensors["positions"][row] = tensors["positions"][row - 1]


def out_of_the_ball(about, tensors, draw):
    row = draw(len(tensors["beaten"]))
    x = data.pixels(tensors["images"])[tensors["beaten"][row]]
    side = (x + EPS <= 1) if draw(2) else (x < 1)
    spot = side.flatten().nonzero()[draw(int(side.sum())), 0]
    edge = witness_edge(x.flatten()[spot])
    tensors["witnesses"][row].view(-1)[spot] = edge


def witness_edge(x):
    """The first float32 above x + eps."""
    edge = (x.double() + EPS).float()
    return edge if float(edge.double() - x.double()) > EPS else edge.nextafter(torch.tensor(2.0))


def out_of_the_box(about, tensors, draw):
    row, spot = draw(len(tensors["beaten"])), draw(64)
    x = data.pixels(tensors["images"])[tensors["beaten"][row]].flatten()[spot]
    tensors["witnesses"][row].view(-1)[spot] = -1e-45 if x < 0.5 else 1.0 + 2**-23


def not_a_number(about, tensors, draw):
    tensors["witnesses"][draw(len(tensors["beaten"])), 0, draw(8), draw(8)] = (torch.nan, torch.inf)[draw(2)]


def radius(about, tensors, draw):
    about["eps"] = f"{(9, 16, 7, 2, 255)[draw(5)]}/255"


def radius_everywhere(about, tensors, draw):
    radius(about, tensors, draw)
    if about["eps"] == "9/255":  # within what the check of their reach lets pass: it proves more than it says
        about["eps"] = "32/255"
    for threat in about["threats"].values():
        threat["eps"] = about["eps"]


def norm(about, tensors, draw):
    about["norm"] = ("L2", "L1", "linf")[draw(3)]
    for threat in about["threats"].values():
        threat["norm"] = about["norm"]


def natural_for_witness(about, tensors, draw):
    row = draw(len(tensors["beaten"]))
    tensors["witnesses"][row] = data.pixels(tensors["images"])[tensors["beaten"][row]]


def no_witness(about, tensors, draw):
    keep_ = torch.arange(len(tensors["beaten"])) != draw(len(tensors["beaten"]))
    for name in ("beaten", "witnesses", "found_by"):
        tensors[name] = tensors[name][keep_]


def accuracy(about, tensors, draw):
    name = list(about["accuracy"])[draw(5)]
    about["accuracy"][name] += (0.01, -1e-9)[draw(2)]


def count(about, tensors, draw):
    about["correct"][list(about["correct"])[draw(5)]] += 1


def verdict_natural(about, tensors, draw):
    """A wrong image called beaten by nothing, with all numbers to match."""
    wrong = (tensors["right"][0] == 0).nonzero()[:, 0]
    tensors["right"][:, wrong[draw(len(wrong))]] = 1
    recount(about, tensors)


def verdict(about, tensors, draw):
    """A beaten image called robust, with all numbers to match, its witness left."""
    tensors["right"][:, tensors["beaten"][draw(len(tensors["beaten"]))]] = 1
    recount(about, tensors)


def recount(about, tensors):
    pack = witness.Pack(about, tensors)
    about |= dict(correct=pack.counts, accuracy={name: n / 60 for name, n in pack.counts.items()})


def found_by(about, tensors, draw):
    tensors["found_by"][draw(len(tensors["beaten"]))] = (0, 4, -1)[draw(3)]


def digest(about, tensors, draw):
    about["weights_sha256"] = f"{draw(2**40):064x}"


def dtype(about, tensors, draw):
    name = sorted(tensors)[draw(len(tensors))]
    tensors[name] = tensors[name].to((torch.float64, torch.int32, torch.float16)[draw(3)])


def shape(about, tensors, draw):
    name = sorted(tensors)[draw(len(tensors))]
    tensors[name] = (tensors[name][1:], tensors[name][None], tensors[name][:0])[draw(3)].clone()


def tensor_names(about, tensors, draw):
    name = sorted(tensors)[draw(len(tensors))]
    if draw(2):
        del tensors[name]
    else:
        tensors["extra"] = tensors[name].clone()


def missing(about, tensors, draw):
    del about[sorted(set(about) - {"format"})[draw(len(about) - 1)]]


def hostile(about, tensors, draw):
    name, text = (
        ("data", "\x1b[2Jdigits"),
        ("source", "a\nb"),
        ("eps", "__import__('os').abort()"),
        ("eps", "8/0"),
        ("eps", "nan"),
        ("architecture", "\u202egpj.exe"),
        ("source", "x" * 10**5),
        ("attacks", ["pgd4; touch executed"]),
        ("attacks", [["pgd4"]]),
        ("attacks", []),
        ("n", True),
        ("evaluated", 10**400),
        ("classes", 10**30),
        ("device", None),
        ("correct", {"natural": "<script>"}),
        ("threats", {"fgsm": []}),
    )[draw(16)]
    about[name] = text


FILES = {flipped: 20, truncated: 10, lengthened: 2, bare: 2, other_content: 3}
CONTENTS = {label: 5, label_outside: 3, label_and_fingerprint: 4, pixel_and_fingerprint: 3, position: 4, duplicate: 4}
CONTENTS |= {out_of_the_ball: 8, out_of_the_box: 4, not_a_number: 4, radius: 4, radius_everywhere: 4, norm: 3}
CONTENTS |= {natural_for_witness: 6, no_witness: 3, accuracy: 4, count: 3, verdict_natural: 3, verdict: 3, found_by: 3}
CONTENTS |= {digest: 2, dtype: 5, shape: 6, tensor_names: 4, missing: 6, hostile: 16}


def drawing(kind, seed):
    """Numbers below a given one, a function of kind and seed."""
    calls = iter(range(10**6))
    return lambda below: int(below * float(noise.uniform(noise.key(kind, seed, next(calls)), torch.arange(1))))


@pytest.mark.parametrize(("kind", "seed"), [(kind, seed) for kind, times in FILES.items() for seed in range(times)])
def test_a_damaged_file_is_caught(made, tmp_path, kind, seed):
    path = Path(shutil.copy(pack_at_8(made / "t"), tmp_path))
    kind(path, drawing(kind.__name__, seed))
    assert path.read_bytes() != pack_at_8(made / "t").read_bytes()
    with pytest.raises((InputError, Invalid)):
        verify(str(made / "t"), str(path))


@pytest.mark.parametrize(("kind", "seed"), [(kind, seed) for kind, times in CONTENTS.items() for seed in range(times)])
def test_a_tampered_pack_is_caught_though_its_hash_was_made_anew(made, tmp_path, kind, seed, capsys):
    pack = witness.read(pack_at_8(made / "t"))
    draw = (lambda below: seed % below) if kind is hostile else drawing(kind.__name__, seed)
    kind(pack.about, pack.tensors, draw)
    witness.save(tmp_path / "pack.safetensors", pack)
    with pytest.raises(Invalid, match=r"^INVALID, the pack proves nothing: ") as caught:
        verify(str(made / "t"), str(tmp_path / "pack.safetensors"))
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 600
    assert "VERIFIED" not in capsys.readouterr().out
