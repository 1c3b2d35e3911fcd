"""What an evaluation has judged so far, kept beside its results: one that was killed goes on where it stopped."""

import hashlib
import json
import shutil
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gacd import checkpoint, locks, ranks
from gacd.errors import InputError
from gacd.typed import INSTALLED

Beaten = tuple[Tensor, Tensor, list[str]]  # positions (m,), what beat the images there (m,C,H,W), by which attack
KEPT = 10_000  # images, of which a journal holds what beat them
NOTHING = torch.empty(0, dtype=torch.int64)


class Journal:
    """Verdicts by attack and stage; one file each time some are noted.

    Args:
        folder: where its own lies, locked inside `with` and, if settled, deleted at its end; None keeps nothing.
        key: whatever a verdict depends on; another key is another journal.
        keep: images at positions from here on are not kept, only their verdicts.

    Attributes:
        settled: whether its verdicts are done with at the end; may be set to False inside `with`.
    """

    def __init__(self, folder: Path | None = None, key: dict[str, Any] | None = None, *, keep: int = KEPT):
        self.keep, self.owner = keep, ExitStack()
        self.settled = True
        self.name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]  # of the key
        self.folder = None if folder is None else folder / f".evaluation-{self.name}"
        self._read()

    def recall(self, attack: str, stage: int) -> tuple[Tensor, Tensor]:
        """Positions (m,) that a stage of an attack has judged, and whether they were still right, (m,) bool."""
        parts = self.known.get((attack, stage), [])
        where, right = (torch.cat(column) for column in zip(*parts, strict=True)) if parts else (NOTHING, NOTHING)
        return where, right.bool()

    def note(self, attack: str, stage: int, where: Tensor, right: Tensor, x_adv: Tensor) -> None:
        """Keeps verdicts at positions (m,), and the images (m,C,H,W) that fooled the network for the first time."""
        if self.folder is None or not len(where):
            return
        new = ~right & (where < self.keep) & ~torch.isin(where, self.beaten)
        kept = x_adv[new.to(x_adv.device)].float().cpu().contiguous()
        part = dict(attack=attack, stage=stage, where=where, right=right, new=where[new], x_adv=kept)
        checkpoint.write(self.folder / f"{self.written:06d}-{ranks.rank()}.pt", part)
        self.written += 1
        self._learn(part)

    def witnesses(self) -> Beaten:
        """What beat images of which more was kept than verdicts, by position, ascending."""
        parts = [part for part in self._parts() if len(part["new"])]  # of no more than `keep` images
        if not parts:
            return NOTHING, torch.empty(0), []
        where, x_adv = torch.cat([part["new"] for part in parts]), torch.cat([part["x_adv"] for part in parts])
        names = [part["attack"] for part in parts for _ in part["new"]]
        order = where.argsort(stable=True)
        return where[order], x_adv[order], [names[i] for i in order]

    def __enter__(self) -> "Journal":
        """Nobody else writes to it meanwhile."""
        if self.folder is not None:
            self.owner.enter_context(locks.owned_by_all(self.folder))
            self._read()  # another process may have written, or ended and deleted it, until now
        return self

    def __exit__(self, kind: type | None, *error: object) -> None:
        """Forgets everything if all went well, since then the results are written; or if there is nothing to keep."""
        if self.folder is not None and ranks.rank() == 0 and ((kind is None and self.settled) or not self._files()):
            shutil.rmtree(self.folder, ignore_errors=True)
        self.owner.close()

    def _read(self) -> None:
        self.known: dict[tuple[str, int], list[tuple[Tensor, Tensor]]] = {}
        self.beaten = NOTHING  # whose images are kept
        for part in self._parts():
            self._learn(part)
        self.written = 1 + max((int(path.stem.split("-")[0]) for path in self._files()), default=-1)

    def _learn(self, part: dict[str, Any]) -> None:
        self.known.setdefault((part["attack"], part["stage"]), []).append((part["where"], part["right"]))
        self.beaten = torch.cat([self.beaten, part["new"]])

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("*.pt")) if self.folder is not None else []

    def _parts(self) -> Iterator[dict[str, Any]]:
        """What the files say; a damaged one is named and judged again."""
        for path in self._files():
            try:
                part = checkpoint.read(path)
            except InputError as error:
                print(f"gacd: warning: {error}; its images are attacked again", file=sys.stderr)
                path.unlink(missing_ok=True)  # another process found it too
            else:
                yield part


def code_of_all() -> str:
    """SHA-256 of our code and of all else that is imported and not installed, such as a network's own."""
    files, commands = set(Path(__file__).parent.rglob("*.py")), Path(sysconfig.get_path("scripts"))
    for module in list(sys.modules.values()):
        path = Path(getattr(module, "__file__", None) or "")
        if path.is_file() and path.parent != commands and not INSTALLED & set(path.parts):
            files.add(path)
    h = hashlib.sha256()
    for path in sorted(files):
        h.update(path.read_bytes())
    return h.hexdigest()
