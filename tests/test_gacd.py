"""GACD: Eq. 9 against a literal loop, the two directions' gradients by hand, Z, the banks and the feature attack."""

import copy
import math

import pytest
import torch
from torch.nn import functional as F

from gacd import noise
from gacd.errors import InputError
from gacd.losses import at_least_float32
from gacd.methods.base import Clock
from gacd.methods.gacd import DISTANCES, GACD
from gacd.models import build

LABELS = torch.arange(60) % 3
INDEX = torch.tensor([3, 40, 17, 8, 59])
M, B = 60, 5


def method(labels=LABELS, **options):
    torch.manual_seed(0)
    options = dict(k=20, temperature=0.5, dim=16, projection="trained", eps=0.1, step_size=0.03, steps=2) | options
    made = GACD(build("resnet8-x0.25", 3), build("resnet8-x0.125", 3), labels, **options)
    with torch.no_grad():
        made.teacher.head.weight.mul_(20)  # so that w differs between images
    return made


def batch():
    return noise.uniform(1, INDEX, (3, 8, 8)), LABELS[INDEX], INDEX


def negatives_of(made, y):
    """The first k images of other classes in the step's random order."""
    order = noise.permutation(noise.key(made.clock.seed, "negatives", made.clock.step), M).tolist()
    return [[j for j in order if LABELS[j] != label][: made.k] for label in y.tolist()]


def paper_s_loss(made, t, s, w, y, bank_t, bank_s):
    """Eq. 9 with h = e^(t's/T) / (e^(t's/T) + k/M), negated: a list of floats."""

    def h(a, b):
        e = math.exp(float(a @ b) / made.temperature)
        return e / (e + made.k / M)

    losses = []
    for i, chosen in enumerate(negatives_of(made, y)):
        loss = 0.0
        if made.direction in ("teacher", "both"):
            loss -= math.log(h(t[i], s[i])) + sum(math.log(1 - h(t[i], bank_s[j])) for j in chosen)
        if made.direction in ("student", "both"):
            loss -= math.log(h(t[i], s[i])) + sum(math.log(1 - h(s[i], bank_t[j])) for j in chosen)
        losses.append(float(w[i]) * loss)
    return losses


@pytest.mark.parametrize(
    "options",
    [
        dict(direction="both"),
        dict(direction="teacher"),
        dict(direction="student"),
        dict(teacher_input="natural"),
        dict(weights="none"),
        dict(weights="correct"),
        dict(ce=0.7),
    ],
)
def test_the_loss_is_eq_9(options):
    made = method(normalize=False, **options).double()
    made.clock = Clock(seed=5, epoch=1, step=7)
    x, y, index = batch()
    x = x.double()
    x_adv = made.attack(x, y, index)
    assert float((x_adv - x).abs().max()) > 0.05
    with torch.no_grad():
        f_t = made.teacher.features(x if made.teacher_input == "natural" else x_adv)
        f_s = copy.deepcopy(made.student).features(x_adv)  # in train mode: running statistics move
        t, s = (F.normalize(f @ e.weight.T + e.bias) for f, e in ((f_t, made.embed_t), (f_s, made.embed_s)))
        p = (f_t @ made.teacher.head.weight.T + made.teacher.head.bias).softmax(1)
        kinds = dict(
            probability=lambda i: float(p[i, y[i]]), correct=lambda i: float(p[i].argmax() == y[i]), none=lambda i: 1.0
        )
        w = [kinds[made.weights](i) for i in range(B)]
        expected = sum(paper_s_loss(made, t, s, w, y, made.bank_t.rows, made.bank_s.rows)) / B
        q = (f_s @ made.student.head.weight.T + made.student.head.bias).softmax(1)
        expected += made.ce * sum(-math.log(float(q[i, y[i]])) for i in range(B)) / B
    values = made(x, y, index)
    assert values["loss"].item() == pytest.approx(expected, rel=1e-6)
    assert values["cosine"].item() == pytest.approx(float((t * s).sum(1).mean()), rel=1e-9)
    assert values["weight"].item() == pytest.approx(sum(w) / B, rel=1e-6)
    assert float(p.gather(1, y[:, None]).std()) > 0.01


