"""Guided adversarial contrastive distillation (Bai et al., 2020): the paper's stage 1, features without a classifier.

Equation and line numbers are the paper's; every choice that it leaves open is numbered in docs/paper.md.
"""

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gacd import noise, ranks
from gacd.errors import InputError
from gacd.losses import at_least_float32, cross_entropy, kl, reweighted_nce, transport, weights
from gacd.memory import Bank, draw
from gacd.methods.base import Method
from gacd.models.base import Classifier, classify
from gacd.models.folding import attackable


class GACD(Method):
    """Pulls the student's embedding of x+ to the teacher's, and away from the teacher's of images of other classes.

    x+ is the image within eps that distorts the student's own features most; each pair counts by the teacher's
    probability of the true class. Afterwards `gacd probe` fits a classifier, and `gacd train pgdat --init` tunes it.

    Args:
        k: negatives per anchor, from other classes (Eq. 10); 16384 if absent, or of a smaller set all that there are.
        temperature: T of the estimation model h.
        dim: d, of the embeddings.
        projection: of the teacher's features: "fixed", a random linear map centred on the first batch, or "trained",
            with which teacher and student flee the banks' older embeddings together, until all are one.
        bank_momentum: of the banks: how much of an old row stays.
        direction: who is the anchor: "teacher", "student", or "both", their sum.
        normalize: divide exp(t's/T) by the constant Z, estimated on the first batch; off is the paper's letter.
        weights: of the pairs: the teacher's "probability" of the true class, 1 where it is "correct" and 0 elsewhere,
            or "none": the paper's ablation.
        teacher_input: what the teacher embeds, "adversarial" (x+, Algorithm 1) or "natural" (x).
        distance: that x+ maximises between the student's features of x and x+: "ot", "cosine", "l2", "kl".
        ce: weight of a cross-entropy on x+ that trains the student's classifier too; 0 is the paper's.
        eps: radius of the Linf ball, in pixel units.
        step_size: of the attack, in pixel units.
        steps: of the attack, from a uniform random start.
    """

    log_z: Tensor
    begun: Tensor

    def __init__(
        self,
        student: Classifier,
        teacher: Classifier,
        labels: Tensor | None = None,
        *,
        k: int | None = None,
        temperature: float = 0.1,
        dim: int = 128,
        projection: Literal["fixed", "trained"] = "fixed",
        bank_momentum: float = 0.5,
        direction: Literal["both", "teacher", "student"] = "both",
        normalize: bool = True,
        weights: Literal["probability", "correct", "none"] = "probability",
        teacher_input: Literal["adversarial", "natural"] = "adversarial",
        distance: Literal["ot", "cosine", "l2", "kl"] = "ot",
        ce: float = 0.0,
        eps: float = 8 / 255,
        step_size: float = 2 / 255,
        steps: int = 10,
    ):
        if labels is None:
            raise InputError("GACD needs the training labels", "labels", "they choose negatives from other classes")
        for role, network in (("student", student), ("teacher", teacher)):
            missing = [name for name in ("features", "feature_dim", "head") if not hasattr(network, name)]
            if missing:
                what = f"GACD needs features: the {role} has no {', '.join(missing)}"
                raise InputError(what, type(network).__name__, "load it as ARCH:FILE")
        counts = labels.bincount()
        if k is not None and not 1 <= k <= len(labels):
            raise InputError(f"k must be between 1 and the size of the training set, {len(labels)}", f"k = {k}")
        if not temperature > 0:
            raise InputError("temperature must be > 0", f"temperature = {temperature}", "the paper has 0.1")
        if dim < 1 or not 0 <= bank_momentum < 1:
            raise InputError("dim must be >= 1 and bank_momentum in [0,1)", f"{dim}, {bank_momentum}")
        if int(counts.max()) == len(labels):
            raise InputError("no negatives: all training images are of one class", "labels")
        super().__init__(student, teacher, labels)
        self.k = min(k or 16384, len(labels) - int(counts.max()))
        self.temperature, self.bank_momentum, self.projection = temperature, bank_momentum, projection
        self.direction, self.normalize = direction, normalize
        self.weights, self.teacher_input, self.distance, self.ce = weights, teacher_input, distance, ce
        self.eps, self.step_size, self.steps = eps, step_size, steps
        self.trains_head = ce > 0
        self.embed_t, self.embed_s = nn.Linear(teacher.feature_dim, dim), nn.Linear(student.feature_dim, dim)
        self.embed_t.requires_grad_(projection == "trained")
        self.register_buffer("begun", torch.tensor(False))
        self.bank_t, self.bank_s = Bank(len(labels), dim, "teacher"), Bank(len(labels), dim, "student")
        self.register_buffer("log_z", torch.full((2,), math.nan))  # of the teacher's and the student's direction

    def attack(self, x, y, index=None):
        """x+: distorts the student's penultimate features most, label unseen (Implementation Details)."""
        with attackable(self.student, x) as student:
            f = student.features(x).detach()  # no_grad here would leave autocast's cached weights without a graph
            return self.ascend(
                x,
                lambda z: DISTANCES[self.distance](student.features(z), f),
                x + self.eps * self.noise(x, index, "uniform", "start"),
            )

    def forward(self, x, y, index=None):
        if index is None:
            raise InputError("GACD needs index, the images' positions in the training set", "forward(x, y, index)")
        x_adv = self.attack(x, y, index)
        with torch.no_grad():
            f_t = self.teacher.features(x_adv if self.teacher_input == "adversarial" else x)
            w = weights(classify(self.teacher, f_t), y, self.weights)  # w_t of Eq. 9
        f_s = self.student.features(x_adv)
        with torch.autocast(x.device.type, enabled=False):  # the products are float32
            if not self.begun:
                self.begin(at_least_float32(f_t), at_least_float32(f_s))
            t = F.normalize(self.embed_t(at_least_float32(f_t)), dim=1)
            s = F.normalize(self.embed_s(at_least_float32(f_s)), dim=1)
            nce = self.contrast(t, s, y, w)
            everyone = ranks.gather(index)
            self.bank_t.update(everyone, ranks.gather(t), self.bank_momentum)
            self.bank_s.update(everyone, ranks.gather(s), self.bank_momentum)
        values = dict(loss=nce.mean(), cosine=(t * s).sum(1).mean().detach(), weight=w.mean())
        if self.ce:
            values["ce"] = cross_entropy(classify(self.student, f_s), y).mean()
            values["loss"] = values["loss"] + self.ce * values["ce"]
        return values

    @torch.no_grad()
    def begin(self, f_t: Tensor, f_s: Tensor) -> None:
        """Centres the embeddings on the first batch: features are not negative, so their mean would dominate them."""
        if self.projection == "fixed":
            for embed, f in ((self.embed_t, f_t), (self.embed_s, f_s)):
                embed.bias.copy_(-embed.weight @ ranks.gather(f).mean(0))
        self.begun.fill_(True)

    def contrast(self, t: Tensor, s: Tensor, y: Tensor, w: Tensor) -> Tensor:
        """Eq. 9, negated, summed over the directions.

        Args:
            t, s: (B,d) unit-norm embeddings of teacher and student.
            y: (B,) labels.
            w: (B,) weights.

        Returns:
            (B,) losses.
        """
        columns, keep = draw(self.labels, y, self.k, noise.key(self.clock.seed, "negatives", self.clock.step))
        keep, loss = keep.to(t.dtype), torch.zeros_like(w)
        for i, (side, anchor, bank) in enumerate((("teacher", t, self.bank_s), ("student", s, self.bank_t))):
            if self.direction in (side, "both"):
                rows = bank.rows.index_select(0, columns)  # a copy: the banks change before backward
                positive, negatives = self.log_odds(anchor, (t * s).sum(1), rows, keep, i)
                loss = loss + reweighted_nce(positive, negatives, keep, w)
        return loss

    def log_odds(
        self, anchor: Tensor, cosine: Tensor, rows: Tensor, keep: Tensor, direction: int
    ) -> tuple[Tensor, Tensor]:
        """u = a'b/T - log Z - log(k/M), so that h = sigmoid(u) is the paper's estimation model.

        Args:
            anchor: (B,d) unit-norm embeddings.
            cosine: (B,) with their positives.
            rows: (L,d) of the other side's bank.
            keep: (B,L) mask of the anchor's negatives, which with the positive give Z on the first batch.
            direction: 0 for the teacher as the anchor, 1 for the student.

        Returns:
            u of the positives (B,) and of all columns (B,L).
        """
        if self.normalize and bool(self.log_z[direction].isnan()):
            with torch.no_grad():
                scores = ranks.gather((anchor @ rows.T / self.temperature).masked_fill(keep == 0, -math.inf))
                scores = torch.cat([scores.flatten(), ranks.gather(cosine) / self.temperature])
                count = len(scores) - (scores == -math.inf).sum()
                self.log_z[direction] = scores.logsumexp(0) - count.double().log() + math.log(len(self.labels))
        shift = -math.log(self.k / len(self.labels)) - (self.log_z[direction] if self.normalize else 0.0)
        shift = torch.as_tensor(shift, dtype=anchor.dtype, device=anchor.device)
        return cosine / self.temperature + shift, torch.addmm(shift, anchor, rows.T, alpha=1 / self.temperature)


DISTANCES = {
    "ot": transport,
    "cosine": lambda a, b: 1 - F.cosine_similarity(at_least_float32(a), at_least_float32(b)),
    "l2": lambda a, b: (at_least_float32(a) - at_least_float32(b)).square().sum(1),
    "kl": lambda a, b: kl(b, a),
}
