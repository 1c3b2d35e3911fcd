"""What an evaluation takes: test data in any form, and what it refuses in a line."""

import math
from functools import partial

import pytest
import torch
from test_evaluation import Linear, images
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from gacd import noise
from gacd.attacks import fgsm, maximize, pgd
from gacd.audit import audit
from gacd.data import Dataset
from gacd.errors import InputError
from gacd.evaluation import evaluate, images_of
from gacd.readers import Split


def test_data_in_any_form_is_the_same():
    pixels = (images(10) * 255).round().to(torch.uint8)
    y = torch.arange(10) % 2
    split = Split(pixels, y)
    dataset = Dataset("name", split.take(y[:2]), split.take(y[:2]), split, ["a", "b"], (0,) * 3, (1,) * 3)
    floats = pixels.float() / 255
    loader = DataLoader(TensorDataset(floats, y), batch_size=4)
    for form in (
        split,
        dataset,
        (pixels, y),
        (floats, y),
        (floats, y.int()),
        loader,
        [(floats[:3], y[:3]), (floats[3:], y[3:])],
        [floats, y],
        (floats.numpy(), y.numpy()),
        [(floats.numpy(), y.numpy())],
    ):
        x, labels = images_of(form)
        assert torch.equal(x if x.is_floating_point() else x.float() / 255, floats)
        assert torch.equal(labels, y)
        assert labels.dtype == torch.int64
    result = [evaluate(Linear(), form, ["pgd2"], chunk=4).correct["pgd2"] for form in ((pixels, y), (floats, y))]
    assert torch.equal(*result)
    assert images_of("digits")[0].ndim == 4


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ((images(2) * 255, torch.arange(2)), r"pixels must be in \[0,1\].*divided by 255"),
        ((images(2) - 0.5, torch.arange(2)), "pixels must be in"),
        ((images(2) * math.nan, torch.arange(2)), "pixels must be in"),
        ((images(2)[0], torch.arange(3)), "expected images"),
        ((images(2), torch.arange(3)), "expected images"),
        ((images(0), torch.arange(0)), "expected images"),
        ((images(2), torch.tensor([0, 2])), "fewer classes than the data: 2 <= label 2"),
        ([], "expected images"),
        ("no-such-set", "unknown data set"),
    ],
)
def test_data_that_cannot_be_meant_is_refused(data, says):
    with pytest.raises(InputError, match=says):
        evaluate(Linear(), data)


def test_logits_that_are_not_finite_are_refused():
    model = Linear()
    model.layer.bias.data[0] = math.nan
    with pytest.raises(InputError, match="logits or gradients are not finite"):
        evaluate(model, (images(3), torch.zeros(3, dtype=torch.int64)))


def test_a_network_that_is_finite_in_float32_alone_is_attacked_in_it():
    class Probable(nn.Module):
        """Logarithms of a sigmoid, which is 1 in bfloat16."""

        def forward(self, x):
            p = torch.sigmoid((x.mean((1, 2, 3)) * 20).to(torch.get_autocast_dtype("cpu") if coarse() else x.dtype))
            return torch.stack([p.log(), (1 - p).log()], 1).float()

    def coarse():
        return torch.is_autocast_enabled("cpu")

    x = torch.tensor([0.45, 0.1, -0.01]).add(0.02).view(3, 1, 1, 1).expand(3, 1, 16, 16).contiguous()
    y, bf16 = torch.tensor([0, 0, 0]), partial(torch.autocast, "cpu", torch.bfloat16)
    with bf16():
        assert not Probable()(x).isfinite().all()
    plain = evaluate(Probable(), (x, y), ["pgd3", "apgd-ce3"], eps=0.05)
    assert plain.natural > 0
    coarsely = evaluate(Probable(), (x, y), ["pgd3", "apgd-ce3"], eps=0.05, search=bf16)
    assert coarsely.robust == plain.robust


@pytest.mark.parametrize(
    ("network", "says"),
    [
        (lambda x: (x.flatten(1), x), "must return logits .*: tuple"),
        (lambda x: x.flatten(1).argmax(1), "must return logits .*: torch.int64"),
        (torch.nn.Conv2d(3, 4, 1), r"does not take these images: \(2, 1, 4, 4\): RuntimeError"),
    ],
)
def test_what_is_no_classifier_of_these_images_is_refused(network, says):
    class Net(torch.nn.Module):
        forward = staticmethod(network)

    with pytest.raises(InputError, match=says):
        evaluate(Net(), (torch.rand(3, 1, 4, 4), torch.arange(3)))


@pytest.mark.parametrize("precision", ["medium", "highest"])
def test_what_the_caller_has_set_changes_no_verdict_and_stays(precision):
    seen = set()

    class Looking(nn.Module):
        def forward(self, x):
            seen.add((torch.is_autocast_enabled("cpu"), torch.get_float32_matmul_precision()))
            return x.flatten(1)[:, :2]

    x, y = noise.uniform(1, torch.arange(4), (1, 2, 2)), torch.tensor([0, 1, 0, 1])
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision(precision)
        with torch.autocast("cpu", torch.bfloat16):
            evaluate(Looking(), (x, y), ["pgd2"])
            audit(Looking().eval(), x, y)
            assert torch.is_autocast_enabled("cpu")
        assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision(before)
    assert seen == {(False, "highest")}


@pytest.mark.skipif(not hasattr(torch.backends.mkldnn, "conv"), reason="this torch has one flag for float32")
@pytest.mark.parametrize("flags", [torch.backends.mkldnn, getattr(torch.backends.mkldnn, "conv", None)])
def test_flags_that_make_float32_something_else_are_refused(flags):
    before = flags.fp32_precision
    try:
        flags.fp32_precision = "bf16"
        with pytest.raises(InputError, match="float32 is not float32 here"):
            evaluate(nn.Flatten(), (torch.full((4, 1, 2, 2), 0.5), torch.zeros(4, dtype=torch.int64)))
    finally:
        flags.fp32_precision = before


def test_where_there_are_no_gradients_there_are_no_attacks():
    x, y = torch.full((4, 1, 2, 2), 0.5), torch.zeros(4, dtype=torch.int64)
    with torch.inference_mode():
        for attack in (evaluate, lambda model, data: pgd(model, *data), lambda model, data: fgsm(model, *data)):
            with pytest.raises(InputError, match=r"attacks need gradients: torch.inference_mode\(\)"):
                attack(nn.Flatten(), (x, y))
        with pytest.raises(InputError, match="need gradients"):
            maximize(x, lambda z: z.flatten(1).sum(1), eps=0.1, step_size=0.1, steps=1)


def test_another_default_type_changes_nothing():
    network, data = Linear(), (images(5), torch.zeros(5, dtype=torch.int64))
    expected = evaluate(network, data, ["pgd2"])
    torch.set_default_dtype(torch.float64)
    try:
        found = evaluate(network, data, ["pgd2"])
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(torch.equal(found.correct[name], mask) for name, mask in expected.correct.items())
