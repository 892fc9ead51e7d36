"""A GPU that is none: tensors that say they are on it, and hold their values on the CPU.

PyTorch's own stand-ins do not go far enough on a build without CUDA: in FakeTensorMode `torch.empty(3).to("cuda")` and
a CUDA tensor with an index on the CPU end in an error ("not linked with support for cuda devices"), and tensors on the
meta device have no values. Here every operation is computed, and held to the rules of a GPU:

- tensors of the GPU and of the CPU do not mix, but for numbers (0-dim) and indices;
- what makes the CPU wait for the GPU (`item`, `nonzero`, a copy to the CPU) is noted in `waits`, with the file.

The device calls itself "meta", the one name that every build knows.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

GPU = torch.device("meta")
WAITING = {"aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero", "aten::equal", "aten::masked_select"}
INDEXING = {"aten::index", "aten::index_put_", "aten::_unsafe_index"}


class OnGpu(Tensor):
    """A tensor on the stand-in, with its values."""

    values: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, values: Tensor) -> Any:
        return Tensor._make_wrapper_subclass(cls, values.size(), values.stride(), dtype=values.dtype, device=GPU)

    def __init__(self, values: Tensor) -> None:
        self.values = values

    @classmethod
    def __torch_dispatch__(cls, *_: Any, **__: Any) -> Any:
        raise AssertionError("an operation on the stand-in for a GPU outside of `Gpu`")


class _Literals(TorchFunctionMode):
    """`torch.tensor` makes its tensor and moves it out of sight of what is dispatched: here it is made, then moved."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        device = kwargs.pop("device", None) if function is torch.tensor else None
        made = function(*args, **kwargs)
        return made if device is None else made.to(device)


class Gpu(TorchDispatchMode):
    """Computes operations on the stand-in while it lasts; `waits` says which make the CPU wait, and in which file."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[tuple[str, str]] = []
        self._literals = _Literals()

    def __enter__(self) -> Gpu:
        self._literals.__enter__()
        return super().__enter__()  # type: ignore[no-any-return]

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._literals.__exit__(*error)

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = operation._schema.name
        tensors = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, Tensor)]
        ours = [x for x in tensors if isinstance(x, OnGpu)]
        others = [x for x in tensors if not isinstance(x, OnGpu)]
        assert all(x.device.type == "cpu" for x in others), (
            f"{name}: a tensor of torch.tensor(..., device=) has no values"
        )
        asked = kwargs.get("device")
        there = bool(ours) if asked is None else torch.device(asked).type == GPU.type
        if asked is not None:
            kwargs["device"] = "cpu"
        if name not in INDEXING and name != "aten::copy_" and ours:
            mixed = [tuple(x.shape) for x in others if x.dim()]
            assert not mixed, f"{name}: tensors on the GPU and on the CPU, of {mixed}"
        if ours and (name in WAITING or (name == "aten::_to_copy" and not there)):
            self.waits.append((name.removeprefix("aten::"), _asker()))
        found = operation(*tree_map(_values, args), **tree_map(_values, kwargs))
        if not there:
            return found
        if operation._schema.name.endswith("_") and args and found is _values(args[0]):
            return args[0]
        return tree_map(lambda x: OnGpu(x) if isinstance(x, Tensor) else x, found)


def _asker() -> str:
    """The name of the file, outside of torch and this one, whose line led to the operation that is being dispatched."""
    frame = sys._getframe(2)
    while frame and ("/torch/" in frame.f_code.co_filename or frame.f_code.co_filename == __file__):
        frame = frame.f_back
    return Path(frame.f_code.co_filename).name if frame else ""


def _values(x: Any) -> Any:
    return x.values if isinstance(x, OnGpu) else x


def to_gpu(module: nn.Module) -> Any:
    """The module with its parameters and buffers on the stand-in; tied ones stay tied."""
    moved: dict[int, OnGpu] = {}
    for part in module.modules():
        for table in (part._parameters, part._buffers):
            for name, tensor in table.items():
                if tensor is not None:
                    new = moved.setdefault(id(tensor), OnGpu(tensor.detach()))
                    table[name] = nn.Parameter(new, requires_grad=False) if table is part._parameters else new
        for name, value in vars(part).items():
            if isinstance(value, Tensor):
                vars(part)[name] = moved.setdefault(id(value), OnGpu(value.detach()))
    return module
