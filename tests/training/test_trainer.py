"""The trainer on real clips: it learns, can be cut and continued anywhere, and refuses what cannot work."""

import json
import shutil
import time

import pytest
import torch

from tpdiff.data import ClipDataset
from tpdiff.evaluation.arms import Arms
from tpdiff.training.checkpoint import checkpoints, read_checkpoint
from tpdiff.training.load_config import build_config
from tpdiff.training.trainer import Trainer

NO_CLOCK = 1  # column of `losses` after the seconds


def weights(trainer):
    state = {f"network.{n}": t for n, t in trainer.network.state_dict().items()}
    state |= {f"ema.{n}": t for n, t in trainer.ema.network.state_dict().items()}
    return state


def assert_same(a, b):
    assert [point[NO_CLOCK:] for point in a.losses] == [point[NO_CLOCK:] for point in b.losses]
    assert (a.step, a.tokens, a.ema.updates) == (b.step, b.tokens, b.ema.updates)
    first, second = weights(a), weights(b)
    assert first.keys() == second.keys()
    assert [n for n in first if not torch.equal(first[n], second[n])] == []


def trained(config, out, **options):
    trainer = Trainer(config, out, **options)
    trainer.run()
    return trainer


def recorded(trainer):
    """Keyword arguments that the network is called with from now on, and the shapes of its input."""
    calls = []
    trainer.network.register_forward_pre_hook(
        lambda m, args, kwargs: calls.append(kwargs | {"x": args[0], "t": args[1]}), with_kwargs=True
    )
    return calls


@pytest.mark.parametrize("overrides", [[], ["train.method=vanilla"], ["diffusion.schedule=ddim"]])
def test_the_loss_falls(tiny, tmp_path, overrides):
    options = [
        "train.steps=80",
        "train.batch_size=12",
        "train.lr=1e-2",
        "model.hidden_size=48",
        "model.patch_size=[1,4,4]",
    ]
    trainer = trained(tiny(*options, *overrides), tmp_path / "run")
    by_stage = {}
    for _, _, stage, loss in trainer.losses:
        by_stage.setdefault(stage, []).append(loss)
    assert set(by_stage) == set(range(len(trainer.pyramid)))
    for losses in by_stage.values():
        quarter = max(3, len(losses) // 4)
        first, last = (sum(part) / len(part) for part in (losses[:quarter], losses[-quarter:]))
        assert last < 0.75 * first, (first, last)


FULL = [
    "train.steps=6",
    "train.accumulation=2",
    "train.alignment=assignment",
    "condition.dropout=0.4",
    "train.lr_schedule=cosine",
    "train.warmup_steps=2",
]


def test_a_loss_that_is_no_number_ends_the_run(tiny, tmp_path):
    config = tiny("train.lr=1e30", "train.max_grad_norm=null", "train.steps=50", "log.checkpoint_every_steps=1")
    trainer = Trainer(config, tmp_path / "run")
    with pytest.raises(ValueError, match=r"the loss of stage \d is (nan|inf) at step \d+\. .*a lower train\.lr"):
        trainer.run()
    last = checkpoints(tmp_path / "run")[-1]
    assert last.name == f"step-{trainer.step - 1:08d}"
    assert all(tensor.isfinite().all() for tensor in read_checkpoint(last)[0].values())


def test_fp16_that_leaves_out_every_step_ends_the_run(tiny, tmp_path):
    """A gradient that is never a number halves the scale of the loss each step."""
    scaler = torch.amp.GradScaler("cpu")
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight])
    trainer = Trainer(tiny("train.steps=60"), tmp_path / "run")
    trainer.accelerator.scaler = scaler
    for _ in range(40):
        weight.grad = scaler.scale(torch.full((1,), float("nan")))
        scaler.step(optimizer)
        scaler.update()
    assert scaler.get_scale() == 2**-24 and weight.item() == 1
    trainer.run(1e-9)  # so far it may have been chance
    scaler.update(2**-25)
    with pytest.raises(ValueError, match=r"scales losses by 2\.98023e-08 at step 2; .* train\.precision=bf16"):
        trainer.run()


