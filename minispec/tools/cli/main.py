"""The command line: runs a command, and reports bad input.

Bad input of any kind is answered with one line on stderr and exit code 2; Ctrl-C exits with 130. No
command leaves half a file. Models and plots are imported by the command that needs them, so that
bad options are reported at once.
"""

import io
import os
import signal
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from minispec.errors import ArgumentError, FileWarning, MinispecError
from minispec.tools.cli import arguments as command_line
from minispec.tools.cli import commands_generate, commands_make, commands_run


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns the exit code."""
    started = time.perf_counter()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a question mark is better than no answer
    warnings.formatwarning = _format_warning
    try:
        options = command_line.parse(arguments)
        options.started = started
        if not 0 <= getattr(options, "seed", 0) < 2**31:
            raise ArgumentError(f"seed {options.seed} must lie in 0..{2**31 - 1}")
        with _interruptible():
            _COMMANDS[options.command](options)
        sys.stdout.flush()
    except MinispecError as error:
        return _refuse(str(error))
    except KeyboardInterrupt:
        if sys.stderr.isatty():
            print(file=sys.stderr)  # ends the line with the text so far and the terminal's ^C
        print("minispec: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        _discard_stdout()  # the reader of our output has closed it
        return 0
    except OSError as error:
        _discard_stdout()
        return _refuse(f"{error.filename or 'the system'}: {error.strerror or error}")
    return 0


@contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl-C stays a KeyboardInterrupt, even if the library at work turns it into another error."""
    interrupted = False

    def interrupt(number: int, frame: object) -> None:
        nonlocal interrupted
        interrupted = True
        raise KeyboardInterrupt

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    except Exception:
        if interrupted:
            raise KeyboardInterrupt from None
        raise
    finally:
        if signal.getsignal(signal.SIGINT) is interrupt:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def _discard_stdout() -> None:
    """Drops output that stdout refuses: at exit Python would try to write it again, and fail."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


_format_other_warning = warnings.formatwarning


def _format_warning(
    message: Warning | str, category: type[Warning], *place: Any, **line: Any
) -> str:
    """A warning about the input is one line without the place in the source that gave it."""
    if issubclass(category, FileWarning):
        return f"minispec: warning: {' '.join(str(message).split())}\n"
    return _format_other_warning(message, category, *place, **line)


def _refuse(message: str) -> int:
    print(f"minispec: {' '.join(message.split())}", file=sys.stderr)
    return 2


_COMMANDS = {
    "fetch": commands_run.fetch,
    "generate": commands_generate.generate,
    "compare": commands_run.compare,
    "explore": commands_run.explore,
    "doctor": commands_run.doctor,
    "rank": commands_make.rank,
    "index build": commands_make.build_index,
    "train draft": commands_make.train_draft,
    "train pocket": commands_make.train_pocket,
    "train router": commands_make.train_router,
}

if __name__ == "__main__":
    sys.exit(main())
