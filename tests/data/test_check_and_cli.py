"""The report on a folder, and the three commands."""

import json
import shutil
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from tpdiff.cli.data import app, parse_size
from tpdiff.data import check_folder

run = CliRunner()


def test_report(mixed, broken):
    shutil.copy(broken["text"], mixed / "text.mp4")
    shutil.copy(broken["front_cut"], mixed / "cut.mp4")
    report = check_folder(mixed, frames=5, height=48, width=64, fps=8)
    (cut,) = report.damaged
    kept = int(cut.reason.split(", ")[1].split()[0])  # "the header claims 40 frames, 17 decode"
    assert (report.videos, report.usable, report.captioned) == (5, 4, 3)
    assert report.clips == sum(length - 4 for length in (15, 20, 25, (kept + 1) // 2))
    assert report.apart == sum(length // 5 for length in (15, 20, 25, (kept + 1) // 2))
    assert [path.name for path in report.bare] == ["cut.mp4", "text.mp4"]
    assert report.captions == ("it counts to 30", "it counts to 40", "it counts to 50")
    assert report.sizes == {"48x64": 4} and report.rates == {"16": 4}
    assert report.duration[2] == pytest.approx(50 / 16)
    assert "not a video" in next(item.reason for item in report.bad if item.path.name == "text.mp4")
    figures = json.loads(json.dumps(report.as_dict()))
    assert figures["usable"] == report.usable and figures["geometry"]["fps"] == 8
    assert figures["duration"]["most"] == pytest.approx(50 / 16)


def test_report_of_a_split_set(digits):
    report = check_folder(digits.folder, 16, 32, 32)
    assert report.splits == {"test": 6, "train": 18} and report.clips == report.usable == 24
    assert report.bad == () and report.total_duration == pytest.approx(24 * 2)


def test_check_command(mixed, broken):
    shutil.copy(broken["empty"], mixed / "empty.mp4")
    told = run.invoke(app, ["check", str(mixed), "--frames", "9", "--size", "48x64"])
    assert told.exit_code == 0 and "usable   3 videos give 96 clips of 9 frames of 48x64" in told.stdout
    assert "at their own rate, 12 of them without overlap" in told.stdout
    assert "empty.mp4: the file is empty (0 bytes)" in told.stdout
    figures = json.loads(run.invoke(app, ["check", str(mixed), "--frames", "9", "--json"]).stdout)
    assert figures["usable"] == 3 and figures["clips"] == 22 + 32 + 42


def test_check_command_tells_of_what_is_not_read(mixed):
    assert "other kinds" not in run.invoke(app, ["check", str(mixed)]).stdout
    for name in ("one.gif", "two.gif", "notes.md"):
        (mixed / name).write_bytes(b"x")
    assert "  3 files of other kinds are not read: .gif (2), .md (1)\n" in run.invoke(app, ["check", str(mixed)]).stdout
    assert json.loads(run.invoke(app, ["check", str(mixed), "--json"]).stdout)["others"] == {".gif": 2, ".md": 1}


def test_slower_and_smaller_videos_are_told_of(mixed):
    """Three videos of 48 x 64 at 16 frames a second."""
    fits = run.invoke(app, ["check", str(mixed), "--size", "48x64", "--fps", "16.1"])
    assert "repeated" not in fits.stdout and "enlarged" not in fits.stdout
    told = run.invoke(app, ["check", str(mixed), "--size", "48x65", "--fps", "24"])
    first = min(mixed.glob("*.mp4"))
    assert f"  3 of 3 videos have fewer than 24 frames a second, such as {first}: their frames are rep" in told.stdout
    assert f"  3 of 3 videos are smaller than 48x65, such as {first}: they are enlarged\n" in told.stdout
    assert len(json.loads(run.invoke(app, ["check", str(mixed), "--fps", "24", "--json"]).stdout)["filled"]) == 2


def test_a_folder_of_videos_that_are_all_too_short_is_an_error(mixed):
    told = run.invoke(app, ["check", str(mixed), "--frames", "51", "--size", "48x64"])
    assert "has 50 frames, 51 are needed" in told.stdout
    assert isinstance(told.exception, ValueError) and told.exit_code == 1
    assert str(told.exception) == f"no video of {mixed} gives a clip of 51 frames of 48x64"


def test_digits_command(tmp_path):
    told = run.invoke(app, ["digits", "--out", str(tmp_path / "set"), "--clips", "4", "--frames", "2", "--json"])
    assert json.loads(told.stdout)["splits"] == {"test": 1, "train": 3}
    again = run.invoke(app, ["digits", "--out", str(tmp_path / "set"), "--clips", "4", "--frames", "2"])
    assert "3 train, 1 test (4 were there already)" in again.stdout


def test_doom_command(tmp_path):
    pytest.importorskip("vizdoom")
    options = ["--clips", "2", "--frames", "3", "--size", "48x64", "--scenario", "basic", "--json"]
    told = run.invoke(app, ["doom", "--out", str(tmp_path / "set"), *options])
    assert json.loads(told.stdout)["captions"][0] == "a marine turns left in a stone room with a monster"


def test_errors_are_left_to_the_root_command(tmp_path):
    for arguments in (["check", str(tmp_path / "no")], ["check", str(tmp_path), "--size", "48"]):
        assert isinstance(run.invoke(app, arguments).exception, ValueError)
    assert parse_size("48x64") == (48, 64)
    with pytest.raises(ValueError, match="size '4xx8' is not HEIGHTxWIDTH"):
        parse_size("4xx8")


def test_help_loads_neither_torch_nor_av():
    code = (
        "import sys; from typer.testing import CliRunner; from tpdiff.cli.data import app\n"
        "assert CliRunner().invoke(app, ['doom', '--help']).exit_code == 0\n"
        "assert not {'torch', 'av', 'vizdoom', 'sklearn'} & set(sys.modules), 'heavy import'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
