"""Progress that is not on a terminal: a line now and then, and never silence."""

from tpdiff.training.progress import ProgressReport, Status


def said(report, capsys, *at, name=""):
    """The steps of the lines that statuses at so many seconds give; a step a second."""
    for seconds in at:
        report(Status(seconds, float(seconds), seconds / 100, 0.5, 1000.0, {}), name)
    lines = capsys.readouterr().err.splitlines()
    return [int(line.split("step ")[1].split()[0]) for line in lines]


def test_a_line_every_half_minute_and_at_the_end(capsys):
    assert said(ProgressReport("run"), capsys, 1, 20, 30, 31, 60, 61, 99, 100) == [1, 31, 61, 99, 100]


def test_the_next_run_of_that_name_is_told_of_from_its_beginning(capsys):
    report = ProgressReport("study")
    assert said(report, capsys, 1, 100, name="vanilla") == [1, 100]
    assert said(report, capsys, 1, 20, 40, name="vanilla") == [1, 40]
