"""Rows of a report from answers, and the report as text.

Ratios are paired: prompt by prompt, with bootstrapped intervals over prompts. "Fastest" and "best"
are chosen by the speeds of the same run, on both sides of a ratio.

Knows nothing of engines but their names.
"""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.peers.sides import LLAMA_CPP, MINISPEC, Answer, Engine, Side, Work
from benchmarks.peers.turns import Answers, Difference, summarize_differences
from minispec.tools.evaluation.measure import describe_machine, paired_ratio
from minispec.tools.reporting.table import align, format_ratio

Row = dict[str, Any]
_DOMAINS = ("code", "law", "medicine")  # of the last claim


def speed(answers: Sequence[Answer]) -> float:
    """Pooled timed tokens over pooled seconds."""
    return sum(a.timed for a in answers) / sum(a.seconds for a in answers)


def build_report(work: Work, engines: Sequence[Engine], options: Mapping[str, Any]) -> Row:
    """All but the runs: what was compared, how, and on which machine."""
    return {
        "version": 1,
        "model": work.model,
        "file": work.path.name,
        "threads": work.threads,
        "max_new_tokens": work.max_new_tokens,
        **options,
        "machine": describe_machine(),
        "prompts": [{"domain": domain, "tokens": len(ids)} for domain, ids in work.prompts],
        "notes": [note for engine in engines for note in engine.notes],
        "sides": [_describe(side) for engine in engines for side in engine.sides],
        "skipped": [
            {"side": skipped.name, "reason": skipped.reason}
            for engine in engines
            for skipped in engine.skipped
        ],
        "runs": [],
    }


def _describe(side: Side) -> Row:
    return {
        "side": side.name,
        "weights": side.weights,
        "activations": side.activations,
        "weight_bytes": side.weight_bytes,
    }


def build_run(
    answers: Answers,
    work: Work,
    temperature: float,
    differences: Mapping[Side, Sequence[Difference]],
) -> Row:
    """The rows of all sides at one temperature, and the claims; ``differences``: of greedy answers
    from those of minispec's float32, empty where they were not compared."""
    references = {
        "llama_cpp_plain": find_fastest(answers, LLAMA_CPP, plain=True),
        "llama_cpp_best": find_fastest(answers, LLAMA_CPP),
        "our_fastest_plain": find_fastest(answers, MINISPEC, plain=True),
    }
    rows = []
    for side, given in answers.items():
        own = [a.engine_seconds for a in given if a.engine_seconds]
        own_plain = find_plain(answers, side)
        row = {
            "side": side.name,
            "tokens_per_second": speed(given),
            "tau": sum(a.timed for a in given) / sum(a.passes for a in given),
            "engine_tokens_per_second": sum(a.timed for a in given) / sum(own) if own else None,
            **{
                f"ratio_to_{name}": paired_ratio(given, answers[other]) if other else None
                for name, other in references.items()
            },
            "ratio_to_own_plain": paired_ratio(given, answers[own_plain]) if own_plain else None,
        }
        if differences:
            row |= summarize_differences(differences[side], len(given))
            row["differences"] = [vars(difference) for difference in differences[side]]
        row["answers"] = [vars(answer) for answer in given]
        rows.append(row)
    return {
        "temperature": temperature,
        "references": {name: side.name if side else None for name, side in references.items()},
        "rows": rows,
        "claims": build_claims(answers, [domain for domain, _ in work.prompts]),
    }


def find_fastest(answers: Answers, engine: str, plain: bool = False) -> Side | None:
    """An engine's fastest side, of all or of the plain ones; None without any."""
    able = [side for side in answers if side.engine == engine and (side.is_plain or not plain)]
    return max(able, key=lambda side: speed(answers[side]), default=None)


def find_plain(answers: Answers, side: Side) -> Side | None:
    """The plain side of the same engine and dtype."""
    same = (s for s in answers if (s.engine, s.dtype) == (side.engine, side.dtype) and s.is_plain)
    return next(same, None)


