"""Audits: what is broken is refused by name, what is sound is not."""

import copy
import random

import pytest
import torch
from broken import BROKEN, Broken, HalfLogits, HugeLogits, Probabilities
from rich.console import Console
from sounds import EPS, finding, fresh, trained, verdicts
from students import save
from torch import nn

from gacd import checkpoint, data, noise
from gacd.attacks.loop import box
from gacd.audit import QUICK, Audit, Finding, audit
from gacd.audits.case import Case
from gacd.audits.fresh import Fresh
from gacd.errors import GacdError, InputError
from gacd.outcome import conclude

NAMES = list(QUICK)


@pytest.mark.parametrize(("kind", "name", "verdict"), BROKEN, ids=lambda value: getattr(value, "__name__", ""))
def test_a_broken_network_is_refused_by_name(sound, images, kind, name, verdict):
    x, y = images
    result = audit(kind(copy.deepcopy(sound)).eval(), x[:40], y[:40], eps=EPS, chunk=20)
    assert [f.name for f in result.findings] == NAMES
    against = finding(result, name)
    assert against.outcome.upper() == verdict
    assert against in result.troubles
    assert result.verdict in (verdict, "INVALID")
    assert result.exit_code == {"SUSPECT": 3, "INVALID": 4}[result.verdict]


SOUND = [("resnet8-x0.25", 0, 1), ("resnet8-x0.25", 0, 2), ("resnet8-x0.5", 0, 3), ("resnet8", 0, 2)]
SOUND += [("resnet20-x0.25", 0, 0), ("wrn-10-1", 0, 0), ("wrn-10-1", 0, 1), ("wrn-16-1", 0, 0)]
SOUND += [("dm-wrn-10-1", 0, 0), ("dm-wrn-10-1", 0, 1), ("resnet8-x0.25", EPS, 0), ("resnet8-x0.25", EPS, 1)]
SOUND += [("resnet8-x0.25", 0.05, 2), ("resnet8-x0.5", EPS, 3), ("resnet8", EPS, 2), ("resnet20-x0.25", EPS, 1)]
SOUND += [("wrn-10-1", EPS, 0), ("wrn-10-1", 0.05, 1), ("dm-wrn-10-1", EPS, 1), ("mobilenetv2-x0.1", 0.05, 1)]


@pytest.mark.parametrize(("name", "eps", "seed"), SOUND)
def test_a_sound_network_is_not(digits, images, name, eps, seed):
    x, y = images
    slowly = dict(epochs=4, lr=0.03) if name.startswith("mobilenet") else {}
    model = trained(digits, name, eps, seed=seed, **slowly)
    assert (model(x).argmax(1) == y).double().mean() > 0.3
    result = audit(model, x, y, eps=EPS, chunk=30)
    assert not result.troubles
    assert (result.verdict, result.exit_code, result.n) == ("TRUSTED", 0, 60)
    assert [f.name for f in result.findings if f.outcome == "skipped"] == ["re-check"]


@pytest.mark.parametrize(("norm", "eps"), [("Linf", EPS), ("L2", 0.5)])
def test_an_evaluation_s_own_verdicts_are_audited(sound, images, tmp_path, norm, eps):
    x, y = images
    source = tmp_path / "net.safetensors"
    checkpoint.ship(checkpoint.Opened(sound, "last"), source)
    given = verdicts(sound, x, y, "fgsm", "pgd", "margin", norm=norm, eps=eps)
    threat = dict(norm=norm, eps=eps, chunk=30)
    with Fresh(str(source)) as process:
        result = audit(sound, x, y, **threat, **given, fresh=process)
    assert {f.outcome for f in result.findings} == {"passed"}
    assert finding(result, "re-check").says.startswith("0 of 60 verdicts differ")

    pixel = (0, *((x[0] > 0.2) & (x[0] < 0.4)).nonzero()[0].tolist())
    edge = x.clone()
    edge[pixel] = box(x, eps)[1][pixel]
    assert finding(audit(sound, x, y, **threat, **given | dict(x_adv=edge)), "ball and box").outcome == "passed"
    edge[pixel] = edge[pixel].nextafter(torch.tensor(1.0))
    assert finding(audit(sound, x, y, **threat, **given | dict(x_adv=edge)), "ball and box").outcome == "invalid"
    for value in (-1e-45, 1 + 2**-23, float("nan")):
        outside = given["x_adv"].clone()
        outside[7, 0, 3, 3] = value
        assert finding(audit(sound, x, y, **threat, **given | dict(x_adv=outside)), "ball and box").outcome == "invalid"
    wrong = given["correct"] | dict(natural=~given["correct"]["natural"])
    assert finding(audit(sound, x, y, **threat, **given | dict(correct=wrong)), "eps = 0").outcome == "invalid"
    if norm == "Linf":
        nothing = dict(natural=given["correct"]["natural"], pgd20=given["correct"]["natural"])
        result = audit(sound, x, y, **threat, correct=nothing)
        assert finding(result, "one step").outcome == "suspect"
        assert finding(result, "ball and box").outcome == "skipped"