def test_slices_are_one_run(tiny, tmp_path):
    config = tiny(*FULL)
    whole = trained(config, tmp_path / "whole")
    sliced = Trainer(config, tmp_path / "sliced")
    turns = 0
    while not sliced.done:
        sliced.run(seconds=1e-9)
        turns += 1
    assert turns == 6
    assert_same(whole, sliced)


def test_the_budget_is_spent_by_the_trainers_clock(tiny, tmp_path):
    trainer = Trainer(tiny("train.steps=null", "train.seconds=5"), tmp_path / "run")
    ticks = iter(range(1000))
    trainer.clock = lambda: float(next(ticks))  # a second a look: a step takes one
    trainer.run()
    assert (trainer.step, trainer.seconds) == (5, 5.0)


def test_arms_may_be_timed_by_the_processor(tiny, tmp_path):
    torch.set_num_threads(2)
    arms = Arms({"a": tiny("train.steps=null", "train.seconds=0.2")}, tmp_path, clock="cpu")
    assert torch.get_num_threads() == 1  # the processor's clock adds up all threads
    trainer = arms.trainers["a"]
    step = trainer.train_step
    trainer.train_step = lambda batches: time.sleep(0.3) or step(batches)  # by the wall's clock, one step is too long
    arms.run()
    with pytest.raises(ValueError, match=r"clock cpu does not see what processes that load .*nearest: data\.workers=0"):
        Arms({"b": tiny("train.steps=null", "train.seconds=0.2", "data.workers=1")}, tmp_path, clock="cpu")
    assert trainer.seconds >= 0.2
    assert trainer.step > 1 and trainer.losses[0][0] < 0.2


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["train.all_stages=true", "train.alignment=knn", "model.stage_embedding=true"],
        ["data.workers=2", "train.stage_weights=[3,1,2]", "train.timestep_density=logit_normal"],
        ["model.stage_projections=true"],
        ["train.method=vanilla", "condition.kind=none", "diffusion.schedule=ddim", "data.cache=none"],
    ],
)
def test_a_resumed_run_is_the_uninterrupted_one(tiny, tmp_path, overrides):
    config = tiny(*FULL, "log.checkpoint_every_steps=3", *overrides)
    whole = trained(config, tmp_path / "whole")
    assert [p.name for p in checkpoints(tmp_path / "whole")] == ["step-00000003"]
    resumed = Trainer(config, tmp_path / "whole", resume=True)
    assert resumed.step == 3
    assert resumed.seconds == pytest.approx(whole.losses[len(resumed.losses) - 1][0])
    resumed.run()
    assert resumed.step == 6
    assert_same(whole, resumed)


def test_a_stop_between_checkpoints_can_be_resumed_too(tiny, tmp_path):
    config = tiny(*FULL)
    whole = trained(config, tmp_path / "whole")
    trainer = Trainer(config, tmp_path / "run")
    trainer.run(report=lambda status: trainer.request_stop() if status.step == 4 else None)
    assert trainer.step == 4
    assert not trainer.done
    trainer.save()
    resumed = trained(config, tmp_path / "run", resume=True)
    assert_same(whole, resumed)


def test_a_run_stopped_before_its_first_step_can_be_resumed(tiny, tmp_path):
    config = tiny("train.steps=2")
    trainer = Trainer(config, tmp_path / "run")
    trainer.request_stop()
    trainer.run()
    trainer.save()
    resumed = trained(config, tmp_path / "run", resume=True)
    assert_same(trained(config, tmp_path / "whole"), resumed)


def test_a_resumed_run_may_go_on_for_longer(tiny, tmp_path):
    config = tiny("train.steps=2")
    trained(config, tmp_path / "run").save()
    longer = tiny("train.steps=5", "log.every_steps=2", "log.keep_checkpoints=7", "data.cache=none")
    resumed = trained(longer, tmp_path / "run", resume=True)
    assert_same(trained(longer, tmp_path / "whole"), resumed)
    assert "steps: 5" in (tmp_path / "run" / "config.yaml").read_text()


