"""What the processes of a distributed run share; with one process nothing is sent."""

import ctypes
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, distributed


def size() -> int:
    """Number of processes."""
    return distributed.get_world_size() if _many() else 1


def rank() -> int:
    """This process's number, from 0."""
    return distributed.get_rank() if _many() else 0


def gather(x: Tensor) -> Tensor:
    """All processes' rows in rank order, (size * B, ...), detached."""
    if not _many():
        return x.detach()
    sent = x.detach().contiguous()
    sent = sent.cuda() if distributed.get_backend() == "nccl" else sent  # which knows no tensors on the CPU
    rows = [torch.empty_like(sent) for _ in range(size())]
    distributed.all_gather(rows, sent)
    return torch.cat(rows).to(x.device)


def either(mask: Tensor) -> Tensor:
    """True where any process's is, like mask."""
    return gather(mask[None].to(torch.uint8)).bool().any(0)  # gloo knows no bool


@contextmanager
def together() -> Iterator[None]:
    """Where the block fails in one process all leave: it with its error, the others silently with its exit code."""
    error = None
    try:
        yield
    except Exception as failure:
        error = failure
    codes = gather(torch.tensor([getattr(error, "exit_code", 1) if error else 0]))
    if error:
        end_with_parent(0)  # what it has to say comes after the first process's silent end
        raise error
    if codes.any():
        raise SystemExit(int(codes.max()))


def end_with_parent(by: int = signal.SIGKILL) -> None:
    """On Linux this process dies with the one that started it, whose locks are free then; with 0 it does not."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, by)  # PR_SET_PDEATHSIG


def mine(x: Tensor) -> Tensor:
    """This process's part of gathered rows."""
    return x.chunk(size())[rank()]


def average_(tensors: list[Tensor]) -> None:
    """Replaces floating tensors by their mean over the processes, with one message."""
    if _many() and tensors:
        flat = torch.cat([t.flatten() for t in tensors])
        distributed.all_reduce(flat)
        flat /= size()
        for t, mean in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            t.copy_(mean.view_as(t))


def _many() -> bool:
    return distributed.is_available() and distributed.is_initialized()
