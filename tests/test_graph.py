"""What a CUDA graph does to a pool, played without one: see test_cuda.py for the graphs themselves."""

from contextlib import contextmanager, nullcontext
from functools import partial

import pytest
import torch
from searches import curved, images
from test_pool import EPS, ROUGHLY, runs

from gacd.attacks import fab, graph, pool
from gacd.attacks.apgd import APGD, TargetedAPGD
from gacd.attacks.fab import TargetedFAB
from gacd.attacks.graph import captured, written
from gacd.attacks.search import FGSM, PGD
from gacd.attacks.square import Square
from gacd.losses import margin_loss


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


class Graphs:
    """CUDA's part of `captured`, played on the CPU: a capture that changes nothing, and what its replays do."""

    def __init__(self, patch, replays, fails=False):
        self.streams, self.modes = ["first"], []
        whole = graph.written

        def captures(turn, rows):
            if self.streams[-1] != "side":
                return whole(turn, rows)
            self.answers = whole(turn, {key: value.clone() for key, value in rows.items()})
            self.replay = lambda: replays(self.answers, partial(whole, turn, rows))
            return self.answers

        @contextmanager
        def capture(made, stream, capture_error_mode):
            assert made is self
            self.streams.append(stream)
            if fails:
                raise RuntimeError("operation not permitted when stream is capturing")
            yield
            self.streams.pop()

        patch.setattr(graph, "written", captures)
        for name, value in dict(
            CUDAGraph=lambda: self,
            graph=capture,
            Stream=lambda: "side",
            device=lambda device: nullcontext(),
            current_stream=lambda device: self.streams[-1],
            set_stream=self.streams.append,
            get_sync_debug_mode=lambda: "default",
            set_sync_debug_mode=self.modes.append,
        ).items():
            patch.setattr(torch.cuda, name, value)


def rightly(answers, turn):
    for answer, new in zip(answers, turn(), strict=True):
        answer.copy_(new)


def answers_alone(answers, turn):
    function, rows = turn.args
    rightly(answers, partial(turn.func, function, {key: value.clone() for key, value in rows.items()}))


class Elsewhere(torch.Tensor):
    """Says that it is on a GPU."""

    device = torch.device("cuda")

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        return super().__torch_function__(func, types, args, kwargs)


@pytest.mark.parametrize("replays", [rightly, lambda *_: None, lambda _, turn: turn(), answers_alone])
@pytest.mark.parametrize("fails", [False, True])
def test_a_graph_is_believed_once_it_did_what_the_function_does(monkeypatch, replays, fails):
    def turn(rows):
        old = rows["a"]
        rows["a"] = old * 2 + 1
        return [old, rows["a"] + rows["b"]]

    rows = {key: torch.full((4,), value).as_subclass(Elsewhere) for key, value in dict(a=3.0, b=4.0).items()}
    graphs = Graphs(monkeypatch, replays, fails)
    made = captured(turn, rows)
    assert (getattr(made, "__name__", "") == "replay") == (replays is rightly and not fails)
    assert graphs.streams[-1] == "first" and graphs.modes == ["error", "default"]
    assert rows["a"].tolist() == [3] * 4
    monkeypatch.undo()
    if replays is rightly:
        assert [answer.tolist() for answer in made(rows)] == [[3] * 4, [11] * 4]
        assert rows["a"].tolist() == [7] * 4


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


@pytest.mark.parametrize(
    "search",
    [
        PGD(eps=EPS, step_size=0.01, steps=6, loss=margin_loss),
        TargetedAPGD(eps=EPS, steps=4, targets=3),
        TargetedFAB(eps=EPS, steps=4, targets=3),
        Square(eps=EPS, steps=25),
    ],
    ids=lambda search: type(search).__name__,
)
def test_a_gpu_s_ways_find_the_same(search, monkeypatch):
    """Rows filled when several are free, and FAB's fixed number of rounds."""
    x, filled = images(30), []
    y = curved(x).argmax(1)
    y[::10] = (y[::10] + 1) % 10
    real = pool._rows
    monkeypatch.setattr(pool, "_rows", lambda *args: filled.append(len(args[2])) or real(*args))
    expected = runs(search, curved, x, y, torch.arange(30), 8)
    before = filled.copy()
    filled.clear()
    monkeypatch.setitem(pool.SPARE, "cpu", 0.25)
    monkeypatch.setitem(fab.ROUNDS, "cpu", 16)
    found = runs(search, curved, x, y, torch.arange(30), 8)
    assert min(filled[:-1]) > 2 and len(filled) < len(before)
    for i, (image, doubts) in expected.items():
        assert torch.equal(found[i][0], image) and found[i][1] == doubts
