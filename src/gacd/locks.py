"""One owner of a directory at a time."""

import fcntl
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from gacd import ranks
from gacd.errors import InputError, Locked


@contextmanager
def owned(run: Path, name: str = ".lock", *, wait: float = 0) -> Iterator[None]:
    """Owned by this process inside, if need be after some seconds; the kernel releases the lock when it dies."""
    try:
        run.mkdir(parents=True, exist_ok=True)
        file = open(run / name, "a")  # noqa: SIM115
    except OSError as error:
        raise InputError("cannot use run directory", f"{run}: {error.strerror}") from None
    until = time.monotonic() + wait
    with file:
        while not _taken(file.fileno(), run):
            if time.monotonic() >= until:
                raise Locked("another process is using the run", run, "try again when it has ended")
            time.sleep(0.1)
        yield


@contextmanager
def owned_by_all(run: Path) -> Iterator[None]:
    """`owned`, by all processes of a distributed run together."""
    with ExitStack() as lock:
        with ranks.together():
            if ranks.rank() == 0:
                lock.enter_context(owned(run))
        yield


def _taken(file: int, run: Path) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise InputError("its file system has no locks", f"{run}: {error.strerror}", "another --out") from None
    return True