def embeddings(made):
    t, s = (F.normalize(noise.normal(k, torch.arange(B), (16,)).double(), dim=1).requires_grad_() for k in (1, 2))
    return t, s, LABELS[INDEX]


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("direction", ["teacher", "student"])
def test_who_gets_which_gradient(direction, normalize):
    """The anchor is pulled and pushed; the other side is only pulled, for the bank is detached."""
    made = method(direction=direction, normalize=normalize).double()
    t, s, y = embeddings(made)
    w = torch.linspace(0.2, 1, B, dtype=torch.float64)
    made.contrast(t, s, y, w).sum().backward()
    shift = made.log_z[0 if direction == "teacher" else 1] if normalize else 0.0
    anchor, other, bank = (t, s, made.bank_s.rows) if direction == "teacher" else (s, t, made.bank_t.rows)
    for i, chosen in enumerate(negatives_of(made, y)):
        a, b = anchor[i].detach(), other[i].detach()
        h = [torch.sigmoid(a @ c / 0.5 - shift - math.log(made.k / M)) for c in (b, *bank[chosen])]
        pull = -w[i] * (1 - h[0]) / 0.5
        push = sum(w[i] * p / 0.5 * bank[j] for p, j in zip(h[1:], chosen, strict=True))
        assert torch.allclose(other.grad[i], pull * a, rtol=1e-7)
        assert torch.allclose(anchor.grad[i], pull * b + push, rtol=1e-7)
        assert float(push.norm()) > 1e-4


def test_both_is_the_sum_and_weights_scale_each_image():
    t, s, y = embeddings(None)
    ones = torch.ones(B, dtype=torch.float64)
    teacher, student, both = (
        method(direction=d).double().contrast(t, s, y, ones).detach() for d in ("teacher", "student", "both")
    )
    assert torch.allclose(teacher + student, both, rtol=1e-9)
    w = torch.linspace(0, 2, B, dtype=torch.float64)
    assert torch.allclose(method().double().contrast(t, s, y, w), w * both, rtol=1e-9)


def test_z_makes_the_first_batch_s_mean_odds_one_in_k():
    made = method(temperature=0.1).double()
    t, s, y = (v.detach() if v.is_floating_point() else v for v in embeddings(made))
    made.contrast(t, s, y, torch.ones(B, dtype=torch.float64))
    for anchor, bank, log_z in ((t, made.bank_s.rows, made.log_z[0]), (s, made.bank_t.rows, made.log_z[1])):
        scores = [math.exp(float(t[i] @ s[i]) / 0.1) for i in range(B)]
        for i, chosen in enumerate(negatives_of(made, y)):
            scores += [math.exp(float(anchor[i] @ bank[j]) / 0.1) for j in chosen]
        assert len(scores) == B * (made.k + 1)
        assert float(log_z) == pytest.approx(math.log(M * sum(scores) / len(scores)), rel=1e-7)
        odds = [score / math.exp(float(log_z)) / (made.k / M) for score in scores]
        assert sum(odds) / len(odds) == pytest.approx(1 / made.k, rel=1e-6)


@pytest.mark.parametrize("direction", ["both", "teacher"])
def test_the_first_loss_has_the_known_scale(direction):
    """About log k + 1 a direction where embeddings know nothing; without Z about k times that at small T."""
    labels = torch.arange(3000) % 3
    made = method(labels, k=1000, dim=128, temperature=0.5, weights="none", direction=direction)
    loss = made(*batch())["loss"].item() / (2 if direction == "both" else 1)
    assert abs(loss - (math.log(1000) + 1)) < 1
    assert not made.log_z[0].isnan()
    assert made.log_z[1].isnan() == (direction == "teacher")


def test_z_is_frozen_after_the_first_batch_and_saved():
    made = method()
    assert made.log_z.isnan().all()
    made(*batch())
    log_z = made.log_z.clone()
    assert log_z.isfinite().all()
    with torch.no_grad():
        made.embed_s.weight.mul_(-1)
    made(*batch())
    assert torch.equal(made.log_z, log_z)
    other = method()
    other.load_state_dict(made.state_dict())
    other(*batch())
    assert torch.equal(other.log_z, log_z)
    plain = method(normalize=False)
    plain(*batch())
    assert plain.log_z.isnan().all()


