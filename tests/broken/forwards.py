"""What a forward must not do: write, draw, remember, look at its neighbours."""

import torch
from torch import nn
from torch.nn import functional as F


class Broken(nn.Module):
    """A sound network, to be spoilt by a subclass."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x)


class DropoutLeftOn(Broken):
    def __init__(self, net):
        super().__init__(net)
        self.dropout = nn.Dropout(0.3)

    def train(self, mode=True):
        super().train(mode)
        self.dropout.training = True
        return self

    def forward(self, x):
        return self.net(self.dropout(x))


class DropoutInForward(Broken):
    def forward(self, x):
        return self.net(F.dropout(x, 0.1, training=True))


class UpdatesBatchNorm(Broken):
    def forward(self, x):
        if len(x) > 1:
            self.net.bn1.running_mean += 1e-3 * (x.mean() - self.net.bn1.running_mean).detach()
        return self.net(x)


class DrawsRandomNumbers(Broken):
    def forward(self, x):
        torch.rand(1)
        return self.net(x)


class FreezesItself(Broken):
    def forward(self, x):
        self.net.head.weight.requires_grad_(False)
        return self.net(x)


class LeavesGradients(Broken):
    def forward(self, x):
        with torch.enable_grad():
            F.cross_entropy(self.net(x.detach()), torch.zeros(len(x), dtype=torch.int64)).backward()
        return self.net(x)


class WritesIntoTheImages(Broken):
    def forward(self, x):
        with torch.no_grad():
            x.data.mul_(0.999)
        return self.net(x)


class NoisyLogits(Broken):
    def forward(self, x):
        logits = self.net(x)
        return logits + 0.1 * torch.randn_like(logits)


class RandomShift(Broken):
    def forward(self, x):
        dy, dx = torch.randint(0, 3, (2,)).tolist()
        size = x.shape[-1]
        return self.net(F.pad(x, (1, 1, 1, 1))[..., dy : dy + size, dx : dx + size])


class Drifts(Broken):
    """State that is no buffer: a plain attribute."""

    calls = 0

    def forward(self, x):
        self.calls += 1
        return self.net(x) * (1 + 1e-3 * self.calls)


class StatisticsOfTheBatch(Broken):
    def forward(self, x):
        return self.net((x - x.mean()) / x.std() * 0.3755 + 0.305)


class CachesTheFirstBatch(Broken):
    def __init__(self, net):
        super().__init__(net)
        self.kept = {}

    def forward(self, x):
        return self.kept.setdefault(x.shape, self.net(x))


class LooksAtThePlace(Broken):
    def forward(self, x):
        logits = self.net(x)
        return logits + torch.linspace(0, 1, len(x))[:, None] * torch.eye(logits.shape[1])[0]


def beside_a_masked_class(logits):
    """A class more, masked as some do it; what differs elsewhere is nothing beside such a number."""
    return F.pad(logits, (0, 1), value=-1e9)


class StatisticsBesideAMaskedClass(StatisticsOfTheBatch):
    def forward(self, x):
        return beside_a_masked_class(super().forward(x))


class PlaceBesideAMaskedClass(LooksAtThePlace):
    def forward(self, x):
        return beside_a_masked_class(super().forward(x))


class NeedsABatch(Broken):
    def forward(self, x):
        if len(x) == 1:
            raise ValueError("expected more than 1 image")
        return self.net(x)
