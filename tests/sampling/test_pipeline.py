"""The pipeline: saved and loaded, its outputs, its guidance, and what it refuses before any work."""

import logging

import numpy as np
import pytest
import torch
from accelerate import cpu_offload
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from PIL import Image

from tpdiff import PyramidPipeline, VideoDiT, sample_pyramid
from tpdiff.models.text import load_text_encoder
from tpdiff.models.video_autoencoder import VideoAutoencoder
from tpdiff.pyramid import FlowMatchingSchedule, Pyramid, VariancePreservingSchedule
from tpdiff.training.clean import clean_pair
from tpdiff.training.objective import sample_errors
from tpdiff.training.trainee import Told
from tpdiff.training.trainer import Trainer

LABELS = ["a cat runs", "a dog runs", "a dog sleeps"]
THREE = [(1, 1, 1), (2, 1, 1), (4, 1, 1)]


def network(**options):
    torch.manual_seed(3)
    options = {"patch_size": (1, 8, 8), "hidden_size": 24, "num_layers": 1, "num_attention_heads": 2} | options
    model = VideoDiT(**options)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.12)
    return model.eval()


def pipeline(factors=THREE, schedule=None, model=None, **options):
    pyramid = Pyramid(schedule or FlowMatchingSchedule(), factors)
    options = {"default_size": [8, 16, 16], "fps": 5.0} | options
    return PyramidPipeline(model or network(), pyramid=pyramid.config(), **options)


def labelled(**options):
    return pipeline(model=network(num_classes=3), labels=LABELS, **options)


def seeded(*seeds):
    made = [torch.Generator().manual_seed(seed) for seed in seeds]
    return made[0] if len(made) == 1 else made


def counted(pipe):
    """Batch sizes of the network's calls from now on."""
    sizes = []
    pipe.transformer.register_forward_hook(lambda m, args, out: sizes.append(len(args[0])))
    return sizes


def times_told(network):
    """(stage, timesteps) of the network's calls from now on."""
    told = []

    def note(module, args, kwargs):
        told.append(([f[0] for f in THREE].index(kwargs["strides"][0]), args[1].clone()))

    network.register_forward_pre_hook(note, with_kwargs=True)
    return told


def assert_rounding(a, b):
    """Equal but for the last bits: loaded weights may be aligned differently in memory, which changes the order of
    sums."""
    np.testing.assert_allclose(a, b, rtol=0, atol=2e-6)


# Saving and loading


@pytest.mark.parametrize(
    ("schedule", "prediction"),
    [
        (None, "flow_prediction"),
        (VariancePreservingSchedule(), "epsilon"),
        (VariancePreservingSchedule().zero_terminal_snr(), "v_prediction"),
    ],
)
def test_what_is_saved_and_loaded_makes_the_same_videos(tmp_path, schedule, prediction):
    pipe = labelled(schedule=schedule, prediction_type=prediction)
    pipe.save_pretrained(tmp_path / "model")
    again, third = (PyramidPipeline.from_pretrained(tmp_path / "model") for _ in range(2))
    for name, tensor in pipe.transformer.state_dict().items():
        assert torch.equal(again.transformer.state_dict()[name], tensor)
    a, b, c = (
        p(LABELS[:2], num_inference_steps=[2, 1, 3], guidance_scale=2.0, generator=seeded(4)).frames
        for p in (pipe, again, third)
    )
    assert np.array_equal(b, c)
    assert_rounding(a, b)
    assert again.config.fps == 5.0
    assert again.conditioner.labels == LABELS
    assert again.pyramid.stages == pipe.pyramid.stages
    assert {p.suffix for p in (tmp_path / "model").rglob("*") if p.is_file()} == {".json", ".safetensors"}