def test_a_run_s_weights_replaced_meanwhile_prove_nothing(digits, sound, images, tmp_path):
    source, saved = tmp_path / "run", tmp_path / "run" / "checkpoints" / "best.pt"
    save(source, sound, digits)
    given = verdicts(sound, *images, "pgd")
    with Fresh(str(source)) as process:
        assert finding(audit(sound, *images, eps=EPS, **given, fresh=process), "re-check").outcome == "passed"
        checkpoint.write(saved, checkpoint.read(saved) | dict(weights=fresh(digits, sound.name, 1).state_dict()))
        found = finding(audit(sound, *images, eps=EPS, **given, fresh=process), "re-check")
    assert (found.outcome, "written anew meanwhile" in found.says) == ("skipped", True)


class Half(nn.Module):
    """A network in half precision, which casts its images: differences shorter than its rounding say nothing."""

    def __init__(self, model):
        super().__init__()
        self.model = copy.deepcopy(model).half()

    def forward(self, x):
        return self.model(x.half()).float()


def test_a_network_in_half_precision_has_its_own_gradient(sound, images):
    result = audit(Half(sound).eval(), *images, eps=EPS, chunk=30)
    assert finding(result, "true gradient").outcome == "passed"


def test_other_weights_in_the_file_are_found_by_a_fresh_process(digits, sound, images, tmp_path):
    source = tmp_path / "net.safetensors"
    checkpoint.ship(checkpoint.Opened(fresh(digits, "resnet8-x0.25", 1), "last"), source)
    given = verdicts(sound, *images, "pgd")
    with Fresh(str(source)) as process:
        result = audit(sound, *images, eps=EPS, chunk=30, **given, fresh=process)
        assert [f.name for f in result.troubles] == ["re-check"]
        assert result.verdict == "INVALID"
        checkpoint.ship(checkpoint.Opened(sound, "last"), source)
        result = audit(sound, *images, eps=EPS, chunk=30, **given, fresh=process)
        assert finding(result, "re-check").outcome == "passed"
        source.unlink()
        result = audit(sound, *images, eps=EPS, chunk=30, **given, fresh=process)
        assert "no such run or file" in finding(result, "re-check").says


class Undecided(Broken):
    """Every margin is within rounding."""

    def forward(self, x):
        return 1 + 1e-7 * self.net(x)


@pytest.mark.parametrize(("n", "few"), [(60, 3), (359, 3), (900, 9)])
def test_rounding_excuses_a_few_verdicts_and_no_more(sound, digits, n, few):
    x, y = data.pixels(digits.train.images[:n]), digits.train.labels[:n]
    model = Undecided(sound).eval()
    with torch.no_grad():
        right = model(x).argmax(1) == y
    for flipped, outcome in ((few, "passed"), (few + 1, "invalid")):
        given = right.clone()
        given[:flipped] ^= True
        result = audit(model, x, y, eps=EPS, chunk=30, correct=dict(natural=given, pgd20=given & False))
        assert finding(result, "eps = 0").outcome == outcome


def test_a_fresh_process_may_print_and_raise(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/nets.py").write_text(
        "import torch\n"
        "def loud():\n    print('no newline', end='')\n    return torch.nn.Flatten()\n"
        "class Bad(torch.nn.Module):\n    def forward(self, x):\n        raise KeyError('wrong')\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    x = torch.rand(3, 1, 2, 2)
    with Fresh("mine.nets:loud") as process:
        assert torch.equal(process.logits(x), x.flatten(1))
    with (
        Fresh("mine.nets:Bad") as process,
        pytest.raises(GacdError, match=r"re-score mine.nets:Bad: KeyError: 'wrong'"),
    ):
        process.logits(x)


def test_a_fresh_process_takes_nothing_from_the_folder_for_a_library_and_is_started_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "random.py").write_text("raise SystemExit('not Python's own')\n")
    (tmp_path / "flat").mkdir()
    (tmp_path / "flat/nets.py").write_text("import torch\nmake = torch.nn.Flatten\n")
    x = torch.rand(3, 1, 2, 2)
    with Fresh("flat.nets:make") as process:
        assert torch.equal(process.logits(x), x.flatten(1))
        process.process.kill()
        process.process.wait()
        assert torch.equal(process.logits(x), x.flatten(1))