def test_another_configuration_is_not_a_resumption(tiny, tmp_path):
    trained(tiny("train.steps=1"), tmp_path / "run").save()
    before = (tmp_path / "run" / "config.yaml").read_text()
    with pytest.raises(ValueError) as caught:
        Trainer(tiny("train.steps=1", "train.lr=5e-4", "model.num_layers=2"), tmp_path / "run", resume=True)
    assert "train.lr: 0.001 -> 0.0005" in str(caught.value)
    assert "model.num_layers: 1 -> 2" in str(caught.value)
    assert (tmp_path / "run" / "config.yaml").read_text() == before


def test_other_captions_are_not_a_resumption(tiny, tmp_path, tiny_values, clips):
    """A label model's classes are the captions: the same number of other captions would be trained into them."""
    folder = tmp_path / "clips"
    folder.mkdir()
    rows = [json.loads(line) for line in (clips / "metadata.jsonl").read_text().splitlines()]
    for row in rows:
        path = folder / row["file_name"]
        path.parent.mkdir(exist_ok=True)
        path.write_bytes((clips / row["file_name"]).read_bytes())
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = tiny(f"data.path={folder}", "train.steps=1")
    trained(config, tmp_path / "run").save()
    called = {row["caption"] for row in rows}
    others = [{**row, "caption": min(called - {row["caption"]})} for row in rows]  # the same classes, of other clips
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in others))
    with pytest.raises(ValueError, match=r"other captions than the videos of .* have now; put them as they were"):
        Trainer(config, tmp_path / "run", resume=True)
    for row in rows:
        row["caption"] = "zero to four" if "below" in row["caption"] else "five to nine"
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ValueError, match="caption"):
        Trainer(config, tmp_path / "run", resume=True)
    rows[0]["caption"] = "a third one"
    rows[-1]["caption"] = "a third one"
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ValueError, match="caption"):
        Trainer(config, tmp_path / "run", resume=True)


@pytest.mark.parametrize("start", ["absent", "empty", "no checkpoint"])
def test_there_must_be_something_to_resume(tiny, tmp_path, start):
    out = tmp_path / "run"
    if start != "absent":
        out.mkdir()
    if start == "no checkpoint":
        (out / "checkpoints" / "step-00000003").mkdir(parents=True)
    with pytest.raises(ValueError, match="nothing to resume"):
        Trainer(tiny(), out, resume=True)


def test_a_folder_in_use_is_refused(tiny, tmp_path):
    trained(tiny("train.steps=1"), tmp_path / "run").save()
    with pytest.raises(ValueError, match=r"holds a run already; add --resume"):
        Trainer(tiny("train.steps=1"), tmp_path / "run")


def test_a_run_killed_before_its_first_checkpoint_is_not_a_dead_end(tiny, tmp_path):
    """Whatever the first refusal says must help: --resume starts such a run again."""
    Trainer(tiny("train.steps=1"), tmp_path / "run")
    with pytest.raises(ValueError, match="--resume"):
        Trainer(tiny("train.steps=1"), tmp_path / "run")
    resumed = trained(tiny("train.steps=1"), tmp_path / "run", resume=True)
    assert resumed.step == 1


@pytest.mark.parametrize(
    ("override", "axis", "nearest"),
    [
        ("data.frames=10", "num_frames 10", "8 or 12"),
        ("data.height=12", "height 12", "8 or 16"),
        ("data.width=3", "width 3", "8"),
        ("pyramid.factors=[[1,1,1],[2,1,1],[6,1,1]]", "num_frames 8", "6 or 12"),
    ],
)
def test_an_illegal_size_is_refused_before_any_file_is_opened(tiny, tmp_path, monkeypatch, override, axis, nearest):
    opened = []
    monkeypatch.setattr("tpdiff.data.clips.scan", lambda *a, **k: opened.append(a))
    with pytest.raises(ValueError) as caught:
        Trainer(tiny("data.path=not-there", override), tmp_path / "run")
    assert axis in str(caught.value)
    assert f"nearest: {nearest}" in str(caught.value)
    assert opened == []
    assert not (tmp_path / "run").exists()


