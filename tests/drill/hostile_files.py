"""Damaged files for every reader, counted by reader and by field."""

import os
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from drill.pool import Case, run_cases
from drill.reader import Reader
from drill.worker import Finding

_KINDS = ("refused", "same", "unnoticed")


def prepare(readers: Sequence[Reader], folder: Path) -> Path:
    """Write the intact files of each reader; returns their folder."""
    intact = folder / "intact"
    os.environ["DRILL_FOLDER"] = str(folder)
    for reader in readers:
        (intact / reader.name).mkdir(parents=True)
        reader.prepare(intact / reader.name)
    return intact


def plan(readers: Sequence[Reader], count: int) -> list[Case]:
    """Which cases of which reader: ``count`` in all, in turns, by weight."""
    total = sum(reader.weight for reader in readers)
    shares = {reader.name: count * reader.weight // total for reader in readers}
    shares[readers[0].name] += count - sum(shares.values())
    cases = [(name, number) for name, share in shares.items() for number in range(share)]
    # In blocks, so that both processes are busy with all readers from the start.
    return sorted(cases, key=lambda case: (case[1] // 20, case[0], case[1]))


def drill_files(
    readers: Sequence[Reader], cases: Sequence[Case], folder: Path, seed: int, processes: int
) -> dict[str, Any]:
    """Run the cases and return the part of the summary; progress goes to stderr."""
    findings = []
    for number, finding in enumerate(_run(readers, cases, folder, seed, processes), 1):
        findings.append(finding)
        if finding.failed:
            print(
                f"  {finding.kind}: {reproduce(finding, seed)}: {finding.detail}", file=sys.stderr
            )
        if number % 500 == 0:
            print(f"  {number} of {len(cases)} files", file=sys.stderr)
    return summarise(findings, seed)


def _run(
    readers: Sequence[Reader], cases: Sequence[Case], folder: Path, seed: int, processes: int
) -> Iterator[Finding]:
    yield from run_cases(cases, prepare(readers, folder), seed, processes)


def reproduce(finding: Finding, seed: int) -> str:
    """The command that runs a case again."""
    return f"python -m drill case '{finding.reader}' {finding.number} --seed {seed}"


def summarise(findings: Sequence[Finding], seed: int) -> dict[str, Any]:
    """Counts by reader, by field and by kind."""
    readers: dict[str, Counter[str]] = defaultdict(Counter)
    fields: dict[str, Counter[str]] = defaultdict(Counter)
    unnoticed: Counter[str] = Counter()
    failures = []
    for finding in sorted(findings, key=lambda v: (v.reader, v.number)):
        readers[finding.reader][finding.kind] += 1
        for file, field, _, _ in finding.damages:
            fields[f"{finding.reader}: {Path(file).name}: {field}"][finding.kind] += 1
        for field in finding.fields if finding.kind == "unnoticed" else ():
            unnoticed[f"{finding.reader}: {Path(field).name}"] += 1
        if finding.failed:
            failures.append({
                "kind": finding.kind, "detail": finding.detail,
                "damages": finding.damages, "again": reproduce(finding, seed),
            })  # fmt: skip
    structured = sum(any(each[3] for each in finding.damages) for finding in findings)
    return {
        "files": len(findings),
        "structured": structured,
        "kinds": dict(Counter(finding.kind for finding in findings)),
        "slowest_seconds": round(max((v.seconds for v in findings), default=0.0), 2),
        "readers": {name: dict(counts) for name, counts in sorted(readers.items())},
        "fields": {name: dict(counts) for name, counts in sorted(fields.items())},
        "unnoticed": dict(unnoticed.most_common()),
        "failures": failures,
    }


def print_summary(summary: dict[str, Any]) -> None:
    """The counts as tables."""
    print(
        f"{summary['files']} files, {summary['structured']} of them with one or two damaged fields"
    )
    _print_table("reader", summary["readers"], 28)
    _print_table("reader: file: field", summary["fields"], 72)
    print("\nlegal values that no reader can tell from intended ones, and that changed the result:")
    for name, count in summary["unnoticed"].items():
        print(f"  {count:>5}  {name}")


def _print_table(title: str, counts: dict[str, dict[str, int]], width: int) -> None:
    print(f"\n{title:<{width}}" + "".join(f"{kind:>11}" for kind in (*_KINDS, "FAILED")))
    for name, found in counts.items():
        passed = [found.get(kind, 0) for kind in _KINDS]
        failed = sum(found.values()) - sum(passed)
        print(f"{name:<{width}}" + "".join(f"{n:>11}" for n in (*passed, failed)))
