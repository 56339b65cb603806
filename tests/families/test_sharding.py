"""What FSDP2 puts together of a pipeline's network at one time: a block, never the whole."""

import pytest
import torch
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.fsdp_utils import fsdp2_prepare_auto_wrap_policy
from tiny import find_case

from tpdiff.families.models import PUBLISHED
from tpdiff.training.distribution import shard_by_blocks
from tpdiff.training.pretrained import Pretrained


def sharded(network):
    """The modules that accelerate shards by themselves, by name, as configs/accelerate/fsdp2.yaml asks it to."""
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2, auto_wrap_policy="TRANSFORMER_BASED_WRAP")
    plugin.set_auto_wrap_policy(network)
    policy = fsdp2_prepare_auto_wrap_policy(plugin, network)
    return {name: module for name, module in network.named_modules() if name and policy(module)}


def pieces(network):
    """How many weights each of them puts together, and "", the rest of the network."""
    units = sharded(network)
    found = dict.fromkeys(["", *units], 0)
    for name, weight in network.named_parameters():
        owner = max((unit for unit in units if name.startswith(f"{unit}.")), key=len, default="")
        found[owner] += weight.numel()
    return found


@pytest.mark.parametrize("lora", [False, True])
def test_blocks_of_a_transformer_are_sharded(tuning, lora):
    told = {"lora": {"rank": 2}} if lora else {}
    assert set(sharded(Pretrained(tuning(find_case("ltx"), **told)).network)) == {"transformer_blocks.0"}


@pytest.mark.parametrize("name", ["animatediff", "modelscope"])
def test_blocks_of_a_convolutional_network_are_sharded(tuning, name):
    network = Pretrained(tuning(find_case(name), trainable=["*temp*", "*motion*"])).network
    kinds = {type(module).__name__ for module in sharded(network).values()}
    over_time = {"animatediff": {"AnimateDiffTransformer3D"}, "modelscope": {"TemporalConvLayer"}}[name]
    assert kinds > {"ResnetBlock2D", "Transformer2DModel", "BasicTransformerBlock"} | over_time
    assert not kinds & {"Linear", "Conv2d", "GEGLU", "Downsample2D"}


def test_blocks_that_a_network_names_but_has_not_do_no_harm(tuning):
    blocks = sharded(Pretrained(tuning(find_case("hunyuan"), lora={"rank": 2})).network)
    assert {"transformer_blocks.0", "single_transformer_blocks.0"} <= blocks.keys()


@pytest.mark.parametrize("name", PUBLISHED)
def test_no_piece_of_a_published_network_is_large(name):
    network = PUBLISHED[name].build("meta", torch.bfloat16)
    shard_by_blocks(network)
    sizes = pieces(network)
    assert sum(sizes.values()) == sum(weight.numel() for weight in network.parameters())
    assert max(sizes.values()) < 0.04 * sum(sizes.values())