def test_a_causal_time_axis_wants_one_frame_more(tiny, tmp_path):
    with pytest.raises(ValueError, match=r"num_frames 8 is not 1 \+ a multiple of 4.*nearest: 5 or 9"):
        Trainer(tiny("pyramid.causal_time=true"), tmp_path / "run")
    trainer = Trainer(tiny("pyramid.causal_time=true", "data.frames=5", "train.all_stages=true"), tmp_path / "run")
    calls = recorded(trainer)
    trainer.run(seconds=1e-9)
    assert [call["x"].shape[2] for call in calls] == [5, 3, 2]


def test_every_stage_in_every_step(tiny, tmp_path):
    trainer = Trainer(tiny("train.steps=2", "train.all_stages=true", "train.accumulation=2"), tmp_path / "run")
    calls = recorded(trainer)
    trainer.run()
    assert [stage for _, _, stage, _ in trainer.losses] == [0, 1, 2] * 4
    assert [call["strides"] for call in calls] == [(1, 1, 1), (2, 1, 1), (4, 1, 1)] * 4
    assert [tuple(call["x"].shape[2:]) for call in calls][:3] == [(8, 16, 16), (4, 16, 16), (2, 16, 16)]
    assert trainer.tokens == 2 * 2 * 6 * 4 * (8 + 4 + 2)


@pytest.mark.parametrize("overrides", [[], ["train.alignment=knn"]])
def test_a_batch_in_parts_is_the_same_step(tiny, tmp_path, overrides):
    """What a sample meets hangs on its place in the stream: two micro-batches of 3 are one of 6."""
    common = ["train.method=vanilla", "train.alignment=none", "condition.dropout=0.4", "train.lr=1e-2", *overrides]
    whole, parts = (
        Trainer(tiny(*common, "train.steps=2", *own), tmp_path / name)
        for name, own in (("whole", []), ("parts", ["train.batch_size=3", "train.accumulation=2"]))
    )
    calls = {trainer: recorded(trainer) for trainer in (whole, parts)}
    for trainer in (whole, parts):
        trainer.run()
    for key in ("x", "t", "class_labels"):
        one, two = (torch.cat([call[key] for call in calls[trainer]]) for trainer in (whole, parts))
        assert torch.equal(one, two), key
    assert 2 in torch.cat([call["class_labels"] for call in calls[whole]])  # a dropped caption
    first, second = weights(whole), weights(parts)
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=0, atol=1e-4)


def test_gradient_checkpointing_changes_nothing_but_memory(tiny, tmp_path):
    plain = trained(tiny("train.steps=3", "model.num_layers=2"), tmp_path / "a")
    saving = Trainer(tiny("train.steps=3", "model.num_layers=2", "model.gradient_checkpointing=true"), tmp_path / "b")
    assert saving.network.is_gradient_checkpointing
    saving.run()
    assert_same(plain, saving)


def test_bf16_trains_on_this_machine(tiny, tmp_path):
    trainer = trained(tiny("train.steps=2", "train.precision=bf16"), tmp_path / "run")
    assert all(p.dtype == torch.float32 for p in trainer.network.parameters())
    assert all(loss == loss and loss < 10 for *_, loss in trainer.losses)


# Conditions


def test_labels_are_the_sorted_captions(tiny, tmp_path):
    trainer = Trainer(tiny("train.steps=1", "condition.dropout=0", "train.alignment=none"), tmp_path / "run")
    captions = trainer.dataset.captions
    assert len(captions) == 2
    assert trainer.network.config.num_classes == 2
    calls = recorded(trainer)
    batch = trainer._next_batch()
    trainer.train_step([batch])
    assert calls[0]["class_labels"].tolist() == [captions.index(c) for c in batch["caption"]]
    assert trainer.pipeline().config.labels == captions


