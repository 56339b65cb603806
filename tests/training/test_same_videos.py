"""A run goes on with the videos that it was trained on, wherever they lie, and with no others."""

import json
import shutil

import pytest
import torch

from tpdiff.training.checkpoint import STATE, checkpoints, read_state
from tpdiff.training.trainer import Trainer

OPTIONS = ("data.split=", "condition.kind=none", "train.steps=6", "train.alignment=none")


@pytest.fixture
def videos(clips, tmp_path):
    """A folder of twelve videos in a subfolder."""
    folder = tmp_path / "videos"
    (folder / "some").mkdir(parents=True)
    for path in sorted(clips.glob("train/*.mp4"))[:12]:
        shutil.copy(path, folder / "some")
    return folder


@pytest.fixture
def stopped(tiny, videos, tmp_path):
    """A run that was stopped after two of its six steps."""
    trainer = Trainer(tiny(*OPTIONS, f"data.path={videos}"), tmp_path / "run")
    trainer.run(report=lambda status: trainer.request_stop() if status.step == 2 else None)
    trainer.save()
    return trainer


@pytest.fixture
def resume(tiny, videos, stopped):
    """`resume("data.path=elsewhere")`: that run to its end."""

    def go_on(*overrides):
        trainer = Trainer(tiny(*OPTIONS, f"data.path={videos}", *overrides), stopped.out, resume=True)
        trainer.run()
        return trainer

    return go_on


def refusal(resume, *overrides):
    with pytest.raises(
        ValueError, match=r"step-00000002 was trained on other videos than those of .* now \("
    ) as caught:
        resume(*overrides)
    message = str(caught.value)
    assert message.endswith("; put them as they were, or begin another run with another --out")
    return message


def some(videos):
    return sorted(videos.glob("some/*.mp4"))


def told(path, folder, frames=8):
    return f"{path.relative_to(folder).as_posix()} ({path.stat().st_size} bytes, {frames} frames)"


def test_a_checkpoint_tells_its_videos(videos, stopped):
    kept = read_state(checkpoints(stopped.out)[-1])["videos"]
    assert kept == stopped.videos == [told(path, videos) for path in some(videos)]


def test_the_same_videos_elsewhere_are_the_same_run(tiny, videos, resume, tmp_path, monkeypatch):
    whole = Trainer(tiny(*OPTIONS, f"data.path={videos}"), tmp_path / "whole")
    whole.run()
    (tmp_path / "there").mkdir()
    videos.rename(tmp_path / "there" / "moved")
    monkeypatch.chdir(tmp_path / "there")
    resumed = resume("data.path=moved")
    assert [point[1:] for point in resumed.losses] == [point[1:] for point in whole.losses]
    first, second = whole.network.state_dict(), resumed.network.state_dict()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
    assert "path: moved" in (resumed.out / "config.yaml").read_text()


def test_a_video_that_is_gone_is_named(videos, resume):
    gone = [told(path, videos) for path in some(videos)[3:8]]
    for path in some(videos)[3:8]:
        path.unlink()
    assert f"(gone or unusable: {', '.join(gone[:3])} and 2 more);" in refusal(resume)


def test_a_video_that_came_is_named(videos, resume):
    new = shutil.copy(some(videos)[0], videos / "some" / "new.mp4")
    assert f"(new: {told(new, videos)});" in refusal(resume)


def test_a_video_that_was_replaced_is_named(videos, resume):
    one = some(videos)[0]
    other = next(path for path in some(videos) if path.stat().st_size != one.stat().st_size)
    before = told(one, videos)
    shutil.copy(other, one)
    assert f"(gone or unusable: {before}; new: {told(one, videos)});" in refusal(resume)


def test_a_video_that_cannot_be_read_any_more_is_named_with_its_reason(videos, resume):
    """Of as many bytes as before: only decoding tells."""
    paths = some(videos)[:2]
    for path in paths:
        path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(ValueError, match=r"2 of 12 videos cannot be used, more than max_bad_share 0\.1 allows"):
        resume()
    message = refusal(resume, "data.max_bad_share=0.5")
    assert f"gone or unusable: {told(paths[0], videos)}: " in message and "new: " not in message


def test_a_folder_that_is_not_there_is_said_to_be_so(resume):
    with pytest.raises(ValueError, match="no such folder: elsewhere"):
        resume("data.path=elsewhere")


def test_checkpoints_that_tell_no_videos_go_on(videos, stopped, resume, tmp_path):
    state = checkpoints(stopped.out)[-1] / STATE
    values = json.loads(state.read_text())
    del values["videos"]
    state.write_text(json.dumps(values))
    shutil.copytree(videos, tmp_path / "copy")
    with pytest.raises(ValueError, match=r"was trained with another configuration: data\.path: "):
        resume(f"data.path={tmp_path / 'copy'}")
    shutil.copy(some(videos)[0], videos / "some" / "new.mp4")
    assert resume().done
