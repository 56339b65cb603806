"""The command line: train, sample, and one line with exit code 2 for whatever cannot work."""

import contextlib
import fcntl
import json
import os
import pty
import re
import shlex
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from pathlib import Path

import av
import numpy as np
import pytest
import yaml
from command_line import call, refused, refused_in_a_line
from PIL import Image

from tpdiff.cli.sample import _read_pictures
from tpdiff.training.checkpoint import checkpoints
from tpdiff.training.trainer import Trainer

LOW, HIGH = "a digit below five moves", "a digit from five up moves"


def tree(folder):
    """Every file and folder under a folder, files with their bytes."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


def test_a_first_frame_is_turned_as_its_camera_says(tmp_path):
    pixels = np.zeros((32, 48, 3), np.uint8)
    pixels[:, :24, 0] = 255  # the left half is red
    turn = Image.Exif()
    turn[0x0112] = 6  # a quarter turn clockwise
    Image.fromarray(pixels).save(tmp_path / "phone.jpg", quality=95, exif=turn)
    (picture,) = _read_pictures([tmp_path / "phone.jpg"], 1)
    upright = np.asarray(picture)[..., 0]
    assert upright.shape == (48, 32) and upright[:20].mean() > 200 and upright[-20:].mean() < 50


@pytest.fixture
def recipe(tiny_values, tmp_path):
    """Writes a recipe; sections given are merged into the small run's."""

    def write(name="tiny.yaml", **sections):
        values = tiny_values()
        for section, entries in sections.items():
            values[section] = values.get(section, {}) | entries
        path = tmp_path / name
        path.write_text(yaml.safe_dump(values))
        return path

    return write


@pytest.fixture(scope="module")
def model(tiny_values, tmp_path_factory):
    """A run's folder, trained by the command."""
    folder = tmp_path_factory.mktemp("model")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(tiny_values()))
    code, out, err = call("train", folder / "tiny.yaml", "train.steps=3", "--out", folder / "run")
    assert code == 0, err
    assert out == f"checkpoint: {folder / 'run' / 'checkpoints' / 'step-00000003'}\n"
    return folder / "run"


def decode(path):
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(stream)])
        return frames, float(stream.average_rate)


# Help


@pytest.mark.parametrize(
    "command", [[], ["train"], ["sample"], ["demo"], ["data"], ["data", "doom"], ["data", "digits"], ["data", "check"]]
)
def test_every_command_has_help(command):
    code, out, err = call(*command, "--help")
    assert code == 0
    assert "Usage: tpdiff" in out
    assert err == ""


def test_help_is_quick_and_the_module_is_the_command():
    program = (
        "import runpy, sys\n"
        "sys.argv = ['tpdiff', '--help']\n"
        "try: runpy.run_module('tpdiff', run_name='__main__')\n"
        "except SystemExit as stop: code = stop.code\n"
        "print(code, sorted({'torch', 'diffusers', 'transformers', 'av'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("0 []")
    assert "train" in done.stdout
    assert "sample" in done.stdout


def test_threads_wait_asleep_unless_the_user_has_chosen():
    look = "import tpdiff.cli, os, sys; assert 'torch' not in sys.modules; print(os.environ['OMP_WAIT_POLICY'])"
    others = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    for environment, policy in ((others, "PASSIVE"), (others | {"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE")):
        told = subprocess.run([sys.executable, "-c", look], env=environment, capture_output=True, text=True, check=True)
        assert told.stdout.strip() == policy


def test_the_module_refuses_as_the_command_does(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "tpdiff", "train", str(tmp_path / "none.yaml")],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == f"error: no configuration at {tmp_path / 'none.yaml'}\n"


@pytest.mark.parametrize("arguments", [["trian"], ["train"], ["sample"], ["train", "x.yaml", "--resum"]])
def test_bad_usage_exits_with_2(arguments):
    code, _, err = call(*arguments)
    assert code == 2
    assert "Traceback" not in err


# Train, then sample


def test_sampling_shows_its_steps_on_a_terminal(model, tmp_path):
    terminal, end = pty.openpty()
    fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))  # 24 lines of 100 characters
    command = [
        sys.executable,
        "-m",
        "tpdiff",
        "sample",
        str(model),
        "--num-videos",
        "3",
        "--batch",
        "2",
        "--steps",
        "3",
    ]
    done = subprocess.run([*command, "--out", str(tmp_path / "videos")], stderr=end, stdout=subprocess.PIPE, text=True)
    os.close(end)
    shown = os.read(terminal, 1 << 16).decode()
    os.close(terminal)
    assert done.returncode == 0 and done.stdout.count(".mp4") == 3, shown
    assert "videos 1 to 2 of 3:   0%" in shown and "0/3" in shown and "video 3 of 3:" in shown


