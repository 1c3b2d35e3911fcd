"""Plain re-implementations of public training code, written for the comparison: its layout and loops, not its text."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn
from torch.nn import functional as F


class CRDMemory(nn.Module):
    """Contrastive representation distillation as RepDistiller lays it out (crd/memory.py, crd/criterion.py).

    One M x d memory a side; the positive and the k negatives of every anchor are rows of it, gathered into a
    B x (k+1) x d tensor a side and multiplied with the live anchors; exp(score / T) / Z with Z = mean(exp) * M of the
    first batch; h = P / (P + k/M); the memories are updated in the forward pass.

    Args:
        size: M, the number of training images.
        dim: d, of the unit-norm embeddings.
        temperature: T.
        momentum: how much of an old row stays.
        tiny: added to the denominators of h before the logarithm; the public value is 1e-7.
    """

    def __init__(self, size: int, dim: int, *, temperature: float = 0.1, momentum: float = 0.5, tiny: float = 1e-7):
        super().__init__()
        self.temperature, self.momentum, self.tiny = temperature, momentum, tiny
        self.register_buffer("rows_s", F.normalize(torch.randn(size, dim), dim=1))
        self.register_buffer("rows_t", F.normalize(torch.randn(size, dim), dim=1))
        self.z: list[float] = []  # of the teacher's and the student's direction

    def forward(self, t: Tensor, s: Tensor, places: Tensor) -> Tensor:
        """The loss of both directions, a mean over the batch.

        Args:
            t, s: (B,d) embeddings of teacher and student.
            places: (B,k+1) rows of the memories, the anchor's own first.
        """
        sides = ((t, self.rows_s), (s, self.rows_t))
        p = [(self.scores(anchor, rows, places) / self.temperature).exp() for anchor, rows in sides]
        if not self.z:
            self.z = [float(q.detach().mean()) * len(self.rows_s) for q in p]
        loss = sum(self.nce(q / z) for q, z in zip(p, self.z, strict=True))
        self.update(self.rows_t, places[:, 0], t)
        self.update(self.rows_s, places[:, 0], s)
        return loss

    def scores(self, anchor: Tensor, rows: Tensor, places: Tensor) -> Tensor:
        """Cosines of the anchors (B,d) with their own rows: (B,k+1)."""
        gathered = rows.index_select(0, places.flatten()).view(*places.shape, -1)
        return torch.bmm(gathered, anchor[:, :, None])[:, :, 0]

    def nce(self, p: Tensor) -> Tensor:
        """-log h of the first column - the sum of log(1 - h) of the others, a mean over p's rows (B,k+1)."""
        noise = (p.shape[1] - 1) / len(self.rows_s)
        positive = (p[:, 0] / (p[:, 0] + noise + self.tiny)).log()
        negatives = (noise / (p[:, 1:] + noise + self.tiny)).log()
        return -(positive.sum() + negatives.sum()) / len(p)

    @torch.no_grad()
    def update(self, rows: Tensor, index: Tensor, embeddings: Tensor) -> None:
        mixed = self.momentum * rows.index_select(0, index) + (1 - self.momentum) * embeddings
        rows.index_copy_(0, index, mixed / mixed.norm(dim=1, keepdim=True))


class ClassPools:
    """CRD's drawing of negatives in the data set's `__getitem__` (RepDistiller, dataset/cifar100.py).

    For every image numpy draws k from the pool of the other classes' images, with replacement only where the pool is
    smaller than k; the loader stacks them.

    Args:
        labels: (M,) of the training set.
        k: negatives per image.
        seed: of numpy's generator, the legacy one, as there.
    """

    def __init__(self, labels: Sequence[int], k: int, seed: int = 0):
        self.labels, self.k, self.random = np.asarray(labels), k, np.random.RandomState(seed)
        self.pools = [np.flatnonzero(self.labels != c) for c in range(int(self.labels.max()) + 1)]

    def one(self, index: int) -> np.ndarray:
        pool = self.pools[self.labels[index]]
        return np.hstack(([index], self.random.choice(pool, self.k, replace=self.k > len(pool))))

    def batch(self, index: Tensor) -> Tensor:
        """Positions (B,) -> places (B,k+1), each image's own first."""
        return torch.stack([torch.from_numpy(self.one(i)) for i in index.tolist()])


class PILImages(torch.utils.data.Dataset):
    """Images as the usual CIFAR scripts read them: per image PIL, a crop after padding by 4, a flip, to float.

    Args:
        images: (N,C,H,W) uint8 with C = 3.
        labels: (N,).
    """

    def __init__(self, images: Tensor, labels: Tensor):
        self.images, self.labels = images.permute(0, 2, 3, 1).contiguous().numpy(), labels.tolist()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        image = Image.fromarray(self.images[i])
        width, height = image.size
        left, top = torch.randint(0, 9, (2,)).tolist()
        image = ImageOps.expand(image, 4).crop((left, top, left + width, top + height))
        if float(torch.rand(1)) < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float().div(255), self.labels[i]


def ard_loss(
    student: nn.Module,
    teacher: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    temperature: float = 30.0,
    steps: int = 10,
    parameter_gradients: bool = False,
    start: Tensor | None = None,
) -> Tensor:
    """Adversarially robust distillation's loop as its authors published it (main.py), alpha 1.

    PGD on the cross-entropy with the student in train mode, float32 and contiguous; the student also sees x, whose
    cross-entropy counts (1 - alpha) = 0 but is computed and differentiated; the KL is averaged over batch and classes.

    Args:
        student: in train mode.
        teacher: in eval mode, its parameters without `requires_grad`.
        x: (B,C,H,W) in [0,1].
        y: (B,).
        temperature: by which both logits are divided.
        steps: of 2/255 within 8/255.
        parameter_gradients: the attack calls `backward`, which computes them too, and clears them, as many training
            scripts do; ARD's own calls `autograd.grad`.
        start: of the attack; uniform in the ball if absent.
    """
    eps, step_size = 8 / 255, 2 / 255
    x_adv = x + torch.empty_like(x).uniform_(-eps, eps) if start is None else start
    for _ in range(steps):
        x_adv = x_adv.detach().requires_grad_()
        loss = F.cross_entropy(student(x_adv), y, reduction="sum")
        if parameter_gradients:
            student.zero_grad()
            loss.backward()
            gradient = x_adv.grad
        else:
            (gradient,) = torch.autograd.grad(loss, x_adv)
        x_adv = x_adv.detach() + step_size * gradient.sign()
        x_adv = torch.min(torch.max(x_adv, x - eps), x + eps).clamp(0, 1)
    if parameter_gradients:
        student.zero_grad()
    log_s = (student(x_adv) / temperature).log_softmax(1)
    target = (teacher(x) / temperature).softmax(1)
    soft = F.kl_div(log_s, target, reduction="none").mean()
    return temperature**2 * soft + 0.0 * F.cross_entropy(student(x), y)
