"""What a CUDA graph does to a pool, played without one: see test_cuda.py for the graphs themselves."""

from contextlib import nullcontext

import pytest
import torch
from test_pool import EPS, ROUGHLY, runs
from test_square import curved, images

from gacd.attacks import pool
from gacd.attacks.apgd import APGD, TargetedAPGD
from gacd.attacks.fab import TargetedFAB
from gacd.attacks.graph import captured, written
from gacd.attacks.search import FGSM, PGD
from gacd.attacks.square import Square


def test_a_cpu_calls_the_function_itself():
    def turn(rows):
        return [rows["a"]]

    assert captured(turn, dict(a=torch.zeros(2))) is turn


def test_what_is_found_is_written_into_the_pool_s_own_tensors():
    """A turn that swaps two, adds to a third, leaves a fourth alone and answers with the first one's old values."""

    def turn(rows):
        old = rows["a"]
        rows |= dict(a=rows["b"], b=old, c=rows["c"] + 1)
        return [old]

    rows = {key: torch.full((2,), value) for key, value in dict(a=1.0, b=2.0, c=3.0, d=4.0).items()}
    before = dict(rows)
    (answer,) = written(turn, rows)
    assert all(rows[key] is tensor for key, tensor in before.items())
    assert {key: tensor.tolist() for key, tensor in rows.items()} == dict(a=[2, 2], b=[1, 1], c=[4, 4], d=[4, 4])
    assert answer.tolist() == [1, 1]


@pytest.mark.parametrize("context", [nullcontext, ROUGHLY])
@pytest.mark.parametrize(
    "search",
    [
        FGSM(eps=EPS),
        PGD(eps=EPS, step_size=0.01, steps=6),
        PGD(norm="L2", eps=0.3, step_size=0.1, steps=6),
        APGD(eps=EPS, steps=12, loss="dlr"),
        TargetedAPGD(eps=EPS, steps=4, targets=3),
        TargetedFAB(eps=EPS, steps=4, targets=3),
        Square(eps=EPS, steps=25),
    ],
    ids=lambda search: type(search).__name__,
)
def test_a_search_finds_the_same_where_its_turns_are_replayed(monkeypatch, search, context):
    def replayed(turn, rows):
        """Memory as a graph has it: tensors where they were, answers overwritten by the next call's."""
        answers = [answer.clone() for answer in turn(dict(rows))]
        tensors = dict(rows)

        def replay(given):
            assert given is rows and all(rows[key] is tensor for key, tensor in tensors.items())
            for answer, new in zip(answers, written(turn, rows), strict=True):
                answer.copy_(new)
            return answers

        return replay

    x = images(30)
    y = curved(x).argmax(1)
    y[::10] = (y[::10] + 1) % 10
    for chunk in (5, 40):
        expected = runs(search, curved, x, y, torch.arange(30), chunk, context)
        with monkeypatch.context() as patch:
            patch.setattr(pool, "captured", replayed)
            found = runs(search, curved, x, y, torch.arange(30), chunk, context)
        assert sum(not torch.equal(image, x[i]) for i, (image, _) in expected.items()) > 0
        for i, (image, doubts) in expected.items():
            assert torch.equal(found[i][0], image) and found[i][1] == doubts
