"""A simulated second device, for tests on machines without a GPU: tensors that report the device
"meta" but compute on the CPU, and refuse to mix with tensors of the CPU, as those of a GPU do."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

DEVICE = torch.device("meta")


class DeviceTensor(Tensor):
    """A tensor on the simulated device; ``inner`` holds its values, on the CPU."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> "DeviceTensor":
        with torch.inference_mode(False):
            made = Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype, device=DEVICE)
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return dispatch(func, args, kwargs or {})


class _Mode(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return dispatch(func, args, kwargs or {})


def dispatch(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Runs an operator on the CPU; its results are on the device that its inputs are on, or that it
    names. Fails if its inputs are on both devices (scalars may be on the CPU)."""
    flat, _ = tree_flatten((args, kwargs))
    tensors = [each for each in flat if isinstance(each, Tensor)]
    there = [each for each in tensors if isinstance(each, DeviceTensor)]
    mixed = there and any(each.dim() and not isinstance(each, DeviceTensor) for each in tensors)
    assert not mixed or func is torch.ops.aten.copy_.default, f"{func} mixes devices"
    named = [each for each in flat if isinstance(each, torch.device)]
    on_device = named[0] == DEVICE if named else bool(there)
    results = func(*unwrap(args), **unwrap(kwargs))
    if func._schema.name.endswith("_"):
        return args[0]
    return tree_map_only(Tensor, DeviceTensor, results) if on_device else results


def unwrap(values: Any) -> Any:
    """Arguments of an operator with the simulated device replaced by the CPU."""
    plain = tree_map_only(DeviceTensor, lambda tensor: tensor.inner, values)
    return tree_map_only(torch.device, lambda device: torch.device("cpu"), plain)


class _Factory(TorchFunctionMode):
    """``torch.tensor`` on "meta" would drop its values before any operator is called."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.tensor and torch.device(kwargs.get("device") or "cpu") == DEVICE:
            return DeviceTensor(func(*args, **{**kwargs, "device": "cpu"}))
        return func(*args, **kwargs)


@contextmanager
def other_device() -> Iterator[None]:
    """Within it the simulated device exists."""
    with _Mode(), _Factory():
        yield


def move(module: nn.Module) -> None:
    """Moves a module's parameters to the simulated device."""
    for part in module.modules():
        for name, weight in part._parameters.items():
            if weight is not None:
                part._parameters[name] = nn.Parameter(DeviceTensor(weight.data), False)
