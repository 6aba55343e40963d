"""Runs a task in a fork of this process, which has imported everything already."""

import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from minispec.errors import MinispecError

PATIENCE = 300.0  # seconds for a task that is left to end


class Fork:
    """A task at work in a process group of its own."""

    def __init__(self, task: Callable[[], object], messages: Path) -> None:
        """``messages``: the file that its output and its error go to."""
        self._messages = messages
        self._child = os.fork()
        if self._child == 0:
            _work(task, messages)

    def wait(self, seconds: float = PATIENCE) -> str | None:
        """Wait for its end, and kill it after some seconds. None if it ended well; else
        "refused: MESSAGE" for an error of minispec's own, "killed", or what went wrong."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            ended, status = os.waitpid(self._child, os.WNOHANG)
            if ended:
                text = self._messages.read_text("utf-8", "replace").strip()
                code = os.waitstatus_to_exitcode(status)
                if code == 2:
                    return f"refused: {text.splitlines()[-1] if text else ''}"
                return None if code == 0 else f"exit {code}: {text[-400:]}"
            time.sleep(0.002)
        with suppress(ProcessLookupError):
            os.kill(self._child, signal.SIGKILL)
        os.waitpid(self._child, 0)
        with suppress(ProcessLookupError):
            while True:  # processes of its own end with it, by themselves
                os.killpg(self._child, 0)
                time.sleep(0.05)
        return "killed"


def _work(task: Callable[[], object], messages: Path) -> None:
    """The child: leaves with 0, with 2 for an error of minispec's, or with 1."""
    code = 1
    try:
        os.setpgid(0, 0)
        handle = os.open(messages, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        task()
        code = 0
    except MinispecError as error:
        code = 2
        os.write(2, f"\n{error}".encode("utf-8", "replace"))
    except BaseException as error:
        os.write(2, f"\n{type(error).__name__}: {error}".encode("utf-8", "replace"))
    finally:
        with suppress(Exception):
            sys.stderr.flush()
        os._exit(code)
