"""Operations and activations of one network pass, counted on the meta device: shapes are computed, numbers are not."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import FlopCounterMode

from tpdiff.evaluation.latency import ATTENTION_FORMULAS
from tpdiff.families.models import Published
from tpdiff.families.models.published import Shape

ATTENTION = torch.nn.functional.scaled_dot_product_attention
FUSED = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
INDEXING = (torch.ops.aten.index.Tensor, torch.ops.aten.index_put_.default, torch.ops.aten.index_put.default)
SMALL = 1 << 20  # elements; masks and pictures keep their values, but what they grow into beyond this is a shape
ACTIVATIONS = (
    "peak of the live activations of one network pass, in bf16, run eagerly with fused attention, its inputs included; "
    "weights, the workspaces of kernels and what an allocator wastes are not"
)


@dataclass(frozen=True)
class Count:
    """One network pass.

    Attributes:
        flops: floating-point operations of matrix products, convolutions and attention, 2 a multiply-add.
        activation_bytes: see `ACTIVATIONS`.
    """

    flops: int
    activation_bytes: int


def count_pass(network: nn.Module, inputs: Callable[[], dict[str, Any]]) -> Count:
    """Count one call of a network on the meta device.

    Args:
        network: on the meta device.
        inputs: -> its arguments, made inside; those on the CPU keep their values where the network looks at them.
    """
    weights = [tensor.untyped_storage() for tensor in (*network.parameters(), *network.buffers())]
    counter = FlopCounterMode(display=False, custom_mapping=ATTENTION_FORMULAS)
    live = Live(weights)
    with torch.no_grad(), _autocast_on_meta(), counter, live, _FusedAttention(), torch.device("meta"):
        network(**inputs())
    return Count(int(counter.get_total_flops()), live.peak)


def count_model(
    model: Published,
    latent: Shape,
    batch: int = 1,
    dtype: torch.dtype = torch.bfloat16,
    whole: bool = False,
    network: nn.Module | None = None,
) -> Count:
    """Count one pass of a published model, in a moment.

    Blocks that repeat are counted once: operations are linear in the number of equal blocks, so one and two of each
    kind tell the rest exactly. Activations reach their peak with two.

    Args:
        model: its configuration.
        latent: (t, h, w) of the latents.
        batch: videos in the pass.
        dtype: of weights and activations.
        whole: count all blocks, one after the other.
        network: the model's, built before on the meta device with `dtype`; None: it is built where all of it counts.
    """

    def run(**changes: int) -> Count:
        built = network if network is not None and not changes else model.build("meta", dtype, **changes)
        return count_pass(built, lambda: model.inputs(model.config, latent, batch, dtype))

    if whole or not model.layers:
        return run()
    ones = dict.fromkeys(model.layers, 1)
    first = run(**ones)
    flops, peak = first.flops, first.activation_bytes
    for name in model.layers:
        more = model.config[name] - 1
        if more > 0:
            two = run(**{**ones, name: 2})
            flops += more * (two.flops - first.flops)
            peak = max(peak, two.activation_bytes)
    return Count(flops, peak)


class Live(TorchDispatchMode):
    """Sums the storages that are alive, and lets a few real tensors stand among those without numbers.

    A mask on the CPU may meet a tensor on the meta device: the result has no numbers. Where a mask alone is asked for
    its values, it has them.

    Args:
        weights: storages that are not counted.
        shapes: tensors on the CPU may become shapes; False in a run with real numbers.
    """

    def __init__(self, weights: Iterable[torch.UntypedStorage] = (), shapes: bool = True):
        super().__init__()
        self.shapes = shapes
        self.now = self.peak = 0
        self._alive: dict[int, Any] = {id(storage): storage for storage in weights}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if any(tensor.is_meta for tensor in given):
            if func not in INDEXING and not all(tensor.is_meta for tensor in given):
                args, kwargs = _shapes_alone((args, kwargs))
        elif self.shapes and given and _grows(func, args, kwargs):
            args, kwargs = _shapes_alone((args, kwargs))
        result = func(*args, **kwargs)
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._see(leaf.untyped_storage())
        return result

    def _see(self, storage: torch.UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()
        if key in self._alive:
            return

        def gone(_: Any) -> None:
            del self._alive[key]
            self.now -= size

        self._alive[key] = weakref.ref(storage, gone)
        self.now += size
        self.peak = max(self.peak, self.now)


class _FusedAttention(TorchFunctionMode):
    """Attention as a fused kernel does it, without scores in memory.

    On the meta device PyTorch takes attention apart into products, which the counter counts alike, but whose scores
    would dwarf all other activations.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is ATTENTION:
            query, key, value = (*args, *(kwargs[name] for name in ("query", "key", "value")[len(args) :]))[:3]
            if query.is_meta and query.ndim == 4 and query.shape[-1] == value.shape[-1]:
                return FUSED(query, key, value)[0]
        return func(*args, **kwargs)


@contextmanager
def _autocast_on_meta() -> Iterator[None]:
    """`torch.autocast` does not know the meta device; the few products under it count alike in any precision."""
    known = torch.autocast

    def autocast(device_type: str, *args: Any, **kwargs: Any) -> Any:
        return nullcontext() if device_type == "meta" else known(device_type, *args, **kwargs)

    torch.autocast = autocast  # type: ignore[assignment, misc]
    try:
        yield
    finally:
        torch.autocast = known  # type: ignore[misc]


def _shapes_alone(arguments: Any) -> Any:
    return tree_map_only(Tensor, lambda t: t if t.is_meta else torch.empty_like(t, device="meta"), arguments)


def _grows(func: Any, args: Any, kwargs: Any) -> bool:
    """Whether an operation on real tensors makes a large one of smaller ones."""
    given = max(leaf.numel() for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor))
    with _disable_current_modes():
        try:
            result = func(*_shapes_alone(args), **_shapes_alone(kwargs))
        except (RuntimeError, NotImplementedError):  # its shape depends on values
            return False
    return any(isinstance(leaf, Tensor) and leaf.numel() > max(SMALL, given) for leaf in tree_leaves(result))
