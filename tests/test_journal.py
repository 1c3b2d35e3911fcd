"""An evaluation that was killed ends with the same verdicts; order, shards and chunk shapes."""

import multiprocessing
import os
import signal
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from gacd import checkpoint, noise
from gacd.errors import Locked
from gacd.evaluation import evaluate
from gacd.journal import Journal, code_of_all
from gacd.models import build

ATTACKS = ["pgd3x2", "margin4", "fgsm"]
ALL = [*ATTACKS, "apgd-ce3", "apgd-t2", "fab-t2", "square10"]


@pytest.fixture(scope="module")
def network():
    """A small network and 250 images that it mostly knows."""
    torch.manual_seed(0)
    model, x = build("resnet8-x0.25", 3), noise.uniform(7, torch.arange(250), (3, 8, 8))
    with torch.no_grad():
        for _ in range(10):
            model(x)
        y = model.eval()(x).argmax(1)
    y[::9] = (y[::9] + 1) % 3
    return model, x, y


def masks(network, rows=None, attacks=ATTACKS, **options):
    model, x, y = network
    rows = torch.arange(len(y)) if rows is None else rows
    result = evaluate(model, (x[rows], y[rows]), attacks, **(dict(eps=0.02, chunk=16) | options))
    assert 0 < result.worst < result.natural
    return torch.stack(list(result.correct.values()))


def test_any_order_and_shards_are_equal_to_the_bit(network):
    whole = masks(network, attacks=ALL)
    order = noise.permutation(3, 250)
    assert torch.equal(masks(network, order, attacks=ALL), whole[:, order])
    for count in (2, 4):
        parts = [masks(network, attacks=ALL, shard=(i, count)) for i in range(count)]
        assert all(int(part[:, i::count].sum()) == int(part.sum()) for i, part in enumerate(parts))
        assert torch.equal(torch.stack(parts).any(0), whole)


def test_images_kept_by_the_journal_fool_the_network(network, tmp_path):
    model, x, y = network
    journal = Journal(tmp_path, {}, keep=150)
    whole = masks(network, journal=journal)
    where, x_adv, names = Journal(tmp_path, {}).witnesses()
    beaten = whole[0] & ~whole.all(0)
    beaten[150:] = False
    assert torch.equal(where, beaten.nonzero()[:, 0])
    assert len(names) == len(where) > 10
    with torch.no_grad():
        assert bool((model(x_adv).argmax(1) != y[where]).all())
    assert bool(((x_adv.double() - x[where].double()).abs() <= 0.02).all())
    for i, name in enumerate(names):  # the first in order that beat it
        assert [bool(row[where[i]]) for row in whole[1:]].index(False) == ATTACKS.index(name)
    with journal, pytest.raises(Locked), Journal(tmp_path, {}):
        pass
    assert not list(tmp_path.iterdir())


