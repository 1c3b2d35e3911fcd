"""The searched network under torch.compile: what fails in it is said, and it is the same network."""

from functools import partial

import pytest
import torch
from functorch.compile import make_boxed_func
from test_folding import images, learn
from torch._dynamo.backends.common import aot_autograd

from gacd.attacks import evaluating
from gacd.errors import InputError
from gacd.evaluation import evaluate
from gacd.models import build
from gacd.models.folding import attackable


@pytest.mark.parametrize("when", ["made", "called", "called back"])
def test_what_cannot_be_compiled_is_said(monkeypatch, when):
    """Whatever the error's type, and whether the compiler raises it, its code, or that code's backward."""

    def fails(*args):
        raise AssertionError("expected size 16\nand stride 1")

    def backend(graph, inputs):
        return fails if when == "called" else fails()

    if when == "called back":
        backward = make_boxed_func(fails)
        backend = aot_autograd(fw_compiler=lambda graph, _: make_boxed_func(graph), bw_compiler=lambda *_: backward)
    model = build("resnet8-x0.25").eval()
    with torch.no_grad():
        y = model(images()).argmax(1)  # or there is nothing to attack
    torch._dynamo.reset()  # it gives up on code that it has compiled eight times
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    with pytest.raises(InputError, match=r"torch.compile fails .*: .*size 16 and stride 1.*\(leave out --compile"):
        evaluate(model, (images(), y), ["fgsm"], compile=True)


def test_other_errors_of_a_compiled_search_are_not_the_compiler_s(monkeypatch):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    model, x = build("resnet8-x0.25"), images()
    for error in (KeyError("a bug"), torch.OutOfMemoryError("full"), InputError("no", "such")):
        with pytest.raises(type(error)), attackable(model, x, compile=True):
            raise error


def test_what_is_compiled_is_the_network_without_its_parameters_gradients(monkeypatch):
    asked = []

    def compiled(model, **options):
        asked.append([parameter.requires_grad for parameter in model.parameters()])
        return whole(model, backend="aot_eager", **options)

    whole = torch.compile
    monkeypatch.setattr(torch, "compile", compiled)
    model, x, y = build("resnet8-x0.25"), images(), torch.arange(8)
    learn(model)
    before = model.state_dict()
    with attackable(model, x, compile=True) as quick, evaluating(model):
        found = []
        for network in (quick, model):
            z = x.clone().requires_grad_()
            logits = network(z)
            found.append((logits, *torch.autograd.grad(logits.gather(1, y[:, None]).sum(), z)))
    assert not any(asked[0]) and all(parameter.requires_grad for parameter in model.parameters())
    assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-3) for a, b in zip(*found, strict=True))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    results = [evaluate(model, (x, y), ["pgd3"], eps=0.01, compile=compile) for compile in (True, False)]
    assert len(asked) == 2 and torch.equal(*[torch.stack(list(result.correct.values())) for result in results])
