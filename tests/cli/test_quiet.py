"""Libraries' notices stay away from a command's output, in the processes that it starts, too."""

import os
import subprocess
import sys

TELLS = "from transformers.utils import logging as t; from diffusers.utils import logging as d; "
TELLS += "t.get_logger('transformers').warning('heard'); d.get_logger('diffusers').warning('heard')"
QUIET = "from tpdiff.cli.quiet import quiet; quiet(); import subprocess, sys; "


def said(code):
    """Standard error of a process that was told of no verbosity."""
    env = {name: value for name, value in os.environ.items() if not name.endswith("_VERBOSITY")}
    return subprocess.run([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, check=True, env=env).stderr


def test_notices_are_not_heard():
    assert said(TELLS).count("heard") == 2
    assert said(QUIET + TELLS) == ""
    assert said(QUIET + f"subprocess.run([sys.executable, '-c', {TELLS!r}])") == ""