def test_another_key_is_another_journal_and_a_damaged_part_is_judged_again(network, tmp_path, capsys):
    whole = masks(network, journal=Journal(tmp_path, {"seed": 0}))
    parts = sorted(tmp_path.glob("*/*.pt"))
    raw = bytearray(parts[3].read_bytes())
    raw[len(raw) // 2] ^= 1
    parts[3].write_bytes(raw)
    assert not Journal(tmp_path, {"seed": 1}).known
    journal = Journal(tmp_path, {"seed": 0})
    assert "SHA-256 does not match" in capsys.readouterr().err
    before = sum(len(where) for parts in journal.known.values() for where, _ in parts)
    assert torch.equal(masks(network, journal=journal), whole)
    after = sum(len(where) for parts in journal.known.values() for where, _ in parts)
    assert after > before > 0


def test_what_is_known_is_not_attacked_again(network, tmp_path):
    model = network[0]
    whole = masks(network, journal=Journal(tmp_path, {}))
    seen = []
    hook = model.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    try:
        assert torch.equal(masks(network, journal=Journal(tmp_path, {})), whole)
    finally:
        hook.remove()
    # The natural images in chunks, five to see whether it is a classifier, and some to see what can be folded.
    assert sum(seen) <= 256 + 5 + (1 + 2 * 16 + 4 * 2)


def attack(folder, network):
    torch.set_num_threads(1)
    masks(network, journal=Journal(folder, {}))
    (folder / "done").touch()


def test_killed_at_random_moments_forty_times(network, tmp_path):
    whole, kills, trial = masks(network), 0, 0
    context = multiprocessing.get_context("fork")
    torch.set_num_threads(1)
    while kills < 40 or trial < 2:
        folder, trial = tmp_path / str(trial), trial + 1
        folder.mkdir()
        while not (folder / "done").exists():
            process = context.Process(target=attack, args=(folder, network))
            process.start()
            time.sleep(0.01 + 0.3 * float(noise.uniform(trial, torch.tensor([kills]))))
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            kills += process.exitcode == -signal.SIGKILL
        assert torch.equal(masks(network, journal=Journal(folder, {})), whole)
        assert len(Journal(folder, {}).witnesses()[0]) == int((whole[0] & ~whole.all(0)).sum())


class Dies(Journal):
    """Its process is killed at the first verdicts that it notes of a stage."""

    def __init__(self, folder, stage):
        super().__init__(folder, {})
        self.stage = stage

    def note(self, attack, stage, *found):
        super().note(attack, stage, *found)
        if stage == self.stage:
            os.kill(os.getpid(), signal.SIGKILL)


def test_cascade_killed_in_each_of_its_stages(network, tmp_path):
    torch.manual_seed(0)
    x = network[1][:20]
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.Tanh(), nn.Linear(8, 3)).eval()
    few, options = (model, x, model(x).argmax(1)), dict(attacks=["cascade"], chunk=16, eps=0.05)

    def attack(stage):
        torch.set_num_threads(1)
        masks(few, journal=Dies(tmp_path, stage), **options)

    for stage in range(4):
        process = multiprocessing.get_context("fork").Process(target=attack, args=(stage,))
        process.start()
        process.join(600)
        assert process.exitcode == -signal.SIGKILL
        journal = Journal(tmp_path, {})
        assert [len(journal.recall("cascade", i)[0]) > 0 for i in range(4)] == [i <= stage for i in range(4)]
    assert torch.equal(masks(few, journal=journal, **options), masks(few, **options))


@pytest.mark.parametrize("chunk", [64, 250])
def test_verdicts_hardly_change_with_the_chunk(network, chunk):
    alone = [name for name in ALL if name != "pgd3x2"]  # whose rows are 16 at most
    same = masks(network, attacks=alone) == masks(network, attacks=alone, chunk=chunk)
    assert float(same.double().mean()) >= 0.999


def test_how_the_command_was_begun_is_no_part_of_the_key(monkeypatch, tmp_path):
    def code_begun_by(path):
        path.write_text("pass")
        monkeypatch.setitem(sys.modules, "__main__", SimpleNamespace(__file__=str(path)))
        return code_of_all()

    monkeypatch.setattr("gacd.journal.sysconfig.get_path", lambda name: str(tmp_path / "bin"))
    (tmp_path / "bin").mkdir()
    assert code_begun_by(tmp_path / "bin" / "gacd") != code_begun_by(tmp_path / "mine.py")
    assert code_begun_by(tmp_path / "bin" / "gacd") == code_begun_by(tmp_path / "bin" / "other")


def test_a_journal_s_file_is_read_without_running_code(tmp_path):
    folder = Journal(tmp_path, {}).folder
    folder.mkdir()
    (folder / "000000-0.pt").write_bytes(b"cos\nsystem\n(S'touch " + str(tmp_path / "in").encode() + b"'\ntR.")
    assert Journal(tmp_path, {}).recall("a", 0)[0].tolist() == []
    assert not (tmp_path / "in").exists()
    assert checkpoint.MARK
