"""The command line: which command is carried out, and how bad input is answered.

Whatever the input's fault, it is said in one line on stderr, with exit code 2; Ctrl-C exits
with 130. No command leaves half a file behind. Models and plots are imported by the command
that needs them, so that what is wrong with the options is said at once.
"""

import io
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from minispec.errors import ArgumentError, MinispecError
from minispec.tools.cli import arguments as command_line
from minispec.tools.cli import commands_make, commands_run


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code."""
    started = time.perf_counter()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # rather a question mark than no answer
    try:
        options = command_line.parsed(arguments)
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
            print(file=sys.stderr)  # behind the text so far, and the terminal's own ^C
        print("minispec: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        _give_up_stdout()  # whoever read our output has seen enough
        return 0
    except OSError as error:
        _give_up_stdout()
        return _refuse(f"{error.filename or 'the system'}: {error.strerror or error}")
    return 0


@contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl-C stays Ctrl-C, also where a library that was at work makes another error of it."""
    noticed = False

    def notice(number: int, frame: object) -> None:
        nonlocal noticed
        noticed = True
        raise KeyboardInterrupt

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, notice)
    try:
        yield
    except Exception:
        if noticed:
            raise KeyboardInterrupt from None
        raise
    finally:
        if signal.getsignal(signal.SIGINT) is notice:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def _give_up_stdout() -> None:
    """What stdout does not take, Python would try to write once more, and complain, at its end."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _refuse(message: str) -> int:
    print(f"minispec: {' '.join(message.split())}", file=sys.stderr)
    return 2


_COMMANDS = {
    "fetch": commands_run.fetch,
    "generate": commands_run.generate_one,
    "compare": commands_run.compare_methods,
    "explore": commands_run.explore_prompt,
    "doctor": commands_run.doctor,
    "rank": commands_make.rank,
    "index build": commands_make.build_index,
    "train draft": commands_make.train_draft,
    "train pocket": commands_make.train_pocket,
    "train router": commands_make.train_router,
}

if __name__ == "__main__":
    sys.exit(main())
