"""A fresh process, which loads a network itself and is asked one image at a time."""

import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from gacd import checkpoint
from gacd.errors import GacdError

# The current folder last, as the command has it: it hides nothing installed.
PROGRAM = "import sys; sys.path.sort(key=lambda p: p == ''); from gacd.audits.fresh import answer; answer()"
ANSWERED = "gacd: answered\n"  # ends a line, for a factory may print
PATIENCE = 600.0, 10.0  # seconds for an answer, and for each image


class Killed(GacdError):
    """Nothing was found out: the process was killed."""


class Fresh:
    """A process of its own, from the first question to the end of `with`, that loads a network anew for each.

    Args:
        source: see `checkpoint.load`.
        mean, std: of a foreign file, as `source` was opened with.
    """

    def __init__(self, source: str, mean: list[float] | None = None, std: list[float] | None = None):
        self.network = dict(source=source, mean=mean, std=std)
        self.source, self.weights = source, _written(source)
        self.process: subprocess.Popen[str] | None = None

    def __enter__(self) -> "Fresh":
        self.folder = tempfile.TemporaryDirectory(prefix="gacd-audit-")
        self.errors = Path(self.folder.name) / "errors.txt"
        return self

    def __exit__(self, *error: object) -> None:
        if self.process:
            self.process.kill()
            self.process.communicate()
        self.folder.cleanup()

    @property
    def replaced(self) -> bool:
        """Whether a run or file was written since this was made, as while it is being trained."""
        return _written(self.source) != self.weights

    def logits(self, x: Tensor) -> Tensor:
        """Images (n,C,H,W) -> logits (n,K), on the CPU.

        Raises:
            Killed: the process took too long, or was ended from outside, as for memory.
            GacdError: the process cannot load the network, or fails.
        """
        if self.process and self.process.poll() is not None:
            self.process.communicate()  # closes its pipes
            self.process = None
        self.process = self.process or self._started()
        asked, answered = Path(self.folder.name) / "images.safetensors", Path(self.folder.name) / "logits.safetensors"
        answered.unlink(missing_ok=True)
        safetensors.torch.save_file({"x": x.cpu().contiguous()}, asked)
        request = json.dumps(self.network | dict(images=str(asked), logits=str(answered)))
        patience = threading.Timer(PATIENCE[0] + PATIENCE[1] * len(x), self.process.kill)
        patience.start()
        began, line = time.monotonic(), None
        try:
            assert self.process.stdin is not None and self.process.stdout is not None  # as it was started
            print(request, file=self.process.stdin, flush=True)
            line = next((said for said in self.process.stdout if said.endswith(ANSWERED)), None)
        except BrokenPipeError:
            pass  # it has ended, and said why
        finally:
            patience.cancel()
        if not answered.exists():
            if line is None and (code := self.process.wait()) < 0:
                took = f"after {time.monotonic() - began:.0f} s"
                raise Killed(f"the fresh process with {self.network['source']} was killed {took}", f"signal {-code}")
            last = (self.errors.read_text().strip().splitlines() or ["no reason given"])[-1][:200]
            raise GacdError(f"a fresh process cannot re-score {self.network['source']}", last)
        return safetensors.torch.load_file(answered)["logits"]

    def _started(self) -> "subprocess.Popen[str]":
        command = [sys.executable, "-c", PROGRAM]
        with self.errors.open("w") as errors:
            return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True)


def _written(source: str) -> tuple[int, ...]:
    """Which file holds the weights of a run, or is the source, and when it was written; of any other source nothing."""
    path = Path(source)
    if not path.exists():
        return ()
    about = (checkpoint.weights_of(path) if path.is_dir() else path).stat()
    return about.st_ino, about.st_mtime_ns, about.st_size


def answer() -> None:
    """The fresh process: reads requests on stdin, a line each, and leaves each image's logits."""
    for line in sys.stdin:
        request = json.loads(line)
        try:
            model = checkpoint.load(request["source"], mean=request["mean"], std=request["std"]).eval()
            x = safetensors.torch.load_file(request["images"])["x"]
            with torch.no_grad():
                logits = torch.cat([model(image[None]).float() for image in x])
            safetensors.torch.save_file({"logits": logits.contiguous()}, request["logits"])
        except Exception as error:  # of any type: the network may be anyone's
            print(f"{type(error).__name__}: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        print(ANSWERED, end="", flush=True)
