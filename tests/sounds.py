"""Sound networks on the digits, what an evaluation says of one, and what an audit found."""

import torch

from gacd import data, noise
from gacd.attacks import ATTACKS, maximize
from gacd.losses import cross_entropy
from gacd.models import build

EPS = 0.1


def trained(digits, name, eps, *, epochs=2, seed=0, lr=0.1):
    model, x, y = fresh(digits, name, seed), data.pixels(digits.train.images), digits.train.labels
    optimiser = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, nesterov=True)
    for epoch in range(epochs):
        for rows in noise.permutation(noise.key(seed, epoch), len(y)).split(64):
            z, labels = x[rows], y[rows]
            if eps:
                model.eval()
                start = z + eps * (2 * noise.uniform(noise.key(seed, "start"), rows, tuple(z.shape[1:])) - 1)
                loss = lambda v, labels=labels: cross_entropy(model(v), labels)  # noqa: E731
                z = maximize(z, loss, eps=eps, step_size=0.8 * eps, steps=2, start=start)
            model.train()
            optimiser.zero_grad()
            cross_entropy(model(z), labels).mean().backward()
            optimiser.step()
    return model.eval()


def fresh(digits, name, seed):
    """Random weights, the batch norms' statistics those of the images."""
    torch.manual_seed(seed)
    model = build(name, 10, digits.mean, digits.std)
    with torch.no_grad():
        for _ in range(20):
            model(data.pixels(digits.train.images[:200]))
    return model.eval()


def verdicts(model, x, y, *names, norm="Linf", eps=EPS):
    """Masks and adversarial images as an evaluation would hand them over."""
    with torch.no_grad():
        correct, x_adv = {"natural": model(x).argmax(1) == y}, x.clone()
        for name in names:
            found = ATTACKS[name](model, x, y, norm=norm, eps=eps, step_size=eps / 4)
            right = model(found).argmax(1) == y
            correct[name] = correct["natural"] & right
            x_adv[~right] = found[~right]
    return dict(correct=correct, x_adv=x_adv)


def finding(result, name):
    return next(f for f in result.findings if f.name == name)
