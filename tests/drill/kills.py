"""Kills at random times: what is there is whole, and a repeated run ends in the same files.

Each run is a fork of a process that has imported everything, so that a kill falls into the work
and not into the imports.
"""

import json
import random
import shutil
import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from drill.forks import PATIENCE, Fork
from drill.writers import WHEEL_BYTES, WRITERS, Writer, describe

_TIMES = 2  # kills before a run is left to end, at most


class Bench:
    """A writer with its inputs, and the files and seconds of a run that nothing disturbs."""

    def __init__(self, writer: Writer, folder: Path) -> None:
        """Raises RuntimeError if the undisturbed run fails."""
        self.writer, self.folder = writer, folder / writer.name
        self.inputs = self.folder / "inputs"
        self.inputs.mkdir(parents=True)
        for task in (partial(writer.prepare, self.inputs), self.task("whole")):
            started = time.monotonic()
            if problem := Fork(task, self.folder / "messages").wait():
                raise RuntimeError(f"{writer.name}: {problem}")
        self.seconds, self.whole = time.monotonic() - started, digests(self.folder / "whole")

    def task(self, name: str) -> partial[None]:
        """A run into the folder of this name."""
        (self.folder / name).mkdir(exist_ok=True)
        return partial(self.writer.write, self.inputs, self.folder / name)

    def run(self, name: str, seconds: float = PATIENCE) -> str | None:
        """A run in a fork; see ``Fork.wait``."""
        return Fork(self.task(name), self.folder / "messages").wait(seconds)

    def check_end(self, name: str) -> list[str]:
        """What a finished run left that an undisturbed one does not."""
        out = self.folder / name
        hidden = [p.name for p in out.rglob(".*") if ".fetch-" not in str(p)]
        problems = [f"left over: {name}" for name in hidden[:3]]
        if not self.writer.clocked:
            found = digests(out)
            names = sorted(self.whole.keys() | found.keys())
            problems += [f"{n} differs" for n in names if self.whole.get(n) != found.get(n)]
        return problems


def drill_kills(
    kills: int, folder: Path, seed: int, writers: tuple[Writer, ...] = WRITERS
) -> dict[str, Any]:
    """About ``kills`` kills over all writers; returns the part of the summary."""
    torch.set_num_threads(1)
    counts: Counter[str] = Counter()
    resumed: Counter[str] = Counter()
    failures: list[dict[str, Any]] = []
    total = sum(writer.weight for writer in writers)
    for writer in writers:
        rng, bench = random.Random(f"{seed} {writer.name}"), Bench(writer, folder)
        wanted, number = max(1, round(kills * writer.weight / total)), 0
        while counts[writer.name] < wanted and number < 3 * wanted:
            times = min(_TIMES, wanted - counts[writer.name])
            done, problems = _kill_and_resume(bench, f"run {number}", times, rng)
            counts[writer.name] += done
            resumed[writer.name] += done if not problems else 0
            again = f"python -m drill kills --writers '{writer.name}' --seed {seed}"
            failures += [{"run": number, "problem": each, "again": again} for each in problems]
            shutil.rmtree(bench.folder / f"run {number}", ignore_errors=True)
            number += 1
        print(f"  {writer.name}: {counts[writer.name]} kills", file=sys.stderr)
    summary = {name: {"kills": count, "resumed": resumed[name]} for name, count in counts.items()}
    return {"kills": sum(counts.values()), "resumed": sum(resumed.values()),
            "writers": summary, "failures": failures}  # fmt: skip


def _kill_and_resume(
    bench: Bench, name: str, times: int, rng: random.Random
) -> tuple[int, list[str]]:
    """The number of kills that met the run, and what was wrong after them and at the end."""
    done, problems = 0, list[str]()
    for _ in range(times):
        if bench.run(name, rng.uniform(0, 0.9 * bench.seconds)) != "killed":
            break  # it had ended before
        done += 1
        problems += find_broken(bench.folder / name)
    if problem := bench.run(name):
        return done, [*problems, f"resumed: {problem}"]
    return done, problems + bench.check_end(name)


def find_broken(folder: Path) -> list[str]:
    """Files under their final names that are not whole."""
    found = []
    for path in folder.rglob("*"):
        # What is being written lies in folders whose names begin with a dot.
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if hidden or not path.is_file():
            continue
        try:
            _read(path)
        except Exception as error:  # whatever a library raises for half a file
            found.append(f"half-written {path.name}: {error!a}"[:200])
    return found


def _read(path: Path) -> None:
    ends = {".html": b"</html>", ".png": b"IEND\xaeB`\x82"}
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                file.get_tensor(name)
    elif path.suffix == ".pt":
        torch.load(path, weights_only=True)
    elif path.suffix == ".json":
        json.loads(path.read_text())
    elif path.suffix in ends:
        assert path.read_bytes().rstrip().endswith(ends[path.suffix]), "cut off"
    elif path.suffix == ".gguf":
        assert path.stat().st_size == WHEEL_BYTES, "cut off"


def digests(folder: Path) -> dict[str, str]:
    """A digest of each file, without folders of downloads, which are kept for a day."""
    files = [path for path in folder.rglob("*") if path.is_file() and ".fetch-" not in str(path)]
    return {str(path.relative_to(folder)): describe(path, folder) for path in files}
