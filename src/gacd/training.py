"""The trainer: one loop for teachers, students and fine-tuning, which names no method."""

import bisect
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from lightning_fabric import Fabric
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from gacd import ranks
from gacd.classifier import lay_out_weights
from gacd.data import Dataset, Loader
from gacd.errors import Diverged, Stopped, UsageError
from gacd.evaluation import evaluate
from gacd.methods.base import Clock, Method
from gacd.probe import with_ridge_head
from gacd.progress import Progress
from gacd.runs import Run, Stopping


def fit(
    method: Method,
    data: Dataset,
    out: Path,
    fabric: Fabric,
    *,
    epochs: int = 100,
    batch_size: int = 128,
    lr: float = 0.1,
    schedule: Literal["multistep", "cosine", "onecycle"] = "multistep",
    milestones: list[int] | None = None,
    weight_decay: float = 5e-4,
    ema: float = 0.0,
    clip: float = 0.0,
    augment: Literal["none", "crop", "flip", "crop-flip"] | None = None,
    val_every: int = 1,
    val_steps: int = 10,
    log_every: int = 50,
    save_every: float = 60.0,
    seed: int = 0,
) -> dict[str, Any]:
    """Trains a method; the same call goes on where a stopped or killed one was, to the same bits.

    Args:
        method: what is trainable of it, the student and its own, is trained with SGD, momentum 0.9 without Nesterov's.
        data: training and held-out validation images; its test images are not looked at.
        out: run directory, for metrics.jsonl and checkpoints/.
        fabric: device, precision and processes.
        epochs: passes over the training images.
        batch_size: images per step, over all processes.
        lr: the largest learning rate.
        schedule: "multistep" (a tenth after each milestone), "cosine" to 0, or "onecycle" (linear up over the first
            40 %, linear down to 0).
        milestones: epochs after which "multistep" decays; three quarters and nine tenths of all if absent.
        weight_decay: L2, on every parameter.
        ema: decay of the averaged weights and batch-norm statistics, which are validated and kept instead; 0: none.
        clip: largest norm of the gradient; 0: unlimited.
        augment: padded random crop, horizontal flip; the data set's default if absent.
        val_every: epochs between validations, which choose the best weights by PGD accuracy (standard training, KD:
            natural).
        val_steps: of that PGD.
        log_every: steps between rows of metrics.jsonl.
        save_every: seconds between checkpoints; one is also made at the end and when stopped.
        seed: of the order, the augmentation, and all noise: a stage after another of the same seed repeats its draws.

    Returns:
        The last validation's row, with the best one's under "best".

    Raises:
        Diverged: the loss or a gradient is not finite.
        Stopped: by a signal, after a checkpoint.
        UsageError: a number without a meaning.
        InputError: checkpoints of another training.
    """
    loader = Loader(
        data.train,
        batch_size=batch_size,
        seed=seed,
        augment=augment or data.augment,
        device=fabric.device,
        rank=fabric.global_rank,
        world_size=fabric.world_size,
    )
    if loader.batch_size < 2 * fabric.world_size:
        raise UsageError("batch norms need two images a process", f"--batch-size {batch_size}", "a larger one")
    method.student.head.requires_grad_(method.trains_head)
    method.train()  # a student that was loaded is in eval mode
    lay_out_weights(method.student)
    lay_out_weights(method.teacher)
    optimizer = torch.optim.SGD(
        [p for p in method.parameters() if p.requires_grad], lr, momentum=0.9, weight_decay=weight_decay
    )
    wrapped, optimizer = fabric.setup(method, optimizer)
    average = AveragedModel(method.student, multi_avg_fn=get_ema_multi_avg_fn(ema), use_buffers=True) if ema else None
    run = Run(out, method, optimizer, average, data)
    first, last = run.restore(), epochs * len(loader)
    if first < last and run.writes:  # a classifier that was fitted later is of weights that are about to change
        (out / "checkpoints/probe.pt").unlink(missing_ok=True)
    statistics = [b for b in method.student.buffers() if b.is_floating_point()]
    progress = Progress(last, first, quiet=fabric.global_rank > 0)
    with Stopping(fabric.device) as stopping, progress, run:
        batches: Iterator = iter(())
        for step in range(first, last):
            epoch, batch = divmod(step, len(loader))
            if batch == 0 or step == first:
                batches = loader.epoch(epoch, batch)
            x, y, index = next(batches)
            method.clock = Clock(seed, epoch, step, step / last)
            optimizer.param_groups[0]["lr"] = rate = lr * decay(
                schedule, (step + 0.5) / len(loader), epochs, milestones
            )
            values = wrapped(x, y, index)
            fabric.backward(values["loss"])
            norm = nn.utils.clip_grad_norm_([p for g in optimizer.param_groups for p in g["params"]], clip or math.inf)
            if not math.isfinite(float(values["loss"].detach()) + float(norm)):
                images = ", ".join(map(str, index.tolist()))
                raise Diverged(
                    f"loss or gradient not finite at step {step}", f"training images {images}", "lower --lr?"
                )
            optimizer.step()
            optimizer.zero_grad()
            ranks.average_(statistics)
            if average is not None:
                average.update_parameters(method.student)
            done = step + 1
            if done % log_every == 0 or done == last:
                shares = [float(value.detach()) for value in values.values()]
                logged = torch.tensor(shares, dtype=torch.float64, device=fabric.device)
                ranks.average_([logged])
                losses = dict(zip(values, logged.tolist(), strict=True))
                run.log(step=done, epoch=epoch, lr=rate, **losses)
                progress.losses(losses)
            progress.step(done)
            if done % (val_every * len(loader)) == 0 or done == last:
                row = validate(run.weights, data, method, steps=val_steps, seed=seed, search=fabric.autocast)
                run.validated(done, epoch, row)
                progress.note(f"epoch {epoch + 1}/{epochs}", row, done=done)
            save, signal = stopping.agreed(run.age > save_every)
            if save or signal or done == last:
                run.save(done)
            if signal and done < last:
                raise Stopped(signal, out)
    return run.summary


def decay(schedule: str, epoch: float, epochs: int, milestones: Sequence[float] | None) -> float:
    """The learning rate over its largest value, a function of time alone."""
    progress = epoch / epochs
    if schedule == "cosine":
        return (1 + math.cos(math.pi * progress)) / 2
    if schedule == "onecycle":
        return min(progress / 0.4, (1 - progress) / 0.6)
    milestones = [0.75 * epochs, 0.9 * epochs] if milestones is None else sorted(milestones)
    return 0.1 ** bisect.bisect_right(milestones, epoch)


def validate(
    student: nn.Module, data: Dataset, method: Method, *, steps: int, seed: int, search: Callable
) -> dict[str, float]:
    """Natural and PGD accuracy on the held-out images, at the method's radius.

    A student whose classifier the method does not train gets a closed-form one.
    """
    if len(data.val) == 0:
        return {}
    if not method.trains_head:
        student = with_ridge_head(student, data, limit=5000)
    attack = f"pgd{steps}" if steps else "fgsm"
    result = evaluate(student, data.val, [attack], eps=getattr(method, "eps", 8 / 255), seed=seed, search=search)
    return dict(val_natural=result.natural, val_robust=result.robust[attack])
