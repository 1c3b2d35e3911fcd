"""Accuracy per image: worst cases, chunks, order, and a linear network whose robustness is known exactly."""

import math
from functools import partial

import pytest
import torch
from torch import nn

from gacd import noise, results
from gacd.attacks import Search
from gacd.attacks.names import MAKERS
from gacd.attacks.search import PGD
from gacd.errors import InputError
from gacd.evaluation import Evaluation, evaluate, interval, parse_attack
from gacd.losses import margin_loss
from gacd.models import build


class Linear(nn.Module):
    """Two classes; notes the shape of every batch it sees."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(48, 2)
        self.shapes = set()
        with torch.no_grad():
            self.layer.weight.copy_(0.3 * noise.normal(1, torch.arange(2), (48,)))
            self.layer.bias.zero_()

    def forward(self, x):
        self.shapes.add(tuple(x.shape))
        return self.layer(x.flatten(1))


def images(n, low=0.0, high=1.0, size=4):
    return low + (high - low) * noise.uniform(7, torch.arange(n), (3, size, size))


@pytest.fixture(scope="module")
def network():
    """A small network and images with its own predictions as labels, one in five of them wrong."""
    torch.manual_seed(0)
    model, x = build("resnet8-x0.25", 3), images(43, size=8)
    with torch.no_grad():
        for _ in range(10):
            model(x)
        y = model.eval()(x).argmax(1)
    y[::5] = (y[::5] + 1) % 3
    return model, x, y


@pytest.mark.parametrize("attack", ["margin20", "pgd20", "fgsm"])
@pytest.mark.parametrize(("norm", "low", "high", "eps"), [("Linf", 0, 1, 0.1), ("L2", 0.3, 0.7, 0.3)])
def test_a_linear_network_s_robustness_is_the_known_one(attack, norm, low, high, eps):
    model, x = Linear(), images(300, low, high)
    w = (model.layer.weight[1] - model.layer.weight[0]).detach()
    with torch.no_grad():
        y = model(x).argmax(1)
        toward = (1 - 2 * y).view(-1, 1, 1, 1) * w.view(1, 3, 4, 4)
        worst = (x + eps * toward.sign()).clamp(0, 1) if norm == "Linf" else x + eps * toward / w.norm()
        margin = (1 - 2 * y) * (worst.flatten(1) @ w)  # positive where beaten
    result = evaluate(model, (x, y), [attack], norm=norm, eps=eps)
    clear = margin.abs() > (1e-5 if norm == "Linf" else 2e-3)
    assert float(clear.double().mean()) > 0.9
    assert 0.1 < float((margin < 0).double().mean()) < 0.9
    assert torch.equal(result.correct[attack][clear], (margin < 0)[clear])
    assert result.natural == 1


class Plain(Search):
    """Asks about images that a function of the images gives."""

    def __init__(self, change, *, norm, eps, seed, classes, restart, steps=1):
        super().__init__(norm=norm, eps=eps, seed=seed)
        self.change, self.steps = change, steps

    def begin(self, rows, logits):
        rows["z"] = rows["x"]

    def objective(self, logits, rows):
        return margin_loss(logits, rows["y"])

    def step(self, rows, logits, value, gradient):
        rows["z"] = self.change(rows["x"])


def test_worst_is_taken_per_image(monkeypatch):
    def breaks(rest):
        return partial(Plain, lambda x: torch.where((x[:, 1:2, :1, :1] * 64 % 3).round() == rest, 1 - x, x))

    for name, rest in (("first", 0), ("second", 1)):
        monkeypatch.setitem(MAKERS, name, breaks(rest))
    x = images(12)
    x[:, 0, 0, 0], x[:, 1, 0, 0] = torch.arange(12) % 2, torch.arange(12) / 64
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 2))
    with torch.no_grad():
        model[1].weight.zero_()[:, 0] = torch.tensor([-1.0, 1.0])
        model[1].bias.copy_(torch.tensor([0.5, -0.5]))
    result = evaluate(model, (x, torch.arange(12) % 2), ["first", "second3"], chunk=5)
    assert result.natural == 1
    assert result.robust == {"first": pytest.approx(2 / 3), "second3": pytest.approx(2 / 3)}
    assert result.worst == pytest.approx(1 / 3)
    assert result.survivors.tolist() == [i % 3 == 2 for i in range(12)]
    assert result.n == 12


def test_an_attack_never_mends_a_natural_error():
    result = Evaluation()
    result.record("natural", torch.tensor([True, False]), 0.0)
    result.record("a", torch.tensor([True, True]), 0.0, {})
    assert result.survivors.tolist() == [True, False]
    assert result.worst == 0.5


def test_images_already_wrong_are_not_attacked(network, monkeypatch):
    model, x, y = network
    seen, progress = [], []

    def counting(z):
        seen.append([int((x == image).flatten(1).all(1).nonzero()) for image in z])
        assert z.shape == (8, 3, 8, 8)
        return z

    def make(**options):
        assert options == dict(norm="Linf", eps=0.1, seed=3, steps=7, classes=3, restart=0)
        return Plain(counting, **options)

    monkeypatch.setitem(MAKERS, "counting", make)
    result = evaluate(model, (x, y), ["counting7"], chunk=8, eps=0.1, seed=3, done=progress.append)
    assert sorted({i for step in seen for i in step}) == [i for i in range(43) if i % 5]
    assert len(seen) == 5 * 7  # 34 images in chunks of 8
    assert result.worst == result.natural == result.robust["counting7"] == pytest.approx(34 / 43)
    assert sum(progress) == 2 * 43


def test_every_forward_has_one_shape():
    model = Linear()
    evaluate(model, (images(23), torch.arange(23) % 2), ["pgd2"], chunk=10)
    few = {(1, 3, 4, 4), (2, 3, 4, 4)}  # show whether it is a classifier, and what can be folded
    assert model.shapes - few == {(10, 3, 4, 4)}


def verdicts(model, x, y, **options):
    result = evaluate(model, (x, y), ["pgd3"], eps=0.02, chunk=8, **options)
    assert 0 < result.worst < result.natural
    return torch.stack(list(result.correct.values()))


def test_a_verdict_does_not_depend_on_the_neighbours_or_the_generator(network):
    model, x, y = network
    expected = verdicts(model, x, y)
    torch.manual_seed(123)
    assert torch.equal(verdicts(model, x, y), expected)
    other, wrong = x.clone(), y.clone()
    other[1::2], wrong[2::4] = 1 - x[1::2], (y[2::4] + 1) % 3  # other images, and fewer that are attacked
    kept = torch.arange(0, 43, 4)
    assert torch.equal(verdicts(model, other, wrong)[:, kept], expected[:, kept])


def test_a_random_start_follows_its_image_into_any_order_and_shard(monkeypatch):
    started, x = {}, images(23)

    class Recording(PGD):
        def begin(self, rows, logits):
            super().begin(rows, logits)
            for image, start in zip(rows["x"], rows["z"], strict=True):
                started.setdefault(float(image.sum()), set()).add(tuple(start.flatten().tolist()))

    monkeypatch.setitem(MAKERS, "recording", lambda classes, **options: Recording(step_size=0.0, **options))
    model, y = Linear(), Linear()(x).argmax(1)
    order = noise.permutation(0, 23)
    for rows in (torch.arange(23), order, order[:10], order[10:]):
        evaluate(model, (x[rows], y[rows]), ["recording1"], step_size=0.0, chunk=8)
    assert len(started) == 23
    assert all(len(images) == 1 for images in started.values())


def test_a_network_that_is_always_wrong_has_accuracy_zero(network):
    model, x, _ = network
    with torch.no_grad():
        y = (model(x).argmax(1) + 1) % 3
    result = evaluate(model, (x, y), ["pgd2", "fgsm"], chunk=8)
    assert (result.natural, result.worst, result.robust) == (0, 0, {"pgd2": 0, "fgsm": 0})


def test_modes_and_gradients_are_left_alone(network):
    model, x, y = network
    model.train()
    model.bn1.eval()
    modes = [module.training for module in model.modules()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    evaluate(model, (x, y), ["pgd2"])
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.is_grad_enabled()
    model.eval()


@pytest.mark.parametrize(("correct", "n"), [(0, 10), (3, 10), (10, 10), (517, 1000), (1, 1)])
@pytest.mark.parametrize("confidence", [0.95, 0.8])
def test_interval_s_ends_are_where_the_binomial_tails_are_equal(correct, n, confidence):
    def at_least(k, p):
        return sum(math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(k, n + 1))

    low, high = interval(correct, n, confidence)
    tail = (1 - confidence) / 2
    assert 0 <= low <= correct / n <= high <= 1
    assert at_least(correct, low) == pytest.approx(tail, rel=1e-6) if correct else low == 0
    assert 1 - at_least(correct + 1, high) == pytest.approx(tail, rel=1e-6) if correct < n else high == 1


def test_attacks_by_name():
    assert parse_attack("pgd7") == ("pgd", 7, 1)
    assert parse_attack("margin") == ("margin", 20, 1)
    assert parse_attack("margin50x5") == ("margin", 50, 5)
    assert parse_attack("pgdx2") == ("pgd", 20, 2)
    assert parse_attack("fgsm") == ("fgsm", 1, 1)
    for name in ("", "20", "pgd0", "PGD20", "pgd-20", "pgd 20", "pgd20x", "pgd20x0", "pgdx", "cw20"):
        with pytest.raises(InputError, match=r"unknown attack.*pgd20, margin20"):
            parse_attack(name)
    for name in ("fgsm2", "cascade5", "autoattack7"):
        with pytest.raises(InputError, match="steps is fixed"):
            parse_attack(name)
    with pytest.raises(InputError, match="no restarts"):
        parse_attack("fgsmx2")


def test_what_the_search_cannot_tell_from_beaten_is_attacked_in_float32():
    class Coarse(nn.Module):
        """Right by 0.01 and 0.31 of its logits; under autocast a tie, without gradient, at the first."""

        attacked = ()

        def forward(self, x):
            coarse, s = torch.is_autocast_enabled("cpu"), x.mean((1, 2, 3)) - 0.51
            if x.requires_grad and not coarse and len(x) > 2:  # two are asked whether this is a classifier
                self.attacked += (len(x),)
            s = (s * 16).round().detach() / 16 + 0 * s if coarse else s
            return torch.stack([torch.ones_like(s), 1 + s], 1)

    x = torch.tensor([0.5, 0.2]).view(2, 1, 1, 1).expand(2, 1, 16, 16).repeat(5, 1, 1, 1)
    for enabled, rows in ((True, {8}), (False, {10})):  # what was attacked in float32 is not attacked again
        model, search = Coarse().eval(), partial(torch.autocast, "cpu", torch.bfloat16, enabled=enabled)
        result = evaluate(model, (x, torch.zeros(10, dtype=torch.int64)), ["pgd3"], eps=0.1, search=search)
        assert result.correct["pgd3"].tolist() == [False, True] * 5
        assert set(model.attacked) == rows


def test_a_network_changed_since_it_was_last_evaluated_is_attacked_as_it_is():
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm, self.sign = torch.nn.Conv2d(1, 8, 3), torch.nn.BatchNorm2d(8), 1.0

        def forward(self, x):
            return self.sign * self.norm(self.conv(x)).relu().mean((2, 3))

    torch.manual_seed(0)
    x, net, new = noise.uniform(3, torch.arange(60), (1, 6, 6)), Net().eval(), Net().eval()
    evaluate(net, (x, net(x).argmax(1)), ["pgd5"])
    net.sign = new.sign = -1.0
    new.load_state_dict(net.state_dict())
    y = net(x).argmax(1)
    assert evaluate(net, (x, y), ["pgd5"]).robust == evaluate(new, (x, y), ["pgd5"]).robust != {"pgd5": 1.0}


def test_the_radius_is_the_field_s_or_as_written():
    torch.manual_seed(0)
    model, x = Linear(), images(8)
    y = torch.arange(8) % 2
    for given, norm, eps in ((None, "Linf", 8 / 255), (None, "L2", 0.5), ("4/255", "Linf", 4 / 255)):
        threat = evaluate(model, (x, y), ["pgd2"], norm=norm, eps=given).threats["pgd2"]
        assert threat == dict(norm=norm, eps=eps, step_size=eps / 4, steps=2)


def test_results_of_other_images_are_kept_beside(tmp_path):
    """Under one name: those of the same images are replaced, and those of which it is not known."""
    model = build("resnet8-x0.1")

    def add(accuracy, **of):
        results.add(tmp_path, [dict(data="photos", attack="pgd20", n=9, accuracy=accuracy) | of], model)
        return [row["accuracy"] for row in results.read(tmp_path)["results"]]

    assert add(0.1) == [0.1]
    assert add(0.2, data_sha256="a") == [0.2]
    assert add(0.3, data_sha256="b") == [0.2, 0.3]
    assert add(0.4, data_sha256="a") == [0.3, 0.4]
    assert add(0.5, data_sha256="b", attack="fgsm") == [0.3, 0.4, 0.5]