def test_a_video_has_the_trained_geometry(model, tmp_path):
    code, out, err = call("sample", model, "--prompt", LOW, "--out", tmp_path / "a.mp4", "--steps", "3")
    assert code == 0, err
    assert out.startswith(f"{tmp_path / 'a.mp4'}  {LOW}")
    frames, rate = decode(tmp_path / "a.mp4")
    assert frames.shape == (8, 16, 16, 3)
    assert rate == 8
    assert os.listdir(tmp_path) == ["a.mp4"]


def test_the_case_of_a_suffix_does_not_matter(untold, tmp_path):
    code, _, err = call("sample", untold, "--out", tmp_path / "w.MP4", "--steps", 2)
    assert code == 0, err
    assert len(decode(tmp_path / "w.MP4")[0]) == 8
    code, _, err = call("sample", untold, "--num-videos", 2, "--out", tmp_path / "v.MP4", "--steps", 2)
    assert code == 0, err
    assert sorted(p.name for p in (tmp_path / "v").iterdir()) == ["0000.mp4", "0001.mp4"]


def test_size_and_frames_can_be_asked_for(model, tmp_path):
    code, _, err = call(
        "sample", model, "--out", tmp_path / "a.mp4", "--steps", "1,1,2", "--size", "24x32", "--frames", 4
    )
    assert code == 0, err
    assert decode(tmp_path / "a.mp4")[0].shape == (4, 24, 32, 3)


def test_a_file_of_prompts_and_figures_as_json(model, tmp_path):
    (tmp_path / "prompts.txt").write_text(f"{LOW}\n\n  {HIGH}  \n")
    options = ["--prompts", tmp_path / "prompts.txt", "--num-videos", 2, "--seed", 7, "--steps", "1-1-1", "--json"]
    code, out, err = call("sample", model, *options, "--out", tmp_path / "videos")
    assert code == 0, err
    made = json.loads(out)
    assert [entry["prompt"] for entry in made] == [LOW, LOW, HIGH, HIGH]
    assert [entry["seed"] for entry in made] == [7, 8, 9, 10]
    assert all(entry["seconds"] > 0 for entry in made)
    for number, entry in enumerate(made):
        assert Path(entry["path"]) == tmp_path / "videos" / f"{number:04d}.mp4"
        assert decode(entry["path"])[0].shape == (8, 16, 16, 3)


def test_the_batch_size_does_not_change_the_videos(model, tmp_path):
    for batch in (1, 2, 3):
        options = ["--prompt", LOW, "--prompt", HIGH, "--prompt", LOW, "--guidance-scale", 2, "--steps", 3]
        assert call("sample", model, *options, "--batch", batch, "--out", tmp_path / f"b{batch}")[0] == 0
    wanted = [decode(tmp_path / "b1" / f"{i:04d}.mp4")[0].astype(int) for i in range(3)]
    for batch in (2, 3):
        for i in range(3):
            assert np.abs(decode(tmp_path / f"b{batch}" / f"{i:04d}.mp4")[0] - wanted[i]).max() <= 3
    assert np.abs(wanted[0] - wanted[2]).max() > 3, "other seeds, other videos"


def test_several_videos_of_no_prompt(model, tmp_path):
    code, out, err = call("sample", model, "--num-videos", 3, "--steps", 3, "--out", tmp_path / "many.mp4", "--json")
    assert code == 0, err
    assert [Path(entry["path"]).name for entry in json.loads(out)] == ["0000.mp4", "0001.mp4", "0002.mp4"]
    assert {entry["prompt"] for entry in json.loads(out)} == {None}