def test_a_run_s_folder_means_its_newest_checkpoint(tiny, tmp_path):
    trainer = Trainer(
        tiny("train.steps=11", "log.checkpoint_every_steps=1", "log.keep_checkpoints=4"), tmp_path / "run"
    )
    trainer.run()
    trainer.save()
    assert trainer.step == 11
    newest = PyramidPipeline.from_pretrained(tmp_path / "run")
    wanted = PyramidPipeline.from_pretrained(tmp_path / "run" / "checkpoints" / "step-00000011")
    before = PyramidPipeline.from_pretrained(tmp_path / "run" / "checkpoints" / "step-00000009")
    a, b, c = (p.transformer.final_projection.weight for p in (newest, wanted, before))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    prompt = newest.config.labels[0]
    direct = trainer.pipeline()(prompt, num_inference_steps=3, generator=seeded(1)).frames
    assert_rounding(direct, newest(prompt, num_inference_steps=3, generator=seeded(1)).frames)
    assert newest.config.default_size == [8, 16, 16]
    assert newest.config.fps == 8


@pytest.mark.parametrize("name", ["absent", "empty", "run"])
def test_a_folder_without_a_model_is_refused(tmp_path, name):
    if name != "absent":
        (tmp_path / name).mkdir()
    if name == "run":
        (tmp_path / name / "checkpoints" / ".step-00000003.partial").mkdir(parents=True)
        (tmp_path / name / "checkpoints" / ".step-00000003.partial" / "model_index.json").write_text("{}")
        (tmp_path / name / "checkpoints" / "step-00000004").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no model in .*model_index\.json"):
        PyramidPipeline.from_pretrained(tmp_path / name)


def test_a_pipeline_of_another_class_is_refused_with_its_name(tmp_path):
    DDPMPipeline(UNet2DModel(8, norm_num_groups=8, block_out_channels=(8, 8, 8, 8)), DDPMScheduler()).save_pretrained(
        tmp_path
    )
    with pytest.raises(ValueError, match=r"holds a DDPMPipeline: open it by that class of diffusers, then apply_pyr"):
        PyramidPipeline.from_pretrained(tmp_path)


def test_saving_and_loading_is_quiet(tmp_path):
    logger, said = logging.getLogger("diffusers"), []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logger.addHandler(handler)
    try:
        labelled().save_pretrained(tmp_path / "model")
        PyramidPipeline.from_pretrained(tmp_path / "model")
    finally:
        logger.removeHandler(handler)
    assert said == []


def test_a_text_encoder_comes_from_where_it_was_in_training(tmp_path, bert):
    pipe = pipeline(model=network(text_dim=16), text_source=str(bert), max_text_length=9)
    pipe.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model" / "text_encoder").exists()
    again = PyramidPipeline.from_pretrained(tmp_path / "model")
    assert again.text_encoder is None
    a, b = (
        p("a digit moves", num_inference_steps=3, guidance_scale=2.0, generator=seeded(0)).frames for p in (pipe, again)
    )
    assert_rounding(a, b)
    assert again.text_encoder is not None
    other = again("five moves up", num_inference_steps=3, guidance_scale=2.0, generator=seeded(0)).frames
    assert not np.allclose(a, other, atol=1e-4)


def test_prompts_that_are_cut_are_told(bert, recwarn):
    pipe = pipeline(model=network(text_dim=16), text_source=str(bert), max_text_length=7)
    pipe("a digit below five moves", num_inference_steps=[1, 1, 1])
    assert not [w for w in recwarn if "the rest is cut" in str(w.message)]
    with pytest.warns(UserWarning, match=r"1 of 2 prompts have more than the 7 tokens .*\(condition\.max_length of"):
        pipe([None, "five", "a digit from five up moves"], num_inference_steps=[1, 1, 1], num_videos_per_prompt=2)


def test_a_text_encoder_can_be_saved_with_the_model(tmp_path, bert):
    encoder, tokenizer = load_text_encoder(str(bert))
    pipe = pipeline(model=network(text_dim=16), text_encoder=encoder, tokenizer=tokenizer, max_text_length=9)
    pipe.save_pretrained(tmp_path / "model")
    again = PyramidPipeline.from_pretrained(tmp_path / "model")
    assert again.config.text_source is None
    assert type(again.text_encoder) is type(encoder)
    a, b = (p("a digit moves", num_inference_steps=3, generator=seeded(0)).frames for p in (pipe, again))
    assert_rounding(a, b)


def test_the_packaged_text_encoder_works():
    pipe = pipeline(model=network(text_dim=384), text_source="minilm", max_text_length=8)
    left, right, none = (
        pipe(p, num_inference_steps=3, generator=seeded(0)).frames for p in ("it moves left", "it moves right", None)
    )
    assert not np.allclose(left, right, atol=1e-5)
    assert not np.allclose(left, none, atol=1e-5)