def build_claims(answers: Answers, domains: Sequence[str]) -> dict[str, Row]:
    """What the comparison is for: our fastest plain decoding over llama.cpp's, our fastest evospec
    over both, and over ``frspec@0.25`` of the same dtype in the geometric mean of code, law and
    medicine. ``domains``: of the prompts, in order. Claims that lack a side are left out."""
    evolving = {side: a for side, a in answers.items() if "evospec" in side.mode}
    plain, best = find_fastest(answers, MINISPEC, plain=True), find_fastest(evolving, MINISPEC)
    static = [s for s in answers if best and s.dtype == best.dtype and s.mode == "frspec@0.25"]
    pairs = {
        "our fastest plain over llama.cpp plain": (
            plain, find_fastest(answers, LLAMA_CPP, plain=True)
        ),
        "our fastest evospec over our fastest plain": (best, plain),
        "our fastest evospec over llama.cpp's best mode": (best, find_fastest(answers, LLAMA_CPP)),
    }  # fmt: skip
    claims = {
        name: {"sides": [a.name, b.name], **paired_ratio(answers[a], answers[b])}
        for name, (a, b) in pairs.items()
        if a and b
    }
    found = [domain for domain in _DOMAINS if domain in domains]
    if best and static and found:
        by_domain = {
            domain: paired_ratio(
                *(
                    [a for a, at in zip(answers[side], domains, strict=True) if at == domain]
                    for side in (best, static[0])
                )
            )
            for domain in found
        }
        claims["our fastest evospec over frspec@0.25 of its dtype, mean of domains"] = {
            "sides": [best.name, static[0].name],
            "value": statistics.geometric_mean(ratio["value"] for ratio in by_domain.values()),
            "domains": by_domain,
        }
    return claims


def format_sides(report: Row) -> str:
    """What each side computes, the engines' notes, and the sides that were skipped."""
    lines = [["side", "weights", "MB a pass", "activations"]]
    for side in report["sides"]:
        size = side["weight_bytes"]
        lines.append([
            side["side"], side["weights"], "-" if size is None else f"{size / 1e6:.0f}",
            side["activations"],
        ])  # fmt: skip
    skipped = [f"skipped: {each['side']}: {each['reason']}" for each in report["skipped"]]
    return "\n".join([*report["notes"], align(lines), *skipped])


def format_run(run: Row) -> str:
    """One temperature as a table, and its claims."""
    greedy = "identical" in run["rows"][0]
    lines = [["side", "tokens/s", "its clock", "tau", "vs llama.cpp plain", "vs own plain",
              "vs our fastest plain", *(["ids as float32"] if greedy else ())]]  # fmt: skip
    for row in run["rows"]:
        own = row["engine_tokens_per_second"]
        lines.append([
            row["side"], f"{row['tokens_per_second']:.1f}", f"{own:.1f}" if own else "-",
            f"{row['tau']:.2f}",
            *(format_ratio(row[f"ratio_to_{name}"])
              for name in ("llama_cpp_plain", "own_plain", "our_fastest_plain")),
            *([_format_differences(row)] if greedy else ()),
        ])  # fmt: skip
    claims = [
        f"{name}: {claim['value']:.2f}"
        + (f" [{claim['low']:.2f}, {claim['high']:.2f}]" if "low" in claim else "")
        + f" ({' / '.join(claim['sides'])})"
        for name, claim in run["claims"].items()
    ]
    return "\n".join([f"temperature {run['temperature']:g}", align(lines), *claims])


def _format_differences(row: Row) -> str:
    total = len(row["answers"])
    text = f"{row['identical']}/{total}"
    if row["identical"] == total:
        return text
    return (
        f"{text}, else from {row['median_position']:g}, gap at most {row['largest_gap']:.2g}, "
        f"second id {row['took_second']}"
    )
