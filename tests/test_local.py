"""A network that computes only what a square can change gives the whole network's logits, and the same search."""

from contextlib import nullcontext
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gacd import noise
from gacd.attacks import local, pool
from gacd.attacks.local import Local, localised
from gacd.attacks.search import begin
from gacd.attacks.square import Square
from gacd.models import build
from gacd.models.folding import attackable

NAMES = ("resnet20", "resnet18-x0.25", "wrn-10-1", "dm-wrn-10-1", "mobilenetv2-x0.1", "mobilenetv2-x0.5")


def network(name="resnet8", classes=10):
    """In float64, with statistics that are no identities."""
    torch.manual_seed(0)
    model = build(name, classes, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25)).double().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
            module.bias.data.normal_(0, 0.3)
    return model


def pictures(n, h=32, w=32):
    return noise.uniform(5, torch.arange(n), (3, h, w)).double()


def changed(x, square, seed):
    """Images with new pixels in the squares."""
    z = x.clone()
    for image, (top, left, side) in enumerate(square.tolist()):
        new = z[image, :, top : top + side, left : left + side]
        new.copy_(noise.uniform(seed, torch.tensor([image]), tuple(new.shape))[0])
    return z


def squares(n, h, w, seed, largest=10):
    """Of sides up to the largest, and whole ones, anywhere and in corners."""
    u = noise.uniform(seed, torch.arange(n), (3,))
    side = 1 + (largest * u[:, 2]).long()
    corner = [(u[:, i] * (length - side + 1)).long() for i, length in enumerate((h, w))]
    square = torch.stack([*corner, side], 1)
    square[0] = torch.tensor([0, 0, max(h, w)])
    square[1, :2] = 0
    square[2, :2] = torch.tensor([h, w]) - square[2, 2]
    return square


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_the_logits_are_those_of_the_whole_network(name):
    for h, w in ((32, 32), (21, 26), (64, 60)):
        model, x, slot = network(name), pictures(6, h, w), torch.tensor([3, 5, 0, 1, 4, 2])
        found = Local(model, 6, (h, w))
        whole = torch.tensor([[0, 0, max(h, w)]]).expand(6, 3)
        assert torch.allclose(found(x, slot, whole), model(x), rtol=1e-9, atol=1e-9)
        found.keep(torch.arange(6))
        for seed in range(6):
            square = squares(6, h, w, seed, largest=10 if seed % 2 else min(h, w))
            z = changed(x, square, seed)
            assert torch.allclose(found(z, slot, square), model(z), rtol=1e-9, atol=1e-9)
            kept = torch.arange(seed % 2, 6, 2)
            found.keep(kept)
            x[kept] = z[kept]  # the others are again what they were
        several = torch.tensor([4, 4, 4, 1, 1, 0])  # rows of one slot
        z, square = x[several], squares(6, h, w, 9)
        z = changed(z, square, 9)
        assert torch.allclose(found(z, slot[several], square), model(z), rtol=1e-9, atol=1e-9)


class Rethinks(nn.Conv2d):
    """Changes in place what has already been filtered, and goes on with that."""

    def forward(self, x):
        y = super().forward(x)
        F.silu(x, inplace=True)
        return y + super().forward(x)


class Draws(nn.Conv2d):
    def forward(self, x):
        return super().forward(x) + 0.01 * torch.rand(1)


class Refuses(nn.Conv2d):
    def forward(self, x):
        if type(x) is not torch.Tensor:
            raise TypeError("a tensor, please")
        return super().forward(x)


class Coarse(nn.Conv2d):
    """Nothing is local after it."""

    def __init__(self, *args):
        super().__init__(3, 8, 7, 4, 3)


@pytest.mark.parametrize(
    ("kind", "name"), [(Rethinks, "layer1.0.conv2"), (Draws, "conv1"), (Refuses, "conv1"), (Coarse, "conv1")]
)
def test_a_network_that_it_does_not_fit_is_left_alone(kind, name):
    model, x = build("resnet8-x0.5").eval(), pictures(3).float()
    assert localised(model, x, 3) is not None
    old = model.get_submodule(name)
    model.set_submodule(name, kind(old.in_channels, old.out_channels, 3, 1, 1))
    assert localised(model, x, 3) is None


class Gated(nn.Conv2d):
    """Another branch for bright images, which a few tries do not find."""

    def forward(self, x):
        return super().forward(x * 2 if bool(x.mean() > 0.9) else x)


def test_it_is_for_networks_that_do_the_same_whatever_they_see():
    model, x = build("resnet8-x0.5").eval(), pictures(3).float()
    model.conv1 = Gated(3, 8, 3, padding=1)
    assert localised(model, x, 3) is None
    model = build("resnet8-x0.5").eval()
    assert localised(model, x, 3) is not None
    assert localised(nn.Sequential(model), x, 3) is None
    model.register_forward_pre_hook(lambda module, args: (args[0] * 2,) if bool(args[0].mean() > 0.9) else args)
    assert localised(model, x, 3) is None
    model = build("resnet8-x0.5").eval()

    def bright(self, x):
        return self.classify(self.features(x * 2 if bool(x.mean() > 0.9) else x))

    model.__class__ = type("Bright", (type(model),), {"forward": bright})
    assert localised(model, x, 3) is None


