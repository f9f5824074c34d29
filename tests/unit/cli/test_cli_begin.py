"""The first second of a command, in which everything is imported."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

_CTRL_C_AT = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.{handler})

class Finder:
    def find_spec(self, name, *_):
        if name == "numpy":
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Finder())
from filmloop.cli.__main__ import main
sys.argv = ["filmloop", "--version"]
main()
"""


@pytest.mark.parametrize(
    ("handler", "code", "says"), [("default_int_handler", -signal.SIGINT, ""), ("SIG_IGN", 0, "filmloop")]
)
def test_ctrl_c_while_it_imports_ends_it_without_a_word_unless_it_is_ignored(
    handler: str, code: int, says: str
) -> None:
    command = [sys.executable, "-c", _CTRL_C_AT.format(handler=handler)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (code, "")
    assert done.stdout.startswith(says)
