"""Temporary folders for files that are being written, each locked by its process.

A killed process leaves its folder, but not its lock: the next process that writes the same file
removes what it can lock. So two processes that write the same file never disturb each other.
"""

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows has no such locks: what a killed process left is kept
    fcntl = None  # type: ignore[assignment]


@contextmanager
def temporary_folder(path: Path) -> Iterator[Path]:
    """A context with a new folder beside ``path``, which is removed at the end. Raises OSError."""
    folder, lock = _make_folder(path)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def remove_unfinished(path: Path) -> None:
    """Remove the temporary folders that killed processes left beside ``path``."""
    if fcntl is None:
        return
    name = re.compile(re.escape(f".{path.name}.") + "[a-z0-9_]{8}")
    with suppress(OSError):
        for folder in path.parent.iterdir():
            if name.fullmatch(folder.name) and (lock := _lock(folder, fcntl.LOCK_NB)) is not None:
                shutil.rmtree(folder, ignore_errors=True)
                os.close(lock)


def _make_folder(path: Path) -> tuple[Path, int | None]:
    """The folder and its lock; None where the file system has no locks."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        lock = None if fcntl is None else _lock(folder, 0)
        if folder.exists():  # not removed by another process before it was locked
            return folder, lock
        if lock is not None:
            os.close(lock)


def _lock(folder: Path, flags: int) -> int | None:
    """The lock of a folder, which ends with this process at the latest; None if it has none, or
    another process has it."""
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | flags)
    except OSError:
        os.close(handle)
        return None
    return handle
