"""The command line: runs a command, and reports bad input.

Bad input of any kind is answered with one line on stderr and exit code 2; Ctrl-C exits with 130. No
command leaves half a file. Models and plots are imported by the command that needs them, so that
bad options are reported at once.
"""

import sys
import time
import warnings
from collections.abc import Sequence
from typing import Any

from minispec.errors import ArgumentError, FileWarning, MinispecError
from minispec.tools.cli import arguments as command_line
from minispec.tools.cli import (
    commands_export,
    commands_generate,
    commands_make,
    commands_plan,
    commands_run,
)
from minispec.tools.cli.process import (
    Terminated,
    catch_signals,
    discard_stdout,
    open_streams,
    report_signal,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns the exit code."""
    started = time.perf_counter()
    open_streams()
    warnings.formatwarning = _format_warning
    try:
        options = command_line.parse(arguments)
        options.started = started
        if not 0 <= getattr(options, "seed", 0) < 2**31:
            raise ArgumentError(f"seed {options.seed} must lie in 0..{2**31 - 1}")
        with catch_signals():
            _COMMANDS[options.command](options)
            sys.stdout.flush()
    except MinispecError as error:
        return _refuse(str(error))
    except (KeyboardInterrupt, Terminated) as error:
        return report_signal(error)
    except BrokenPipeError:
        discard_stdout()  # the reader of our output has closed it
        return 0
    except OSError as error:
        discard_stdout()
        return _refuse(f"{error.filename or 'the system'}: {error.strerror or error}")
    return 0


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
    "plan": commands_plan.plan,
    "doctor": commands_run.doctor,
    "export": commands_export.export,
    "rank": commands_make.rank,
    "index build": commands_make.build_index,
    "train draft": commands_make.train_draft,
    "train pocket": commands_make.train_pocket,
    "train router": commands_make.train_router,
}

if __name__ == "__main__":
    sys.exit(main())
