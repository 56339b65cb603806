"""The judge of studies: figures that one has kept are not another's."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tpdiff.data import render_digits
from tpdiff.data.clips import Geometry
from tpdiff.data.store import store_array
from tpdiff.evaluation import judge as judge_module
from tpdiff.evaluation.judge import Judge, open_judge
from tpdiff.evaluation.kept import refuse_other_judges
from tpdiff.evaluation.samples import Sampling
from tpdiff.evaluation.study import read_result, write_result
from tpdiff.evaluation.study_run import Interrupted
from tpdiff.metrics import Reference, frechet_distance, frechet_interval, kernel_distance, paired_draws
from tpdiff.metrics.classifier import Classifier
from tpdiff.metrics.clips import load_clips
from tpdiff.metrics.motion import measure_motion
from tpdiff.models.video_dit import VideoDiT
from tpdiff.pyramid import FlowMatchingSchedule, Pyramid
from tpdiff.sampling.pipeline import PyramidPipeline

GEOMETRY = Geometry(4, 16, 16)


@pytest.fixture(scope="module")
def judge(tmp_path_factory):
    folder = render_digits(tmp_path_factory.mktemp("digits") / "set", clips=30, frames=4, size=16, test_share=0.2)
    reference = Reference.fit(folder.folder, frames=4, height=16, width=16)
    return Judge(reference, Classifier.fit(reference.training, GEOMETRY, ["digit"], steps=1))


class Counting:
    """A model of random weights that counts the clips it is asked for."""

    def __init__(self):
        torch.manual_seed(0)
        network = VideoDiT(patch_size=(1, 8, 8), hidden_size=24, num_layers=1, num_attention_heads=2)
        stages = Pyramid(FlowMatchingSchedule(), [(1, 1, 1), (2, 1, 1)]).config()
        self.pipeline, self.clips = PyramidPipeline(network, pyramid=stages, default_size=(4, 16, 16)), 0

    def __call__(self, captions, **options):
        self.clips += len(captions)
        return self.pipeline(captions, **options)


def test_a_protocol_is_read_as_it_was_written(judge, tmp_path):
    """So that a result that is kept is not taken for another judge's."""
    for sampling in (Sampling(4, batch=4), Sampling([2, 2], guidance_scale=None, solver=None)):
        write_result(tmp_path / "seed.json", {"protocol": judge.protocol(sampling)})
        refuse_other_judges(tmp_path / "seed.json", read_result(tmp_path / "seed.json"), judge.protocol(sampling))


def test_what_a_judge_keeps_is_its_own(judge, tmp_path, monkeypatch):
    monkeypatch.setattr(judge_module, "ROUNDS", 10)
    model, sampling = Counting(), Sampling(2, batch=4)

    def verdict(by, name):
        return by.verdict(model, 6, sampling, 0, tmp_path / name, told=False)

    first = verdict(judge, "base")
    assert model.clips == 6 and judge.holds(first, tmp_path / "base") and not judge.holds(first, tmp_path / "arm")
    assert verdict(judge, "base") == first and model.clips == 6
    training = judge.reference.training
    learnt = replace(judge, classifier=Classifier.fit(training, GEOMETRY, ["digit"], seed=1, steps=1))
    cut = replace(judge.reference, protocol=judge.reference.protocol | {"resize": "stretch"})
    for other in (learnt, replace(judge, reference=cut)):
        before = model.clips
        assert not other.holds(first, tmp_path / "base")
        verdict(other, "arm")
        assert model.clips == before + 6
        with pytest.raises(ValueError, match=f"figures in .*{other.key} are not there; remove .*base and run"):
            other.paired(tmp_path / "base", tmp_path / "arm", 0)
        verdict(other, "base")
        assert other.paired(tmp_path / "base", tmp_path / "arm", 0)["difference"] == 0
    monkeypatch.setattr(judge_module, "software", lambda: {"torch": "another"})
    assert not replace(judge).holds(first, tmp_path / "base")
    (tmp_path / "base" / judge.key / "000000-000004.npy").write_bytes(b"cut short")
    with pytest.raises(ValueError, match=f"{judge.key} are damaged; remove"):
        judge.paired(tmp_path / "base", tmp_path / "base", 0)


def test_a_stop_that_is_asked_for_is_heeded_at_the_next_batch(judge, tmp_path, monkeypatch):
    monkeypatch.setattr(judge_module, "ROUNDS", 10)
    model, sampling = Counting(), Sampling(2, batch=4)

    def heed():
        if model.clips >= 4:
            raise Interrupted

    stopped = replace(judge, heed=heed)
    with pytest.raises(Interrupted):
        stopped.verdict(model, 12, sampling, 0, tmp_path / "rows", told=False)
    assert model.clips == 4
    whole = judge.verdict(model, 12, sampling, 0, tmp_path / "rows", told=False)
    assert model.clips == 12, "what was measured before is kept"
    assert whole == judge.verdict(Counting(), 12, sampling, 0, tmp_path / "anew", told=False)
    assert "6 clips" in whole["warning"]  # there are no more real ones


