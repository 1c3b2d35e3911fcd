"""Convolutions with many images side by side: what torch's own gives, forward and backward, image by image."""

import pytest
import torch
from torch import nn

from gacd import noise
from gacd.models import build, side_by_side
from gacd.models.folding import attackable
from gacd.models.side_by_side import _images, lay_side_by_side

COUNT = 22  # images: two wide maps of 11


@pytest.fixture(autouse=True)
def any_processor_and_filters(monkeypatch):
    monkeypatch.setattr(side_by_side, "_outpaces", lambda dtype: True)
    monkeypatch.setattr(side_by_side, "CACHE", 0)
    monkeypatch.setattr(side_by_side, "WIDEST", 109)


def maps(height=4, width=4, channels=3, count=COUNT):
    return noise.normal(3, torch.arange(count), (channels, height, width))


def convolution(**options):
    torch.manual_seed(0)
    return nn.Conv2d(3, 5, **dict(kernel_size=3, padding=1) | options)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("stride", "height", "width"), [(1, 4, 4), (1, 3, 5), (1, 1, 2), (2, 6, 6), (2, 5, 6)])
@pytest.mark.parametrize("bias", [True, False])
def test_it_gives_what_the_convolution_does(layout, stride, height, width, bias):
    conv, x = convolution(stride=stride, bias=bias), maps(height, width).contiguous(memory_format=layout)
    x.requires_grad_()
    expected = conv(x)
    up = noise.normal(4, torch.arange(COUNT), expected.shape[1:])
    (slope,) = torch.autograd.grad(expected, x, up)
    lay_side_by_side(conv)
    assert _images(conv, x, x.dtype) > 1
    found = conv(x)
    assert torch.allclose(found, expected, atol=1e-6)
    assert torch.allclose(torch.autograd.grad(found, x, up)[0], slope, atol=1e-6)
    assert found.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("stride", [1, 2])
def test_an_image_is_seen_by_itself_alone(stride):
    conv, x = convolution(stride=stride), maps(4, 4)
    lay_side_by_side(conv)
    expected = conv(x)
    x[[0, 10, 11, 21]] = float("nan")  # at both ends of both wide maps
    found = conv(x)
    assert torch.equal(found[1:10], expected[1:10]) and torch.equal(found[12:21], expected[12:21])
    assert found[[0, 10, 11, 21]].isnan().any((2, 3)).all()
    order = torch.arange(COUNT).flip(0)
    assert torch.equal(conv(x.nan_to_num()[order]), conv(x.nan_to_num())[order])


@pytest.mark.parametrize(
    "options",
    [
        dict(kernel_size=5, padding=2),
        dict(padding=0),
        dict(padding="same"),
        dict(dilation=2, padding=2),
        dict(stride=3),
        dict(stride=(1, 2)),
        dict(padding_mode="circular"),
    ],
)
def test_other_convolutions_are_left_alone(options):
    conv = convolution(**options)
    lay_side_by_side(conv)
    assert "forward" not in vars(conv)


def test_modules_of_one_s_own_are_left_alone():
    class Doubled(nn.Conv2d):
        def forward(self, x):
            return 2 * super().forward(x)

    for module in (Doubled(3, 3, 3, padding=1), nn.Identity(), nn.Conv2d(3, 3, 3, padding=1, groups=3)):
        lay_side_by_side(module)
        assert "forward" not in vars(module)


@pytest.mark.parametrize(
    ("x", "dtype", "stride", "images"),
    [
        (maps(), torch.float32, 1, 11),
        (maps(count=44), torch.float32, 1, 11),
        (maps(count=4), torch.float32, 1, 1),
        (maps(count=0), torch.float32, 1, 1),
        (maps(count=23), torch.float32, 1, 1),
        (maps(4, 5), torch.float32, 1, 1),
        (maps(4, 5), torch.bfloat16, 1, 11),
        (maps(), torch.float64, 1, 1),
        (maps(7, 7), torch.float32, 2, 1),
        (maps(9, 8), torch.bfloat16, 1, 1),
        (maps(8, 8), torch.bfloat16, 1, 11),
    ],
)
def test_as_many_as_fit_and_none_where_little_is_gained(x, dtype, stride, images):
    assert _images(convolution(stride=stride), x, dtype) == images


def test_only_filters_that_outgrow_the_cache_on_a_processor_that_outpaces_it(monkeypatch):
    conv, x = convolution(), maps()
    for filters, images in ((conv.weight.numel() * 4, 1), (conv.weight.numel() * 4 - 1, 11)):
        monkeypatch.setattr(side_by_side, "CACHE", filters)
        assert _images(conv, x, torch.float32) == images
    monkeypatch.setattr(side_by_side, "_outpaces", lambda dtype: dtype == torch.bfloat16)
    assert _images(conv, x, torch.float32) == 1


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 2e-2)])
def test_a_network_is_attacked_as_it_is(dtype, tolerance, monkeypatch):
    model = build("resnet18-x0.1").eval()
    x = noise.uniform(5, torch.arange(COUNT), (3, 32, 32)).requires_grad_()
    asked, found = [], []
    monkeypatch.setattr(side_by_side, "_images", lambda *given: asked.append(_images(*given)) or asked[-1])
    for done in (True, False):
        monkeypatch.setattr(side_by_side, "_outpaces", lambda dtype, done=done: done)
        with attackable(model, x) as quick, torch.autocast("cpu", torch.bfloat16, dtype == torch.bfloat16):
            asked.clear()
            logits = quick(x)
            assert (max(asked) > 1) == done
            found.append((logits, *torch.autograd.grad(logits[:, 0].sum(), x)))
    for a, b in zip(*found, strict=True):
        assert (a - b).abs().max() <= tolerance * b.abs().max()