@torch.no_grad()
def test_images_and_maps_of_as_many_channels_may_have_several_types():
    model, x, slot = build("resnet8-x0.2").eval(), pictures(4).float(), torch.arange(4)
    with attackable(model, x) as quick, torch.autocast("cpu", torch.bfloat16):
        found = Local(quick, 4, (32, 32))
        for side in (32, 3, 20, 3):
            square = torch.tensor([[5, 6, side]]).expand(4, 3) * (side < 32) + torch.tensor([0, 0, 32 * (side == 32)])
            x = changed(x, square, side)
            logits, expected = found(x, slot, square), quick(x)
            assert (logits - expected).abs().max() <= 0.01 * expected.abs().max()
            found.keep(slot)


@torch.no_grad()
def test_what_was_not_finite_is_forgotten():
    """A slot's next image is not given what a broken network left around the maps of the one before."""
    model, x, slot = network(), pictures(2), torch.arange(2)
    found, whole = Local(model, 2, (32, 32)), torch.tensor([[0, 0, 32]]).expand(2, 3)
    bias = model.conv1.bias = nn.Parameter(torch.zeros(16, dtype=torch.float64))
    for broken, side in ((torch.nan, 5), (0.0, 1)):  # whose windows around the first pixel are smaller
        bias.data[0], square = broken, torch.tensor([[0, 0, side]]).expand(2, 3)
        found(x, slot, whole)
        found.keep(slot)
        z = changed(x, square, 1)
        logits = found(z, slot, square)
        found.keep(slot)
    assert torch.allclose(logits, model(z), rtol=1e-9, atol=1e-9)


@torch.no_grad()
@pytest.mark.parametrize("context", [nullcontext, partial(torch.autocast, "cpu", torch.bfloat16)])
def test_every_image_is_given_the_same_whoever_stands_beside(context):
    model, x = build("resnet8-x0.25", 4).eval(), pictures(7, 16, 16).float()
    with attackable(model, x) as quick:
        logits, found = quick(x), []
        y, search = logits.argmax(1), Square(eps=0.01, steps=40)
        for order in (range(7), (5, 2, 6, 0, 4, 1, 3), (3, 4)):
            images = {}
            for where, z, _ in pool.sweep(
                search, quick, lambda p: (x[p], y[p], logits[p]), torch.tensor(order), 3, context
            ):
                images |= dict(zip(where.tolist(), z, strict=True))
            found.append(images)
    assert all(torch.equal(z, found[0][image]) for images in found for image, z in images.items())
    assert [len(images) for images in found] == [7, 7, 2]


def test_where_nothing_is_saved_it_is_not_used(monkeypatch):
    model = network()
    assert localised(model, pictures(1), 3).slots == 6
    asked = []
    hook = model.register_forward_pre_hook(lambda *args: asked.append(args))
    assert localised(model, pictures(1, 32, 9), 3) is None  # windows would be all of such images
    assert not asked
    hook.remove()
    monkeypatch.setattr(local, "MEMORY", 6_000_000)
    assert localised(model, pictures(1), 3).slots == 3
    monkeypatch.setattr(local, "MEMORY", 3_000_000)
    assert localised(model, pictures(1), 3) is None


@torch.no_grad()
def exact(x):
    """A network whose every sum is exact in float32: weights 0, 1 and -1, two of a filter not 0. No class rules."""
    model = build("resnet8-x0.5", 4).eval()
    for number, module in enumerate(model.modules()):
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 0
        elif isinstance(module, nn.Conv2d | nn.Linear):
            weight = noise.normal(number, torch.arange(len(module.weight)), tuple(module.weight.shape[1:]))
            least = weight.abs().flatten(1).topk(2)[0][:, 1].view(-1, *[1] * (weight.ndim - 1))
            module.weight.data = torch.where(weight.abs() >= least, weight.sign(), 0.0)
    model.head.bias.data.zero_()
    model.head.bias.data -= (8 * model(x).mean(0)).round() / 8
    return model


@torch.no_grad()
@pytest.mark.parametrize("spare", [1 / 4, pool.SPARE_IF_LOCAL])
def test_a_search_is_the_same_with_it(monkeypatch, spare):
    """Twenty images in chunks of eight, so that some wait, and rows hold guesses."""
    monkeypatch.setattr(pool, "SPARE_IF_LOCAL", spare)
    x = (64 * noise.uniform(8, torch.arange(20), (3, 16, 16))).floor() / 64
    model = exact(x)
    logits = model(x)
    y, search = logits.argmax(1), Square(eps=1 / 64, steps=120, p_init=0.3)
    used, found = [], []

    def spied(*args):
        used.append(localised(*args))
        return used[-1]

    for make in (spied, lambda *args: None):
        monkeypatch.setattr(pool, "localised", make)
        images = {}
        for where, z, _ in pool.sweep(
            search, model, lambda p: (x[p], y[p], logits[p]), torch.arange(20), 8, nullcontext
        ):
            images |= dict(zip(where.tolist(), z, strict=True))
        found.append(torch.stack([images[i] for i in range(20)]))
    assert used[0].last  # it was asked
    assert torch.equal(*found)
    first = begin(search, x, y, None, logits)["z"]
    assert (found[0] != first).flatten(1).any(1).sum() >= 5  # not the stripes that all begin with
