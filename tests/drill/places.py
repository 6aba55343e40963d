"""Disks that are full, folders that cannot be written to, two processes at once: one clear line,
and nothing lost that was there before."""

import os
import resource
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from drill.forks import Fork
from drill.kills import Bench, digests, find_broken
from drill.writers import WRITERS, Writer

_FILLED = 1 << 20  # bytes of a mounted disk that are taken
_LONGEST = 400  # characters of a message
Problems = list[str]


def drill_places(folder: Path, writers: tuple[Writer, ...] = WRITERS) -> dict[str, Any]:
    """All writers in all places; returns the part of the summary."""
    torch.set_num_threads(1)
    failures: list[dict[str, str]] = []
    counts: dict[str, int] = {}
    for writer in writers:
        bench = Bench(writer, folder)
        for place, check in _PLACES.items():
            problems = check(bench)
            if problems is None:
                continue
            counts[place] = counts.get(place, 0) + 1
            failures += [
                {"writer": writer.name, "place": place, "problem": each} for each in problems
            ]
    return {"checks": sum(counts.values()), "places": counts, "failures": failures}


def _limit_files(task: Callable[[], None], size: int) -> None:
    """The task in a process whose files may have ``size`` bytes at most."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    task()


def _check_small_files(bench: Bench) -> Problems:
    """No file may become longer than half of the longest: as with a quota."""
    name = "small files"
    longest = max(p.stat().st_size for p in (bench.folder / "whole").rglob("*") if p.is_file())
    task = partial(_limit_files, bench.task(name), longest // 2)
    problems = _check_refusal(Fork(task, bench.folder / "messages").wait())
    return problems + _check_rest(bench, name)


def _check_full_disk(bench: Bench) -> Problems | None:
    """A disk that holds half of the files; None where none can be mounted."""
    out = bench.folder / "full disk"
    files = [path for path in (bench.folder / "whole").rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files) // 2
    with _mount(out, _FILLED + size) as mounted:
        if not mounted:
            return None
        (out / "full").write_bytes(bytes(_FILLED))
        problems = _check_refusal(bench.run(out.name))
        return problems + find_broken(out)


def _check_read_only(bench: Bench) -> Problems | None:
    """A folder that cannot be written to: what it holds stays as it is. Permissions do not bind
    the superuser, who mounts a disk instead; None where it cannot."""
    out = bench.folder / "read only"
    with _mount(out, _FILLED) as mounted:
        (out / "kept.json").write_text("{}")
        if os.geteuid() != 0:
            out.chmod(0o555)
        elif not mounted:
            return None
        else:
            subprocess.run(["mount", "-o", "remount,ro", str(out)], check=True)
        problems = _check_refusal(bench.run(out.name))
        if [path.name for path in out.iterdir()] != ["kept.json"]:
            problems.append(f"wrote into a folder that is read-only: {sorted(os.listdir(out))}")
        if os.geteuid() != 0:
            out.chmod(0o755)
        return problems


@contextmanager
def _mount(folder: Path, size: int) -> Iterator[bool]:
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True).returncode == 0
    except OSError:
        mounted = False
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(folder)], check=True)


def _check_two_at_once(bench: Bench) -> Problems:
    """Two processes write the same files: both end, or one refuses, and the files are whole."""
    name = "two at once"
    task = bench.task(name)
    forks = [Fork(task, bench.folder / f"messages {number}") for number in range(2)]
    ends = [fork.wait() for fork in forks]
    problems = [end for end in ends if end and not end.startswith("refused: ")]
    if not problems and all(ends):
        problems.append(f"both refused: {ends[0]}")
    return problems + find_broken(bench.folder / name) + _check_rest(bench, name)


def _check_refusal(end: str | None) -> Problems:
    if end is None:
        return ["wrote all the same"]
    if not end.startswith("refused: "):
        return [f"no error of minispec's own: {end}"]
    return [f"a message of {len(end)} characters"] if len(end) > _LONGEST else []


def _check_rest(bench: Bench, name: str) -> Problems:
    """Nothing is half-written, and an undisturbed run ends as if nothing had been."""
    problems = find_broken(bench.folder / name)
    if problem := bench.run(name):
        return [*problems, f"afterwards: {problem}"]
    return problems + bench.check_end(name)


def _check_kept(bench: Bench) -> Problems:
    """Files of an earlier run stay whole while a second run fails for want of room."""
    out = bench.folder / "kept"
    shutil.copytree(bench.folder / "whole", out)
    before = digests(out)
    task = partial(_limit_files, bench.task("kept"), 100)
    Fork(task, bench.folder / "messages").wait()  # it may find that there is nothing to do
    after = digests(out)
    return [f"lost {name}" for name in before if before[name] != after.get(name)]


_PLACES: dict[str, Callable[[Bench], Problems | None]] = {
    "a limit on files": _check_small_files,
    "a full disk": _check_full_disk,
    "a folder that is read-only": _check_read_only,
    "two processes at once": _check_two_at_once,
    "a second run without room": _check_kept,
}