def test_a_fresh_process_that_is_killed_says_nothing_about_the_network(sound, images, tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/slow.py").write_text("import time\ndef make():\n    time.sleep(60)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    monkeypatch.setattr("gacd.audits.fresh.PATIENCE", (1.0, 0.0))
    x, y = images
    with Fresh("mine.slow:make") as process:
        result = audit(sound, x, y, eps=EPS, chunk=30, **verdicts(sound, x, y, "pgd"), fresh=process)
    assert finding(result, "re-check").outcome == "skipped"
    assert "was killed after" in finding(result, "re-check").says


@pytest.mark.parametrize("kind", [HugeLogits, HalfLogits, Probabilities])
def test_odd_logits_are_no_trouble_to_a_margin_loss(sound, images, kind):
    model = kind(sound).eval()
    result = audit(model, *images, eps=EPS, chunk=30, **verdicts(model, *images, "pgd", "margin"))
    assert finding(result, "logits").outcome == "passed"
    assert "rescaled, the losses break" in finding(result, "logits").says


def test_a_gradient_is_checked_in_float32_where_there_is_no_twin(sound, images):
    class Uncopied(Broken):
        def __deepcopy__(self, memo):
            raise TypeError

    result = audit(Uncopied(sound).eval(), *images, eps=EPS, chunk=30)
    assert not result.troubles
    assert finding(result, "true gradient").outcome == "passed"


def test_a_network_that_raises_is_a_finding(images):
    class Raises(nn.Module):
        def forward(self, x):
            raise ZeroDivisionError("in the network\nitself")

    result = audit(Raises().eval(), *images, eps=EPS)
    assert result.exit_code == 4
    assert [f.name for f in result.findings] == NAMES
    assert "could not be carried out, ZeroDivisionError: in the network itself" in finding(result, "finite").says
    assert "\n" not in str(finding(result, "finite"))


def test_the_network_and_the_generators_are_left_alone(sound, images):
    model = copy.deepcopy(sound).train()
    model.bn1.eval()
    modes = [module.training for module in model.modules()]
    rng, other = torch.get_rng_state(), random.getstate()
    with torch.no_grad():
        result = audit(model, *images, eps=EPS, chunk=30)
        assert not torch.is_grad_enabled()
    assert [f.name for f in result.troubles] == ["mode and side effects"]
    assert "call model.eval()" in result.troubles[0].fix
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(v, sound.state_dict()[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), rng)
    assert random.getstate() == other


def test_the_worst_finding_is_the_verdict():
    def exits(*outcomes):
        result = Audit([Finding(str(i), outcome, "") for i, outcome in enumerate(outcomes)])
        return result.verdict, result.exit_code

    assert exits() == exits("passed", "skipped") == ("TRUSTED", 0)
    assert exits("suspect", "passed") == ("SUSPECT", 3)
    assert exits("suspect", "invalid", "passed") == ("INVALID", 4)
    result = Audit([Finding("a", "suspect", "x"), Finding("b", "invalid", "y", "z")])
    assert [str(f) for f in result.troubles] == ["invalid: b: y (z)", "suspect: a: x"]


def test_an_audit_that_was_skipped_at_any_radius_is_named(capsys):
    found = [Audit([Finding("re-check", outcome, "")]) for outcome in ("passed", "skipped")]
    conclude(found, [0.05, 0.1], Console(width=200), "quick")
    assert "TRUSTED: 1 quick audits passed; skipped: re-check at eps 0.1 (" in capsys.readouterr().out
    conclude([found[1]] * 2, [0.05, 0.1], Console(width=200), "quick")
    assert "; skipped: re-check (" in capsys.readouterr().out


def test_a_single_step_is_no_measure_of_robustness(sound, images):
    x, y = images
    for names, outcome in ((["natural"], "skipped"), (["natural", "fgsm"], "suspect")):
        result = audit(sound, x, y, eps=0.01, correct=dict.fromkeys(names, sound(x).argmax(1) == y))
        assert finding(result, "one step").outcome == outcome


def test_one_step_is_made_by_the_audit_itself_whatever_the_headline_s_found(sound, images):
    """The evaluation's attacks may have gone through a folded network that hides its gradient."""
    x, y = images
    right = sound(x).argmax(1) == y
    assert int(right.sum()) > 30
    for fgsm, says in ((right, "one step (FGSM) breaks "), (~right & right, f"breaks {int(right.sum())} of the")):
        blind = dict(natural=right, pgd20=right, margin20=right, fgsm=fgsm)
        found = finding(audit(sound, x, y, eps=0.3, correct=blind), "one step")
        assert found.outcome == "suspect" and says in found.says


def test_nan_contradicts_every_verdict(sound, images):
    x, y = (part[:4] for part in images)
    threat = dict(norm="Linf", eps=EPS, step_size=EPS / 4, chunk=4, seed=0, teacher=None, noises=0, fresh=None)
    case = Case(sound, x, y, given=None, given_x_adv=None, **threat)
    for right in (True, False):
        assert case.differ(torch.full((4, 10), torch.nan), y, torch.full((4,), right)).all()


def test_what_is_missing_is_said(sound, images):
    x, y = images
    with pytest.raises(InputError, match="natural"):
        audit(sound, x, y, correct={"pgd20": y > 0})
    with pytest.raises(InputError, match="each image's verdict"):
        audit(sound, x, y, correct={"natural": y[:5] > 0})
    with pytest.raises(InputError, match="did you mean 8/255"):
        audit(sound, x, y, eps=8)


def test_a_thousand_images_are_enough(images):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()
    x = noise.uniform(3, torch.arange(1010), (1, 8, 8))
    result = audit(model, x, model(x).argmax(1), eps=0.01)
    assert (result.n, result.verdict) == (1000, "TRUSTED")
