"""Several processes that train as one: how they find each other, what each one's share is, what they agree on.

All of it goes through accelerate: DDP, or FSDP2 where its launcher was told so. Which samples there are and what they
meet does not depend on the number of processes, so a recipe means the same on one as on many; but for a token budget
whose clips they cannot share out evenly.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, ParallelismConfig
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DistributedType,
    FullyShardedDataParallelPlugin,
    InitProcessGroupKwargs,
    TorchDynamoPlugin,
    parse_flag_from_env,
)
from torch import nn
from torch.distributed.fsdp import fully_shard

WITHOUT_DOUBLES = ("mps",)  # devices that cannot hold float64, in which times and noise levels are reckoned
PATIENCE = timedelta(hours=3)  # the others wait while the main process validates and writes


def open_accelerator(precision: str, trackers: Sequence[str], out: Path, idle_weights: bool = False) -> Accelerator:
    """The accelerator of a run, as `accelerate launch` (or torchrun) configured its processes.

    Args:
        precision: "no", "bf16" or "fp16".
        trackers: accelerate's, by name.
        out: the run's folder, where they write.
        idle_weights: some trained weights may have no part in a step, as those of another stage have none.

    Raises:
        ValueError: processes that do not see each other, or a way of distribution that is not supported.
    """
    for other in ("DEEPSPEED", "MEGATRON_LM"):
        if parse_flag_from_env(f"ACCELERATE_USE_{other}"):
            raise ValueError(
                f"accelerate's {other} is not supported; nearest: FSDP2, which shards weights, gradients, moments and "
                "averages (docs/distribution.md)"
            )
    launched, on_cpus = int(os.environ.get("WORLD_SIZE", 1)), parse_flag_from_env("ACCELERATE_USE_CPU")
    if launched > 1 and not on_cpus and not torch.accelerator.is_available():
        raise ValueError(
            f"{launched} processes were started, but there is no GPU here and each would train alone; to train on "
            "CPUs, set ACCELERATE_USE_CPU=true"
        )
    patience = InitProcessGroupKwargs(timeout=PATIENCE)
    found = torch.accelerator.current_accelerator()
    if parse_flag_from_env("ACCELERATE_USE_FSDP"):
        # every process reads the weights; accelerate's way to empty networks and fill them again from the first process
        # cannot fill buffers, nor parameters of the network itself
        os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
        if on_cpus:
            _shard_on_cpus(precision, patience)
    accelerator = Accelerator(
        mixed_precision=precision,
        log_with=list(trackers) or None,
        project_dir=str(out),
        cpu=found is not None and found.type in WITHOUT_DOUBLES,
        kwargs_handlers=[patience, DistributedDataParallelKwargs(find_unused_parameters=idle_weights)],
    )
    if accelerator.distributed_type == DistributedType.FSDP and not accelerator.is_fsdp2:
        raise ValueError("fsdp_version 1 is not supported; nearest: fsdp_version: 2 in the accelerate configuration")
    if accelerator.is_fsdp2:
        _keep_precise(accelerator.state.fsdp_plugin)
    return accelerator


def shard_by_blocks(network: Any) -> None:
    """Have FSDP2 put the weights of a diffusers network together block by block, whatever its class says of itself.

    Blocks are what its lists hold, but for single layers. accelerate shards by themselves those that
    `_no_split_modules` names, and refuses a name of none: some classes name nothing there, which would leave all
    weights in one piece, and some name blocks of another configuration. Call it before low-rank matrices are added,
    which make several layers of one.
    """
    lists = [module for module in network.modules() if isinstance(module, nn.ModuleList)]
    network._no_split_modules = sorted({type(one).__name__ for held in lists for one in held if _layers(one) > 1})


def shard_frozen(network: Any, accelerator: Accelerator) -> None:
    """Have FSDP2 hold a network that is not trained in parts, as one that is, after `shard_by_blocks`; its weights stay
    in their dtypes. Each process moves its part to where it trains. Collective.
    """
    mesh, axes = accelerator.torch_device_mesh, accelerator.parallelism_config
    parts = None if mesh is None or axes is None else mesh[tuple(axes.fsdp_dim_names)]
    for module in reversed(list(network.modules())):  # what is within comes first
        if module is network or type(module).__name__ in network._no_split_modules:
            fully_shard(module, mesh=parts)


def share_of(batch_size: int, processes: int, accumulation: int = 1) -> int:
    """How many clips of a batch, one of so many of an optimizer step, fall to each process.

    Raises:
        ValueError: the batch does not divide, with the nearest that does.
    """
    if batch_size % processes:
        below = batch_size // processes * processes
        nearest = f"{below} or {below + processes}" if below else f"{processes}"
        clips, together = batch_size * accumulation, below + processes
        if accumulation > 1 and clips % together == 0:
            nearest += f"; {together} with train.accumulation={clips // together} is as many clips a step"
        raise ValueError(
            f"train.batch_size {batch_size}, the clips of all processes together, is not a multiple of "
            f"{processes} processes; nearest: {nearest}"
        )
    return batch_size // processes


def means(accelerator: Accelerator, values: Sequence[float]) -> list[float]:
    """The mean over all processes of each value, in float64. Collective."""
    if accelerator.num_processes == 1:
        return list(values)
    own = torch.tensor(values, dtype=torch.float64, device=accelerator.device)
    total: torch.Tensor = accelerator.reduce(own, "sum")
    return (total / accelerator.num_processes).tolist()


def agree(
    accelerator: Accelerator, elapsed: float, stop: bool, values: list[tuple[int, float, float]]
) -> tuple[float, bool, list[tuple[int, float, float]]]:
    """What a step was, for all processes alike. Collective.

    Args:
        elapsed: its seconds; the mean is returned, so that a budget of seconds ends everywhere at once.
        stop: whether this process is asked to stop; one is enough to stop all.
        values: (stage, loss, alignment gain) of every part; means of the latter two are returned.
    """
    numbers = [elapsed, float(stop), *(v for _, loss, gain in values for v in (loss, gain))]
    elapsed, stopping, *pairs = means(accelerator, numbers)
    stages = [stage for stage, *_ in values]
    return elapsed, stopping > 0, list(zip(stages, pairs[::2], pairs[1::2], strict=True))


@contextmanager
def all_or_none(accelerator: Accelerator | None) -> Iterator[None]:
    """A piece of work that ends well on all processes or on none: an error of one is an error of all. Collective.

    Raises:
        OSError: it failed on another process, which tells why. An error of this process is passed on as it is.
    """
    if accelerator is None or accelerator.num_processes == 1:
        yield
        return
    try:
        yield
    except Exception:
        means(accelerator, [1.0])
        raise
    if means(accelerator, [0.0]) != [0.0]:
        raise OSError("another process failed")


def check_same_start(accelerator: Accelerator, step: int) -> None:
    """Refuse to go on from different checkpoints. Collective.

    Raises:
        ValueError: the processes do not see the same files.
    """
    mean = means(accelerator, [float(step)])[0]
    differ = means(accelerator, [float(mean != step)])[0]
    if differ:
        raise ValueError(
            f"this process resumes at step {step}, others elsewhere: all processes need the same --out, on a file "
            "system that they share"
        )


def _layers(module: nn.Module) -> int:
    """How many modules within have weights of their own."""
    return sum(any(True for _ in one.parameters(recurse=False)) for one in module.modules())


def _shard_on_cpus(precision: str, patience: InitProcessGroupKwargs) -> None:
    """Turn FSDP2 on for CPUs: PyTorch shards over gloo as it does over NCCL, accelerate asks for a GPU first."""
    plugin = FullyShardedDataParallelPlugin()
    state = AcceleratorState(
        mixed_precision=precision,
        dynamo_plugin=TorchDynamoPlugin(),
        fsdp_plugin=plugin,
        parallelism_config=ParallelismConfig() if parse_flag_from_env("ACCELERATE_USE_PARALLELISM_CONFIG") else None,
        _from_accelerator=True,
        **patience.to_kwargs(),
    )
    if state.distributed_type == DistributedType.MULTI_CPU:
        if precision != "no":
            plugin.set_mixed_precision(precision)
        state.fsdp_plugin = plugin
        state.distributed_type = PartialState().distributed_type = DistributedType.FSDP


def _keep_precise(plugin: FullyShardedDataParallelPlugin) -> None:
    """Gradients are summed in float32, and inputs stay as they are: times of diffusion do not fit into bf16."""
    policy = plugin.mixed_precision_policy
    if policy is not None:
        plugin.mixed_precision_policy = replace(policy, reduce_dtype=torch.float32, cast_forward_inputs=False)