@pytest.mark.parametrize(("rate", "low", "high"), [(0.0, 0, 0), (0.3, 0.2, 0.4), (1.0, 1, 1)])
def test_captions_are_dropped_at_their_rate(tiny, tmp_path, rate, low, high):
    trainer = Trainer(
        tiny("train.steps=8", "train.batch_size=36", f"condition.dropout={rate}", "train.stage_weights=[1,0,0]"),
        tmp_path / "run",
    )
    calls = recorded(trainer)
    trainer.run()
    labels = torch.cat([call["class_labels"] for call in calls])
    assert len(labels) == 8 * 36
    assert low <= float((labels == 2).float().mean()) <= high


def test_text_conditions_carry_the_encoder_s_states(tiny, tmp_path, bert):
    config = tiny("train.steps=2", "condition.kind=text", f"condition.encoder={bert}", "condition.max_length=9")
    trainer = Trainer(config, tmp_path / "run")
    assert trainer.network.config.text_dim == 16
    calls = recorded(trainer)
    trainer.run()
    assert calls[0]["encoder_hidden_states"].shape == (6, 9, 16)
    assert calls[0]["encoder_attention_mask"].dtype == torch.bool
    assert trainer.pipeline().config.text_source == str(bert)
    assert trainer.pipeline().conditioner is trainer.trainee.conditioner, "its encoder is not loaded once more"


def test_without_a_condition_noise_is_aligned_over_the_whole_batch(tiny, tmp_path):
    def gain(name, *overrides):
        options = ["train.alignment=assignment", "train.batch_size=6", "train.steps=1", *overrides]
        trainer = Trainer(tiny(*options), tmp_path / name)
        return trainer.train_step([next(trainer.open_stream())])[0].alignment_gain

    told, untold = gain("told"), gain("untold", "condition.kind=none")
    assert untold == gain("whole batch", "train.align_within_condition=false") > told


def test_alignment_that_finds_no_two_equal_captions_is_told(tiny_values, tmp_path, clips, recwarn):
    folder = shutil.copytree(clips, tmp_path / "clips")
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    told = [json.dumps(row | {"caption": f"clip {number}"}) + "\n" for number, row in enumerate(rows)]
    (folder / "metadata.jsonl").write_text("".join(told))

    def opened(*overrides):
        values = tiny_values()
        values["data"]["path"] = str(folder)
        return Trainer(build_config(values, [*overrides, "train.alignment=assignment"]), tmp_path / "run", dry=True)

    trainer = opened("train.batch_size=4", "train.align_within_condition=false")
    opened("train.batch_size=1")
    assert not recwarn
    with pytest.warns(UserWarning, match=r"captions hardly two meet in a batch of 4: .*align_within_condition=false"):
        lonely = opened("train.batch_size=4")
    gains = [one.train_step([next(one.open_stream())])[0].alignment_gain for one in (trainer, lonely)]
    assert gains[0] > 0 == gains[1]


