"""What Numba can do in this process: keep compiled kernels, compile at all, run its threads.

Every module with kernels imports ``CACHE`` from here, so the place where compiled kernels are kept
is chosen before any kernel is defined.
"""

import os
import stat
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import numba
from numba import config

from minispec.errors import ArgumentError, FileError
from minispec.io.artifacts import cache_folder

_forked = False  # whether this process is a fork of one whose OpenMP threads had been started


def choose_cache() -> bool:
    """Whether compiled kernels can be kept for the next process: in NUMBA_CACHE_DIR, beside the
    source, in the user's cache folder, or else in a temporary folder of the user's own. The first
    of these that can be written to is Numba's from now on."""
    if config.CACHE_DIR and _is_writable(Path(config.CACHE_DIR)):
        return True
    if _is_writable(Path(__file__).parent / "__pycache__"):
        return True  # Numba's own default
    with suppress(FileError):  # no home folder
        if _is_writable(cache_folder() / "kernels"):
            config.CACHE_DIR = str(cache_folder() / "kernels")
            return True
    with suppress(OSError):
        config.CACHE_DIR = str(_private_folder())
        return True
    return False


def _is_writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError:
        return False
    return True


def _private_folder() -> Path:
    """A temporary folder that nobody else can write to, since code is loaded from it. Raises
    OSError."""
    folder = Path(tempfile.gettempdir()) / f"minispec-kernels-{os.getuid()}"
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise PermissionError(f"{folder} belongs to somebody else")
    tempfile.TemporaryFile(dir=folder).close()
    return folder


CACHE = choose_cache()


def why_unfit() -> str | None:
    """The reason why Numba cannot run kernels in this process; None if it can. Numba is asked, and
    starts its threads to answer."""
    if config.DISABLE_JIT:
        return "Numba's compiler is switched off: unset NUMBA_DISABLE_JIT"
    if _forked:
        return _FORK
    try:
        numba.get_num_threads()
    except (ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        return f"Numba cannot start its threads ({reason}): unset NUMBA_THREADING_LAYER"
    return None


def check_fork() -> None:
    """Raises ArgumentError in a process in which a kernel would end it."""
    if _forked:
        raise ArgumentError(f"backend cpu cannot run in this process: {_FORK}")


_FORK = (
    "it was forked after Numba's OpenMP threads had started, which cannot be used here; start it "
    "with the method spawn, or set NUMBA_THREADING_LAYER=workqueue"
)


def _note_fork() -> None:
    global _forked
    with suppress(ValueError):  # no threads have been started
        _forked = _forked or (numba.threading_layer() == "omp" and sys.platform == "linux")


os.register_at_fork(after_in_child=_note_fork)
