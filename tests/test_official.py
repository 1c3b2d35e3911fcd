"""What stands around AutoAttack's own code: threat, generators, the ball."""

import random
import sys
from contextlib import suppress
from types import SimpleNamespace

import numpy
import pytest
import torch
from searches import curved, images
from test_attacks import exactly_inside

from gacd.attacks.official import Official
from gacd.errors import InputError
from gacd.evaluation import evaluate

THREAT = dict(eps=0.1, seed=3, classes=10)


@pytest.fixture
def asked(monkeypatch):
    """What a stand-in for AutoAttack was asked for; it seeds every generator and leaves the ball."""
    asked = {}

    class AutoAttack:
        def __init__(self, model, **options):
            asked.update(options, model=model)

        def run_standard_evaluation(self, x, y, *, batch_size):
            random.seed(0)
            numpy.random.seed(0)
            torch.manual_seed(0)
            assert not self.verbose and x.is_contiguous()
            asked.update(batch_size=batch_size, x=x, y=y)
            if "backward" in asked:
                asked["backward"](x.detach().mean((1, 2)).requires_grad_()).sum().backward()
            if asked.get("raises"):
                raise asked["raises"]
            return x + 2 * asked["eps"], 1 - y

    monkeypatch.setattr(Official, "package", staticmethod(lambda: SimpleNamespace(AutoAttack=AutoAttack)))
    return asked


def generators():
    name, words, *rest = numpy.random.get_state()
    return random.getstate(), (name, words.tolist(), *rest), torch.get_rng_state().tolist()


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_it_is_asked_for_the_threat_and_its_images_are_taken_to_the_ball(asked, norm):
    x, y, model = images(6, 0.2, 0.8), torch.arange(6), torch.nn.Identity()
    x_adv = Official(norm=norm, **THREAT, restart=2).attack(model, x.contiguous(memory_format=torch.channels_last), y)
    assert {key: asked[key] for key in ("norm", "eps", "seed", "batch_size")} == dict(
        norm=norm, eps=0.1, seed=5, batch_size=6
    )
    assert asked["model"] is model and asked["device"] == x.device
    assert torch.equal(asked["x"], x) and torch.equal(asked["y"], y)
    exactly_inside(x, x_adv, norm, 0.1)
    length = (x_adv - x).flatten(1).norm(p=torch.inf if norm == "Linf" else 2, dim=1)
    assert torch.allclose(length, torch.full((6,), 0.1), rtol=1e-4)


def test_generators_are_left_as_they_were(asked):
    before, model = generators(), torch.nn.Identity()
    Official(norm="Linf", **THREAT).attack(model, images(2), torch.arange(2))
    assert generators() == before
    asked["raises"] = ValueError("no")
    with pytest.raises(ValueError, match="no"):
        Official(norm="Linf", **THREAT).attack(model, images(2), torch.arange(2))
    assert generators() == before


def test_gradients_of_the_network_are_left_as_they_were(asked):
    """It calls backward."""
    model = torch.nn.Linear(4, 3)
    model.bias.requires_grad_(False)
    for raised in (None, ValueError("no")):
        asked["backward"], asked["raises"] = model, raised
        with suppress(ValueError):
            Official(norm="Linf", **THREAT).attack(model, images(2), torch.arange(2))
        assert [p.grad for p in model.parameters()] == [None, None]
        model.weight.grad = before = torch.ones(3, 4)
        with suppress(ValueError):
            Official(norm="Linf", **THREAT).attack(model, images(2), torch.arange(2))
        assert model.weight.grad is before and bool((before == 1).all())
        model.weight.grad = None


def test_evaluate_gives_it_the_images_still_right_in_chunks_and_the_network_uncompiled(asked, monkeypatch):
    class Network(torch.nn.Module):
        def forward(self, z):
            return curved(z)

    x = images(10)
    y = curved(x).argmax(1)
    y[3] = (y[3] + 1) % 10
    result = evaluate(Network(), (x, y), ["autoattack"], eps=0.1, chunk=5)
    assert torch.equal(asked["x"], x[6:]) and torch.equal(asked["y"], y[6:])  # 9 are right: 5 of them, then 4
    expected = curved((x + 0.1).clamp(0, 1)).argmax(1) == y
    expected[3] = False
    assert torch.equal(result.survivors, expected)
    assert 0 < int(expected.sum()) < 9
    asked.clear()  # it cannot be given no images
    assert evaluate(Network(), (x, 9 - y), ["autoattack"], eps=0.1).worst == 0
    assert not asked
    monkeypatch.setattr(torch, "compile", lambda model, **options: SimpleNamespace(_orig_mod=model))
    assert torch.equal(evaluate(Network(), (x, y), ["autoattack"], eps=0.1, compile=True).survivors, expected)


def test_few_classes_and_a_missing_package_are_said(monkeypatch):
    with pytest.raises(InputError, match="at least 10 classes: 9"):
        Official(norm="Linf", **(THREAT | dict(classes=9)))
    monkeypatch.setitem(sys.modules, "pyautoattack", None)
    with pytest.raises(InputError, match=r"not installed.*autoattack"):
        Official(norm="Linf", **THREAT)
