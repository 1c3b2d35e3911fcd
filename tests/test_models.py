"""Networks: published sizes, names and arithmetic, and the grammar."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gacd.models import MODELS, build, parse

SMALL = ("resnet8", "resnet18-x0.125", "wrn-10-1", "dm-wrn-10-1", "mobilenetv2-x0.25", "mobilenetv2-x0.5")
MEAN, STD = [0.4914, 0.4822, 0.4465], [0.2471, 0.2435, 0.2616]


def trained(name, num_classes=10, mean=MEAN, std=STD, seed=0):
    """A network whose batch-norm statistics are not the initial ones, in eval mode."""
    torch.manual_seed(seed)
    model = build(name, num_classes, mean, std)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model.eval()


@pytest.mark.parametrize(
    ("name", "num_classes", "published"),
    [
        ("resnet18", 10, 11_173_962),
        ("wrn-34-10", 10, 46_160_474),
        ("wrn-28-10", 10, 36_479_194),
        ("wrn-40-2", 100, 2_255_156),
        ("wrn-16-2", 100, 703_284),
        ("dm-wrn-28-10", 10, 36_479_194),
        ("mobilenetv2", 10, 2_296_922),
        ("mobilenetv2-x0.5", 100, 812_836),
        ("resnet8", 10, 78_042),
        ("resnet20", 100, 278_324),
        ("resnet32", 100, 472_756),
        ("resnet56", 100, 861_620),
    ],
)
def test_size_is_the_published_one(name, num_classes, published):
    with torch.device("meta"):
        model = build(name, num_classes)
    assert sum(p.numel() for p in model.parameters()) == published
    assert (model.num_classes, model.name) == (num_classes, name)


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("resnet18", "conv1.weight bn1.bias layer1.0.conv1.weight layer4.0.shortcut.1.running_var linear.bias"),
        ("resnet8", "conv1.weight layer2.0.downsample.0.weight layer3.0.bn2.weight fc.weight"),
        ("wrn-10-1", "conv1.weight block1.layer.0.bn1.weight block2.layer.0.convShortcut.weight bn1.bias fc.weight"),
        (
            "dm-wrn-10-2",
            "mean std init_conv.weight layer.0.block.0.batchnorm_0.weight layer.1.block.0.conv_0.weight "
            "layer.2.block.0.shortcut.weight layer.0.block.0.batchnorm_1.bias batchnorm.weight logits.bias",
        ),
        ("mobilenetv2", "conv1.weight layers.0.conv2.weight layers.0.shortcut.0.weight bn2.weight linear.weight"),
        ("mobilenetv2-x0.5", "conv1.0.weight blocks.6.0.conv.7.weight conv2.1.bias classifier.0.weight"),
    ],
)
def test_names_are_the_published_ones(name, keys):
    with torch.device("meta"):
        assert set(keys.split()) <= set(build(name).state_dict())


@pytest.mark.parametrize("name", SMALL)
def test_any_size_and_channels(name):
    for channels, size in ((1, 8), (3, 9), (3, 32), (3, 96)):
        model = build(name, 7, [0.5] * channels, [0.2] * channels).eval()
        x = torch.rand(2, channels, size, size)
        features = model.features(x)
        assert features.shape == (2, model.feature_dim)
        assert model.channels == channels
        assert torch.equal(model(x), model.head(features))
        assert model(x).shape == (2, 7)


@pytest.mark.parametrize("name", SMALL)
def test_channels_last_bfloat16_and_gradients(name):
    model, x = trained(name), torch.rand(2, 3, 16, 16, requires_grad=True)
    plain = model(x)
    faster = copy.deepcopy(model).to(memory_format=torch.channels_last)
    assert torch.allclose(faster(x.contiguous(memory_format=torch.channels_last)), plain, rtol=1e-4, atol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        rough = model(x)
    assert (rough.float() - plain).abs().max() < 0.1 * plain.abs().max()
    model.train()(x).square().sum().backward()
    assert x.grad.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("name", SMALL)
def test_normalises_inside(name):
    model, x = trained(name), torch.rand(2, 3, 16, 16)
    bare = build(name).eval()
    bare.load_state_dict({k: v for k, v in model.state_dict().items() if k not in ("mean", "std")}, strict=False)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (MEAN, STD))
    assert torch.equal(bare((x - mean) / std), model(x))


def test_initialised_as_he_et_al():
    torch.manual_seed(0)
    for module in build("wrn-10-4").modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 5000:
            fan_out = module.out_channels * module.kernel_size[0] ** 2
            assert module.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.05)


@pytest.mark.parametrize("name", SMALL)
def test_head(name):
    model, x = trained(name), torch.rand(2, 3, 8, 8)
    features, keys = model.features(x), set(model.state_dict())
    head = model.head
    assert isinstance(head, nn.Linear)
    model.double().fresh_head(4)
    assert (model.head is not head, model.num_classes, model.head.weight.dtype) == (True, 4, torch.float64)
    assert set(model.state_dict()) == keys, "the new head must sit where the old one was"
    model.float().head = nn.Linear(model.feature_dim, 3)
    assert model(x).shape == (2, 3)
    assert torch.equal(model.features(x), features)


@pytest.mark.parametrize("name", SMALL)
def test_config_makes_it_again(name):
    model, x = trained(name, 5), torch.rand(2, 3, 8, 8)
    assert model.config() == {"name": name, "num_classes": 5, "mean": MEAN, "std": STD}
    again = build(**model.config()).eval()
    assert torch.equal(again.mean, model.mean)
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(x), model(x))
    assert torch.equal(pickle.loads(pickle.dumps(model))(x), model(x))


def test_wide_resnet_is_its_formula():
    """The literal formula on the state_dict; DeepMind's with TensorFlow's SAME padding, at even and odd sizes."""

    def norm(s, key, x):
        return F.batch_norm(x, *(s[f"{key}.{k}"] for k in ("running_mean", "running_var", "weight", "bias")))

    def same(x, weight, stride):
        """SAME: ceil(size / stride) outputs, the odd one of the padding at the end."""
        kernel, sides = weight.shape[-1], []
        for size in (x.shape[3], x.shape[2]):
            total = max(((size + stride - 1) // stride - 1) * stride + kernel - size, 0)
            sides += [total // 2, total - total // 2]
        return F.conv2d(F.pad(x, sides), weight, stride=stride)

    def twin(s, x, dm):
        act = F.silu if dm else F.relu
        block, stem, last = (
            ("layer.{}.block.{}", "init_conv", "batchnorm") if dm else ("block{}.layer.{}", "conv1", "bn1")
        )
        inner = ("batchnorm_0", "conv_0", "batchnorm_1", "conv_1", "shortcut")
        inner = inner if dm else ("bn1", "conv1", "bn2", "conv2", "convShortcut")
        x = F.conv2d((x - s["mean"]) / s["std"], s[f"{stem}.weight"], padding=1)
        for stage in range(3):
            for i in range(2):
                n1, c1, n2, c2, skip = (f"{block.format(stage + (not dm), i)}.{part}" for part in inner)
                stride = 2 if stage and not i else 1
                y = act(norm(s, n1, x))
                if f"{skip}.weight" in s:
                    x = F.conv2d(y, s[f"{skip}.weight"], stride=stride)
                weight = s[f"{c1}.weight"]
                y = same(y, weight, stride) if dm else F.conv2d(y, weight, stride=stride, padding=1)
                x = x + F.conv2d(act(norm(s, n2, y)), s[f"{c2}.weight"], padding=1)
        head = "logits" if dm else "fc"
        return F.linear(act(norm(s, last, x)).mean((2, 3)), s[f"{head}.weight"], s[f"{head}.bias"])

    for name in ("wrn-16-2", "wrn-16-1", "dm-wrn-16-2", "dm-wrn-16-1"):
        model = trained(name).double()
        for size in (16, 13):
            x = torch.rand(2, 3, size, size, dtype=torch.float64)
            assert torch.allclose(model(x), twin(model.state_dict(), x, name.startswith("dm")), rtol=1e-9)


def test_dm_strides_like_deepmind():
    """(0, 1, 0, 1) before a stride of 2 looks at other pixels than padding on both sides does."""
    block = build("dm-wrn-10-1").layer[1].block[0].double()
    x = torch.rand(1, 16, 8, 8, dtype=torch.float64)
    literal = F.conv2d(F.pad(x, (0, 1, 0, 1)), block.conv_0.weight, stride=2)
    assert torch.equal(block.conv_0(block._pad(x)), literal)
    assert block.batchnorm_0.momentum == 0.01


@pytest.mark.parametrize(
    ("name", "canonical"),
    [
        ("ResNet18", "resnet18"),
        ("resnet8_X2.0", "resnet8-x2"),
        ("resnet8-x1", "resnet8"),
        ("resnet8-x0.50", "resnet8-x0.5"),
        ("WRN_34_10", "wrn-34-10"),
        (" DM-WRN-70-16 ", "dm-wrn-70-16"),
        ("MobileNetV2-x0.5", "mobilenetv2-x0.5"),
    ],
)
def test_parse(name, canonical):
    assert parse(name) == canonical == parse(canonical)
    with torch.device("meta"):
        assert build(name).name == canonical


@pytest.mark.parametrize(
    "name",
    [
        *("", "resnet", "resnet19", "resnet8-x", "resnet8-x0", "resnet8-x9", "resnet8-x1e9", "resnet8-x99999999"),
        *("wrn-35-10", "wrn-34-21", "wrn-34-0", "wrn-400000-2", "wrn-34-1000000", "wrn-34-10\nwrn-16-2", "wrn-٣٤-10"),
        *("mobilenetv2-x-1", "../resnet8", "x" * 10_000),
    ],
)
def test_parse_refuses(name):
    with pytest.raises(ValueError, match="unknown model") as error:
        build(name)
    message = str(error.value)
    assert "\n" not in message
    assert len(message) < 400
    assert all(family.grammar in message for family in MODELS.values())


def test_parse_suggests():
    with pytest.raises(ValueError, match="did you mean wrn-34-10"):
        parse("wrn-35-10")
    with pytest.raises(ValueError, match="did you mean mobilenetv2"):
        parse("mobilenet-v2")
