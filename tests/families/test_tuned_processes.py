"""Several processes fine-tune a pipeline as one does, on videos and on shards of them, and what they save loads."""

import json

import pytest
import torch
from diffusers import DiffusionPipeline
from processes import assert_same_curve, curve, train
from test_tuning import sample
from tiny import find_case

from tpdiff.sampling.tuned import LORA
from tpdiff.training import checkpoint as ckpt
from tpdiff.training.cache import make_cache

SLOW = pytest.mark.slow


@pytest.fixture
def values(tuning, tmp_path):
    """`values("shards", per_stage=True)`: a run of low-rank matrices with everything that could differ between
    processes: captions, alignment, dropout, accumulation.
    """

    def make(source, **lora):
        told = ("condition.dropout=0.3", "train.batch_size=4", "train.accumulation=2", "train.lr=0.02", "data.starts=1")
        drawn = ("train.all_stages=false", "train.steps=6", "train.alignment=assignment")
        config = tuning(find_case("wan"), *told, *drawn, lora={"rank": 2, **lora})
        if source == "shards":
            make_cache(config, tmp_path / "shards", shards=2)
            shards = config.data.model_copy(update={"shards": str(tmp_path / "shards"), "path": ""})
            config = config.model_copy(update={"data": shards})
        return config.model_dump(mode="json")

    return make


@pytest.mark.parametrize(
    ("way", "source", "per_stage"),
    [
        ("ddp", "shards", False),
        pytest.param("ddp", "videos", True, marks=SLOW),
        pytest.param("fsdp2", "videos", False, marks=SLOW),
        pytest.param("fsdp2", "shards", True, marks=SLOW),
    ],
)
def test_processes_tune_as_one(values, saved, tmp_path, way, source, per_stage):
    told = values(source, per_stage=per_stage)
    one, two = train(told, tmp_path / "one", 1), train(told, tmp_path / "two", 2, way)
    assert len({int(stage) for stage in curve(one)[:, 1]}) > 1
    assert_same_curve(one, two, 1e-5)
    assert one.keys() == two.keys()
    matrices = [name for name in one if name.startswith(("network.", "ema."))]
    assert matrices and all("lora_" in name for name in matrices)
    for name in matrices:
        torch.testing.assert_close(one[name], two[name], rtol=0, atol=1e-3)
    case, folder = find_case("wan"), ckpt.checkpoints(tmp_path / "two")[-1]
    stock = DiffusionPipeline.from_pretrained(saved(case))
    before = sample(stock, case)
    for file in folder.rglob(LORA):
        stock.load_lora_weights(file.parent, adapter_name=file.parent.name)
    after = sample(stock, case)
    assert float((after - before).abs().max()) > 1e-4


@pytest.mark.parametrize(
    ("name", "blocks", "pretrained"),
    [
        ("ltx", {"transformer_blocks.0"}, {"lora": {"rank": 2}}),
        pytest.param(
            "animatediff",
            {"down_blocks.0.resnets.0", "down_blocks.0.motion_modules.0", "mid_block.attentions.0"},
            {"trainable": ["*motion_modules*"]},
            marks=SLOW,
        ),
        pytest.param("modelscope", {"down_blocks.0.temp_convs.0"}, {"trainable": ["*temp_*"]}, marks=SLOW),
        pytest.param("hunyuan", {"transformer_blocks.0", "single_transformer_blocks.0"}, {"lora": {}}, marks=SLOW),
    ],
)
def test_blocks_are_sharded_by_themselves_and_train_as_one(tuning, tmp_path, name, blocks, pretrained):
    told = tuning(find_case(name), "train.batch_size=4", "train.lr=0.005", "data.starts=1", **pretrained)
    values = told.model_dump(mode="json")
    one, two = train(values, tmp_path / "one", 1), train(values, tmp_path / "two", 2, "fsdp2")
    assert_same_curve(one, two, 1e-4)
    units = [json.loads((tmp_path / "two" / f"sharded-{rank}.json").read_text()) for rank in range(2)]
    assert units[0] == units[1] and {"", *blocks} <= set(units[0])


@pytest.mark.parametrize(
    ("name", "blocks"),
    [("wan", {"blocks.0"}), pytest.param("modelscope", {"down_blocks.0.temp_convs.0"}, marks=SLOW)],
)
def test_the_network_that_is_followed_is_sharded_too(tuning, tmp_path, name, blocks):
    told = tuning(find_case(name), "train.distillation=10", "train.batch_size=4", "train.lr=0.005", "data.starts=1")
    values = told.model_dump(mode="json")
    one, two = train(values, tmp_path / "one", 1), train(values, tmp_path / "two", 2, "fsdp2")
    assert_same_curve(one, two, 1e-4)
    units = [json.loads((tmp_path / "two" / f"followed-{rank}.json").read_text()) for rank in range(2)]
    assert units[0] == units[1] and {"", *blocks} <= set(units[0])
    assert json.loads((tmp_path / "one" / "followed-0.json").read_text()) == []
