"""Batch norms folded for attacks: what is attacked stays the network, whenever its twin was made."""

import pytest
import torch
from torch import nn

from gacd import noise
from gacd.attacks import evaluating
from gacd.methods import PGDAT
from gacd.models import build
from gacd.models.folding import attackable

NAMES = ["resnet8", "resnet18-x0.1", "wrn-10-1", "wrn-16-1", "wrn-10-2", "dm-wrn-10-1", "mobilenetv2-x0.1"]


def images(n=8):
    return noise.uniform(5, torch.arange(n), (3, 32, 32))


def learn(model):
    """The statistics that some training would leave, and weights to match."""
    model.train()
    with torch.no_grad():
        for _ in range(5):
            model(3 * images() - 1)
        for i, module in enumerate(model.modules()):
            if isinstance(module, nn.BatchNorm2d):
                module.weight.mul_(noise.uniform(i, torch.arange(1), module.weight.shape)[0] + 0.5)
                module.bias.add_(noise.normal(i, torch.arange(1), module.bias.shape)[0])


@pytest.mark.parametrize("name", NAMES)
def test_a_twin_made_before_training_is_the_network_after_it(name):
    model, x = build(name), images()
    with attackable(model, x):
        pass
    learn(model)
    with attackable(model, x) as quick:
        assert torch.allclose(quick(x), model(x), rtol=1e-3, atol=1e-3)
    with evaluating(model):
        expected = model(x)
    with attackable(model, x) as quick:
        assert torch.allclose(quick(x), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["resnet8", "wrn-10-2", "mobilenetv2-x0.1"])
def test_these_are_folded(name):
    model = build(name)
    with attackable(model, images()) as quick:
        assert quick is not model


def test_what_only_some_images_show_is_not_folded():
    class Bright(nn.Module):
        """Its batch norm is for dark images alone."""

        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

        def forward(self, x):
            made = self.conv(x)
            bright = x.mean((1, 2, 3), keepdim=True) > 0.5
            return torch.where(bright, made, self.norm(made)).mean((2, 3))

    model, x = Bright().eval(), torch.cat([images() / 4, 1 - images() / 4])
    with attackable(model, x) as quick:
        assert quick is model
    with attackable(model, images() / 4, anew=True) as quick:
        assert quick is not model


def test_an_activation_used_beside_its_batch_norm_is_not_folded():
    model = build("wrn-10-1")  # its first block adds what its first batch norm normalises
    with attackable(model, images()) as quick:
        left = [name for name, module in quick.named_modules() if isinstance(module, nn.BatchNorm2d)]
    all_of_them = [name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)]
    assert all_of_them[0] in left
    assert len(left) == len(all_of_them) - 3  # of each block the one between its convolutions is folded


class Adding(nn.Module):
    """A new network whose batch norm takes the very tensor that a convolution gave, with something added in place."""

    def __init__(self):
        super().__init__()
        self.one, self.other, self.norm = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)

    def forward(self, x):
        y = self.one(x)
        y += self.other(x)
        return torch.relu(self.norm(y)).mean((2, 3))


def test_a_sum_made_in_place_is_not_folded():
    torch.manual_seed(0)
    model = Adding()
    for parameter in (*model.one.parameters(), *model.other.parameters()):
        parameter.data *= 0.01  # small beside the statistics
    with attackable(model, images()) as quick:
        assert quick is model


