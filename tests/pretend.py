"""A GPU to pretend with, on any machine: tensors that compute on the CPU and refuse to meet the CPU's.

What it finds is what a CPU hides: a tensor left behind, an index made on the wrong side. Its device is "meta", which
torch accepts without any hardware; nothing else is meta about it.
"""

from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

GPU = torch.device("meta")
ANYWHERE = {"aten::_to_copy", "aten::copy_"}  # operations between devices
INDEXED = {"aten::index", "aten::index_put_", "aten::_index_put_impl_", "aten::index_put"}  # by the CPU's, too


class There(Tensor):
    """A tensor on the pretended GPU."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> "There":
        made = torch.Tensor._make_wrapper_subclass(
            cls, held.size(), held.stride(), held.storage_offset(), dtype=held.dtype, device=GPU
        )
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})

    def tolist(self) -> Any:
        return self.held.tolist()

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.held.__reduce_ex__(protocol)  # in a file: read again, it is the CPU's

    def __repr__(self, **options: Any) -> str:
        return f"There({self.held!r})"


class Made(TorchFunctionMode):
    """What Python's numbers are made into, which no dispatch sees, goes to the pretended GPU where it was asked for."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in (torch.tensor, torch.as_tensor) and kwargs.get("device") == GPU:
            return func(*args, **kwargs | dict(device="cpu")).to(GPU)
        return func(*args, **kwargs)


class Pretend(TorchDispatchMode):
    """Inside, the device "meta" is the pretended GPU."""

    def __enter__(self) -> "Pretend":
        self.made = Made()
        self.made.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.made.__exit__(*error)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})


def run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """One operation on what the tensors hold."""
    name = func._schema.name
    flat, spec = tree_flatten((args, kwargs))
    tensors = [value for value in flat if isinstance(value, Tensor)]
    there = [value for value in tensors if isinstance(value, There)]
    assert all(isinstance(value, There) for value in tensors if value.device == GPU), f"{name}: a tensor without values"
    asked = kwargs.get("device")
    if there and name not in ANYWHERE:
        checked = [args[0], *args[2:]] if name in INDEXED else flat
        strangers = [v for v in checked if isinstance(v, Tensor) and not isinstance(v, There) and v.ndim]
        if strangers or (name in INDEXED and not isinstance(args[0], There)):
            raise RuntimeError(f"{name}: tensors on the GPU and on the CPU, {[tuple(v.shape) for v in tensors]}")
    wraps = torch.device(asked).type == GPU.type if asked is not None else bool(there)
    if name == "aten::copy_":
        wraps = isinstance(args[0], There)
    owner = {id(value.held): value for value in there}
    plain = tree_unflatten([value.held if isinstance(value, There) else value for value in flat], spec)
    if asked is not None:
        plain[1]["device"] = torch.device("cpu")
    result = func(*plain[0], **plain[1])
    if not wraps:
        return result

    def back(value: Any) -> Any:
        return owner.get(id(value), There(value)) if isinstance(value, Tensor) else value

    return tree_map(back, result)


class Elsewhere(Fabric):
    """A Fabric whose device is the pretended GPU."""

    @property
    def device(self) -> torch.device:
        return GPU

    def setup(self, module: Any, *optimizers: Any, **options: Any) -> Any:
        return super().setup(module.to(GPU), *optimizers, move_to_device=False, **options)


def launch(*asked: Any, **options: Any) -> tuple[Fabric, str]:
    return Elsewhere(accelerator="cpu", devices=1), "32"