def test_a_pyramid_is_needed():
    with pytest.raises(ValueError, match=r"pyramid=Pyramid\(...\)\.config\(\)"):
        PyramidPipeline(network())


# Outputs


def test_outputs_have_their_shapes_and_ranges():
    pipe = labelled()
    made = {
        kind: pipe(LABELS[:2], num_inference_steps=3, generator=seeded(2), output_type=kind).frames
        for kind in ("np", "pt", "pil", "latent")
    }
    assert made["np"].shape == (2, 8, 16, 16, 3)
    assert made["pt"].shape == (2, 8, 3, 16, 16)
    assert made["latent"].shape == (2, 3, 8, 16, 16)
    assert isinstance(made["np"], np.ndarray)
    assert 0 <= made["np"].min() < made["np"].max() <= 1
    wanted = (made["latent"].clamp(-1, 1) / 2 + 0.5).permute(0, 2, 1, 3, 4)
    torch.testing.assert_close(made["pt"], wanted, rtol=0, atol=1e-6)
    np.testing.assert_allclose(made["np"], made["pt"].permute(0, 1, 3, 4, 2).numpy(), atol=1e-6)
    assert [len(video) for video in made["pil"]] == [8, 8]
    assert isinstance(made["pil"][0][0], Image.Image)
    assert made["pil"][0][0].size == (16, 16)
    np.testing.assert_allclose(np.asarray(made["pil"][1][3]) / 255, made["np"][1, 3], atol=0.5 / 255 + 1e-6)


def test_an_unknown_output_type_is_refused_before_any_work():
    pipe = labelled()
    sizes = counted(pipe)
    with pytest.raises(ValueError, match="gif"):
        pipe(LABELS[0], num_inference_steps=3, output_type="gif")
    assert sizes == []


def test_each_prompt_gets_so_many_videos():
    pipe = labelled()
    labels = []
    pipe.transformer.register_forward_pre_hook(
        lambda m, args, kwargs: labels.append(kwargs["class_labels"].tolist()), with_kwargs=True
    )
    frames = pipe([LABELS[2], LABELS[0]], num_videos_per_prompt=2, num_inference_steps=3, generator=seeded(0)).frames
    assert frames.shape[0] == 4
    assert labels == [[2, 2, 0, 0]] * 3
    assert not np.allclose(frames[0], frames[1])


def test_a_generator_a_video_makes_each_independent_of_its_batch():
    pipe = labelled()
    prompts = [LABELS[0], LABELS[2], LABELS[1]]
    together = pipe(prompts, num_inference_steps=4, guidance_scale=3.0, generator=seeded(7, 8, 9)).frames
    for i, seed in enumerate((7, 8, 9)):
        alone = pipe(prompts[i], num_inference_steps=4, guidance_scale=3.0, generator=seeded(seed)).frames
        np.testing.assert_allclose(alone[0], together[i], atol=1e-4)
    with pytest.raises(ValueError, match="2 generators for a batch of 3"):
        pipe(prompts, num_inference_steps=4, generator=seeded(7, 8))


def test_sizes_other_than_the_trained_one():
    pipe = labelled()
    assert pipe(None, num_inference_steps=3, num_frames=12, height=24, width=8).frames.shape == (1, 12, 24, 8, 3)


def test_given_noise_is_where_it_starts():
    pipe = labelled()
    noise = torch.randn(1, 3, 2, 16, 16, generator=seeded(3))
    a, b = (pipe(LABELS[0], num_inference_steps=3, latents=noise, generator=seeded(4)).frames for _ in range(2))
    assert np.array_equal(a, b)
    with pytest.raises(ValueError, match=r"coarsest stage's shape \(1, 3, 2, 16, 16\)"):
        pipe(LABELS[0], num_inference_steps=3, latents=torch.randn(1, 3, 8, 16, 16))


def test_it_is_the_stage_loop_around_the_network():
    pipe = pipeline()
    frames = pipe(num_inference_steps=[3, 2, 1], generator=seeded(5), output_type="latent", solver="heun").frames
    wanted = sample_pyramid(
        lambda x, t, k: pipe.transformer(x, t, strides=pipe.pyramid.factors[k], return_dict=False)[0],
        pipe.pyramid,
        (1, 3, 8, 16, 16),
        [3, 2, 1],
        generator=seeded(5),
        solver="heun",
    )
    assert torch.equal(frames, wanted)


