"""What a network was trained through is what its pipeline samples, whatever the scheduler was and becomes."""

import json
import shutil
from dataclasses import asdict, replace

import pytest
import torch
from diffusers import AutoencoderKLLTXVideo, FlowMatchEulerDiscreteScheduler
from recording import evaluations
from tiny import find_case, picture

from tpdiff import PyramidScheduler, apply_pyramid
from tpdiff.pyramid import FlowMatchingSchedule, Pyramid
from tpdiff.sampling.trained import TOLD, Tuned
from tpdiff.sampling.tuned import TunedPipeline, load_tuned
from tpdiff.schedulers import schedule_of

WAN = find_case("wan")
FACTORS = [(1, 1, 1), (2, 1, 1)]
OTHER = {"timestep_policy": "pyramid_flow", "per_stage_target": True}


def told(case, pyramid=None, **changes):
    """Of a network that was trained whole."""
    component = case.networks[-1]
    stages = pyramid or Pyramid(FlowMatchingSchedule(), FACTORS, ends=[0.4], causal_time=True)
    kind = type(getattr(case.pipe(), component)).__name__
    options = dict(case.call) if case is WAN else {}
    return Tuned("base", component, kind, [], stages.config(), list(case.narrow), 8.0, options, **changes)


def tuned(pipe, what):
    return TunedPipeline(pipe, getattr(pipe, what.component), what)


def of_the_network(scheduler):
    return {name: scheduler.config[name] for name in OTHER}


def latents(pipeline, **options):
    given = {
        "num_inference_steps": [2, 1],
        "generator": torch.Generator().manual_seed(0),
        "guidance_scale": 1.0,
    } | options
    return pipeline("a small red cat", output_type="latent", **given).frames


def test_a_new_scheduler_is_told_of_the_network():
    pipeline = tuned(WAN.pipe(), told(WAN, **OTHER))
    fresh = WAN.pipe()
    for pipe in (pipeline.pipe, fresh):
        pipe.scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    made = latents(pipeline)
    assert type(pipeline.pipe.scheduler.base) is FlowMatchEulerDiscreteScheduler
    assert of_the_network(pipeline.pipe.scheduler) == OTHER
    assert torch.equal(made, latents(tuned(fresh, told(WAN, **OTHER))))


def saved_with_stages():
    """What a folder gives in which a pipeline was saved with stages, others than the network's."""
    pipe = WAN.pipe()
    pipe.scheduler = PyramidScheduler.from_config(apply_pyramid(WAN.pipe(), [(1, 1, 1), (4, 1, 1)]).scheduler.config)
    return pipe


@pytest.mark.parametrize("start", [saved_with_stages, lambda: apply_pyramid(WAN.pipe(), FACTORS)])
def test_a_pipeline_that_had_stages_takes_those_of_the_network(start):
    wanted = latents(tuned(WAN.pipe(), told(WAN, **OTHER)))
    pipeline = tuned(start(), told(WAN, **OTHER))
    assert of_the_network(pipeline.pipe.scheduler) == OTHER
    assert torch.equal(latents(pipeline), wanted)
    plain = tuned(pipeline.pipe, told(WAN))
    assert not any(plain.pipe.scheduler.config[name] == OTHER[name] for name in OTHER)
    assert of_the_network(pipeline.pipe.scheduler) == OTHER


def test_a_pipeline_that_had_stages_samples_a_network_without():
    one = Pyramid(FlowMatchingSchedule())
    pipeline = tuned(saved_with_stages(), told(WAN, one))
    assert not isinstance(pipeline.pipe.scheduler, PyramidScheduler)
    with evaluations(WAN, pipeline.pipe) as calls:
        made = latents(pipeline, num_inference_steps=3)
    assert [call.size for call in calls] == [WAN.stage_latents(FACTORS)[-1]] * 3
    assert torch.equal(made, latents(tuned(WAN.pipe(), told(WAN, one)), num_inference_steps=3))


def test_the_folder_of_a_network_says_its_stages(tmp_path):
    """Those of its file, and how it is sampled, not what factors alone would mean."""
    stages = Pyramid(FlowMatchingSchedule(), FACTORS, ends=[0.4], resize="dct", causal_time=True)
    what = told(WAN, stages, **OTHER)
    (tmp_path / TOLD).write_text(json.dumps(asdict(what)))
    for folder in (tmp_path, str(tmp_path)):
        pipe = apply_pyramid(WAN.pipe(), folder, steps=(2, 1))
        assert pipe.scheduler.pyramid.config() == stages.config()
        assert of_the_network(pipe.scheduler) == OTHER
        assert pipe.scheduler.config.steps == [2, 1]
    mine = latents(tuned(WAN.pipe(), what))
    made = WAN.run(pipe, prompt="a small red cat", generator=torch.Generator().manual_seed(0), guidance_scale=1.0)
    assert torch.equal(made, mine)
    by_hand = WAN.run(apply_pyramid(WAN.pipe(), FACTORS, (2, 1)), generator=torch.Generator().manual_seed(0))
    assert not torch.allclose(by_hand, mine, atol=1e-4)
    (tmp_path / TOLD).write_text(json.dumps(asdict(replace(what, pyramid=Pyramid(FlowMatchingSchedule()).config()))))
    assert not isinstance(apply_pyramid(pipe, tmp_path).scheduler, PyramidScheduler)
    with pytest.raises(ValueError, match=r"no tpdiff\.json in .*nothing: expected a folder that `tpdiff export` wrote"):
        apply_pyramid(pipe, tmp_path / "nothing")


