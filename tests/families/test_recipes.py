"""Every recipe that starts from a pipeline: legal for the published network, and it trains a tiny one of its family."""

from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from runpy import run_path

import pytest
import torch
from diffusers import AnimateDiffPipeline
from tiny import find_case
from tiny.unets import motion_adapter, stable_diffusion

from tpdiff.families import find_family
from tpdiff.families.models import find_published
from tpdiff.families.sizes import stage_sizes
from tpdiff.pyramid import Pyramid
from tpdiff.recipes import recipe_path
from tpdiff.sampling.pipeline import PyramidPipeline
from tpdiff.schedulers import schedule_of
from tpdiff.training.load_config import load_config
from tpdiff.training.trainer import Trainer

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
SIZES = {
    "pyramidal-wan": ("wan2.1-1.3b", [(81, 448, 832), (41, 224, 416), (21, 112, 208)]),
    "tpdiff-animatediff": ("animatediff", [(16, 256, 256), (8, 256, 256), (4, 256, 256)]),
    "tpdiff-flow": ("wan2.1-1.3b", [(49, 384, 640), (25, 384, 640), (13, 384, 640)]),
    "wan-temporal": ("wan2.1-1.3b", [(81, 480, 832), (41, 480, 832), (21, 480, 832)]),
    "ltx-lora": ("ltx", [(97, 512, 704), (49, 256, 352)]),
}
TINY = {  # case, and the size of its clips
    "pyramidal-wan": ("wan", (17, 64, 64)),
    "tpdiff-animatediff": ("animatediff", (4, 16, 16)),
    "tpdiff-flow": ("wan", (17, 16, 16)),
    "wan-temporal": ("wan", (17, 16, 16)),
    "ltx-lora": ("ltx", (17, 64, 64)),
}
QUICK = ("ltx-lora",)  # the guide trains two others


def tuning_recipes():
    return sorted(p.stem for p in CONFIGS.glob("*.yaml") if "\npretrained:" in p.read_text())


def test_each_is_here():
    assert sorted(SIZES) == sorted(TINY) == tuning_recipes()


@cache
def published_pipeline(name):
    """The stock pipeline around the published network, without weights."""
    published = find_published(name)
    return published.pipeline(published.build("meta", torch.bfloat16))


@pytest.mark.parametrize("name", SIZES)
def test_the_published_network_can_hold_the_stages(name):
    config = load_config(recipe_path(name))
    model, sizes = SIZES[name]
    if not name.startswith("tpdiff-a"):  # that one is put together by a script
        assert config.pretrained.path in find_published(model).source
    pipe = published_pipeline(model)
    family, data = find_family(pipe), config.data
    network = getattr(pipe, *family.networks(pipe))
    pyramid = Pyramid(schedule_of(pipe.scheduler), config.pyramid.factors, causal_time=family.causal_vae)
    assert stage_sizes(pipe, family, pyramid, (data.frames, data.height, data.width)) == sizes
    layers = [n for n, m in network.named_modules() if isinstance(m, torch.nn.Linear)]
    for target in config.pretrained.lora.targets if config.pretrained.lora else []:
        assert any(layer.endswith(f".{target}") for layer in layers), target
    names = [n for n, _ in network.named_parameters()]
    for pattern in config.pretrained.trainable:
        assert any(fnmatch(n, pattern) for n in names), pattern


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in QUICK else pytest.mark.slow) for n in TINY])
def test_it_trains(name, digits, saved, tmp_path):
    case, (frames, height, width) = find_case(TINY[name][0]), TINY[name][1]
    smaller = [f"data.path={digits}", f"data.frames={frames}", f"data.height={height}", f"data.width={width}"]
    smaller += [f"pretrained.path={saved(case)}", "data.workers=0", "train.batch_size=2", "train.accumulation=1"]
    smaller += ["train.steps=2", "train.warmup_steps=0", "train.alignment=assignment"]
    if "max_sequence_length" in case.call:
        smaller += ["pretrained.options.max_sequence_length=8"]
    trainer = Trainer(load_config(recipe_path(name), smaller), tmp_path / "run")
    before = {n: p.clone() for n, p in trainer.network.named_parameters()}
    trainer.run()
    assert trainer.step == 2
    moved = {n for n, p in trainer.network.named_parameters() if not torch.equal(p, before[n])}
    assert moved and all(dict(trainer.network.named_parameters())[n].requires_grad for n in moved)
    trainer.save()
    loaded = PyramidPipeline.from_pretrained(tmp_path / "run")
    assert [stage.index for stage in loaded.pyramid.stages] == list(range(len(trainer.config.pyramid.factors)))
    frames_made = loaded(
        "a small red cat", num_inference_steps=len(loaded.pyramid), guidance_scale=1.0, output_type="pt"
    ).frames
    assert frames_made.shape == (1, frames, 3, height, width)


@pytest.mark.parametrize("fresh", [False, True])
def test_a_pipeline_is_put_together(fresh, tmp_path, monkeypatch):
    stable_diffusion().save_pretrained(tmp_path / "pictures", safe_serialization=True)
    motion_adapter().save_pretrained(tmp_path / "motion", safe_serialization=True)
    told = ["--model", tmp_path / "pictures", "--adapter", tmp_path / "motion", "--out", tmp_path / "both"]
    monkeypatch.setattr("sys.argv", ["script", *map(str, told), *(["--fresh"] if fresh else [])])
    run_path(str(CONFIGS.parent / "examples" / "animatediff_pipeline.py"), run_name="__main__")
    case, pipe = find_case("animatediff"), AnimateDiffPipeline.from_pretrained(tmp_path / "both")
    assert type(pipe.scheduler).__name__ == "DDIMScheduler"
    assert torch.equal(pipe.scheduler.alphas_cumprod, case.pipe().scheduler.alphas_cumprod)
    video = case.run(case.quiet(pipe), generator=None, latents=torch.randn(1, 4, 1, 2, 2).repeat(1, 1, 4, 1, 1))
    assert torch.allclose(video[:, :, :1].expand_as(video), video, atol=1e-5) is fresh  # one picture, four times
