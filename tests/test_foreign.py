"""Foreign weights: every known wrapping loads to equal logits, anything else is refused in one line."""

import pytest
import torch
from torch import nn

from gacd.models import build
from gacd.models.foreign import from_state

NAMES = ("resnet8", "resnet18-x0.125", "wrn-10-1", "dm-wrn-10-1", "mobilenetv2-x0.25", "mobilenetv2-x0.5")
MEAN, STD = [0.4914, 0.4822, 0.4465], [0.2471, 0.2435, 0.2616]


def trained(name, num_classes=10, mean=MEAN, std=STD):
    """A network whose batch-norm statistics are not the initial ones, in eval mode."""
    torch.manual_seed(0)
    model = build(name, num_classes, mean, std)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model.eval()


def drop(state, *keys):
    return {k: v for k, v in state.items() if k not in keys}


def prefixed(state, prefix):
    return {prefix + k: v for k, v in state.items()}


@pytest.mark.parametrize("name", NAMES)
def test_foreign_weights_of_every_family(name):
    model, x = trained(name, 7), torch.rand(2, 3, 8, 8)
    loaded, notes = from_state(name.upper(), {"net": prefixed(model.state_dict(), "module.")})
    assert notes == [
        "weights read from 'net'",
        "prefix 'module.' removed from the names",
        "mean from the file, 0.4914 0.4822 0.4465",
        "std from the file, 0.2471 0.2435 0.2616",
        f"{name}: 7 classes, 3 channels",
    ]
    assert torch.equal(loaded(x), model(x))
    assert loaded.config() == model.config()


@pytest.mark.parametrize(
    ("change", "note"),
    [
        (lambda s: s, "mean from the file"),
        (lambda s: prefixed(s, "module."), "'module.'"),
        (lambda s: prefixed(s, "module.model.module."), "removed"),
        (lambda s: prefixed(s, "backbone."), "'backbone.'"),
        (lambda s: {"epoch": 3, "state_dict": prefixed(s, "module.")}, "'state_dict'"),
        (lambda s: {"net": s, "acc": 0.5}, "'net'"),
        (lambda s: {"model": {"model_state_dict": s}}, "'model_state_dict'"),
        (lambda s: drop(s, *(k for k in s if k.endswith("num_batches_tracked"))), "std from the file"),
        (lambda s: s | {"gone.num_batches_tracked": torch.tensor(3)}, "std from the file"),
        (lambda s: s | {"sub_block1.layer.0.bn1.weight": torch.ones(3)}, "1 unused entries of sub_block1"),
        (lambda s: drop(s, "mean", "std") | {"mu": s["mean"], "sigma": s["std"][None]}, "mean from the file"),
        (
            lambda s: {
                **prefixed(drop(s, "mean", "std"), "model."),
                "normalize.mean": s["mean"].flatten(),
                "normalize.std": s["std"][None],
            },
            "std from the file, 0.2471",
        ),
        (
            lambda s: {**prefixed(drop(s, "mean", "std"), "1."), "0.mean": s["mean"], "0.std": s["std"]},
            "prefix '0.', '1.'",
        ),
        (lambda s: {k: v.double() if v.is_floating_point() else v for k, v in s.items()}, "float64 converted"),
    ],
)
def test_foreign_weights_give_equal_logits(change, note):
    model, x = trained("wrn-10-1", 7), torch.rand(2, 3, 8, 8)
    loaded, notes = from_state("wrn-10-1", change(model.state_dict()))
    assert not loaded.training
    assert torch.equal(loaded(x), model(x))
    assert loaded.config() == model.config()
    assert any(note in line for line in notes), notes


def test_foreign_weights_are_copied_and_trainable():
    model = trained("resnet8", 4, [0.3], [0.4])
    loaded, notes = from_state("resnet8", model.state_dict())
    assert notes[-1] == "resnet8: 4 classes, 1 channel"
    assert all(p.requires_grad and p.dtype == torch.float32 and not p.is_meta for p in loaded.parameters())
    theirs = {t.data_ptr() for t in model.state_dict().values()}
    assert not theirs & {t.data_ptr() for t in loaded.state_dict().values()}


