"""A progress bar with the losses and the time left; plain lines where there is no terminal."""

import time
from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar


class Progress:
    """Shows how far a loop is, on stderr.

    Args:
        total: steps in all.
        first: steps done before.
        quiet: show nothing.
    """

    def __init__(self, total: int, first: int = 0, *, quiet: bool = False):
        self.console = Console(stderr=True, highlight=False, quiet=quiet)
        columns = [BarColumn(20), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}")]
        self.bar = Bar(*columns, console=self.console, transient=True, disable=not self.console.is_terminal)
        self.task = self.bar.add_task("", total=total, completed=first)
        self.total, self.first, self.began = total, first, time.monotonic()

    def __enter__(self) -> "Progress":
        self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.stop()

    def step(self, done: int) -> None:
        self.bar.update(self.task, completed=done)

    def advance(self, n: int) -> None:
        self.bar.advance(self.task, n)

    def losses(self, values: dict[str, Any]) -> None:
        self.bar.update(self.task, description=_join(values))

    def note(self, label: str, row: dict[str, Any], done: int) -> None:
        """A line that stays, with the time left."""
        rate = (time.monotonic() - self.began) / max(done - self.first, 1)
        left = timedelta(seconds=round(rate * (self.total - done)))
        self.console.print(f"{label}  {_join(row)}  {left} left", markup=False)


def _join(values: dict[str, Any]) -> str:
    return "  ".join(f"{name} {float(value):.4g}" for name, value in values.items())