class Changing(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.act, self.head = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Tanh(), nn.Linear(8, 10)

    def forward(self, x):
        return self.head(self.act(self.norm(self.conv(x))).mean((2, 3)))


@pytest.mark.parametrize(
    "change",
    [
        lambda model: setattr(model, "act", nn.ReLU()),
        lambda model: setattr(model, "norm", nn.GroupNorm(2, 8)),
        lambda model: setattr(model, "head", nn.Sequential(nn.Linear(8, 10))),
    ],
)
def test_a_network_changed_since_is_attacked_as_it_is_now(change):
    model, x = Changing(), images()
    with attackable(model, x) as quick:
        assert quick is not model
    change(model)
    with attackable(model, x, anew=True) as quick:
        assert torch.allclose(quick(x), model(x), rtol=1e-3, atol=1e-3)


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
@pytest.mark.parametrize("norm", [nn.utils.spectral_norm, nn.utils.weight_norm])
def test_weights_made_by_hooks_are_not_folded(norm):
    model = Changing()
    model.conv = norm(model.conv)
    with attackable(model, images()) as quick:
        assert quick is model


@pytest.mark.filterwarnings("ignore:.torch.jit.trace:DeprecationWarning")
def test_a_torchscript_network_is_attacked_as_it_is():
    x, model = images(), build("resnet8-x0.25").eval()
    traced = torch.jit.trace(model, x)
    with attackable(traced, x) as quick, torch.no_grad():
        assert (quick(x) - model(x)).abs().max() < 1e-5


def test_the_model_is_left_as_it_was():
    model = build("resnet8")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with attackable(model, images()):
        pass
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_training_attacks_the_network_of_that_moment():
    model = build("wrn-10-1")
    method = PGDAT(model, steps=3, step_size=4 / 255)
    x, y = images(16), torch.arange(16) % 10
    method.attack(x, y)
    learn(model)

    def loss(z):
        with evaluating(model), torch.no_grad():
            return nn.functional.cross_entropy(model(z), y)

    anew = PGDAT(build("wrn-10-1"), steps=3, step_size=4 / 255)
    anew.student.load_state_dict(model.state_dict())
    assert loss(method.attack(x, y)) == pytest.approx(float(loss(anew.attack(x, y))), rel=1e-3)
    assert loss(method.attack(x, y)) > loss(x)


class Listening(Changing):
    """Its logits are of what a hook, made for this very network, has put down."""

    def __init__(self):
        super().__init__()
        self.norm.register_forward_hook(lambda module, args, out: setattr(self, "seen", out))

    def forward(self, x):
        super().forward(x)
        return self.head(self.seen.mean((2, 3)))


class Shared(Changing):
    """Part of it is not copied with it."""

    class Frozen(nn.BatchNorm2d):
        def __deepcopy__(self, memo):
            return self

    def __init__(self):
        super().__init__()
        self.norm = self.Frozen(8)


class Masking(nn.Module):
    """One class is ruled out, and a convolution's output is used beside its batch norm."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 10)

    def forward(self, x):
        made = self.conv(x)
        logits = self.head((made + self.norm(made).relu()).mean((2, 3)))
        return logits.index_fill(1, torch.tensor([9]), -1e9)


@pytest.mark.parametrize("network", [Listening, Shared, Masking])
def test_what_a_copy_would_not_show_is_not_folded(network):
    torch.manual_seed(0)
    model, x = network(), images()
    learn(model)
    model.eval()
    with torch.no_grad():
        model(x)  # what is seen first stays seen by a copy
        with attackable(model, x, anew=True) as quick:
            z = 1 - images()
            assert quick is model and torch.equal(quick(z), model(z))
    assert isinstance(model.norm, nn.BatchNorm2d)


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
@pytest.mark.parametrize(
    "change",
    [
        lambda model: setattr(model, "scale", 3.0),
        lambda model: setattr(model, "act", nn.ReLU()),
        lambda model: setattr(model, "conv", nn.Sequential(nn.Conv2d(3, 8, 3))),
        lambda model: setattr(model, "conv", nn.Conv2d(3, 8, 3, stride=2)),
        lambda model: setattr(model.conv, "padding", (1, 1)),
        lambda model: nn.utils.weight_norm(model.conv),
    ],
)
def test_one_s_own_loop_may_change_its_network(change):
    class Scaled(Changing):
        scale = 1.0

        def forward(self, x):
            return self.scale * super().forward(x)

    model, x = Scaled(), images()
    with attackable(model, x):
        pass
    learn(model)
    change(model)
    with attackable(model, x) as quick:
        assert torch.allclose(quick(x), model(x), rtol=1e-3, atol=1e-3)
