"""The program ``minispec``, also as ``python -m minispec``."""

import signal
import sys


def run() -> int:
    """Runs the command line and returns its exit code. Ctrl-C is answered in one line also while
    it is being imported, and no longer interrupts once it has ended."""
    try:
        from minispec.tools.cli.main import main

        code = main()
    except KeyboardInterrupt:
        print("minispec: interrupted", file=sys.stderr)
        code = 130
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    return code


if __name__ == "__main__":
    sys.exit(run())
