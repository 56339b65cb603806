"""A second device on a machine that has none, as a plugin: `pytest -p second_device`.

Tensors say that they lie on it and keep their values in memory, so that whatever runs there gives what it gives on the
CPU. Refused is what CUDA refuses: operands on two devices (but for numbers, and indices on the CPU), a generator of
the other device, and NumPy's view. It knows nothing of speed, streams, autocast or graphs, and inference mode is no
more than `torch.no_grad` there. Training finds it as its only accelerator.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "second"
CPU = torch.device("cpu")
aten = torch.ops.aten
BETWEEN = {aten._to_copy.default, aten.copy_.default}  # take tensors from one device to another
INDEXED = {aten.index.Tensor, aten.index_put_.default, aten.index_put.default, aten._index_put_impl_.default}
FROM_VALUES = {torch.tensor, torch.as_tensor}  # which leave dispatch modes out

_setup_privateuseone_for_python_backend(NAME)
DEVICE = torch.device(NAME, 0)
torch.second.get_amp_supported_dtype = lambda: [torch.bfloat16, torch.float16, torch.float32]
torch.second.get_rng_state = lambda device=None: torch.random.get_rng_state()
torch.second.set_rng_state = lambda state, device=None: None
_autocast = torch.library.Library("_", "IMPL")
_autocast.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
torch.inference_mode = lambda mode=True: torch.no_grad() if mode else torch.enable_grad()


class There(torch.Tensor):
    """A tensor on the second device; `held` has its values."""

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> There:
        layout = {"strides": held.stride(), "storage_offset": held.storage_offset(), "layout": held.layout}
        tensor = torch.Tensor._make_wrapper_subclass(cls, held.shape, dtype=held.dtype, device=DEVICE, **layout)
        tensor.held = held
        return tensor

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return carried_out(function, args, kwargs or {})

    def __repr__(self) -> str:
        return f"There({self.held})"

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise TypeError(f"can't convert {DEVICE} device type tensor to numpy")

    numpy = __array__

    def tolist(self) -> Any:
        return self.held.tolist()

    def storage(self) -> Any:
        return self.held.storage()

    def untyped_storage(self) -> Any:
        return self.held.untyped_storage()


class _Dispatch(TorchDispatchMode):
    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return carried_out(function, args, kwargs or {})


class _Values(TorchFunctionMode):
    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if function is torch.Tensor.new_tensor:
            kwargs, function = {"dtype": args[0].dtype, "device": args[0].device} | kwargs, torch.tensor
            args = args[1:]
        place = kwargs.pop("device", None) if function in FROM_VALUES else None
        made = function(*args, **kwargs)
        return made if place is None else made.to(place)


def carried_out(function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """An operation on the values, its results where they belong.

    Raises:
        RuntimeError: operands that CUDA would not put together.
    """
    flat, form = tree_flatten((args, kwargs))
    tensors = [x for x in flat if isinstance(x, torch.Tensor)]
    asked = [x for x in flat if isinstance(x, torch.device)]
    there = any(isinstance(x, There) for x in tensors)
    if function is aten.copy_.default:
        result_there = isinstance(args[0], There)
    else:
        result_there = asked[0].type == NAME if asked else there
    if there and function not in BETWEEN:
        _refuse_mixed(function, tensors, args)
    if result_there and any(isinstance(x, torch.Generator) and x.device.type != NAME for x in flat):
        raise RuntimeError(f"{function}: expected a generator of {DEVICE}, got one of cpu")
    held = [_here(x) for x in flat]
    known = {id(value): x for value, x in zip(held, flat, strict=True) if isinstance(x, torch.Tensor)}
    new_args, new_kwargs = tree_unflatten(held, form)

    def placed(result: Any) -> Any:
        if not isinstance(result, torch.Tensor):
            return result
        return known[id(result)] if id(result) in known else There(result) if result_there else result

    return tree_map(placed, function(*new_args, **new_kwargs))


def _here(x: Any) -> Any:
    if isinstance(x, There):
        return x.held
    return CPU if isinstance(x, torch.device) and x.type == NAME else x


def _refuse_mixed(function: Any, tensors: Sequence[torch.Tensor], args: Sequence[Any]) -> None:
    indices = args[1] if function in INDEXED and isinstance(args[0], There) else ()
    free = {id(x) for x in indices}
    if any(not isinstance(x, There) and x.dim() > 0 and id(x) not in free for x in tensors):
        raise RuntimeError(f"{function}: expected all tensors to be on the same device, found {DEVICE} and cpu")


@pytest.fixture(autouse=True)
def second_device(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Every test runs with the device there, and training takes it."""
    from accelerate.state import PartialState

    monkeypatch.setattr(PartialState, "default_device", property(lambda self: DEVICE))
    with _Dispatch(), _Values():
        yield DEVICE
