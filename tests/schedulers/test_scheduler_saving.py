"""Saved and loaded: alone, and inside a stock pipeline, whose own loop then runs through the stages."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKLWan,
    DiffusionPipeline,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
)
from scheduled import BOTH, STABLE_DIFFUSION, make, noise, run, staged

import tpdiff
from tpdiff.pyramid import FlowMatchingSchedule, Pyramid
from tpdiff.schedulers import PyramidScheduler

FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}
CASES = [
    ("FlowMatchEulerDiscreteScheduler", {"invert_sigmas": True}, {"timestep_policy": "pyramid_flow"}),
    ("FlowMatchHeunDiscreteScheduler", {"shift": 2.0}, {"per_stage_target": True}),
    ("UniPCMultistepScheduler", FLOW, {"steps": [3, 2, 2]}),
    ("DPMSolverMultistepScheduler", {"trained_betas": np.linspace(1e-4, 0.02, 1000)}, {}),
    ("DDIMScheduler", {**STABLE_DIFFUSION, "rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}, {}),
    ("EulerDiscreteScheduler", STABLE_DIFFUSION, {}),
]
CASE = pytest.mark.parametrize(("name", "config", "options"), CASES, ids=lambda v: v if isinstance(v, str) else None)


def finished(scheduler):
    scheduler.set_timesteps([3, 2, 2])
    return run(scheduler, noise(1, 2, 2, 2, 2), generator=torch.Generator().manual_seed(0))


def same(one, other):
    """Grids and runs, bit for bit."""
    assert torch.equal(finished(one), finished(other))
    assert torch.equal(one.timesteps, other.timesteps)
    assert torch.equal(one.sigmas, other.sigmas)
    assert one.pyramid.config() == other.pyramid.config()
    assert type(one.base) is type(other.base)
    for key in ("steps", "timestep_policy", "per_stage_target"):
        assert one.config[key] == other.config[key]


@CASE
def test_a_folder_gives_it_back(name, config, options, tmp_path):
    scheduler = staged(make(name, **config), BOTH, causal_time=True, **options)
    scheduler.save_pretrained(tmp_path)
    same(scheduler, PyramidScheduler.from_pretrained(tmp_path))
    saved = json.loads((tmp_path / "scheduler_config.json").read_text())
    assert saved["_class_name"] == "PyramidScheduler"
    assert saved["base_scheduler"]["_class_name"] == name


@CASE
def test_its_configuration_gives_it_back(name, config, options):
    scheduler = staged(make(name, **config), BOTH, causal_time=True, **options)
    same(scheduler, PyramidScheduler.from_config(scheduler.config))


def test_its_configuration_gives_a_plain_scheduler_too():
    scheduler = staged(make("UniPCMultistepScheduler", **FLOW), BOTH)
    plain = UniPCMultistepScheduler.from_config(scheduler.config)
    assert (plain.config.flow_shift, plain.config.use_flow_sigmas) == (3.0, True)


# Inside a stock pipeline


@pytest.fixture(scope="module")
def stock():
    """A Wan pipeline of random weights, without its text encoder."""
    torch.manual_seed(0)
    vae = AutoencoderKLWan(
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )
    transformer = WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=8,
        freq_dim=16,
        ffn_dim=16,
        num_layers=1,
        rope_max_seq_len=32,
    )
    scheduler = UniPCMultistepScheduler(**FLOW)
    pipe = WanPipeline(tokenizer=None, text_encoder=None, vae=vae, scheduler=scheduler, transformer=transformer)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def pyramidal(pipe, base=None, **options):
    pipe.scheduler = PyramidScheduler(
        base or make("UniPCMultistepScheduler", **FLOW),
        Pyramid(FlowMatchingSchedule(), BOTH, causal_time=True),
        **options,
    )
    return pipe


def videos(pipe, latents, **options):
    options = {"num_inference_steps": 7, "output_type": "latent", "guidance_scale": 1.0, **options}
    words = noise(len(latents), 5, 8, seed=9)
    return pipe(prompt_embeds=words, latents=latents, height=64, width=64, num_frames=17, **options).frames


@pytest.mark.parametrize("loader", [WanPipeline, DiffusionPipeline])
def test_a_pipelines_folder_gives_it_back(stock, loader, tmp_path):
    pipe = pyramidal(stock, steps=[2, 2, 1])
    pipe.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["scheduler"] == ["tpdiff", "PyramidScheduler"]
    again = loader.from_pretrained(tmp_path, text_encoder=None, tokenizer=None)
    assert isinstance(again, WanPipeline)
    assert type(again.scheduler) is tpdiff.PyramidScheduler
    same(pipe.scheduler, again.scheduler)
    again.set_progress_bar_config(disable=True)
    x = noise(1, 4, 2, 2, 2)
    outs = []
    for one in (pipe, again):
        one.scheduler.generator = torch.Generator().manual_seed(1)
        outs.append(videos(one, x))
    assert torch.allclose(*outs, atol=1e-5)


def test_a_fresh_interpreter_loads_it_once_tpdiff_is_imported(stock, tmp_path):
    pyramidal(stock).save_pretrained(tmp_path)
    program = (
        "import diffusers, tpdiff\n"
        f"pipe = diffusers.DiffusionPipeline.from_pretrained({str(tmp_path)!r}, text_encoder=None, tokenizer=None)\n"
        "pipe.scheduler.set_timesteps(6)\n"
        "print(type(pipe.scheduler).__name__, len(pipe.scheduler.timesteps))"
    )
    source = Path(tpdiff.__file__).resolve().parents[1]
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"PYTHONPATH": str(source)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "PyramidScheduler 6"


@pytest.mark.parametrize(
    ("name", "config", "evaluations"),
    [
        ("UniPCMultistepScheduler", FLOW, [3, 2, 2]),
        ("DPMSolverMultistepScheduler", FLOW, [3, 2, 2]),
        ("FlowMatchEulerDiscreteScheduler", {}, [3, 2, 2]),
        ("FlowMatchHeunDiscreteScheduler", {}, [6, 4, 3]),
    ],
)
def test_the_pipelines_own_loop_runs_through_the_stages(stock, name, config, evaluations):
    """From latents of the coarsest size to full size: 2 x 2 x 2 -> 3 x 4 x 4 -> 5 x 8 x 8, the first frame apart."""
    pipe = pyramidal(stock, make(name, **config))
    seen = []
    hook = pipe.transformer.register_forward_pre_hook(
        lambda module, args, named: seen.append((named["hidden_states"].shape[2:], named["timestep"][0].item())),
        with_kwargs=True,
    )
    pipe.scheduler.generator = torch.Generator().manual_seed(1)
    out = videos(pipe, noise(2, 4, 2, 2, 2))
    hook.remove()
    assert out.shape == (2, 4, 5, 8, 8)
    assert out.isfinite().all()
    sizes = [(2, 2, 2), (3, 4, 4), (5, 8, 8)]
    walked = [size for size, count in zip(sizes, evaluations, strict=True) for _ in range(count)]
    assert [tuple(size) for size, _ in seen] == walked
    assert [t for _, t in seen] == pipe.scheduler.timesteps.tolist()


def test_frames_come_out_at_full_size(stock):
    pipe = pyramidal(stock, steps=[1, 1, 1])
    frames = videos(pipe, noise(1, 4, 2, 2, 2), output_type="np")
    assert frames.shape == (1, 17, 64, 64, 3)


def test_a_pipeline_with_one_stage_is_the_stock_pipeline(stock):
    x = noise(1, 4, 5, 8, 8)
    stock.scheduler = UniPCMultistepScheduler(**FLOW)
    plain = videos(stock, x)
    stock.scheduler = PyramidScheduler(UniPCMultistepScheduler(**FLOW), Pyramid(FlowMatchingSchedule()))
    assert torch.equal(videos(stock, x), plain)
