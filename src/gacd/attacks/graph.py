"""A function that a GPU is asked for again and again, launched as one CUDA graph instead of as hundreds of kernels."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

from gacd.attacks.search import Rows

Turn = Callable[[Rows], Sequence[Tensor]]  # puts new entries in the place of old ones; gives answers


def captured(turn: Turn, pool: Rows) -> Turn:
    """The function as it is; if the pool is on a GPU, one that writes into the pool's tensors and replaces none.

    Args:
        turn: depends on the pool's tensors; what it finds elsewhere in memory must stay there.
        pool: the one that the function will be called with.

    Returns:
        A function whose answers last until the next call, where that is possible a CUDA graph.
    """
    device = next(iter(pool.values())).device
    if device.type != "cuda":
        return turn
    stream = torch.cuda.current_stream(device)
    try:
        with torch.cuda.device(device), _casts_made_anew():
            turn(dict(pool))  # libraries start, torch.compile compiles
            rows = dict(pool)
            with _waits_forbidden():
                expected = turn(rows)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=torch.cuda.Stream(), capture_error_mode="thread_local"):
                answers = written(turn, pool)

        def replay(rows: Rows) -> Sequence[Tensor]:
            graph.replay()
            return answers

        if agrees(replay, pool, answers, [answer.clone() for answer in expected], rows):
            return replay
    except Exception:  # of any type: the network may be anyone's
        torch.cuda.set_stream(stream)  # a capture that fails leaves its own
    return partial(written, turn)


def agrees(replay: Turn, pool: Rows, answers: Sequence[Tensor], expected: Sequence[Tensor], rows: Rows) -> bool:
    """Whether a replay gives these answers and rows; the pool is afterwards what it was.

    Not so where the network launches kernels that no capture sees. In a hundredth of the numbers rounding may decide.
    """
    before = {key: value.clone() for key, value in pool.items()}
    for answer in answers:
        answer.zero_()
    pairs = [*zip(replay(pool), expected, strict=True), *((pool[key], rows[key]) for key in before)]
    near = [torch.isclose(a.double(), b.double(), rtol=1e-3, atol=1e-4, equal_nan=True) for a, b in pairs]
    same = all(float(part.double().mean()) > 0.99 for part in near)
    for key, value in before.items():
        pool[key].copy_(value)
    return same


def written(turn: Turn, pool: Rows) -> Sequence[Tensor]:
    """Calls the function and writes what it found into the pool's own tensors."""
    rows = dict(pool)
    answers = [answer.clone() for answer in turn(rows)]
    found = {key: value.clone() for key, value in rows.items() if value is not pool[key]}
    for key, value in found.items():
        pool[key].copy_(value)
    return answers


@contextmanager
def _casts_made_anew() -> Iterator[None]:
    """Autocast keeps no copies of weights: they would be gone when the graph is replayed."""
    kept = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(kept)


@contextmanager
def _waits_forbidden() -> Iterator[None]:
    """An error where the processor waits for the GPU, which no graph can hold."""
    mode = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, that it does not see every wait: capturing fails at those
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(mode)