def test_the_banks_take_the_step_s_embeddings_at_its_images_alone():
    made = method(bank_momentum=0.3)
    before = {side: getattr(made, f"bank_{side}").rows.clone() for side in "ts"}
    x, y, index = batch()
    x_adv = made.attack(x, y, index)
    with torch.no_grad():
        f = dict(t=made.teacher.features(x_adv), s=copy.deepcopy(made.student).features(x_adv))
        e = {side: F.normalize(getattr(made, f"embed_{side}")(f[side])) for side in "ts"}
    made(x, y, index)["loss"].backward()  # backward after the update: the step used copies
    rest = [i for i in range(M) if i not in index.tolist()]
    for side in "ts":
        rows = getattr(made, f"bank_{side}").rows
        assert torch.equal(rows[rest], before[side][rest])
        assert torch.allclose(rows[index], F.normalize(0.3 * before[side][index] + 0.7 * e[side]), atol=1e-6)
    names = ("student.conv1.weight", "embed_s.weight", "embed_t.weight")
    assert all(float(dict(made.named_parameters())[name].grad.norm()) > 0 for name in names)


@pytest.mark.parametrize("distance", list(DISTANCES))
def test_each_distance_gives_an_image_in_the_ball_that_distorts_more(distance):
    made = method(distance=distance, eps=8 / 255, step_size=2 / 255, steps=6)
    x, y, index = batch()
    x_adv = made.attack(x, y, index)
    assert float((x_adv.double() - x.double()).abs().max()) <= 8 / 255
    assert 0 <= float(x_adv.min()) <= float(x_adv.max()) <= 1
    assert made.training
    start = (x + made.eps * made.noise(x, index, "uniform", "start")).clamp(0, 1)
    made.eval()
    with torch.no_grad():
        f, begun, ended = (at_least_float32(made.student.features(z)) for z in (x, start, x_adv))
        distances = [DISTANCES[distance](g, f) for g in (begun, ended)]
        by_hand = dict(
            cosine=1 - (F.normalize(ended) * F.normalize(f)).sum(1),
            l2=(ended - f).pow(2).sum(1),
            kl=(f.softmax(1) * (f.log_softmax(1) - ended.log_softmax(1))).sum(1),
        )
    assert distances[1].shape == (B,)
    assert float(distances[1].sum()) > 1.2 * float(distances[0].sum()) > 0
    if distance in by_hand:
        assert torch.allclose(distances[1], by_hand[distance], atol=1e-6)


def test_k_is_clamped_to_the_smallest_pool():
    labels = torch.tensor([0] * 40 + [1] * 15 + [2] * 5)
    made = method(labels, k=60)
    assert made.k == 20
    assert made(*batch())["loss"].isfinite()


@pytest.mark.parametrize(
    ("labels", "options", "says"),
    [
        (None, {}, "needs the training labels"),
        (LABELS, dict(k=61), "k must be between 1 and the size of the training set, 60: k = 61"),
        (LABELS, dict(k=0), "k must be"),
        (LABELS, dict(temperature=0.0), "temperature must be > 0"),
        (LABELS, dict(temperature=math.nan), "temperature must be > 0"),
        (torch.zeros(60, dtype=torch.int64), {}, "one class"),
    ],
)
def test_what_cannot_work_is_refused(labels, options, says):
    with pytest.raises(InputError, match=says):
        method(labels, **options)


def test_a_missing_index_is_refused():
    with pytest.raises(InputError, match="needs index"):
        method()(*batch()[:2])


def test_a_fixed_projection_is_centred_once_and_stays():
    made = method(projection="fixed", steps=0, eps=0.0)
    x, y, index = batch()
    weight = made.embed_t.weight.clone()
    with torch.no_grad():
        f_t, f_s = made.teacher.features(x), copy.deepcopy(made.student).features(x)
    made(x, y, index)["loss"].backward()
    for embed, f in ((made.embed_t, f_t), (made.embed_s, f_s)):
        assert torch.allclose(embed(f).mean(0), torch.zeros(16), atol=1e-6)
    assert made.embed_t.weight.grad is None
    assert float(made.embed_s.weight.grad.norm()) > 0
    bias = made.embed_t.bias.clone()
    made(1 - x, y, index)
    assert torch.equal(made.embed_t.weight, weight)
    assert torch.equal(made.embed_t.bias, bias)  # the second batch does not centre again
    assert bool(made.state_dict()["begun"])
