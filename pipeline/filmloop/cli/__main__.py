"""Where the command begins: the installed script, and `python -m filmloop.cli`."""

from __future__ import annotations

import signal


def main() -> None:
    """Import the rest, which takes a second, and run it. A Ctrl-C until then ends the process at once: there is nothing to undo."""
    interruptible = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if interruptible:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from filmloop.cli.main import run

    if interruptible:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    run()


if __name__ == "__main__":
    main()
