"""``make mutants``: change the code in every small way; the tests must detect each change.

A mutant is one file of ``minispec/`` with one change. For each, a fresh process imports the package
with the mutated file and runs tests until one fails: first those that cover the changed line, the
fastest first (coverage is measured once for all files), then all tests selected for the file. A
mutant that survives is *equivalent* only if nothing observable differs, bit for bit: the output
distributions of the whole grid, in fractions and in float64, and the tokens for many seeds.

    python tests/exactness/mutants.py [--out FILE] [FILE ...]
"""

import argparse
import hashlib
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from helpers.exactness.mutant_runs import (
    NO_RESULT,
    call_in_process,
    digest_mutant,
    preload,
    survey,
    try_mutant,
)
from helpers.exactness.mutant_selection import (
    DISTRIBUTION_FILES,
    ROOT,
    SELECTION,
    select_tests,
    source_path,
)
from helpers.exactness.mutations import Mutant, generate_mutants


class Trial:
    """The mutants of one file, and the tests that they are tried on."""

    def __init__(
        self,
        file: str,
        by_line: dict[int, list[str]],
        seconds: Counter[str],
        done: dict[str, dict[str, Any]],
    ) -> None:
        """``by_line``: the tests that cover each line; ``seconds``: the duration of each test;
        ``done``: rows of an earlier run, by the hash of the mutated source."""
        self._done, self._seconds, self._by_line = done, seconds, by_line
        self._files = tuple(select_tests(file))
        source = source_path(file).read_text("utf-8")
        self.mutants = list(generate_mutants(file, source))

    def run(self, mutant: Mutant) -> dict[str, Any]:
        """The row of a mutant."""
        sha256 = hashlib.sha256(mutant.source.encode()).hexdigest()
        if sha256 in self._done:
            return self._done[sha256]
        started = time.perf_counter()
        killer = self._find_killer(mutant)
        return {
            "file": f"minispec/{mutant.file}.py", "line": mutant.line, "change": mutant.change,
            "sha256": sha256, "verdict": "killed" if killer else "survived", "killer": killer,
            "seconds": round(time.perf_counter() - started, 1),
        }  # fmt: skip

    def _find_killer(self, mutant: Mutant) -> str | None:
        """The first test that fails, None if none does."""
        for tests in self._order_tests(mutant.line):
            if found := call_in_process(try_mutant, mutant, tests, dict(self._seconds)):
                return str(found)
        return None

    def _order_tests(self, line: int) -> list[list[str]]:
        """All tests in groups, in the order in which they run: fast tests that cover the line, one
        group per file, because its fixtures are shared; then slow ones; then tests that do not
        cover the line, which may still depend on it through cached fixtures."""
        covering = {*self._by_line.get(line, ())}
        groups: dict[tuple[bool, bool, str], list[str]] = {}
        for test in sorted(filter(self._is_selected, self._seconds), key=self._seconds.__getitem__):
            slow = self._seconds[test] > 1
            file = "" if slow or test not in covering else test.split("::")[0]
            groups.setdefault((test not in covering, slow, file), []).append(test)
        return [groups[key] for key in sorted(groups, key=lambda k: (*k[:2], len(groups[k])))]

    def _is_selected(self, test: str) -> bool:
        return test.startswith(self._files)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("files", nargs="*", default=list(SELECTION), help=", ".join(SELECTION))
    parser.add_argument(
        "--out", type=Path, default=ROOT / "build" / "mutants.json",
        help="JSON file to write (default: build/mutants.json)",
    )  # fmt: skip
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="parallel processes")
    parser.add_argument(
        "--resume", action="store_true", help="skip mutants that --out records as killed"
    )
    parser.add_argument(
        "--skip-equivalence", action="store_true", help="do not test survivors for equivalence"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as compiled:
        # Third-party modules are imported, and ours compiled, once for all processes.
        sys.dont_write_bytecode, sys.pycache_prefix = False, compiled
        preload()
        return run_all(
            options.files, options.out, options.jobs, options.resume, options.skip_equivalence
        )


def write_rows(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """One mutant per line, so that two runs can be compared with diff."""
    path.write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n", "utf-8")


def run_all(
    files: Sequence[str], out: Path, jobs: int, resume: bool, skip_equivalence: bool
) -> int:
    """Try all mutants of some files; the exit code."""
    from tqdm import tqdm

    known = json.loads(out.read_text("utf-8")) if resume else []
    requested = [f"minispec/{file}.py" for file in files]
    written: list[dict[str, Any]] = [row for row in known if row["file"] not in requested]
    done = {row["sha256"]: row for row in known if row["verdict"] == "killed"}
    digest, failed = "", False

    out.parent.mkdir(parents=True, exist_ok=True)
    broken, lines, seconds = call_in_process(survey, files)
    if broken:
        print(f"{broken} fails without any mutation: make it pass first", file=sys.stderr)
        return 1
    for file in files:
        trial = Trial(file, lines[file], seconds, done)
        rows = []
        context = multiprocessing.get_context("fork")
        with ProcessPoolExecutor(jobs, mp_context=context) as pool:
            results = pool.map(trial.run, trial.mutants)
            total = len(trial.mutants)
            for row in tqdm(results, desc=file, unit="mutant", disable=None, total=total):
                rows.append(row)
                write_rows([*written, *rows], out)
            survivors = [
                (mutant, row)
                for mutant, row in zip(trial.mutants, rows, strict=True)
                if row["verdict"] == "survived"
            ]
            if survivors and not skip_equivalence:
                digest = digest or str(call_in_process(digest_mutant, None))
                assert digest != NO_RESULT, "the grid fails without any mutation"
                digests = pool.map(
                    partial(call_in_process, digest_mutant), [mutant for mutant, _ in survivors]
                )
                for (_, row), mutated in zip(survivors, digests, strict=True):
                    row["verdict"] = "equivalent" if mutated == digest else "survived"
        for _, row in survivors:
            print(f"{row['verdict']}: {row['file']}:{row['line']}  {row['change']}", flush=True)
        written += rows
        write_rows(written, out)
        counts = Counter(row["verdict"] for row in rows)
        score = counts["killed"] / max(1, len(rows) - counts["equivalent"])
        required = 1.0 if file in DISTRIBUTION_FILES else 0.9
        failed |= score < required or counts["equivalent"] > 0.05 * len(rows)
        print(f"minispec/{file}.py: {dict(counts)}, {100 * score:.1f}% killed", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