def test_what_real_clips_show_is_measured_once_and_can_be_stopped(judge, tmp_path, monkeypatch):
    monkeypatch.setattr(judge_module, "ROUNDS", 10)
    monkeypatch.setattr(judge_module, "PART", 4)
    loaded, load = [], judge_module.load_clips
    monkeypatch.setattr(judge_module, "load_clips", lambda clips, *rest: loaded.extend(clips) or load(clips, *rest))

    def heed():
        if loaded:
            raise Interrupted

    def verdict(by):
        return by.verdict(Counting(), 6, Sampling(2, batch=6), 0, tmp_path / "rows", told=False)

    kept = replace(judge, kept=tmp_path / "kept")
    with pytest.raises(Interrupted):
        verdict(replace(kept, heed=heed))
    assert len(loaded) == 4
    whole = verdict(kept)
    assert len(loaded) == 6, "the first four were kept"
    assert verdict(replace(kept)) == whole and len(loaded) == 6
    assert verdict(replace(judge)) == whole and len(loaded) == 12, "nowhere kept"


def test_a_stop_is_heeded_while_a_judge_is_opened(tmp_path):
    render_digits(tmp_path / "set", clips=30, frames=4, size=16, test_share=0.2)
    data = SimpleNamespace(path=tmp_path / "set", frames=4, height=16, width=16, fps=None, resize="crop")
    told = []

    def heed():
        raise Interrupted

    def bar(name):
        return lambda done, total: told.append((name, done, total))

    with pytest.raises(Interrupted):
        open_judge(SimpleNamespace(data=data), tmp_path / "cache", heed=heed, bar=bar)
    assert [name for name, _, _ in told] == ["real clips"]


def keep_rows(judge, keep, features, shown):
    """As `verdict` keeps what it measures, batches of 4."""
    rows = np.concatenate([features, shown], axis=1)
    for first in range(0, len(rows), 4):
        last = min(first + 4, len(rows))
        store_array(keep / judge.key / f"{first:06d}-{last:06d}.npy", rows[first:last])


def test_a_verdict_says_of_known_rows_what_the_metrics_say(judge, tmp_path, monkeypatch):
    monkeypatch.setattr(judge_module, "ROUNDS", 20)
    reference, count = judge.reference, 6
    clips, real = reference.clips, reference.real
    digits = judge.classifier.values["digit"]
    wanted = [digits.index(str(clip.source.entry.extra["digit"])) for clip in clips]
    named = judge.classifier.predict(load_clips(clips, GEOMETRY))["digit"]
    right = np.mean([value == digits[number] for value, number in zip(named, wanted, strict=True)])
    shown = np.arange(30.0).reshape(count, 5) + 100
    seen = np.array(wanted, dtype=float)
    seen[0] = (seen[0] + 1) % len(digits)  # five of six are right
    draw = np.random.default_rng(0)
    sets = {name: real + spread * draw.normal(size=real.shape) for name, spread in (("base", 0.5), ("arm", 2.0))}
    for name, features in sets.items():
        keep_rows(judge, tmp_path / name, features, np.column_stack([shown, seen]))

    told = judge.verdict(None, count, Sampling(2, batch=4), 3, tmp_path / "arm")
    interval = frechet_interval(real, sets["arm"], 20, 3)
    assert told["distance"] == frechet_distance(real, sets["arm"])
    assert told["interval"] == [interval.low, interval.high] and interval.low < interval.high
    assert told["floor"] == frechet_distance(real, reference.held[:count]) > 0
    assert told["kernel"] == kernel_distance(real, sets["arm"]) != 0
    motion = measure_motion(load_clips(clips, GEOMETRY)).means()
    assert told["figures"]["flicker"] == {"real": pytest.approx(motion["flicker"]), "made": shown[:, 0].mean()}
    assert told["figures"]["warping_error"]["made"] == shown[:, 3].mean()
    assert told["figures"]["cuts"]["made"] == shown[:, 4].mean()
    found = told["accuracy"]["digit"]
    assert (found["real"], found["made"]) == pytest.approx((right, 5 / 6)) and right < 5 / 6

    pair = judge.paired(tmp_path / "base", tmp_path / "arm", 3)
    apart = frechet_distance(real, sets["arm"]) - frechet_distance(real, sets["base"])
    drawn = paired_draws(real, sets["arm"], sets["base"], 20, 3)
    assert pair["difference"] == apart > 0
    assert pair["replicates"] == pytest.approx(apart + drawn - drawn.mean(), abs=1e-4) and np.ptp(drawn) > 0
