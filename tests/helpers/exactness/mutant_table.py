"""The results of ``make mutants`` as text: the scores of each module, and what survived."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any


def describe_score(counts: Mapping[str, int]) -> tuple[float, str]:
    """The share of mutants killed among those that are not equivalent, and the counts in words."""
    killed, equivalent = counts.get("killed", 0), counts.get("equivalent", 0)
    total = sum(counts.values())
    score = killed / max(1, total - equivalent) if total > equivalent else 1.0
    survived = total - killed - equivalent
    text = f"{total} tried, {killed} killed, {equivalent} equivalent, {survived} survived"
    return score, f"{text} ({100 * score:.1f}%)"


def format_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table in Markdown: for each module, killed / equivalent / survived of both generators;
    then each kind with its killers, and every survivor."""
    by_file: dict[str, dict[bool, Counter[str]]] = defaultdict(lambda: defaultdict(Counter))
    by_kind: dict[str, Counter[str]] = defaultdict(Counter)
    killers: dict[str, Counter[str]] = defaultdict(Counter)
    for row in rows:
        kind = row.get("kind", "operator")
        by_file[row["file"]][kind == "operator"][row["verdict"]] += 1
        by_kind[kind][row["verdict"]] += 1
        if row["killer"]:
            killers[kind][row["killer"].split("::")[0].removeprefix("tests/")] += 1
    lines = ["killed / equivalent / survived", ""]
    lines.append("| module | operators | structure |\n| --- | --- | --- |")
    for file, counts in sorted(by_file.items()):
        cells = [_format_counts(counts[operator]) for operator in (True, False)]
        lines.append(f"| {file} | {cells[0]} | {cells[1]} |")
    lines += ["", "| kind | killed / equivalent / survived | killers |", "| --- | --- | --- |"]
    for kind, kind_counts in sorted(by_kind.items()):
        most = ", ".join(f"{file} {n}" for file, n in killers[kind].most_common(3))
        lines.append(f"| {kind} | {_format_counts(kind_counts)} | {most} |")
    survivors = [row for row in rows if row["verdict"] == "survived"]
    lines += ["", f"{len(survivors)} survived"]
    lines += [
        f"- {row['file']}:{row['line']} {row.get('kind', 'operator')}: {row['change']}"
        for row in survivors
    ]
    return "\n".join(lines)


def _format_counts(counts: Mapping[str, int]) -> str:
    if not counts:
        return "not tried"
    return " / ".join(str(counts.get(name, 0)) for name in ("killed", "equivalent", "survived"))
