"""Defensive distillation (Papernot et al., 2016), and what the default command says of it."""

import json

import torch
import torch.nn.functional as F

from gacd import checkpoint
from gacd import data as datasets
from gacd.cli import main
from gacd.models import build

TEMPERATURE = 100


def fitted(x, targets, images):
    """A network trained at the temperature; used without it, its logits are a hundred times what they need to be."""
    model = build("resnet8-x0.5", 10, images.mean, images.std)
    head = list(model.head.parameters())
    trunk = [p for name, p in model.named_parameters() if not name.startswith(model.head_name)]
    optimizer = torch.optim.Adam([dict(params=trunk, lr=3e-3), dict(params=head, lr=0.3)])
    for epoch in range(5):
        for where in torch.randperm(len(x), generator=torch.Generator().manual_seed(epoch)).split(64):
            loss = F.cross_entropy(model(x[where]) / TEMPERATURE, targets[where])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.eval()


def distilled(run):
    """A run's directory, with a network trained on the soft labels of another."""
    torch.manual_seed(0)
    images = datasets.load("digits")
    x = datasets.pixels(images.train.images)
    teacher = fitted(x, F.one_hot(images.train.labels, 10).float(), images)
    with torch.no_grad():
        soft = (teacher(x) / TEMPERATURE).softmax(1)
    student = fitted(x, soft, images)
    payload = dict(model=student.config(), weights=student.state_dict(), record=dict(data="digits"))
    checkpoint.write(run / "checkpoints/best.pt", payload)
    return run


def evaluated(run):
    """Attack -> accuracy, as the default command has it."""
    assert main(["evaluate", str(run), "--precision", "32", "--device", "cpu", "--eps", "0.2", "--n", "100"]) == 0
    return {row["attack"]: row["accuracy"] for row in json.loads((run / "results.json").read_text())["results"]}