def test_a_callback_sees_every_step_at_its_stage_s_size():
    pipe, seen = pipeline(), []

    def keep(given, step, t, tensors):
        assert given is pipe
        seen.append((step, t, {name: tuple(tensor.shape) for name, tensor in tensors.items()}))

    asked = {"callback_on_step_end": keep, "callback_on_step_end_tensor_inputs": ["latents", "denoised"]}
    pipe(num_inference_steps=[2, 1, 1], generator=seeded(5), **asked)
    sizes = [(1, 3, 2, 16, 16), (1, 3, 2, 16, 16), (1, 3, 4, 16, 16), (1, 3, 8, 16, 16)]
    assert [(step, tensors) for step, _, tensors in seen] == [
        (i, {"latents": size, "denoised": size}) for i, size in enumerate(sizes)
    ]
    times = [t for _, t, _ in seen]
    assert times[1:] == [pytest.approx(stage.end) for stage in pipe.pyramid.stages[::-1]] and times[0] > times[1]


def test_latents_that_a_callback_returns_take_the_place_of_the_sampled_ones():
    pipe = pipeline()
    asked = {"num_inference_steps": [1, 1, 1], "output_type": "latent", "callback_on_step_end": None}
    wanted, same, told, other = (
        pipe(**asked | {"callback_on_step_end": hear}, generator=seeded(5)).frames
        for hear in (
            None,
            lambda pipe, step, t, tensors: None,
            lambda pipe, step, t, tensors: {"latents": tensors["latents"].double()},
            lambda pipe, step, t, tensors: {"latents": tensors["latents"] * (step != 2)},
        )
    )
    assert torch.equal(same, wanted) and torch.equal(told, wanted) and told.dtype == wanted.dtype
    assert not other.any()  # after the last step nothing follows
    with pytest.raises(ValueError, match="a callback is given latents and denoised, not prompt_embeds"):
        pipe(num_inference_steps=3, callback_on_step_end_tensor_inputs=["prompt_embeds"])


def test_a_callback_can_stop_it_in_any_stage():
    pipe, seen = pipeline(), []

    def stop(given, step, t, tensors):
        seen.append(tensors["latents"])
        given._interrupt = step == 2

    made = pipe(
        num_inference_steps=[2, 2, 1], generator=seeded(5), output_type="latent", callback_on_step_end=stop
    ).frames
    assert len(seen) == 3 and seen[-1].shape == (1, 3, 4, 16, 16)
    assert torch.equal(made, pipe.pyramid.up(seen[-1], 0))
    assert pipe(num_inference_steps=[2, 2, 1]).frames.shape == (1, 8, 16, 16, 3)  # the next call runs through


def test_guidance_and_what_it_leads_away_from_may_differ():
    pipe = labelled()
    asked = {"num_inference_steps": [1, 1, 1], "output_type": "latent"}

    def made(scale, negative=None, which=LABELS[:2]):
        seeds = seeded(*range(len(which)))
        return pipe(which, guidance_scale=scale, negative_prompt=negative, generator=seeds, **asked).frames

    assert torch.equal(made((3.0, 3.0, 3.0)), made(3.0))
    for scales in ((6.0, 3.0, 3.0), (3.0, 3.0, 6.0)):
        assert not torch.allclose(made(scales), made(3.0), atol=1e-4)
    both = made(3.0, [LABELS[2], None])
    assert_rounding(both[:1], made(3.0, LABELS[2])[:1])
    assert_rounding(both[1:], made(3.0)[1:])
    (frames,) = pipe(LABELS[0], return_dict=False, **asked)
    assert frames.shape == (1, 3, 8, 16, 16)
    with pytest.raises(ValueError, match="guidance_scale has 2 values for 3 stages; give one, or one a stage"):
        made((3.0, 3.0))
    with pytest.raises(ValueError, match="1 negative prompts for 2 prompts; give one, or one a prompt"):
        made(3.0, [LABELS[2]])