@pytest.mark.parametrize(
    ("name", "changes", "usual", "asked"),
    [
        ("ltx", {"fps": 30.0}, {"frame_rate": 30.0}, {"frame_rate": 25}),
        ("hunyuan", {"options": {"guidance_scale": 1.0}}, {"guidance_scale": 1.0}, {"guidance_scale": 6.0}),
    ],
)
@pytest.mark.parametrize("factors", [FACTORS, FACTORS[:1]], ids=["stages", "one"])
def test_a_call_says_what_training_said_unless_it_says_otherwise(name, changes, usual, asked, factors):
    case = find_case(name)
    stages = Pyramid(schedule_of(case.pipe().scheduler), factors, causal_time=True)
    what = replace(told(case, stages), **changes)
    plain, folder = (apply_pyramid(case.pipe(), one, [2] * len(factors)) for one in (stages, what))

    said = case.run(plain, **usual)
    assert torch.equal(case.run(folder), said)
    assert torch.equal(case.run(apply_pyramid(folder)), said)
    assert not torch.allclose(case.run(folder, **asked), said, atol=1e-6)
    assert torch.equal(case.run(folder, **asked), case.run(plain, **asked))


@pytest.mark.parametrize("name", ["wan-experts", "animatediff"])
def test_of_a_pipeline_weights_that_are_not_used_are_not_read(name, saved, tmp_path):
    """They may be missing; the other expert's and the encoders' may not."""
    case = find_case(name)
    base, pipe = tmp_path / "base", case.stageable()
    shutil.copytree(saved(case), base)
    for file in (base / case.networks[-1]).glob("*.safetensors"):
        file.unlink()
    stages = Pyramid(schedule_of(pipe.scheduler), FACTORS)
    pipeline = tuned(pipe, replace(told(case, stages), base=str(base)))
    for weight in pipeline.network.parameters():
        weight.data += 0.01
    pipeline.save_pretrained(tmp_path / "tuned")
    loaded = load_tuned(tmp_path / "tuned")
    for part, module in pipeline.pipe.components.items():
        if isinstance(module, torch.nn.Module):
            mine = getattr(loaded.pipe, part).state_dict()
            assert all(torch.equal(mine[key], value) for key, value in module.state_dict().items())


def decodes_from_noise():
    """LTX from a picture, with an autoencoder that is told a time."""
    pipe = find_case("ltx-picture").pipe()
    config = {name: value for name, value in pipe.vae.config.items() if not name.startswith("_")}
    torch.manual_seed(0)
    vae = AutoencoderKLLTXVideo.from_config(config | {"timestep_conditioning": True}).eval()
    pipe.register_modules(vae=vae)
    return pipe


def test_one_generator_a_video_is_enough_for_decoding_from_noise():
    case = find_case("ltx-picture")
    pipeline = tuned(decodes_from_noise(), replace(told(case), options={"max_sequence_length": 8}))
    options = {"num_inference_steps": [1, 1], "output_type": "pt", "image": picture()}

    def seeded(seed=0):
        return torch.Generator().manual_seed(seed)

    made = [
        pipeline("a small red cat", generator=generator, **options).frames
        for generator in ([seeded()], seeded(), [seeded(1)])
    ]
    assert torch.equal(made[0], made[1])
    assert not torch.allclose(made[0], made[2], atol=1e-4)
    two = {**options, "image": [picture(), picture()]}
    with (
        evaluations(case, pipeline.pipe) as calls,
        pytest.raises(ValueError, match=r"LTXImageToVideoPipeline draws the noise of decoding from one .* got 2"),
    ):
        pipeline(["a cat", "a ball"], generator=[seeded(), seeded(1)], **two)
    assert calls == []
    options = two | {"output_type": "latent"}  # nothing is decoded
    assert len(pipeline(["a cat", "a ball"], generator=[seeded(), seeded(1)], **options).frames) == 2


def test_every_prompt_may_have_a_negative_one_of_its_own():
    pipeline = tuned(WAN.pipe(), told(WAN))

    def made(negative):
        seeds = [torch.Generator().manual_seed(i) for i in range(2)]
        options = {"num_inference_steps": [1, 1], "guidance_scale": 4.0, "output_type": "latent"}
        return pipeline(["a cat", "a dog"], negative_prompt=negative, generator=seeds, **options).frames

    both, first = made(["a bird", "a small red fish"]), made("a bird")
    assert torch.allclose(both[:1], first[:1], atol=1e-5)
    assert not torch.allclose(both[1:], first[1:], atol=1e-5)
    with pytest.raises(ValueError, match="1 negative prompts for 2 prompts; give one, or one a prompt"):
        made(["a bird"])
