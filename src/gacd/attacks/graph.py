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
    if not next(iter(pool.values())).is_cuda:
        return turn
    try:
        with _casts_made_anew():
            turn(dict(pool))  # libraries start, torch.compile compiles
            with _waits_forbidden():
                turn(dict(pool))
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # others may go on, such as NCCL
                answers = written(turn, pool)
    except Exception:  # of any type: the network may be anyone's
        return partial(written, turn)

    def replay(rows: Rows) -> Sequence[Tensor]:
        graph.replay()
        return answers

    return replay


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
