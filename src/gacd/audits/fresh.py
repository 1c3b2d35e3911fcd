"""The audit by a fresh process, which loads the network itself and is asked one image at a time."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import safetensors.torch
import torch

from gacd import checkpoint, noise
from gacd.audits.case import Case, Result

RECHECKED = 100  # images
PROGRAM = "from gacd.audits.fresh import answer; answer()"


def recheck(case: Case) -> Result:
    """A fresh process gives the same verdicts one image at a time."""
    if case.source is None:
        return None, "the network is only in memory: no other process can load it", "evaluate from a run or a file"
    if case.x_adv is None:
        return None, "no adversarial images were handed over", ""
    beaten = case.correct["natural"] & ~case.survivors  # half of them, as far as there are, else one kind fills up
    order = noise.permutation(noise.key(case.seed, "recheck"), case.n)
    first = torch.cat([order[beaten[order]][: RECHECKED // 2], order[case.survivors[order]][: RECHECKED // 2]])
    rows = torch.cat([first, order[~torch.isin(order, first)]])[:RECHECKED]
    with tempfile.TemporaryDirectory(prefix="gacd-audit-") as folder:
        asked, answered = Path(folder) / "images.safetensors", Path(folder) / "logits.safetensors"
        safetensors.torch.save_file({"x": case.x_adv[rows.to(case.x.device)].cpu().contiguous()}, asked)
        request = dict(source=case.source, mean=case.mean, std=case.std, images=str(asked), logits=str(answered))
        command = [sys.executable, "-c", PROGRAM]
        run = subprocess.run(command, input=json.dumps(request), capture_output=True, text=True, timeout=600)
        if run.returncode or not answered.exists():
            last = (run.stderr.strip().splitlines() or ["no reason given"])[-1][:200]
            return False, f"a fresh process cannot re-score {case.source}: {last}", "can the source be loaded again?"
        fresh = safetensors.torch.load_file(answered)["logits"]
    differ = case.differ(fresh, case.y[rows.to(case.y.device)].cpu(), case.survivors[rows])
    says = f"{int(differ.sum())} of {len(rows)} verdicts differ in a fresh process, one image at a time"
    return not differ.any(), says, "were these the weights that were evaluated?"


def answer() -> None:
    """The fresh process: reads the request on stdin, leaves each image's logits."""
    request = json.load(sys.stdin)
    model = checkpoint.load(request["source"], mean=request["mean"], std=request["std"]).eval()
    x = safetensors.torch.load_file(request["images"])["x"]
    with torch.no_grad():
        fresh = torch.cat([model(image[None]).float() for image in x])
    safetensors.torch.save_file({"logits": fresh.contiguous()}, request["logits"])