def test_a_folder_s_name_is_left_as_it_is(model, tmp_path):
    """A point in it is no suffix."""
    code, _, err = call("sample", model, "--num-videos", 2, "--steps", 3, "--out", tmp_path / "scale-1.5")
    assert code == 0, err
    assert sorted(os.listdir(tmp_path)) == ["scale-1.5"]


# What training refuses


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.learning_rat=1", "unknown key train.learning_rat; did you mean train."),
        ("train.batchsize=1", "unknown key train.batchsize; did you mean train.batch_size?"),
        ("train.lr=fast", "train.lr: "),
        ("train.lr", "override 'train.lr' is not section.key=value"),
        ("data.path=[a", "data.path"),
        ("train.steps=", "set train.steps or train.seconds, or both"),
        ("data.path=nowhere", "no such folder: nowhere"),
        ("data.frames=10", "num_frames 10 is not a multiple of 4 (4 pyramid); nearest: 8 or 12"),
        ("data.height=12", "height 12 is not a multiple of 8 (8 patch); nearest: 8 or 16"),
        ("data.split=extra", "split 'extra' is not in"),
        ("model.num_attention_heads=5", "hidden_size 24 is not a multiple of num_attention_heads 5"),
        ("condition.kind=text condition.encoder=./no-encoder", "no text encoder in './no-encoder'"),
        ("model.autoencoder=./no-vae", "no autoencoder in './no-vae'"),
        ("diffusion.prediction_type=epsilon", "epsilon prediction cannot start from pure noise"),
        ("pyramid.ends=[0.7,0.3]", "ends must rise strictly"),
        ("pyramid.resize=nearest", "unknown resize 'nearest'"),
    ],
)
def test_training_refuses_in_a_line_and_leaves_nothing(recipe, tmp_path, override, message):
    path = recipe()
    before = tree(tmp_path)
    said = refused_in_a_line("train", path, *override.split(), "--out", tmp_path / "run")
    assert message in said
    assert tree(tmp_path) == before


def test_a_missing_recipe_names_its_neighbours(recipe, tmp_path):
    path = recipe("digits.yaml")
    said = refused_in_a_line("train", tmp_path / "digit.yaml", "--out", tmp_path / "run")
    assert said == f"no configuration at {tmp_path / 'digit.yaml'}; nearest: {path}"


def broken_folder(kind, folder, clips):
    folder.mkdir()
    if kind == "corrupt":
        for n in range(3):
            (folder / f"{n}.mp4").write_bytes(b"no video at all" * 50)
            (folder / f"{n}.txt").write_text("words")
    if kind == "no caption":
        for n, path in enumerate(sorted(clips.glob("train/*.mp4"))[:3]):
            (folder / f"{n}.mp4").write_bytes(path.read_bytes())
        (folder / "0.txt").write_text("words")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("empty", "no video files"),
        ("corrupt", "3 of 3 videos cannot be used"),
        ("no caption", "2 of 3 videos in .* have no caption: 1.mp4, 2.mp4"),
    ],
)
def test_a_folder_that_cannot_be_trained_on(recipe, tmp_path, clips, kind, message):
    broken_folder(kind, tmp_path / "videos", clips)
    path = recipe(data={"path": str(tmp_path / "videos"), "split": None})
    before = tree(tmp_path)
    assert re.search(message, refused("train", path, "--out", tmp_path / "run", at_once=True))
    assert tree(tmp_path) == before


def test_bad_files_among_good_ones_are_skipped_and_named_and_slow_ones_told_of(recipe, tmp_path, clips):
    folder = tmp_path / "videos"
    folder.mkdir()
    for n, path in enumerate(sorted(clips.glob("train/*.mp4"))):
        (folder / f"{n}.mp4").write_bytes(path.read_bytes() if n else b"broken")
        (folder / f"{n}.txt").write_text("words")
    path = recipe(data={"path": str(folder), "split": None, "fps": 24}, train={"steps": 1})
    code, _, err = call("train", path, "--out", tmp_path / "run")
    assert code == 0
    assert f"skipped {folder / '0.mp4'}: " in err
    assert f"videos have fewer than 24 frames a second, such as {folder / '1.mp4'}: their frames are repeated" in err
    assert "enlarged" not in err


