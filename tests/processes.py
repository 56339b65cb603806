"""Training in several real processes over gloo, and what is compared of their runs.

Losses of a run are those in its last checkpoint; which samples a step had is noted by the processes themselves.
"""

import errno
import json
import multiprocessing
import os
import socket
from pathlib import Path

import torch
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from tpdiff.training import checkpoint as ckpt
from tpdiff.training.ema import trained
from tpdiff.training.load_config import build_config
from tpdiff.training.trainee import OwnNetwork
from tpdiff.training.trainer import Trainer

PATIENCE = 240  # seconds until a test gives up waiting
FSDP2 = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "true",  # as the launcher says where its configuration does not
}
HSDP = {
    **FSDP2,
    "ACCELERATE_USE_PARALLELISM_CONFIG": "true",
    "PARALLELISM_CONFIG_DP_REPLICATE_SIZE": "2",
    "PARALLELISM_CONFIG_DP_SHARD_SIZE": "2",
}
WAYS = {"ddp": {}, "fsdp2": FSDP2, "hsdp": HSDP}

forks = multiprocessing.get_context("forkserver")
forks.set_forkserver_preload(["tpdiff.training.trainer", "torch._dynamo", "torch.distributed.fsdp"])


class Noting(Trainer):
    """A trainer that notes what of its network, and of the one that it follows, is sharded by itself, which samples it
    is given, a line a micro-batch: [step, indices], and after each backward pass of a sharded network the parameters
    without a gradient in parts: [step, names].

    `away` is (process, step) for which the folder of videos is found renamed to "away".
    """

    away = None

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.out.mkdir(parents=True, exist_ok=True)  # the main process may not be there yet
        followed = getattr(self.trainee, "_frozen", None)
        for kind, network in (("sharded", self.network), ("followed", followed)):
            modules = [] if network is None else network.named_modules()
            units = [name for name, module in modules if isinstance(module, FSDPModule)]
            (self.out / f"{kind}-{self.accelerator.process_index}.json").write_text(json.dumps(units))
            if kind == "sharded" and units:
                self.backward, self.accelerator.backward = self.accelerator.backward, self._backward

    def _next_batch(self):
        if self.away == (self.accelerator.process_index, self.step):
            videos = Path(self.config.data.path)
            videos.rename(videos.with_name("away"))
        batch = super()._next_batch()
        self._note("order", batch["index"].tolist())
        return batch

    def _backward(self, loss):
        self.backward(loss)
        parameters = trained(self.network).items()
        self._note("whole", [name for name, p in parameters if not isinstance(p.grad, DTensor)])

    def _note(self, kind, what):
        with (self.out / f"{kind}-{self.accelerator.process_index}.jsonl").open("a") as file:
            file.write(json.dumps([self.step, what]) + "\n")


def one_process(environment, values, out, resume, double, full_disk, stopped, away):
    """The life of one process: train to the end and write a checkpoint. `stopped`: whoever validates is asked to stop
    as soon as it begins.
    """
    os.environ.update(environment)
    if double:
        made = OwnNetwork.open
        OwnNetwork.open = lambda self, *a: (made(self, *a), self.network.double())
    trainer = Noting(build_config(values), out, resume=resume)
    trainer.away = away
    if full_disk == trainer.accelerator.process_index:
        ckpt.save_file = no_space
    if stopped:
        trainer.ema.network.register_forward_pre_hook(lambda *_: trainer.request_stop())
    trainer.run()
    try:
        trainer.save()
    except OSError as error:
        (trainer.out / f"error-{trainer.accelerator.process_index}").write_text(str(error))
        raise


def no_space(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def start(values, out, world, way="ddp", resume=False, double=False, full_disk=None, stopped=False, away=None):
    shared = {"WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1"}
    shared |= {"MASTER_PORT": str(free_port()), "ACCELERATE_USE_CPU": "true", **WAYS[way]}
    processes = []
    for rank in range(world):
        environment = {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} if world > 1 else {}
        arguments = (environment, values, out, resume, double, full_disk, stopped, away)
        processes.append(forks.Process(target=one_process, args=arguments))
        processes[-1].start()
    return processes


def ends(processes):
    for process in processes:
        process.join(PATIENCE)
    return [process.exitcode for process in processes]


def train(values, out, world, way="ddp", **options):
    assert ends(start(values, out, world, way, **options)) == [0] * world
    return ckpt.read_checkpoint(ckpt.checkpoints(out)[-1])[0]


def curve(tensors):
    """(step, stage, loss) of every part."""
    return tensors["losses"][:, 1:]


def assert_same_curve(one, two, tolerance):
    assert torch.equal(curve(one)[:, :2], curve(two)[:, :2])
    assert float((curve(one)[:, 2] - curve(two)[:, 2]).abs().max()) <= tolerance


def order(out, world):
    """Step -> its samples, sorted, each micro-batch for itself."""
    steps = {}
    for rank in range(world):
        seen = {}
        for line in (out / f"order-{rank}.jsonl").read_text().splitlines():
            step, indices = json.loads(line)
            seen.setdefault(step, []).append(indices)
        for step, batches in seen.items():
            own = batches[-2:]  # a step that died was begun twice
            steps[step] = [sorted(a + b) for a, b in zip(steps.get(step, [[], []]), own, strict=True)]
    return steps
