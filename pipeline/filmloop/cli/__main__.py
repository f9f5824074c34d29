"""`python -m filmloop.cli`: the same command without an installed script."""

from filmloop.cli.main import run

run()
