"""``make mutants``: change the code in every small way; the tests must detect each change.

A mutant is one module with one change, of an operator (``mutations``) or of its structure
(``structures``). A fork of a process that has collected all tests exchanges the code and runs
tests until one fails. If none does, a fresh process imports the package with the mutated file, and
runs first the tests that cover the changed line (coverage is measured once for all files), then
all tests selected for the file. A mutant that survives is *equivalent* if its reason is written
down (``equivalents``), or if nothing observable differs, bit for bit: the output distributions of
the whole grid, in fractions and in float64, and the tokens for many seeds.

    python tests/exactness/mutants.py [--out FILE] [FILE ...]
    python tests/exactness/mutants.py --table FILE
"""

import argparse
import hashlib
import json
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from helpers.exactness.equivalents import find_reason
from helpers.exactness.mutant_forks import UNDECIDED, run_in_forks
from helpers.exactness.mutant_runs import (
    FORKS,
    NO_RESULT,
    call_in_process,
    digest_mutant,
    iterate_process,
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
from helpers.exactness.mutant_table import describe_score, format_table
from helpers.exactness.mutations import Mutant, generate_mutants
from helpers.exactness.structures import generate_structural_mutants

GENERATORS = {"operator": generate_mutants, "structure": generate_structural_mutants}


def list_mutants(file: str, generators: Sequence[str], sample: int | None) -> list[Mutant]:
    """The mutants of a file; with ``sample`` at most so many of each kind, evenly spread."""
    source = source_path(file).read_text("utf-8")
    mutants = [m for name in generators for m in GENERATORS[name](file, source)]
    if sample is None:
        return mutants
    by_kind: dict[str, list[Mutant]] = {}
    for mutant in sorted(mutants, key=lambda m: hashlib.sha256(m.source.encode()).digest()):
        by_kind.setdefault(mutant.kind, []).append(mutant)
    return [mutant for kind in by_kind.values() for mutant in kind[:sample]]


class Trial:
    """Fresh processes for the mutants of one file, and the tests that they are tried on."""

    def __init__(self, file: str, by_line: dict[int, list[str]], seconds: Counter[str]) -> None:
        """``by_line``: the tests that cover each line; ``seconds``: the duration of each test."""
        self._seconds, self._by_line = seconds, by_line
        self._files = tuple(select_tests(file))

    def find_killer(self, mutant: Mutant) -> str | None:
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
    parser.add_argument("--only", choices=GENERATORS, help="change operators or structure alone")
    parser.add_argument("--sample", type=int, help="mutants of each kind in a file (default: all)")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="leave out fresh processes, and mutants with a reason; call the rest survivors",
    )
    parser.add_argument(
        "--resume", action="store_true", help="skip mutants that --out records as killed"
    )
    parser.add_argument(
        "--skip-equivalence", action="store_true", help="do not test survivors for equivalence"
    )
    parser.add_argument(
        "--table", type=Path, metavar="FILE", help="print a JSON file as a table, and run nothing"
    )
    options = parser.parse_args()
    if options.table:
        print(format_table(json.loads(options.table.read_text("utf-8"))))
        return 0
    with tempfile.TemporaryDirectory() as compiled:
        # Third-party modules are imported, and ours compiled, once for all processes.
        sys.dont_write_bytecode, sys.pycache_prefix = False, compiled
        preload()
        return run_all(options)


