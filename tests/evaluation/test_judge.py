"""The judge of studies: figures that one has kept are not another's."""

from dataclasses import replace

import pytest
import torch

from tpdiff.data import render_digits
from tpdiff.data.clips import Geometry
from tpdiff.evaluation import judge as judge_module
from tpdiff.evaluation.judge import Judge
from tpdiff.evaluation.kept import refuse_other_judges
from tpdiff.evaluation.samples import Sampling
from tpdiff.evaluation.study import read_result, write_result
from tpdiff.evaluation.study_run import Interrupted
from tpdiff.metrics import Reference
from tpdiff.metrics.classifier import Classifier
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
