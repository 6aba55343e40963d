"""The rows of a report: figures pooled by method and stream, and set against one another.

Knows what was measured; how it came about is ``minispec.tools.evaluation.compare``'s business.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from minispec.tools.data.streams import SWITCH
from minispec.tools.evaluation import switch
from minispec.tools.evaluation.measure import Figures, paired_ratio, pool, speed
from minispec.tools.evaluation.methods import Method


@dataclass(frozen=True)
class Variant:
    """A method at one gamma; plain decoding has none."""

    method: Method
    gamma: int | None


# By stream, by conversation, by turn; a prompt that stands alone is a conversation of one turn.
Conversations = Mapping[str, Sequence[Sequence[Figures]]]


def flatten(talks: Conversations, stream: str) -> list[Figures]:
    """The figures of a stream, prompt by prompt; "all" has those of every single-domain one."""
    names = [name for name in talks if _within(name, stream)]
    return [figures for name in names for figures in chain.from_iterable(talks[name])]


def _within(name: str, stream: str) -> bool:
    return name == stream or (stream == "all" and name != SWITCH)


def rows(
    talks: Mapping[Variant, Conversations],
    peaks: Mapping[Variant, float],
    lossless: Mapping[Variant, Mapping[str, Sequence[str]]] | None,
    origin: Mapping[Variant, Mapping[str, Mapping[str, float]]],
    vocab_size: int,
) -> list[dict[str, Any]]:
    """A row for each variant and stream, and for each method one more at its best gamma."""
    names = list(next(iter(talks.values())))
    pools = {v: {s: flatten(talks[v], s) for s in (*names, "all")} for v in talks}
    methods = list(dict.fromkeys(variant.method for variant in talks))
    best = {
        method: max((v for v in talks if v.method == method), key=lambda v: speed(pools[v]["all"]))
        for method in methods
    }
    rivals = {
        "autoregressive": best.get(Method("autoregressive")),
        "frspec": best.get(_partner(methods)),
    }
    several = len({variant.gamma for variant in talks} - {None}) > 1
    found = []
    for stream in (*names, "all"):
        for variant in talks:
            ours = pools[variant][stream]
            row = {
                "method": str(variant.method),
                "stream": stream,
                "gamma": variant.gamma,
                "best": False,
                "budget": variant.method.ids(vocab_size),
                **pool(ours),
                "peak_rss_mb": peaks[variant],
                "origin": origin.get(variant, {}).get(stream),
            }
            if stream == SWITCH:
                full = talks.get(Variant(Method("full"), variant.gamma))
                row["switch_curve"] = switch.curve(
                    talks[variant][stream], full[stream] if full else None
                )
            if lossless is not None:
                row["lossless"] = _counted(lossless[variant], stream)
            at_best = row | {"best": True}
            for key, rival in rivals.items():
                row[f"ratio_to_{key}"] = at_best[f"ratio_to_{key}"] = None
                if rival:
                    # At the same gamma, or at the rival's best where one of the two has none.
                    same = Variant(rival.method, variant.gamma)
                    theirs = pools[same if same in pools else rival][stream]
                    row[f"ratio_to_{key}"] = paired_ratio(ours, theirs)
                    at_best[f"ratio_to_{key}"] = paired_ratio(ours, pools[rival][stream])
            found.append(row)
            if several and best[variant.method] == variant:
                found.append(at_best)
    return found


def _counted(verdicts: Mapping[str, Sequence[str]], stream: str) -> dict[str, int]:
    """The audit's verdicts on a stream, "all" without the one that switches, counted."""
    found = [v for name in verdicts if _within(name, stream) for v in verdicts[name]]
    return {
        "checked": len(found),
        "identical": found.count("identical"),
        "near_ties": found.count("near_tie"),
        "violations": found.count("violation"),
    }


def _partner(methods: Sequence[Method]) -> Method:
    """Whom ratios to FR-Spec refer to: frspec@0.25 if it runs, else the first frspec."""
    usual = Method.parse("frspec@0.25")
    others = [method for method in methods if method.name == "frspec" and not method.adapt]
    return usual if usual in others else next(iter(others), usual)