def test_it_shows_its_steps_as_every_pipeline_of_diffusers_does(capsys):
    pipe = pipeline()
    pipe(num_inference_steps=[2, 1, 1])
    assert "4/4" in capsys.readouterr().err
    pipe.set_progress_bar_config(disable=True)
    pipe(num_inference_steps=[2, 1, 1])
    assert not capsys.readouterr().err


@pytest.mark.parametrize("target", ["global", "per_stage"])
def test_a_model_trained_on_the_flow_of_its_stages_is_sampled_by_it(tiny, tmp_path, target):
    """Two stages of equal size, and a network that always says 0.25.

    Per unit of t the path goes from 1 to 0: x falls by 0.25. Per stage each of the two stages takes 0.25 off.
    """
    config = tiny("pyramid.factors=[[1,1,1],[1,1,1]]", f"train.target={target}")
    pipe = Trainer(config, tmp_path / "run").pipeline()
    with torch.no_grad():
        pipe.transformer.final_projection.weight.zero_()
        pipe.transformer.final_projection.bias.fill_(0.25)
    pipe.save_pretrained(tmp_path / "model")
    noise = torch.randn(1, 3, 8, 16, 16, generator=seeded(1))
    for one in (pipe, PyramidPipeline.from_pretrained(tmp_path / "model")):
        latents = one(None, num_inference_steps=4, latents=noise, output_type="latent").frames
        wanted = noise - (0.25 if target == "global" else 0.5)
        torch.testing.assert_close(latents, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("policy", ["native", "pyramid_flow"])
def test_a_model_is_told_the_same_times_in_training_and_in_sampling(tiny, tmp_path, policy):
    trainer = Trainer(
        tiny(f"train.timestep_policy={policy}", "train.steps=2", "train.all_stages=true"), tmp_path / "run"
    )
    trained = times_told(trainer.network)
    trainer.run()
    trainer.save()
    s = [2**-0.5 / (1 + 2**-0.5), 2**1.5 / (1 + 2**1.5), 1]  # MATH 3: κ at a start is √2 κ at the coarser end
    spans = [(0, s[0]), (1 / 3, s[1]), (2 / 3, s[2])]
    if policy == "pyramid_flow":
        ends = np.cumsum([0, s[0], s[1] - 1 / 3, s[2] - 2 / 3])
        spans = [*zip(ends[:-1] / ends[-1], ends[1:] / ends[-1], strict=True)]
    assert len(trained) == 6
    for k, told in trained:
        assert (told > spans[k][0]).all() and (told < spans[k][1]).all()
    trained.clear()
    pipe = PyramidPipeline.from_pretrained(tmp_path / "run")
    sampled = times_told(pipe.transformer)
    pipe(None, num_inference_steps=[2, 2, 2])
    clean, given = torch.zeros(1, 3, 8, 16, 16), Told([None], None, torch.zeros(1, 3, 8, 16, 16), [seeded(0)])
    denoise, convention = trainer.trainee.denoiser(trainer.network, given), trainer.trainee.convention
    for k in (2, 1, 0):
        pair = clean_pair(convention.pyramid, clean, k)
        for u in (1.0, 0.5):
            where = torch.tensor([u], dtype=torch.float64)
            sample_errors(denoise, convention, *pair, k, pair[0], where, trainer.config.train)
    assert [k for k, _ in sampled] == [k for k, _ in trained] == [2, 2, 1, 1, 0, 0]
    by_hand = [a + u * (b - a) for a, b in reversed(spans) for u in (1, 0.5)]
    for told in (sampled, trained):
        np.testing.assert_allclose([t.item() for _, t in told], by_hand, rtol=0, atol=2e-7)
    assert [t.item() for _, t in sampled] == [t.item() for _, t in trained]


# Guidance


def test_no_guidance_does_not_double_the_batch():
    pipe = labelled()
    sizes = counted(pipe)
    pipe(LABELS[:2], num_inference_steps=[2, 1, 1])
    assert sizes == [2, 2, 2, 2]


def test_guidance_doubles_the_batch_unless_there_is_no_prompt():
    pipe = labelled()
    sizes = counted(pipe)
    pipe(LABELS[:2], num_inference_steps=3, guidance_scale=2.0)
    pipe([None, None], num_inference_steps=3, guidance_scale=2.0)
    assert sizes == [4, 4, 4, 2, 2, 2]


def test_guidance_is_linear_in_its_scale():
    """One stage, one step: the video is linear in the prediction, and that in the scale."""
    pipe = labelled(factors=[(1, 1, 1)])
    made = [
        pipe(LABELS[1], num_inference_steps=1, guidance_scale=scale, generator=seeded(0), output_type="latent").frames
        for scale in (0.0, 1.0, 3.0)
    ]
    null = pipe(None, num_inference_steps=1, generator=seeded(0), output_type="latent").frames
    torch.testing.assert_close(made[0], null, rtol=0, atol=1e-5)
    torch.testing.assert_close(made[2], made[0] + 3 * (made[1] - made[0]), rtol=0, atol=1e-5)
    assert not torch.allclose(made[0], made[1], atol=1e-3)


def test_a_negative_prompt_takes_the_place_of_none():
    pipe = labelled(factors=[(1, 1, 1)])

    def make(prompt, **options):
        return pipe(prompt, num_inference_steps=1, generator=seeded(0), output_type="latent", **options).frames

    for prompt in (LABELS[0], None):
        away = make(prompt, negative_prompt=LABELS[2], guidance_scale=2.0)
        torch.testing.assert_close(away, 2 * make(prompt) - make(LABELS[2]), rtol=0, atol=1e-5)
        assert not torch.allclose(away, make(prompt, guidance_scale=2.0), atol=1e-4)


# Refusals


def test_an_unknown_label_names_the_nearest():
    pipe = labelled()
    sizes = counted(pipe)
    for options in ({"prompt": "a dog sleep"}, {"prompt": LABELS[0], "negative_prompt": "a dog sleep"}):
        with pytest.raises(ValueError) as caught:
            pipe(**options, num_inference_steps=3)
        assert "'a dog sleep' is not one of them" in str(caught.value)
        assert "nearest: 'a dog sleeps'" in str(caught.value)
    assert sizes == []


def test_a_model_without_conditions_takes_no_prompt():
    with pytest.raises(ValueError, match="takes no prompt"):
        pipeline()("a cat", num_inference_steps=3)


@pytest.mark.parametrize(
    ("size", "axis", "nearest"),
    [
        ({"height": 12}, "height 12", "8 or 16"),
        ({"width": 20}, "width 20", "16 or 24"),
        ({"num_frames": 10}, "num_frames 10", "8 or 12"),
        ({"num_frames": 2}, "num_frames 2", "4"),
        ({"height": 0}, "height 0", "8"),
        ({"num_frames": 0}, "num_frames 0", "4"),
        ({"width": -8}, "width -8", "8"),
    ],
)
def test_an_illegal_size_names_the_nearest_before_any_call(size, axis, nearest):
    pipe = labelled()
    sizes = counted(pipe)
    with pytest.raises(ValueError) as caught:
        pipe(LABELS[0], num_inference_steps=3, **size)
    assert axis in str(caught.value)
    assert f"nearest: {nearest}" in str(caught.value)
    assert sizes == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_inference_steps": 2}, "2 steps cannot fill 3 stages; nearest: 3"),
        ({"num_inference_steps": [10, 10]}, "2 step counts"),
        ({"num_inference_steps": [1, 0, 1]}, "at least one whole step"),
        ({"solver": "rk4"}, "unknown solver 'rk4'"),
        ({"num_videos_per_prompt": 0}, "at least one"),
        ({"prompt": []}, "at least one prompt"),
    ],
)
def test_other_bad_requests_are_refused_before_any_call(options, message):
    pipe = labelled()
    sizes = counted(pipe)
    with pytest.raises(ValueError, match=message):
        pipe(**({"prompt": LABELS[0], "num_inference_steps": 3} | options))
    assert sizes == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_inference_steps": 2}, "2 steps cannot fill 3 stages"),
        ({"first_stage": -1}, "no stage -1: stages are 0, the finest, to 2"),
        ({"first_stage": -1, "num_inference_steps": [1, 1]}, "no stage -1: stages are 0, the finest, to 2"),
        ({"first_stage": 1}, "first_stage 1 begins with latents of that stage; give them"),
        (
            {"latents": torch.zeros(1, 3, 8, 16, 16)},
            r"latents .* must have the coarsest stage's shape \(1, 3, 2, 16, 16",
        ),
        ({"solver": "rk4"}, "unknown solver 'rk4'"),
        ({"generator": seeded(1, 2)}, "2 generators for a batch of 1"),
        ({"height": 12}, "height 12"),
    ],
)
def test_bad_requests_are_refused_before_the_text_encoder_is_loaded(bert, options, message):
    pipe = pipeline(model=network(text_dim=16), text_source=str(bert), max_text_length=9)
    with pytest.raises(ValueError, match=message):
        pipe(**({"prompt": "it moves", "num_inference_steps": 3} | options))
    assert pipe.text_encoder is None


