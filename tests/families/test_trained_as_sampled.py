"""What a network is told in training is what its pipeline tells it in sampling."""

import pytest
import torch
from tiny import find_case

from tpdiff.training.pretrained import Pretrained
from tpdiff.training.trainee import Told
from tpdiff.training.trainer import Trainer

VALIDATED = ["data.split=train", "train.steps=1"] + [
    f"validation.{one}" for one in ("every_steps=1", "samples=1", "sample_steps=3", "clips=1", "quantiles=1")
]


def heard(trainer, name):
    """What the network and its average are told under a name, as it comes."""
    seen = []
    for network in (trainer.network, trainer.ema.network):
        network.register_forward_pre_hook(lambda m, args, kwargs: seen.append(kwargs[name]), with_kwargs=True)
    return seen


@pytest.mark.parametrize(("fps", "given", "rate"), [("10", {}, 10), ("null", {}, 8), ("10", {"frame_rate": 30}, 30)])
def test_frames_are_as_far_apart(fps, given, rate, tuning, tmp_path):
    """LTX is told the seconds between latent frames; without data.fps those of the files."""
    case = find_case("ltx")
    config = tuning(case, f"data.fps={fps}", "train.steps=1", options={**case.call, **given})
    trainer = Trainer(config, tmp_path / "run")
    told = heard(trainer, "rope_interpolation_scale")
    trainer.run()
    trainer.pipeline()("a red cat", num_inference_steps=[1, 1, 1], guidance_scale=1, output_type="latent")
    assert [one[0] for one in told] == pytest.approx([n / rate for n in (8, 16, 32, 32, 16, 8)])


@pytest.mark.parametrize(("given", "scale"), [({}, 6), ({"guidance": 3}, 3)])
def test_samples_of_a_validation_have_the_guidance_of_training(given, scale, tuning, tmp_path):
    """HunyuanVideo embeds it; without another its own counts, as in stock."""
    trainer = Trainer(tuning(find_case("hunyuan"), *VALIDATED, **given), tmp_path / "run")
    told = heard(trainer, "guidance")
    trainer.run()
    assert len(told) == 3 + 3 + 3  # stages trained, stages validated, steps sampled
    assert {float(one) for each in told for one in each} == {1000.0 * scale}


def test_guidance_of_samples_is_refused_where_a_pipeline_takes_none(tuning, tmp_path):
    config = tuning(find_case("hunyuan15"), *VALIDATED, "validation.guidance_scale=3")
    with pytest.raises(ValueError, match=r"takes no guidance_scale; leave out validation\.guidance_scale"):
        Trainer(config, tmp_path / "run")
    assert Trainer(tuning(find_case("hunyuan15"), *VALIDATED), tmp_path / "run").validation is not None


@pytest.mark.parametrize("k", [0, 1])
def test_frames_that_fill_patches_go_from_stage_to_stage(k, tuning):
    """In law: a finer stage begins with what the jump makes of the end of the coarser one, space resized or not."""
    case, batch = find_case("cogvideox-pairs"), 4000
    _, height, width = case.size
    both = "pyramid.factors=[[1,1,1],[2,2,2],[4,4,4]]"
    trainee, rng = Pretrained(tuning(case, both, f"data.height={height}", f"data.width={width}")), torch.Generator()
    pyramid = trainee.convention.pyramid
    latents = torch.randn(1, 4, 9, 8, 8, generator=rng.manual_seed(0)).expand(batch, -1, -1, -1, -1)

    def filling(stage, t):
        x = pyramid.down(latents[:1], stage)
        noise = torch.randn(batch, 4, 1, *x.shape[3:], generator=rng)
        return trainee._filling(Told([], None, latents, [], noise={stage: noise}), x, torch.full((batch,), t), stage)

    led = pyramid.jump(filling(k + 1, pyramid.stages[k + 1].end), k, rng)
    begun = filling(k, pyramid.stages[k].start)
    assert led.shape == begun.shape == (batch, 4, 1, 8 >> k, 8 >> k)
    torch.testing.assert_close(begun.mean(0), led.mean(0), atol=0.12, rtol=0)
    covariances = [one.flatten(1).T.cov() for one in (begun, led)]
    torch.testing.assert_close(*covariances, atol=0.15, rtol=0)
