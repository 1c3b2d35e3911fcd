"""Which feature maps are computed in windows, how much that saves, and what is computed whole."""

import pytest
import torch
from test_local import changed, network, pictures, squares
from torch import nn
from torch.nn import functional as F

from gacd.attacks.local import Local, localised
from gacd.cost import Operations
from gacd.models.base import Classifier
from gacd.models.folding import attackable


@torch.no_grad()
@pytest.mark.parametrize(("name", "share"), [("resnet20", 0.75), ("wrn-10-1", 0.5), ("resnet18-x0.25", 0.75)])
def test_far_less_is_computed(name, share):
    model, x, slot = network(name), pictures(2), torch.arange(2)
    with attackable(model, x) as quick:
        found = localised(quick, x, 1)
        found(x, slot, torch.tensor([[0, 0, 32]]).expand(2, 3))
        found.keep(slot)
        counts = []
        for ask in (lambda: quick(x), lambda: found(x, slot, torch.tensor([[9, 14, 3]]).expand(2, 3))):
            with Operations() as counter:
                ask()
            counts.append(counter.total)
    assert counts[1] < share * counts[0]


class Odd(Classifier):
    """Asks for one thing after another that must be computed whole, or has windows of its own."""

    def __init__(self):
        super().__init__("odd", (0.4, 0.5, 0.6), (0.2, 0.3, 0.25))
        self.first = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.SiLU())
        self.steps = nn.ModuleList(
            [
                nn.Conv2d(4, 4, 3, 2, 1, groups=2),
                nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, 2, 1)),
                nn.Conv2d(4, 4, 1, 2),
                nn.Conv2d(4, 4, 3, padding=1, dilation=2),
                nn.Conv2d(4, 4, 3),
                nn.Conv2d(4, 4, 5, padding=2),
                nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"),
                nn.Conv2d(4, 4, 3, 3, 1),
                nn.MaxPool2d(3, 1, 1),
                nn.BatchNorm2d(4, track_running_stats=False),
            ]
        )
        self.further = nn.Conv2d(4, 4, 3, padding=1)
        self.place = nn.Parameter(torch.randn(4, 32, 32))
        self.head = nn.Linear(80, 10)

    def maps(self, x):
        x = self.first(x)
        found = [step(x) for step in self.steps]
        found += [F.avg_pool2d(x, 2, 2), F.avg_pool2d(x, 1, 3), F.avg_pool2d(x, 1, 2)]
        found += [x / self.place.exp(), x.add(self.place), torch.cat([x, x.flip(1)], 1)]
        y = x + 1
        y += self.further(x)  # in place, where it is changed in a smaller square
        z = F.silu(x)
        z += self.further(z)
        found += [y, z, self.further(x) + x]
        return torch.cat([each.flatten(2).mean(2) for each in found], 1)[:, :, None, None]


@torch.no_grad()
def test_what_looks_further_is_computed_whole():
    torch.manual_seed(0)
    model, x, slot = Odd().double().eval(), pictures(9), torch.arange(9)
    found = Local(model, 9, (32, 32))
    for seed, side in enumerate((32, 4, 9, 1)):
        square = squares(9, 32, 32, seed)
        square[:, :2] = square[:, :2].minimum(torch.tensor(32 - side))
        square[:, 2] = side
        x = changed(x, square, seed)
        assert torch.allclose(found(x, slot, square), model(x), rtol=1e-9, atol=1e-9)
        found.keep(slot)
