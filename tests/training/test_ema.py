"""The average of weights against its closed form."""

import math

import pytest
import torch
from torch import distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard

from tpdiff.training.ema import EMA
from tpdiff.training.shards import own_rows


class Counter(nn.Module):
    """Weights that take a new value at each step, a buffer, and another that is not saved."""

    def __init__(self, dtype):
        super().__init__()
        self.layer = nn.Linear(5, 3).to(dtype)
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self.layer.register_buffer("table", torch.arange(4.0), persistent=False)

    def step(self, generator):
        with torch.no_grad():
            for p in self.parameters():
                p.copy_(torch.randn(p.shape, generator=generator))
            self.seen += 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("decay", [0.0, 0.3, 0.9, 0.999])
def test_the_average_is_the_closed_form_in_float32(dtype, decay):
    network, generator = Counter(dtype), torch.Generator().manual_seed(0)
    ema = EMA(network, decay)
    history = []
    for n in range(1, 41):
        network.step(generator)
        ema.update(network)
        history.append([p.detach().double() for p in network.parameters()])
        keeps = [min(decay, ((i - 1) / i) ** 8) for i in range(1, n + 1)]
        shares = [(1 - keeps[i]) * math.prod(keeps[i + 1 :]) for i in range(n)]
        assert sum(shares) == pytest.approx(1)
        for index, average in enumerate(ema.network.parameters()):
            assert average.dtype == torch.float32
            wanted = sum(s * w[index] for s, w in zip(shares, history, strict=True)) / sum(shares)
            torch.testing.assert_close(average.double(), wanted, rtol=0, atol=3e-6)
    assert ema.updates == 40
    assert int(ema.network.seen) == 40


def test_a_short_run_is_averaged_over_its_last_part():
    """Weights that rise by one a step: the average lags by the same share of the run, until the decay's own lag."""
    network = nn.Linear(1, 1, bias=False)
    lags = {}
    for decay in (0.9999, 0.99):
        ema = EMA(network, decay)
        for n in range(1, 2001):
            nn.init.constant_(network.weight, n)
            ema.update(network)
            lags[decay, n] = n - float(ema.network.weight)
    assert lags[0.9999, 200] / 200 == pytest.approx(1 / 9, rel=0.05) == lags[0.9999, 2000] / 2000
    assert lags[0.99, 2000] == pytest.approx(0.99 / 0.01, rel=0.01)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_first_update_is_the_weights_themselves(dtype):
    network = Counter(dtype)
    ema = EMA(network, 0.9999)
    network.step(torch.Generator().manual_seed(1))
    ema.update(network)
    for average, p in zip(ema.network.parameters(), network.parameters(), strict=True):
        assert torch.equal(average, p.detach().float())


def test_the_average_follows_but_never_leads():
    network = Counter(torch.float32)
    before = [p.detach().clone() for p in network.parameters()]
    ema = EMA(network, 0.5)
    network.step(torch.Generator().manual_seed(2))
    moved = [p.detach().clone() for p in network.parameters()]
    ema.update(network)
    network.step(torch.Generator().manual_seed(3))
    for average, p, old in zip(ema.network.parameters(), moved, before, strict=True):
        assert torch.equal(average, p)
        assert not torch.equal(average, old)
        assert not average.requires_grad
    assert not ema.network.training


def test_frozen_parameters_are_shared_and_keep_their_dtype():
    network = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).to(torch.bfloat16)
    network[0].requires_grad_(False)
    ema = EMA(network, 0.5)
    ema.update(network)
    assert ema.network[0].weight is network[0].weight
    assert network[0].weight.dtype == torch.bfloat16
    assert ema.network[1].weight is not network[1].weight
    assert ema.network[1].weight.dtype == torch.float32
    assert network[1].weight.requires_grad and not ema.network[1].weight.requires_grad
    with torch.no_grad():
        network[1].weight.fill_(2)
    ema.update(network)
    assert float(ema.network[1].weight.detach().min()) == pytest.approx(2, abs=0.02)


# Sharded


@pytest.fixture
def group():
    """`group("gloo", "cpu")`: one process alone, over whose device tensors are sharded."""

    def begin(backend, device):
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
        return DeviceMesh(device, [0])

    yield begin
    dist.destroy_process_group()


def places(tensors):
    return {tensor.device.type for tensor in tensors}


def test_buffers_go_where_the_sharded_network_went(group):
    """The device meta stands for a GPU, to which sharding moves a network."""
    network, mesh = Counter(torch.float32), group("gloo", "cpu")
    ema = EMA(network, 0.9, sharded=True)
    assert places(ema.network.buffers()) == {"cpu"}
    ema.follow(fully_shard(network.to("meta"), mesh=mesh))
    assert places(ema.network.buffers()) == {"meta"}
    assert {name for name, _ in ema.network.named_buffers()} == {"seen", "layer.table"}
    assert "seen" in ema.network.state_dict() and "layer.table" not in ema.network.state_dict()


def test_rows_of_averages_stay_where_they_were_put(group):
    """Whatever the device over which they are gathered: here a GPU, which need not be there."""
    network, generator = Counter(torch.float32), torch.Generator().manual_seed(4)
    group("gloo", "cpu")
    elsewhere = DeviceMesh("cuda", [0], _init_backend=False)
    ema = EMA(network, 0.5, "cpu", sharded=True)
    for name, p in list(network.layer.named_parameters()):
        like = DTensor.from_local(p.detach().to("meta"), elsewhere, [Shard(0)])
        sharded = torch.empty_like(like, device="cpu")
        own_rows(sharded).copy_(torch.randn(p.shape, generator=generator))
        setattr(network.layer, name, nn.Parameter(sharded))
    ema.follow(network)
    ema.update(network)
    averages = ema.tensors()
    for name, p in network.named_parameters():
        assert own_rows(averages[name]).device.type == "cpu"
        assert torch.equal(own_rows(averages[name]), own_rows(p.detach()))


@pytest.mark.gpu
@pytest.mark.parametrize("kept", [None, "cpu"])
def test_a_sharded_average_is_whole_on_a_gpu(group, kept):
    torch.cuda.set_device(0)
    mesh = group("nccl", "cuda")
    network, generator = Counter(torch.float32), torch.Generator().manual_seed(5)
    ema = EMA(network, 0.5, kept, sharded=True)
    ema.follow(fully_shard(network, mesh=mesh))
    with torch.no_grad():
        for p in network.parameters():
            own_rows(p).copy_(torch.randn(own_rows(p).shape, generator=generator))
    ema.update(network)
    names = [name for name, _ in network.named_parameters()]
    assert places(own_rows(ema.tensors()[name]) for name in names) == {kept or "cuda"}
    with ema.whole(True, "cuda"):
        assert places([*ema.network.parameters(), *ema.network.buffers()]) == {"cuda"}
        for name, p in network.named_parameters():
            assert torch.equal(ema.network.get_parameter(name), p.full_tensor())
    loaded = {name: torch.full(p.shape, 3.0) for name, p in network.named_parameters()}
    ema.load(loaded | {"seen": torch.tensor(7)})
    with ema.whole(True):
        assert places(ema.network.parameters()) == {"cpu"} and int(ema.network.seen) == 7
        assert all(torch.equal(p.detach(), loaded[name]) for name, p in ema.network.named_parameters())