def test_no_condition_needs_no_captions(tiny, tmp_path, clips):
    folder = tmp_path / "bare"
    folder.mkdir()
    for path in sorted(clips.glob("train/*.mp4"))[:6]:
        (folder / path.name).write_bytes(path.read_bytes())
    options = [f"data.path={folder}", "data.split=", "train.steps=2"]
    with pytest.raises(ValueError, match="no caption"):
        Trainer(tiny(*options), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    trainer = Trainer(tiny(*options, "condition.kind=none"), tmp_path / "run")
    calls = recorded(trainer)
    trainer.run()
    assert calls[0].keys() == {"x", "t", "strides", "return_dict"}


def test_without_a_condition_no_caption_is_told(tiny, tmp_path):
    """Whoever is trained: a pretrained pipeline would encode it."""
    trainer = Trainer(tiny("condition.kind=none", "train.steps=1"), tmp_path / "run")
    told, denoiser = [], trainer.trainee.denoiser
    trainer.trainee.denoiser = lambda network, one: told.append(one) or denoiser(network, one)
    trainer.run()
    assert trainer.dataset[0]["caption"]
    assert [one.prompts for one in told] == [[None] * 6]


def test_a_missing_encoder_is_refused(tiny, tmp_path):
    with pytest.raises(ValueError, match=r"no text encoder in .*nowhere"):
        Trainer(tiny("condition.kind=text", f"condition.encoder={tmp_path / 'nowhere'}"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_twins_start_equal_and_see_the_same_clips(tiny, tmp_path):
    shared = ClipDataset(tiny().data.path, frames=8, height=16, width=16, fps=8, seed=5, split="train", cache="memory")
    a = Trainer(tiny("train.method=vanilla"), tmp_path / "a", dataset=shared)
    b = Trainer(tiny(), tmp_path / "b", dataset=shared)
    first, second = weights(a), weights(b)
    assert [n for n in first if not torch.equal(first[n], second[n])] == []
    assert a.dataset is b.dataset
    for _ in range(3):
        one, two = a._next_batch(), b._next_batch()
        assert torch.equal(one["video"], two["video"])
        assert one["caption"] == two["caption"]


# Latents


def test_an_image_autoencoder_works_frame_by_frame(tiny, tmp_path, image_vae):
    config = tiny(f"model.autoencoder={image_vae}", "model.patch_size=[1,2,2]", "train.all_stages=true")
    trainer = Trainer(config, tmp_path / "run")
    calls = recorded(trainer)
    trainer.run()
    assert [tuple(call["x"].shape[1:]) for call in calls[:3]] == [(4, 8, 4, 4), (4, 4, 4, 4), (4, 2, 4, 4)]
    folder = trainer.save()
    from tpdiff import PyramidPipeline

    pipeline = PyramidPipeline.from_pretrained(tmp_path / "run")
    assert (folder / "vae" / "config.json").is_file()
    assert pipeline.config.latent_ratio == [1, 4, 4]
    video = pipeline(
        trainer.dataset.captions[:1], num_inference_steps=3, generator=torch.Generator().manual_seed(0)
    ).frames
    assert video.shape == (1, 8, 16, 16, 3)
    larger = pipeline(None, num_inference_steps=3, num_frames=4, height=32, width=24, output_type="pt").frames
    assert larger.shape == (1, 4, 3, 32, 24)


@pytest.mark.parametrize("frames", [17, 9, 5])
def test_a_causal_video_autoencoder_makes_one_more_than_a_quarter(tiny, tmp_path, video_vae, long_clips, frames):
    config = tiny(
        f"data.path={long_clips}",
        f"model.autoencoder={video_vae}",
        "model.patch_size=[1,2,2]",
        f"data.frames={frames}",
        "data.height=32",
        "data.width=32",
        "pyramid.causal_time=true",
        "pyramid.factors=" + {17: "[[1,1,1],[2,1,1],[4,1,1]]", 9: "[[1,1,1],[2,1,1]]", 5: "[[1,1,1]]"}[frames],
        "train.all_stages=true",
        "train.batch_size=2",
        "train.steps=1",
    )
    trainer = Trainer(config, tmp_path / "run")
    calls = recorded(trainer)
    trainer.run()
    wanted = {17: [5, 3, 2], 9: [3, 2], 5: [2]}[frames]
    assert [tuple(call["x"].shape[1:]) for call in calls] == [(4, n, 4, 4) for n in wanted]
    pipeline = trainer.pipeline()
    assert pipeline.config.latent_ratio == [4, 8, 8]
    assert pipeline(None, num_inference_steps=3).frames.shape == (1, frames, 32, 32, 3)


@pytest.mark.parametrize(
    ("overrides", "why"),
    [
        (["data.frames=16"], "num_frames 16"),  # the encoder would drop the last three
        (["data.frames=13"], "num_frames 13"),  # four latent frames: three after the first do not divide
        (["model.patch_size=[1,8,8]"], "height 32"),
    ],
)
def test_a_size_that_latents_cannot_hold_is_refused_before_training(
    tiny, tmp_path, video_vae, long_clips, overrides, why
):
    base = ["data.frames=9", "data.height=32", "data.width=32", "pyramid.causal_time=true"]
    base += ["pyramid.factors=[[1,1,1],[2,1,1]]", "model.patch_size=[1,2,2]", "train.batch_size=2"]
    paths = [f"data.path={long_clips}", f"model.autoencoder={video_vae}"]
    with pytest.raises(ValueError) as caught:
        Trainer(tiny(*paths, *base, *overrides), tmp_path / "run")
    assert why in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_size_that_the_autoencoder_would_cut_is_refused(tiny, tmp_path, image_vae):
    config = tiny(f"model.autoencoder={image_vae}", "model.patch_size=[1,1,1]", "data.height=10")
    with pytest.raises(ValueError, match=r"height 10 is not a multiple of 4 \(4 VAE\); nearest: 8 or 12"):
        Trainer(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_trains_with_plain_stages_over_causal_latents_can_be_sampled(tiny, tmp_path, video_vae, long_clips):
    """13 frames are 4 latent frames, which a plain time axis halves twice."""
    config = tiny(
        f"data.path={long_clips}",
        f"model.autoencoder={video_vae}",
        "model.patch_size=[1,2,2]",
        "data.frames=13",
        "data.height=32",
        "data.width=32",
        "train.batch_size=2",
        "train.steps=1",
    )
    trainer = trained(config, tmp_path / "run")
    assert trainer.latents.shape == (4, 4, 4, 4)
    assert trainer.pipeline()(None, num_inference_steps=3).frames.shape == (1, 13, 32, 32, 3)


def test_latents_are_scaled_in_training_and_back_in_sampling(tiny, tmp_path):
    """The same draws at two scales: what reaches the network differs by half the clean clips."""
    seen = []
    for scale in (1.0, 0.5):
        config = tiny(f"model.latent_scale={scale}", "train.method=vanilla", "train.alignment=none")
        trainer = Trainer(config, tmp_path / f"{scale}")
        calls = recorded(trainer)
        batch = trainer._next_batch()
        trainer.train_step([batch])
        seen.append(calls[0])
    clean = batch["video"].float() / 127.5 - 1
    alpha = (1 - seen[0]["t"]).view(-1, 1, 1, 1, 1)
    torch.testing.assert_close(seen[0]["x"] - seen[1]["x"], 0.5 * alpha * clean, rtol=0, atol=1e-5)
    pipeline = trainer.pipeline()
    pipeline.save_pretrained(tmp_path / "model")
    from tpdiff import PyramidPipeline

    loaded = PyramidPipeline.from_pretrained(tmp_path / "model")
    latents, pixels = (
        loaded(None, num_inference_steps=2, generator=torch.Generator().manual_seed(0), output_type=kind).frames
        for kind in ("latent", "pt")
    )
    torch.testing.assert_close(pixels, (2 * latents).clamp(-1, 1).transpose(1, 2) / 2 + 0.5, rtol=0, atol=1e-6)


# What a run leaves behind


def test_tensorboard_has_the_loss_of_every_stage(tiny, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = tiny("train.all_stages=true", "train.steps=4", "log.every_steps=2", "log.trackers=[tensorboard]")
    trainer = trained(config, tmp_path / "run")
    trainer.close()
    events = [p for p in (tmp_path / "run").rglob("events.out.tfevents*") if p.parent.name == "tpdiff"]
    assert len(events) == 1
    accumulator = EventAccumulator(str(events[0]))
    accumulator.Reload()
    tags = accumulator.Tags()["scalars"]
    assert {"loss", "loss/stage_0", "loss/stage_1", "loss/stage_2", "lr", "tokens_per_second"} <= set(tags)
    assert {"alignment_gain", "training_seconds"} <= set(tags)
    for stage in range(3):
        points = accumulator.Scalars(f"loss/stage_{stage}")
        assert [p.step for p in points] == [2, 4]
        own = [loss for _, step, k, loss in trainer.losses if k == stage and step > 2]
        assert points[1].value == pytest.approx(sum(own) / len(own), rel=1e-5)


def test_reports_come_every_so_many_steps_and_at_the_end(tiny, tmp_path):
    told = []
    trainer = Trainer(tiny("train.steps=5", "log.every_steps=2"), tmp_path / "run")
    trainer.run(report=told.append)
    assert [status.step for status in told] == [2, 4, 5]
    assert [round(status.fraction, 3) for status in told] == [0.4, 0.8, 1.0]
    assert all(status.tokens_per_second > 0 for status in told)
    assert f"step {told[-1].step}" in told[-1].line()


@pytest.mark.parametrize(
    ("schedule", "shares"),
    [
        ("constant", [1, 1, 1, 1, 1]),
        ("linear", [1, 0.8, 0.6, 0.4, 0.2]),
        ("cosine", [1, 0.904508, 0.654508, 0.345492, 0.095492]),
    ],
)
def test_the_learning_rate_warms_up_and_falls(tiny, tmp_path, schedule, shares):
    config = tiny("train.steps=5", f"train.lr_schedule={schedule}", "train.warmup_steps=4", "train.lr=1e-2")
    trainer = Trainer(config, tmp_path / "run")
    seen = []
    trainer.run(report=lambda status: seen.append(trainer.optimizer.param_groups[0]["lr"] / 1e-2))
    warm_up = [0.25, 0.5, 0.75, 1, 1]
    assert seen == pytest.approx([w * s for w, s in zip(warm_up, shares, strict=True)], abs=1e-5)


def test_a_budget_of_seconds_ends_a_run(tiny, tmp_path):
    trainer = trained(tiny("train.steps=", "train.seconds=0.3"), tmp_path / "run")
    assert trainer.done
    assert trainer.seconds >= 0.3
    assert trainer.losses[-2][0] < 0.3
    assert trainer.seconds == trainer.losses[-1][0]


def test_the_resolved_configuration_lies_in_the_run(tiny, tmp_path):
    from tpdiff.training.load_config import load_config

    config = tiny("train.lr=3e-4")
    Trainer(config, tmp_path / "run")
    assert load_config(tmp_path / "run" / "config.yaml") == config


@pytest.mark.parametrize(("asked", "rate", "cache"), [("", 5.0, "auto"), ("", 5.0, "disk"), ("10", 10.0, "auto")])
def test_videos_play_at_the_rate_of_the_clips(tiny, tmp_path, clips, asked, rate, cache):
    """Without data.fps a clip is made of each file's own frames, and so is what the model makes."""
    from tpdiff.data import read_video, write_video

    folder = tmp_path / "slow"
    for path in sorted(clips.glob("train/*.mp4"))[:6]:
        write_video(folder / path.name, read_video(path), 5)
        (folder / f"{path.stem}.txt").write_text("a digit moves")
    kept = (f"data.cache={cache}", f"data.cache_dir={tmp_path / 'kept'}")
    config = tiny(f"data.path={folder}", "data.split=", f"data.fps={asked}", *kept)
    assert Trainer(config, tmp_path / "run").pipeline().config.fps == pytest.approx(rate)


def test_every_micro_batch_draws_anew(tiny, tmp_path):
    trainer = Trainer(tiny("train.steps=3", "train.accumulation=2", "train.method=vanilla"), tmp_path / "run")
    calls = recorded(trainer)
    trainer.run()
    times = torch.cat([call["t"] for call in calls])
    assert len(times) == len(set(times.tolist())) == 3 * 2 * 6


def test_held_out_videos_that_are_trained_on_are_told(tiny, tmp_path, recwarn):
    Trainer(tiny("train.steps=1"), tmp_path / "training split")
    assert not [w for w in recwarn if "trained on, too" in str(w.message)]
    with pytest.warns(UserWarning, match=r"the split test are trained on, too; nearest: data\.split=train"):
        Trainer(tiny("data.split=", "train.steps=1"), tmp_path / "all")