def test_foreign_normalisation():
    model = trained("resnet8")
    state = model.state_dict()
    bare = drop(state, "mean", "std")
    identity, notes = from_state("resnet8", bare)
    assert (identity.config()["mean"], identity.config()["std"]) == ([0, 0, 0], [1, 1, 1])
    assert any("no mean and std" in line for line in notes)
    given, notes = from_state("resnet8", state, mean=[0.5, 0.5, 0.5], std=[0.25, 0.25, 0.25])
    assert given.config()["mean"] == [0.5, 0.5, 0.5]
    assert sum("overrides the file" in line for line in notes) == 2
    one, _ = from_state("resnet8", bare | {"mu": torch.tensor(0.5), "sigma": torch.full((1, 1, 1, 1), 0.25)})
    assert one.config()["std"] == [0.25, 0.25, 0.25]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: {}, "no weights"),
        (lambda s: [s], "not a state_dict: list"),
        (lambda s: s | {"epoch": 3}, "not dense floating-point tensors: epoch"),
        (lambda s: s | {3: s["mean"]}, "not dense floating-point tensors: 3"),
        (lambda s: s | {"fc.weight": s["fc.weight"].to_sparse()}, "not dense.*fc.weight"),
        (lambda s: s | {"fc.bias": torch.ones(10, dtype=torch.int8)}, "not dense.*fc.bias"),
        (lambda s: s | {"fc.bias": torch.ones(10, dtype=torch.complex64)}, "not dense.*fc.bias"),
        (lambda s: s | {"fc.bias": torch.full((10,), torch.nan)}, "not finite: fc.bias"),
        (lambda s: s | {"fc.bias": torch.full((10,), 1e300, dtype=torch.float64)}, "not finite: fc.bias"),
        (lambda s: drop(s, "fc.weight"), "fc.weight is missing: found conv1.weight, bn1.weight, bn1.bias and"),
        (lambda s: drop(s, "bn1.bias"), "missing bn1.bias"),
        (lambda s: s | dict.fromkeys("abcde", s["mean"]), "unexpected a, b, c and 2 more"),
        (lambda s: s | {"fc.bias": torch.ones(3)}, "fc.bias is 3, not 10"),
        (lambda s: s | {"conv1.weight": torch.ones(16, 27)}, "conv1.weight is 16x27"),
        (lambda s: s | {"module.conv1.weight": s["conv1.weight"]}, "same name without their prefixes"),
        (lambda s: s | {"mu": s["mean"]}, "same name without their prefixes: mu"),
        (lambda s: drop(s, "std"), "only one of mean and std"),
        (lambda s: s | {"mean": torch.zeros(1, 1, 3)}, "mean does not fit 3 channels: 1x1x3"),
        (lambda s: s | {"mean": torch.full((3,), 125.3)}, r"mean is not that of pixels in \[0,1\]: 125.3"),
        (lambda s: s | {"std": torch.zeros(3)}, r"std is not that of pixels in \[0,1\]"),
        (lambda s: s | {"fc.weight": torch.ones(1, 64).expand(10**12, 64)}, "number of classes"),
        (lambda s: s | {"conv1.weight": torch.ones(1, 1, 3, 3).expand(16, 10**12, 3, 3)}, "1000000000000 inputs"),
    ],
)
def test_foreign_refuses(change, message):
    with pytest.raises(ValueError, match=message) as error:
        from_state("resnet8", change(build("resnet8").state_dict()))
    assert "\n" not in str(error.value)


def test_foreign_refuses_another_architecture():
    with pytest.raises(ValueError, match=r"not the weights of resnet20: missing layer1.1.conv1.weight.*and .* more"):
        from_state("resnet20", build("resnet8").state_dict())
