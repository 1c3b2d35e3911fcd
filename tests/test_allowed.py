"""Quick audits: what looks like trouble and is none, beside what is."""

import torch
from broken import Broken, HugeLogits, MoreContrast
from sounds import EPS, finding, trained, verdicts
from torch import nn

from gacd import data
from gacd.audit import audit


class Framed(Broken):
    """Sees nothing of the frame, a pixel wide."""

    def forward(self, x):
        return self.net(nn.functional.pad(x[..., 1:-1, 1:-1], (1, 1, 1, 1)))


def test_pixels_without_a_gradient_are_moved_and_only_where_it_matters_held_against_it(digits):
    net = trained(digits, "resnet8-x0.25", 0, epochs=4, seed=1)
    x, y = data.pixels(digits.test.images[:100]), digits.test.labels[:100]
    for kind, outcome, says in ((MoreContrast, "suspect", "59%"), (Framed, "passed", "44%")):
        model = kind(net).eval()
        found = finding(
            audit(model, x, y, eps=EPS, chunk=50, **verdicts(model, x, y, "pgd", "margin")), "usable gradient"
        )
        assert (found.outcome, found.says[: len(says)]) == (outcome, says)
        assert "of the pixels have no gradient; moved towards grey they break" in found.says
    assert (
        finding(audit(MoreContrast(net).eval(), x, y, norm="L2", eps=0.3, chunk=50), "usable gradient").outcome
        == "passed"
    )
    result = audit(HugeLogits(Framed(net)).eval(), x, y, eps=EPS, chunk=50)  # whose PGD-20 leaves what any margin beats
    assert finding(result, "logits").outcome == "suspect"
    assert finding(result, "usable gradient").outcome == "passed"


class Remembers(Broken):
    """Makes what it needs at its first forward."""

    def forward(self, x):
        if not hasattr(self, "ones"):
            self.register_buffer("ones", torch.ones_like(x[:1]), persistent=False)
        return self.net(x * self.ones)


class Hoards(Broken):
    """Keeps something of every forward."""

    def forward(self, x):
        self.register_buffer(f"of{len(list(self.buffers()))}", torch.ones(1), persistent=False)
        return self.net(x)


def test_what_a_first_forward_adds_is_no_side_effect_what_each_does_is(sound, images):
    for kind, verdict in ((Remembers, "TRUSTED"), (Hoards, "INVALID")):
        assert audit(kind(sound).eval(), *images, eps=EPS, chunk=30, only=["mode and side effects"]).verdict == verdict
