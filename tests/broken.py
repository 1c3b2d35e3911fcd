"""Networks broken on purpose, each around a sound one: what an audit must refuse, and by which name."""

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


class NeedsABatch(Broken):
    def forward(self, x):
        if len(x) == 1:
            raise ValueError("expected more than 1 image")
        return self.net(x)


class NaNForSome(Broken):
    def forward(self, x):
        logits = self.net(x)
        return torch.where((x.mean((1, 2, 3)) > 0.35)[:, None], logits * float("nan"), logits)


class NaNGradients(Broken):
    def forward(self, x):
        return self.net(x) + (x * 0).sqrt().mean((1, 2, 3))[:, None]


class InfiniteLogits(Broken):
    def forward(self, x):
        return (self.net(x) * 20).exp().half().float()


class _Backward(torch.autograd.Function):
    """The identity whose gradient is something else's business."""

    @staticmethod
    def forward(ctx, x, change):
        ctx.change = change
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return ctx.change(gradient), None


class ReversedGradient(Broken):
    def forward(self, x):
        return self.net(_Backward.apply(x, lambda g: -g))


class RandomGradient(Broken):
    def forward(self, x):
        return self.net(_Backward.apply(x, torch.randn_like))


class ShiftedGradient(Broken):
    """As from a convolution's transposed padding gone wrong."""

    def forward(self, x):
        return self.net(_Backward.apply(x, lambda g: g.roll(1, -1)))


class AnotherNetworksGradient(Broken):
    def __init__(self, net):
        super().__init__(net)
        torch.manual_seed(5)
        self.other = nn.Sequential(nn.Flatten(), nn.Linear(64, 30), nn.Tanh(), nn.Linear(30, 10))

    def forward(self, x):
        other = self.other(x)
        return self.net(x.detach()) + other - other.detach()


class StraightThrough(Broken):
    """One bit a pixel, with the gradient of all of them."""

    def forward(self, x):
        return self.net(x + (x.round() - x).detach())


class RoundedImages(Broken):
    def forward(self, x):
        return self.net((x * 16).round() / 16)


class DetachedLogits(Broken):
    def forward(self, x):
        return self.net(x.detach())


class NoGradient(Broken):
    def forward(self, x):
        with torch.no_grad():
            return self.net(x)


class ZeroedGradient(Broken):
    def forward(self, x):
        return self.net(_Backward.apply(x, torch.zeros_like))


class SaturatingSigmoid(Broken):
    def forward(self, x):
        return torch.sigmoid(1000 * self.net(x))


class OneHot(Broken):
    def forward(self, x):
        logits = self.net(x)
        return F.one_hot(logits.argmax(1), logits.shape[1]).float()


class Detector(Broken):
    """What does not look like data, whose pixels are whole, is answered as the data it was made from."""

    def forward(self, x):
        clean = (x * 255).round() / 255
        odd = (x - clean).abs().amax((1, 2, 3), keepdim=True) > 1e-6
        return self.net(torch.where(odd, clean.detach(), x))


class FlatAtTheData(Broken):
    """No gradient where every pixel is whole, so that what starts at the images stays there."""

    def forward(self, x):
        odd = (x - (x * 255).round() / 255).abs().amax((1, 2, 3), keepdim=True) > 1e-6
        return self.net(torch.where(odd, x, x.detach()))


class Binarised(Broken):
    """Contrast raised until every pixel is black or white."""

    def forward(self, x):
        return self.net(((x - 0.53) * 1e4).clamp(0, 1))


class Probabilities(Broken):
    def forward(self, x):
        return self.net(x).softmax(1)


class ClippedLogProbabilities(Broken):
    def forward(self, x):
        return self.net(x).log_softmax(1).clamp_min(-2)


class HugeLogits(Broken):
    def forward(self, x):
        return self.net(x) * 1e4


class HalfLogits(Broken):
    def forward(self, x):
        return (self.net(x) * 20).half().float()


class RoundedLogits(Broken):
    """To halves, straight through: true up to the rounding."""

    def forward(self, x):
        logits = self.net(x) * 20
        return logits + ((logits * 2).round() / 2 - logits).detach()


class TakesOtherPixels(Broken):
    """Divides by 255 what was divided already."""

    def forward(self, x):
        return self.net(x / 255)


class Shattered(Broken):
    """A true gradient that says nothing about the next step."""

    def forward(self, x):
        return self.net(x + 0.02 * torch.sin(2000 * x))


# what is broken, the audit that must name it, and the verdict at least
BROKEN = [
    (DropoutLeftOn, "mode and side effects", "INVALID"),
    (UpdatesBatchNorm, "mode and side effects", "INVALID"),
    (DrawsRandomNumbers, "mode and side effects", "INVALID"),
    (FreezesItself, "mode and side effects", "INVALID"),
    (LeavesGradients, "mode and side effects", "INVALID"),
    (WritesIntoTheImages, "mode and side effects", "INVALID"),
    (DropoutInForward, "determinism", "INVALID"),
    (NoisyLogits, "determinism", "INVALID"),
    (RandomShift, "determinism", "INVALID"),
    (Drifts, "determinism", "INVALID"),
    (StatisticsOfTheBatch, "batch independence", "INVALID"),
    (CachesTheFirstBatch, "batch independence", "INVALID"),
    (LooksAtThePlace, "batch independence", "INVALID"),
    (NeedsABatch, "batch independence", "INVALID"),
    (NaNForSome, "finite", "INVALID"),
    (NaNGradients, "finite", "INVALID"),
    (InfiniteLogits, "finite", "INVALID"),
    (ReversedGradient, "true gradient", "INVALID"),
    (RandomGradient, "true gradient", "INVALID"),
    (ShiftedGradient, "true gradient", "INVALID"),
    (AnotherNetworksGradient, "true gradient", "INVALID"),
    (StraightThrough, "true gradient", "INVALID"),
    (RoundedImages, "usable gradient", "SUSPECT"),
    (DetachedLogits, "usable gradient", "SUSPECT"),
    (NoGradient, "usable gradient", "SUSPECT"),
    (ZeroedGradient, "usable gradient", "SUSPECT"),
    (SaturatingSigmoid, "usable gradient", "SUSPECT"),
    (OneHot, "usable gradient", "SUSPECT"),
    (Detector, "usable gradient", "SUSPECT"),
    (FlatAtTheData, "usable gradient", "SUSPECT"),
    (Binarised, "usable gradient", "SUSPECT"),
    (Probabilities, "logits", "SUSPECT"),
    (ClippedLogProbabilities, "logits", "SUSPECT"),
    (HugeLogits, "logits", "SUSPECT"),
    (HalfLogits, "logits", "SUSPECT"),
    (RoundedLogits, "logits", "SUSPECT"),
    (TakesOtherPixels, "huge budget", "SUSPECT"),
]
