"""Convolutions with many images side by side: what torch's own gives, forward and backward, image by image."""

import pytest
import torch
from torch import nn

from gacd import noise
from gacd.attacks.search import PGD, run
from gacd.device import fast_bfloat16
from gacd.models import build, side_by_side
from gacd.models.folding import attackable
from gacd.models.side_by_side import _images, lay_side_by_side

COUNT = 22  # images: two wide maps of 11


@pytest.fixture(autouse=True)
def any_processor_and_filters(monkeypatch):
    monkeypatch.setattr(side_by_side, "_outpaces", lambda: True)
    monkeypatch.setattr(side_by_side, "CACHE", 0)
    monkeypatch.setattr(side_by_side, "WIDEST", 109)


def maps(height=4, width=4, channels=3, count=COUNT):
    return noise.normal(3, torch.arange(count), (channels, height, width)).to(memory_format=torch.channels_last)


def convolution(channels=(3, 5), **options):
    torch.manual_seed(0)
    return nn.Conv2d(*channels, **dict(kernel_size=3, padding=1) | options)


def images(conv, x, dtype=torch.float32):
    return _images(conv.stride[0], x, conv.weight, dtype)


@pytest.mark.parametrize(("stride", "height", "width"), [(1, 4, 4), (1, 3, 5), (1, 1, 2), (2, 6, 6), (2, 5, 6)])
@pytest.mark.parametrize("bias", [True, False])
def test_it_gives_what_the_convolution_does(stride, height, width, bias):
    conv, x = convolution(stride=stride, bias=bias), maps(height, width).requires_grad_()
    expected = conv(x)
    up = noise.normal(4, torch.arange(COUNT), expected.shape[1:])
    (slope,) = torch.autograd.grad(expected, x, up)
    lay_side_by_side(conv)
    assert images(conv, x) > 1
    found = conv(x)
    assert torch.allclose(found, expected, atol=1e-6)
    assert torch.allclose(torch.autograd.grad(found, x, up)[0], slope, atol=1e-6)
    assert found.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("stride", [1, 2])
def test_an_image_is_seen_by_itself_alone(stride, dtype):
    if dtype == torch.bfloat16 and not fast_bfloat16("cpu"):
        pytest.skip("no fast bfloat16")
    conv, x = convolution((32, 32), stride=stride).to(dtype).requires_grad_(False), maps(channels=32).to(dtype)
    lay_side_by_side(conv)
    assert images(conv, x, dtype) == 11

    def asked(x):
        x = x.clone().requires_grad_()
        result = conv(x)
        return result.detach(), *torch.autograd.grad(result.square().sum(), x)

    order = noise.permutation(0, COUNT)
    for expected, moved in zip(asked(x), asked(x[order]), strict=True):
        assert torch.equal(moved, expected[order])
    broken = x.clone()
    ends = [0, 10, 11, 21]  # of both wide maps
    broken[ends] = float("nan")
    for expected, found in zip(asked(x), asked(broken), strict=True):
        assert torch.equal(found[1:10], expected[1:10]) and torch.equal(found[12:21], expected[12:21])
        assert found[ends].isnan().any((2, 3)).all()


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
    assert "_conv_forward" not in vars(conv)


def test_modules_of_one_s_own_are_left_alone():
    class Doubled(nn.Conv2d):
        def forward(self, x):
            return 2 * super().forward(x)

    for module in (Doubled(3, 3, 3, padding=1), nn.Identity(), nn.Conv2d(3, 3, 3, padding=1, groups=3)):
        lay_side_by_side(module)
        assert "_conv_forward" not in vars(module)


@pytest.mark.parametrize(
    ("x", "dtype", "stride", "count"),
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
def test_as_many_as_fit_and_none_where_little_is_gained(x, dtype, stride, count):
    assert images(convolution(stride=stride), x, dtype) == count


def test_not_where_another_layout_or_type_is_expected():
    conv, x = convolution(), maps()
    assert images(conv, x.contiguous()) == images(conv, x.double()) == images(conv, x.double(), torch.bfloat16) == 1


def test_only_filters_that_outgrow_the_cache_on_a_processor_that_outpaces_it(monkeypatch):
    conv, x = convolution(), maps()
    for filters, count in ((conv.weight.numel() * 4, 1), (conv.weight.numel() * 4 - 1, 11)):
        monkeypatch.setattr(side_by_side, "CACHE", filters)
        assert images(conv, x) == count
    monkeypatch.setattr(side_by_side, "_outpaces", lambda: False)
    assert images(conv, x) == 1


@pytest.mark.parametrize("channels_last", [True, False])
def test_maps_are_laid_out_as_before_for_networks_that_view_them(channels_last):
    class Viewing(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm, self.head = convolution((3, 4)), nn.BatchNorm2d(4), nn.Linear(64, 2)

        def forward(self, x):
            maps = self.norm(self.conv(x))
            return self.head((maps.permute(0, 2, 3, 1) if channels_last else maps).view(len(x), -1))

    x = maps() if channels_last else maps().contiguous()
    with attackable(Viewing().eval(), x) as quick:
        assert isinstance(quick.norm, nn.Identity) and quick(x).shape == (COUNT, 2)


@pytest.mark.parametrize("change", [dict(padding=(0, 0)), dict(dilation=(2, 2), padding=(2, 2)), dict(stride=(2, 2))])
def test_a_convolution_changed_since_is_attacked_as_it_is_now(change):
    model, x = nn.Sequential(convolution(), nn.BatchNorm2d(5)).eval(), maps()
    for changed in (change, dict(padding=(1, 1), dilation=(1, 1), stride=(1, 1))):
        with attackable(model, x):
            pass
        vars(model[0]).update(changed)
        with attackable(model, x) as quick:
            assert torch.allclose(quick(x), model(x), atol=1e-5)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 5e-2)])
def test_a_network_is_attacked_as_it_is(dtype, tolerance, monkeypatch):
    if dtype == torch.bfloat16 and not fast_bfloat16("cpu"):
        pytest.skip("no fast bfloat16")
    model, x = network()
    x.requires_grad_()
    asked, found = [], []
    monkeypatch.setattr(side_by_side, "_images", lambda *given: asked.append(_images(*given)) or asked[-1])
    for done in (True, False):
        monkeypatch.setattr(side_by_side, "_outpaces", lambda done=done: done)
        with attackable(model, x) as quick, torch.autocast("cpu", torch.bfloat16, dtype == torch.bfloat16):
            asked.clear()
            logits = quick(x)
            assert (max(asked) > 1) == done
            found.append((logits, *torch.autograd.grad(logits[:, 0].sum(), x)))
    for a, b in zip(*found, strict=True):
        assert (a - b).norm() <= tolerance * b.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_search_ends_at_the_same_bits_in_any_order(dtype):
    if dtype == torch.bfloat16 and not fast_bfloat16("cpu"):
        pytest.skip("no fast bfloat16")
    (model, x), found = network(), {}
    labels = torch.arange(COUNT) % 10
    order = noise.permutation(0, COUNT)
    for rows in (torch.arange(COUNT), order):
        with attackable(model, x) as quick, torch.autocast("cpu", torch.bfloat16, dtype == torch.bfloat16):
            images = run(PGD(steps=3), quick, x[rows], labels[rows])
        for row, image in zip(rows.tolist(), images, strict=True):
            assert torch.equal(found.setdefault(row, image), image)


def network():
    x = noise.uniform(5, torch.arange(COUNT), (3, 32, 32))
    model = build("resnet18-x0.1").eval().to(memory_format=torch.channels_last)
    return model, x.to(memory_format=torch.channels_last)
