"""Logits and gradients that are none, or that say nothing."""

import torch
from torch import nn
from torch.nn import functional as F

from broken.forwards import Broken, beside_a_masked_class


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


class MoreContrast(Broken):
    """Pixels that are clipped have no gradient."""

    def forward(self, x):
        return self.net((1.1 * (x - 0.5) + 0.5).clamp(0, 1))


class Probabilities(Broken):
    def forward(self, x):
        return self.net(x).softmax(1)


class ProbabilitiesBesideAMaskedClass(Probabilities):
    def forward(self, x):
        return beside_a_masked_class(super().forward(x))


class ClippedLogProbabilities(Broken):
    def forward(self, x):
        return self.net(x).log_softmax(1).clamp_min(-2)


class HugeLogits(Broken):
    def forward(self, x):
        return self.net(x) * 1e4


class HalfLogits(Broken):
    def forward(self, x):
        return (self.net(x) * 20).half().float()


class HalfLogitsBesideAMaskedClass(HalfLogits):
    def forward(self, x):
        return beside_a_masked_class(super().forward(x))


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
