"""Witness packs tampered with: kinds, each drawing where from a function of its number; see `drawing`."""

import json

import torch
from safetensors.torch import save

from gacd import data, noise, witness
from gacd.results import fingerprint

EPS = 8 / 255  # of the pack, which has 60 images


def drawing(kind, seed):
    """Numbers below a given one, a function of kind and seed; `hostile` goes through its texts."""
    if kind is hostile:
        return lambda below: seed % below
    calls = iter(range(10**6))
    return lambda below: int(below * float(noise.uniform(noise.key(kind.__name__, seed, next(calls)), torch.arange(1))))


def flipped(path, draw):
    raw = bytearray(path.read_bytes())
    raw[draw(len(raw))] ^= 1 << draw(8)
    path.write_bytes(raw)


def truncated(path, draw):
    path.write_bytes(path.read_bytes()[: draw(path.stat().st_size)])


def lengthened(path, draw):
    path.write_bytes(path.read_bytes() + bytes(1 + draw(20)))


def bare(path, draw):
    path.write_bytes(save(witness.read(path).tensors, {"other": "{}"} if draw(2) else None))


def other_content(path, draw):
    """Labels changed under the old hash."""
    pack = witness.read(path)
    pack.tensors["labels"][draw(60)] += 1
    about = pack.about | dict(content_sha256=witness.content(witness.read(path).about, witness.read(path).tensors))
    path.write_bytes(save(pack.tensors, {witness.KEY: json.dumps(about)}))


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


def picked(about, tensors, draw):
    """The survivors alone, or the beaten ones, with all numbers to match."""
    beaten = torch.isin(torch.arange(60), tensors["beaten"])
    kept = (beaten if draw(2) else ~beaten).nonzero()[:, 0]
    for name in ("images", "labels", "positions"):
        tensors[name] = tensors[name][kept]
    tensors["right"] = tensors["right"][:, kept]
    for name in ("witnesses", "found_by"):
        tensors[name] = tensors[name] if beaten[kept[0]] else tensors[name][:0]
    tensors["beaten"] = torch.arange(len(tensors["found_by"]))
    pack = witness.Pack(about, tensors)
    about |= dict(n=len(kept), correct=pack.counts)
    about |= dict(accuracy={name: n / len(kept) for name, n in pack.counts.items()})


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
    rest = torch.arange(len(tensors["beaten"])) != draw(len(tensors["beaten"]))
    for name in ("beaten", "witnesses", "found_by"):
        tensors[name] = tensors[name][rest]


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


def credit(about, tensors, draw):
    """A later attack's witness called an earlier one's, which then left its image wrong; or the other way round."""
    later = (tensors["found_by"] < 3).nonzero()[:, 0]
    tensors["found_by"][later[draw(len(later))]] = 3


def attack_name(about, tensors, draw):
    """A stronger attack's name before the threat of the one that was run."""
    row = draw(3)
    old, new = about["attacks"][row], ("pgd1000x10", "autoattack", "cascade", "apgd-t")[draw(4)]
    about["attacks"][row] = new
    for key in ("threats", "correct", "accuracy"):
        about[key] = {new if name == old else name: value for name, value in about[key].items()}


def steps(about, tensors, draw):
    name = about["attacks"][draw(3)]
    about["threats"][name] |= (
        dict(steps=1000),
        dict(restarts=10),
        dict(step_size=("x", "7", "nan", "-0.1", 10**400)[draw(5)]),
        dict(steps="4"),
    )[draw(4)]


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
        ("device", "tpu"),
        ("verdict", "ABSOLUTE"),
        ("correct", {"natural": "<script>"}),
        ("threats", {"fgsm": []}),
    )[draw(17)]
    about[name] = text


# kind -> how many of it; the first are of files, the others of packs whose hash is then made anew
FILES = {flipped: 20, truncated: 10, lengthened: 2, bare: 2, other_content: 3}
CONTENTS = {label: 5, label_outside: 3, label_and_fingerprint: 4, pixel_and_fingerprint: 3, position: 4, duplicate: 4}
CONTENTS |= {out_of_the_ball: 8, out_of_the_box: 4, not_a_number: 4, radius: 4, radius_everywhere: 4, norm: 3}
CONTENTS |= {natural_for_witness: 6, no_witness: 3, accuracy: 4, count: 3, verdict_natural: 3, verdict: 3, found_by: 3}
CONTENTS |= {credit: 3, attack_name: 6, steps: 6}
CONTENTS |= {picked: 4, digest: 2, dtype: 5, shape: 6, tensor_names: 4, missing: 6, hostile: 17}