def test_a_run_is_not_overwritten(recipe, model):
    before = tree(model)
    said = refused_in_a_line("train", recipe(), "--out", model)
    assert said == f"{model} holds a run already; add --resume to continue it, or choose another --out"
    assert tree(model) == before


def test_nothing_to_resume(recipe, tmp_path):
    path = recipe()
    before = tree(tmp_path)
    assert "nothing to resume" in refused_in_a_line("train", path, "--out", tmp_path / "run", "--resume")
    assert tree(tmp_path) == before


def test_a_resumed_run_must_be_the_same(recipe, model):
    before = tree(model)
    said = refused_in_a_line("train", recipe(), "train.steps=3", "train.lr=5e-2", "--out", model, "--resume")
    assert "train.lr: 0.001 -> 0.05" in said
    assert tree(model) == before


# What sampling refuses


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--steps 10,10", "2 step counts (10-10) for 3 stages; give 3"),
        ("--steps abc", "steps 'abc' is neither a number (30) nor counts"),
        ("--steps 0", "0 steps cannot fill 3 stages; nearest: 3"),
        ("--steps 3,0,3", "at least one whole step"),
        ("--steps 1,,1", "steps '1,,1' is neither"),
        ("--size 12x16", "height 12 is not a multiple of 8 (8 patch); nearest: 8 or 16"),
        ("--size 16", "size '16' is not HEIGHTxWIDTH"),
        ("--size 0x16", "height 0"),
        ("--frames 6", "num_frames 6 is not a multiple of 4 (4 pyramid); nearest: 4 or 8"),
        ("--frames 0", "num_frames 0"),
        ("--prompt nothing", "'nothing' is not one of them; nearest: "),
        ("--negative-prompt nothing", "'nothing' is not one of them"),
        ("--solver rk4", "unknown solver 'rk4'; known: euler, ddim, heun"),
        ("--out a.avi", "videos are written as .mp4; a.avi ends in '.avi'"),
        ("--num-videos 2 --out a.avi", "videos are written as .mp4; a.avi ends in '.avi'"),
        ("--prompts none.txt", "none.txt"),
        ("--device gpu", "device 'gpu' is neither cpu nor cuda"),
        ("--device cuda:99", "device 'cuda:99'"),
    ],
)
def test_sampling_refuses_in_a_line_and_leaves_nothing(model, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    assert message in refused_in_a_line("sample", model, *options.split())
    assert tree(tmp_path) == {}


def test_a_negative_prompt_wants_guidance(model, tmp_path):
    said = refused_in_a_line("sample", model, "--prompt", LOW, "--negative-prompt", HIGH, "--out", tmp_path / "a.mp4")
    assert "without guidance nothing leads away from a negative prompt; raise --guidance-scale" in said


def test_guidance_wants_something_to_lead_towards(untold, tmp_path):
    asked = ("sample", untold, "--out", tmp_path / "a.mp4", "--steps", 2, "--guidance-scale")
    said = refused_in_a_line(*asked, 4)
    assert said == "this model is told nothing that guidance could lead towards; leave out --guidance-scale 4"
    assert tree(tmp_path) == {}
    assert call(*asked, 1)[0] == 0


def test_sampling_refuses_before_the_model_is_read(tmp_path):
    (tmp_path / "file").write_text("")
    for options, message in (("--steps abc", "steps 'abc'"), ("--out file/a.mp4", "cannot be written")):
        said = refused_in_a_line("sample", "nowhere", *options.replace("file", str(tmp_path / "file")).split())
        assert message in said


def test_an_empty_file_of_prompts(model, tmp_path):
    (tmp_path / "prompts.txt").write_text("\n  \n")
    said = refused_in_a_line("sample", model, "--prompts", tmp_path / "prompts.txt", "--out", tmp_path / "a.mp4")
    assert "holds no prompt" in said
    assert list(tree(tmp_path)) == ["prompts.txt"]


def test_a_folder_without_a_model(tmp_path):
    said = refused_in_a_line("sample", tmp_path / "nowhere", "--out", tmp_path / "a.mp4")
    assert f"no model in {tmp_path / 'nowhere'}" in said
    assert tree(tmp_path) == {}


def test_what_was_there_survives_a_refusal(model, tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"precious")
    refused_in_a_line("sample", model, "--prompt", "nothing", "--out", tmp_path / "a.mp4")
    assert tree(tmp_path) == {"a.mp4": b"precious"}


@pytest.mark.parametrize("setting", ["size", "1x2x3", "axb"])
def test_a_size_that_is_none(tmp_path, setting):
    said = refused_in_a_line("data", "check", tmp_path, "--size", setting)
    assert said == f"size {setting!r} is not HEIGHTxWIDTH, such as 48x64"


# A full disk


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 128 KiB, the rest of it taken up to `room` bytes."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(place)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("no file system can be mounted here")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_training_onto_a_full_disk(recipe, small_disk):
    said = refused_in_a_line("train", recipe(train={"steps": 2}), "--out", small_disk / "run", at_once=False)
    assert "step-00000002 could not be written" in said
    assert "No space left" in said
    left = [p for p in (small_disk / "run").rglob("*") if p.is_file()]
    assert sorted(p.name for p in left) == [".lock", "config.yaml"]


def test_sampling_onto_a_full_disk(model, small_disk):
    (small_disk / "a.mp4").write_bytes(b"precious")
    with contextlib.suppress(OSError), (small_disk / "filler").open("wb") as file:
        while True:
            file.write(bytes(4096))
            file.flush()
    before = tree(small_disk)
    said = refused_in_a_line("sample", model, "--steps", 3, "--out", small_disk / "a.mp4")
    assert str(small_disk / "a.mp4") in said
    assert tree(small_disk) == before


# Ctrl-C


def wait_for(condition, seconds=250.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.02)


def resume_command(out):
    """The arguments of the command that a stopped run prints."""
    (line,) = [line for line in out.splitlines() if "continue with: tpdiff " in line]
    return shlex.split(line.split("continue with: tpdiff ")[1])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_leaves_a_run_that_the_printed_command_continues(recipe, tmp_path, number):
    """Also with overrides, which the command must not lose, and a folder with a space in its name."""
    run = tmp_path / "my run"
    path = recipe(log={"checkpoint_every_steps": 3})
    threading.Thread(
        target=lambda: (wait_for(lambda: checkpoints(run)), os.kill(os.getpid(), number)), daemon=True
    ).start()
    code, out, err = call("train", path, "train.steps=1000000", "train.lr=2e-3", "--out", run)
    assert code == 130, err
    assert "stopping after this step" in err
    step = int(re.search(r"stopped at step (\d+)", out)[1])
    assert checkpoints(run)[-1].name == f"step-{step:08d}"
    resume = resume_command(out)
    code, out, err = call(*resume, f"train.steps={step + 2}")
    assert code == 0, err
    assert checkpoints(run)[-1].name == f"step-{step + 2:08d}"


def test_a_stop_while_the_last_checkpoint_is_written_loses_nothing(recipe, tmp_path, monkeypatch):
    save = Trainer.save
    monkeypatch.setattr(Trainer, "save", lambda trainer: os.kill(os.getpid(), signal.SIGINT) or save(trainer))
    code, out, err = call("train", recipe(), "train.steps=2", "--out", tmp_path / "run")
    assert code == 0, err
    assert "stopped at" not in out
    assert [folder.name for folder in checkpoints(tmp_path / "run")] == ["step-00000002"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_reaches_the_workers_too(recipe, tmp_path, number):
    """A terminal, a launcher or a cluster sends it to all processes of the command."""
    run = tmp_path / "run"
    path = recipe(data={"workers": 2}, train={"steps": 1_000_000}, log={"checkpoint_every_steps": 3})
    with subprocess.Popen(
        [sys.executable, "-m", "tpdiff", "train", str(path), "--out", str(run)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            wait_for(lambda: checkpoints(run) or process.poll() is not None)
            os.killpg(process.pid, number)
            out, err = process.communicate(timeout=250)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert err.count("stopping after this step") == 1
    step = int(re.search(r"stopped at step (\d+)", out)[1])
    assert checkpoints(run)[-1].name == f"step-{step:08d}"
    code, _, err = call("train", path, f"train.steps={step + 1}", "--out", run, "--resume")
    assert code == 0, err
    assert checkpoints(run)[-1].name == f"step-{step + 1:08d}"
