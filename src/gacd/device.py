"""Where to compute and in which precision: by what the hardware is made for, never by timing."""

import ctypes
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch

from gacd import ranks
from gacd.errors import InputError

if TYPE_CHECKING:  # seconds of import that only `launch` needs
    from lightning_fabric import Fabric

PRECISIONS: dict[str, Any] = {"32": "32-true", "bf16": "bf16-mixed", "64": "64-true"}


def launch(device: str = "auto", devices: int = 1, nodes: int = 1, precision: str = "auto") -> "tuple[Fabric, str]":
    """A started Fabric, and the precision chosen.

    Args:
        device: "auto", "cpu" or "cuda".
        devices: processes on this machine; LOCAL_WORLD_SIZE, which torchrun sets, counts more.
        nodes: machines; torchrun's WORLD_SIZE counts more.
        precision: "auto", "32", "bf16" (autocast) or "64".
    """
    from lightning_fabric import Fabric
    from lightning_fabric.strategies import DDPStrategy

    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("no CUDA device", "--device cuda", "--device cpu")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if local := int(os.environ.get("LOCAL_WORLD_SIZE", 0)):
        devices, nodes = local, int(os.environ["WORLD_SIZE"]) // local
    if device == "cuda" and devices > torch.cuda.device_count():
        raise InputError("fewer GPUs than processes", f"{torch.cuda.device_count()} < {devices}", "a lower --devices")
    if precision == "auto":
        precision = "bf16" if fast_bfloat16(device) else "32"
    keep_freed_memory()
    exact_on_cuda()
    warnings.filterwarnings("ignore", message=".*broadcast_buffers.*")  # its successor would still sync at the start
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # the precision is printed with the other options
    # Banks must not be overwritten by rank 0's: every rank holds all rows already.
    # And who is ready waits for the others, for audits of days if need be; a process that dies ends them all.
    waits = DDPStrategy(broadcast_buffers=False, timeout=timedelta(days=30))
    strategy = waits if devices * nodes > 1 else "auto"
    fabric = Fabric(
        accelerator=device, devices=devices, num_nodes=nodes, precision=PRECISIONS[precision], strategy=strategy
    )
    if os.environ.get("LOCAL_RANK", "0") != "0" and not local:  # those of torchrun are ended by it
        ranks.end_with_parent()
    fabric.launch()
    return fabric, precision


def fast_bfloat16(device: str) -> bool:
    """Whether the device multiplies bfloat16 in hardware; elsewhere it is emulated, a hundred times slower."""
    if device == "cuda":
        return torch.cuda.get_device_capability() >= (8, 0)
    probe = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return bool(probe and probe())


@contextmanager
def exactly() -> Iterator[None]:
    """Inside, no autocast, matrix products and CUDA as after `exact_on_cuda`; refused where newer flags forbid that."""
    refusal = InputError("float32 is not float32 here", "torch.backends' fp32_precision", 'set them back to "none"')
    try:
        before = torch.get_float32_matmul_precision()
    except RuntimeError:  # which it cannot read
        raise refusal from None
    on_cpu = getattr(torch.backends.mkldnn, "conv", None)  # of newer torch; no other flag reaches it
    if getattr(on_cpu, "fp32_precision", "none") in ("bf16", "tf32"):
        raise refusal
    convolutions = torch.backends.cudnn.flags(
        enabled=torch.backends.cudnn.enabled, benchmark=False, deterministic=True, allow_tf32=False
    )
    with convolutions, torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
        if before != "highest":
            torch.set_float32_matmul_precision("highest")
        try:
            yield
        finally:
            if before != "highest":
                torch.set_float32_matmul_precision(before)


def exact_on_cuda() -> None:
    """Float32 means it, in verdicts and audits, and a resume ends with the same bits; who wants speed has bfloat16."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.deterministic = True  # or gradients of weights are summed in any order
    warnings.filterwarnings("ignore", message=".*TensorFloat32 tensor cores.*")  # torch.compile wants them back


def keep_freed_memory() -> None:
    """Lets glibc reuse the blocks of large feature maps instead of returning them to the system after each use.

    Mapping them afresh costs a page fault per 4 kB in every step, about a tenth of a ResNet-8's step in bfloat16. The
    process keeps its peak memory.
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):  # musl has none
            libc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
            libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def describe(device: torch.device | str) -> str:
    """The processor's or GPU's name."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name()
    try:
        with open("/proc/cpuinfo") as file:
            name = next(line.split(":")[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        import platform

        name = platform.processor() or platform.machine()
    return f"{name}, {torch.get_num_threads()} threads"