def test_what_a_call_moved_goes_back_at_its_end():
    """Model offload's hooks, which diffusers puts on anew when a call is over; here from the CPU to itself."""
    vae = VideoAutoencoder(latent_channels=3, hidden_size=8, encoder_layers=1, decoder_layers=1, time_patch=1)
    pipe = labelled(vae=vae.eval(), latent_ratio=[1, 8, 8], default_size=[8, 128, 128])
    wanted = pipe(LABELS[0], num_inference_steps=3, generator=seeded(0)).frames
    pipe.enable_model_cpu_offload(device="cpu")
    before = list(pipe._all_hooks)
    assert [hook.model for hook in before] == [pipe.transformer, pipe.vae]
    assert_rounding(pipe(LABELS[0], num_inference_steps=3, generator=seeded(0)).frames, wanted)
    assert [hook.model for hook in pipe._all_hooks] == [pipe.transformer, pipe.vae]
    assert not any(hook in before for hook in pipe._all_hooks)


def test_a_text_encoder_is_loaded_to_where_an_offloaded_network_works(bert):
    """Sequential offload, here on the CPU: the network's weights come layer by layer, and are nowhere between."""
    made = []
    for offloaded in (False, True):
        pipe = pipeline(model=network(text_dim=16), text_source=str(bert), max_text_length=9)
        if offloaded:
            cpu_offload(pipe.transformer, torch.device("cpu"))
            assert pipe.device.type == "meta"
        made.append(pipe("a digit moves", num_inference_steps=3, guidance_scale=2.0, generator=seeded(0)).frames)
    assert_rounding(*made)


