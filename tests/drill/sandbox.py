"""Runs a reader on a damaged folder under limits, and sees what it did.

At most 2 s and 1 GB more than the file; only minispec's own errors, of one line; no process, no
socket, no file opened for writing, nothing left over.
"""

import os
import resource
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drill.format_template import CANARY
from drill.reader import Outcome
from minispec.errors import MinispecError

SECONDS = 2.0
BYTES = 10**9
_LONGEST = 600  # characters of a message
_PATIENCE = 12  # seconds until a call that runs Python is ended
_FORBIDDEN = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.spawn",
              "os.forkpty", "socket.connect", "socket.bind", "os.mkdir", "os.remove", "os.rename",
              "os.rmdir", "os.link", "os.symlink", "os.chmod", "os.chown", "ctypes.dlopen",
              "shutil.", "urllib.", "ftplib.", "smtplib.")  # fmt: skip


class TooLong(BaseException):
    """Time is up: no ``except Exception`` may stop it."""


@dataclass(frozen=True)
class Result:
    """``kind``: "read", "refused" or the kind of a failure; ``detail``: of which error; ``where``:
    the last line of minispec in its traceback."""

    kind: str
    seconds: float
    detail: str = ""
    outcome: Outcome | None = None


class Watch:
    """Sees what a reader does that no reader may do. ``allowed``: path parts of files that a
    resumed run writes by design."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self._thread: int | None = None
        self._allowed: tuple[str, ...] = ()
        sys.addaudithook(self._audit)

    @contextmanager
    def arm(self, allowed: tuple[str, ...]) -> Iterator[None]:
        """Watch this thread."""
        self.seen, self._allowed, self._thread = [], allowed, threading.get_ident()
        try:
            yield
        finally:
            self._thread = None

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self._thread != threading.get_ident():
            return
        wrong = event.startswith(_FORBIDDEN)
        if event == "open":
            _, mode, flags = arguments
            writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            wrong = bool(writes) or (isinstance(mode, str) and any(c in mode for c in "wax+"))
        if wrong and not any(part in str(arguments) for part in self._allowed):
            self.seen.append(f"{event} {arguments!a}"[:200])
            raise PermissionError(f"a drill forbids {event}")


def _stop(number: int, frame: object) -> None:
    raise TooLong


def _memory() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


def run(
    load: Callable[[Path], Outcome], folder: Path, watch: Watch, allowed: tuple[str, ...]
) -> Result:
    """Load a folder once, under all limits."""
    size = sum(path.stat().st_size for path in folder.rglob("*") if _is_plain(path))
    # A file may be mapped and read at once.
    resource.setrlimit(resource.RLIMIT_AS, (_memory() + BYTES + 2 * size, resource.RLIM_INFINITY))
    signal.signal(signal.SIGALRM, _stop)
    started = time.perf_counter()
    kind, detail, outcome = "read", "", None
    try:
        signal.setitimer(signal.ITIMER_REAL, _PATIENCE)
        try:
            with watch.arm(allowed):
                outcome = load(folder)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except MinispecError as error:
        kind, detail = "refused", str(error)
        if "\n" in detail or len(detail) > _LONGEST:
            kind, detail = "not one line", f"{type(error).__name__}: {detail[:300]!a}"
    except TooLong:
        kind, detail = "too long", f"over {_PATIENCE} s"
    except MemoryError:
        kind, detail = "memory", _where()
    except BaseException as error:  # whatever it is, it is the finding
        text = f"{type(error).__name__}: {str(error)[:120]!a}"
        kind = "memory" if "memory" in text.lower() else f"raises {type(error).__name__}"
        detail = f"{text} at {_where()}"
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    seconds = time.perf_counter() - started
    if watch.seen or (folder / CANARY).exists() or Path(CANARY).exists():
        kind, detail = "code run", "; ".join(watch.seen) or CANARY
    elif kind in ("read", "refused") and seconds > SECONDS:
        kind, detail = "too long", f"{seconds:.1f} s"
    return Result(kind, seconds, detail, outcome)


def _is_plain(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def _where() -> str:
    """The last lines of minispec in the traceback."""
    frames = traceback.extract_tb(sys.exc_info()[2])
    own = [frame for frame in frames if "/minispec/" in frame.filename]
    return " < ".join(f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in reversed(own[-2:]))
