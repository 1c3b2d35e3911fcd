"""Convolutions: strided ones of a pixel, memory, the layout of gradients."""

import os
import subprocess
import sys

import pytest
import torch
from test_models import SMALL, trained
from torch import nn

from gacd import noise
from gacd.models import build
from gacd.models.base import conv


@pytest.mark.parametrize("size", [7, 8])
def test_a_thinned_convolution_is_a_strided_one(size):
    x = noise.normal(3, torch.arange(5), (4, size, size)).double().requires_grad_()
    thinned = conv(4, 6, 1, 2).double()
    strided = nn.Conv2d(4, 6, 1, 2, bias=False, dtype=torch.float64)
    strided.load_state_dict(thinned.state_dict())
    expected = torch.autograd.grad(strided(x).square().sum(), [x, strided.weight])
    found = torch.autograd.grad(thinned(x).square().sum(), [x, thinned.weight])
    assert torch.allclose(thinned(x), strided(x))
    assert all(torch.allclose(a, b) for a, b in zip(found, expected, strict=True))
    grouped = conv(4, 6, 1, 2, groups=2)
    assert grouped(x.float()).shape == thinned(x).shape
    assert grouped.weight.shape == (6, 2, 1, 1)
    assert conv(4, 6, 1, 2, padding=1)(x.float()).shape == (5, 6, (size + 3) // 2, (size + 3) // 2)


@pytest.mark.parametrize(
    "arguments",
    [
        {"num_classes": 0},
        {"num_classes": 10**12},
        {"mean": [0.5]},
        {"mean": [], "std": []},
        {"std": [0, 1, 1]},
        {"mean": [float("nan"), 0, 0]},
    ],
)
def test_build_refuses(arguments):
    with pytest.raises(ValueError, match=r"^(the number|mean and std)"):
        build("resnet8", **arguments)


def test_narrow_networks_train_without_harm():
    """On some processors torch's strided 1x1 convolution of fewer than 8 channels corrupts memory in training."""
    code = """
import torch
from gacd.models import build
model = build("resnet8-x0.25").to(memory_format=torch.channels_last)
for _ in range(5):
    model(torch.rand(64, 3, 32, 32).contiguous(memory_format=torch.channels_last)).square().sum().backward()
print("sound")
"""
    environment = os.environ | {"MALLOC_CHECK_": "3", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.stdout == "sound\n", done.stderr


@pytest.mark.parametrize("name", SMALL)
def test_gradients_are_channels_last_where_images_are(name):
    """Where one is not, every operation that meets it takes several times as long."""
    model, formats = trained(name).to(memory_format=torch.channels_last), []

    def watched(x):
        x.register_hook(lambda g: formats.append(g.is_contiguous(memory_format=torch.channels_last)))
        return x

    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_pre_hook(lambda module, inputs: (watched(inputs[0]),))
    maps = model.maps
    model.maps = lambda x: watched(maps(x))
    x = torch.rand(2, 3, 32, 32).contiguous(memory_format=torch.channels_last).requires_grad_()
    model(x).square().sum().backward()
    assert len(formats) > 8 and all(formats)
