"""Commands of the command line, run in this process."""

import contextlib
import io

from tpdiff.cli import main


def call(*arguments):
    """(exit code, standard output, standard error) of a command."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main([str(a) for a in arguments])
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
    return code, out.getvalue(), err.getvalue()


def refused(*arguments, at_once=False):
    """The message of a command that must refuse: exit code 2, "error: ..." and, if at once, nothing else."""
    code, out, err = call(*arguments)
    assert code == 2, (out, err)
    assert "Traceback" not in err
    assert out == ""
    before, error, message = err.partition("error: ")
    assert error, err
    assert before == "" or not at_once, err
    return message.rstrip("\n")


def refused_in_a_line(*arguments, at_once=True):
    """The message of a command that must refuse in one line."""
    message = refused(*arguments, at_once=at_once)
    assert "\n" not in message, message
    return message