def test_a_text_encoder_that_comes_late_is_offloaded_with_the_others(bert):
    pipe = pipeline(model=network(text_dim=16), text_source=str(bert), max_text_length=9)
    pipe.enable_model_cpu_offload(device="cpu")
    assert [hook.model for hook in pipe._all_hooks] == [pipe.transformer]
    assert pipe.conditioner.text_encoder is pipe.text_encoder
    assert [hook.model for hook in pipe._all_hooks] == [pipe.text_encoder, pipe.transformer]


def test_it_runs_in_bf16(tmp_path):
    pipe = labelled()
    wanted = pipe(LABELS[0], num_inference_steps=3, generator=seeded(0)).frames
    pipe.save_pretrained(tmp_path / "model")
    half = PyramidPipeline.from_pretrained(tmp_path / "model", dtype=torch.bfloat16)
    assert half.transformer.dtype == torch.bfloat16
    made = half(LABELS[0], num_inference_steps=3, generator=seeded(0)).frames
    assert made.dtype == np.float32
    np.testing.assert_allclose(made, wanted, atol=0.1)


def test_a_later_stage_can_be_the_first_of_a_pipeline():
    pipe = pipeline()
    told, latents = times_told(pipe.transformer), torch.randn(1, 3, 4, 16, 16, generator=seeded(0))
    options = {"latents": latents, "first_stage": 1, "output_type": "latent"}
    made = pipe(num_inference_steps=(2, 3), generator=seeded(1), **options).frames
    assert [stage for stage, _ in told] == [1, 1, 0, 0, 0] and made.shape == (1, 3, 8, 16, 16)
    with pytest.raises(ValueError, match="1 steps cannot fill 2 stages"):
        pipe(num_inference_steps=1, **options)
    with pytest.raises(ValueError, match="no stage 3: stages are 0, the finest, to 2"):
        pipe(num_inference_steps=6, latents=latents, first_stage=3)
