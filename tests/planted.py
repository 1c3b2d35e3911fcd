"""Which start of PGD finds a planted region, on sound networks and on masked ones: what the audit's bound rests on."""

import copy
from types import SimpleNamespace

import torch
from sounds import EPS, trained

from gacd import data
from gacd.audits import full

MASKS = {  # of pixels; the first three leave no gradient, the others a wrong one
    "rounded to 32 levels": lambda x: (32 * x).round() / 32,
    "rounded to 64 levels": lambda x: (64 * x).round() / 64,
    "rounded to 255 levels": lambda x: (255 * x).round() / 255,
    "shattered, 2000": lambda x: x + 0.002 * torch.sin(2000 * x),
    "shattered, 300": lambda x: x + 4 / 300 * torch.sin(300 * x),
}


def starts(model, x, y, images):
    """Of each region that can be planted the start that finds it, from 1 on; 0 if none of twenty does."""
    case = SimpleNamespace(norm="Linf", eps=EPS, step_size=EPS / 4, seed=0)
    with torch.no_grad():
        rows = (model(x).argmax(1) == y).nonzero()[:images, 0].tolist()
    found = []
    for row in rows:
        one = x[row : row + 1]
        readout = full._plant(case, model, one, row)
        if readout is not None:
            ways = (n for n in range(20) if full._finds(case, model, readout, one, row, n))
            found.append(next(ways, -1) + 1)
    return found


def measured(images):
    """Names of ten sound networks and five masked ones, and their `starts` for so many images, or half as many."""
    digits = data.load("digits")
    x, y = data.pixels(digits.test.images), digits.test.labels
    sound = {f"sound, seed {n}": trained(digits, "resnet8-x0.25", EPS * (n % 2), epochs=3, seed=n) for n in range(10)}
    masked = {}
    for name, mask in MASKS.items():
        masked[name] = copy.deepcopy(sound["sound, seed 1"])
        masked[name].features = lambda z, mask=mask: sound["sound, seed 1"].features(mask(z))
    for networks, most in ((sound, images), (masked, images // 2)):
        for name, model in networks.items():
            yield name, starts(model, x, y, most)