def write_rows(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """One mutant per line, so that two runs can be compared with diff."""
    path.write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n", "utf-8")


def run_all(options: argparse.Namespace) -> int:
    """Try all mutants of some files; the exit code."""
    generators = [options.only] if options.only else list(GENERATORS)
    known = json.loads(options.out.read_text("utf-8")) if options.resume else []
    mutants = [m for file in options.files for m in list_mutants(file, generators, options.sample)]
    rows = {m: describe_mutant(m) for m in mutants}
    wanted = {row["sha256"] for row in rows.values()}
    kept = [row for row in known if row["verdict"] == "killed" or row["sha256"] not in wanted]
    done = {row["sha256"]: row for row in kept}
    rows = {m: done.get(row["sha256"], row) for m, row in rows.items()}
    others = [row for row in kept if row["sha256"] not in wanted]

    options.out.parent.mkdir(parents=True, exist_ok=True)
    if options.quick:
        for mutant, row in rows.items():
            if "verdict" not in row and find_reason(mutant):
                row |= {"verdict": "survived", "killer": None}
    left = [m for m, row in rows.items() if "verdict" not in row]
    results = iterate_process(run_in_forks, left, options.jobs)
    for index, killer in tqdm(results, unit="mutant", disable=None, total=len(left)):
        if index is None:
            print(f"left out, it fails without any mutation: {killer}", file=sys.stderr)
            continue
        decided = killer not in (None, UNDECIDED)
        rows[left[index]] |= {"verdict": "killed" if decided else "survived", "killer": killer}
        write_rows([*others, *(row for row in rows.values() if "verdict" in row)], options.out)
    survivors = [m for m in mutants if rows[m]["verdict"] == "survived" and not find_reason(m)]
    if survivors and not options.quick:
        for _ in try_anew(survivors, rows, options.jobs):
            write_rows([*others, *rows.values()], options.out)
    judge_survivors(rows, options)
    write_rows([*others, *rows.values()], options.out)
    return report(list(rows.values()))


def describe_mutant(mutant: Mutant) -> dict[str, Any]:
    """The row of a mutant that was not tried yet."""
    return {
        "file": f"{mutant.file}.py", "line": mutant.line, "kind": mutant.kind,
        "change": mutant.change, "sha256": hashlib.sha256(mutant.source.encode()).hexdigest(),
    }  # fmt: skip


def try_anew(
    survivors: Sequence[Mutant], rows: dict[Mutant, dict[str, Any]], jobs: int
) -> Iterator[Mutant]:
    """Try mutants in fresh processes, on all tests of their files; yields each whose row was
    completed."""
    files = list(dict.fromkeys(mutant.file for mutant in survivors))
    broken, lines, seconds = call_in_process(survey, files)
    if broken:
        raise SystemExit(f"{broken} fails without any mutation: make it pass first")
    trials = {file: Trial(file, lines[file], seconds) for file in files}
    with ProcessPoolExecutor(jobs, mp_context=FORKS) as pool:
        tried = {pool.submit(trials[m.file].find_killer, m): m for m in survivors}
        for future in tqdm(as_completed(tried), unit="mutant", disable=None, total=len(tried)):
            killer = future.result()
            rows[tried[future]] |= {"verdict": "killed" if killer else "survived", "killer": killer}
            yield tried[future]


def report(rows: Sequence[dict[str, Any]]) -> int:
    """Print both scores of each module, and what survived; the exit code."""
    failed = False
    for row in rows:
        if row["verdict"] != "killed":
            print(f"{row['verdict']}: {row['file']}:{row['line']}  {row['change']}")
    for file in dict.fromkeys(row["file"] for row in rows):
        for name in GENERATORS:
            chosen = [r for r in rows if r["file"] == file]
            counts = Counter(
                r["verdict"] for r in chosen if (r["kind"] == "operator") == (name == "operator")
            )
            if counts:
                score, text = describe_score(counts)
                failed |= score < (1.0 if file.removesuffix(".py") in DISTRIBUTION_FILES else 0.9)
                print(f"{file}, {name}: {text}", flush=True)
    return int(failed)


def judge_survivors(rows: dict[Mutant, dict[str, Any]], options: argparse.Namespace) -> None:
    """Mark survivors as equivalent: those with a reason, and those that change nothing observable,
    unless that is left out."""
    survivors = {m: row for m, row in rows.items() if row["verdict"] == "survived"}
    for mutant, row in survivors.items():
        row["killer"] = None
        if reason := find_reason(mutant):
            row |= {"verdict": "equivalent", "reason": reason}
    others = [(m, row) for m, row in survivors.items() if row["verdict"] == "survived"]
    if options.skip_equivalence or options.quick or not others:
        return
    digest = call_in_process(digest_mutant, None)
    assert digest != NO_RESULT, "the grid fails without any mutation"
    with ProcessPoolExecutor(options.jobs, mp_context=FORKS) as pool:
        digests = pool.map(partial(call_in_process, digest_mutant), [m for m, _ in others])
        for (_, row), mutated in zip(others, digests, strict=True):
            if mutated == digest:
                row |= {"verdict": "equivalent", "reason": "nothing in the walk differs"}


if __name__ == "__main__":
    sys.exit(main())
