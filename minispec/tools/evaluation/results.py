"""The rows of a report: figures pooled by method and stream, and ratios between methods.

Knows nothing of how the figures were measured; that is ``minispec.tools.evaluation.compare``.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from minispec.auto_shape import Shape
from minispec.tools.data.streams import SWITCH
from minispec.tools.evaluation import switch
from minispec.tools.evaluation.measure import Figures, paired_ratio, pool, speed
from minispec.tools.evaluation.methods import Method


@dataclass(frozen=True)
class Variant:
    """A method at one gamma or with one tree; plain decoding has neither."""

    method: Method
    gamma: int | None
    tree: Shape | None = None


def list_variants(
    methods: Sequence[Method], gammas: Sequence[int], trees: Sequence[Shape | None]
) -> Iterator[Variant]:
    """Each method with each gamma and tree, None standing for the chains of all gammas; plain
    decoding once."""
    for method in methods:
        if method.name == "autoregressive":
            yield Variant(method, None)
            continue
        for tree in trees:
            if tree is None:
                yield from (Variant(method, gamma) for gamma in gammas)
            else:
                yield Variant(method, None, tree)


# By stream, by conversation, by turn; a single prompt is a conversation of one turn.
Conversations = Mapping[str, Sequence[Sequence[Figures]]]


def flatten(conversations: Conversations, stream: str) -> list[Figures]:
    """The figures of a stream, prompt by prompt; "all" concatenates the single-domain streams."""
    names = [name for name in conversations if _belongs_to(name, stream)]
    return [figures for name in names for figures in chain.from_iterable(conversations[name])]


def flatten_at(
    conversations: Mapping[Variant, Conversations], gamma: int
) -> dict[Method, dict[str, list[Figures]]]:
    """The figures of each method at one gamma, by stream, "all" among them."""
    return {
        variant.method: {name: flatten(streams, name) for name in (*streams, "all")}
        for variant, streams in conversations.items()
        if variant.gamma == gamma
    }


def _belongs_to(name: str, stream: str) -> bool:
    return name == stream or (stream == "all" and name != SWITCH)


def build_rows(
    conversations: Mapping[Variant, Conversations],
    peaks: Mapping[Variant, float],
    lossless: Mapping[Variant, Mapping[str, Sequence[str]]] | None,
    origin: Mapping[Variant, Mapping[str, Mapping[str, float]]],
    vocab_size: int,
) -> list[dict[str, Any]]:
    """One row per variant and stream; with several gammas or trees, one more per method at its
    fastest.

    ``peaks``: peak memory in MB. ``lossless``: the audit's classes by stream, None if it did not
    run. ``origin``: the share of accepted tokens by part of the shortlist, by stream.
    """
    names = list(next(iter(conversations.values())))
    pools = {v: {s: flatten(conversations[v], s) for s in (*names, "all")} for v in conversations}
    methods = list(dict.fromkeys(variant.method for variant in conversations))
    best = {
        method: max((v for v in pools if v.method == method), key=lambda v: speed(pools[v]["all"]))
        for method in methods
    }
    references = {
        "autoregressive": best.get(Method("autoregressive")),
        "frspec": best.get(_choose_frspec(methods)),
    }
    several = len({(v.gamma, v.tree) for v in conversations} - {(None, None)}) > 1
    rows = []
    for stream in (*names, "all"):
        for variant in conversations:
            ours = pools[variant][stream]
            row = {
                "method": str(variant.method),
                "stream": stream,
                "gamma": variant.gamma,
                "tree": variant.tree and str(variant.tree),
                "best": False,
                "budget": variant.method.ids(vocab_size),
                **pool(ours),
                "peak_rss_mb": peaks[variant],
                "origin": origin.get(variant, {}).get(stream),
            }
            if stream == SWITCH:
                full = conversations.get(Variant(Method("full"), variant.gamma, variant.tree))
                row["switch_curve"] = switch.compute_curve(
                    conversations[variant][stream], full[stream] if full else None
                )
            if lossless is not None:
                row["lossless"] = _count_classes(lossless[variant], stream)
            at_best = row | {"best": True}
            for key, reference in references.items():
                row[f"ratio_to_{key}"] = at_best[f"ratio_to_{key}"] = None
                if reference:
                    # With the same gamma or tree; at the reference's fastest where it has none.
                    same = Variant(reference.method, variant.gamma, variant.tree)
                    theirs = pools[same if same in pools else reference][stream]
                    row[f"ratio_to_{key}"] = paired_ratio(ours, theirs)
                    at_best[f"ratio_to_{key}"] = paired_ratio(ours, pools[reference][stream])
            rows.append(row)
            if several and best[variant.method] == variant:
                rows.append(at_best)
    return rows


def _count_classes(classes: Mapping[str, Sequence[str]], stream: str) -> dict[str, int]:
    """How many outputs of a stream the audit put into each class."""
    found = [each for name in classes if _belongs_to(name, stream) for each in classes[name]]
    return {
        "checked": len(found),
        "identical": found.count("identical"),
        "near_ties": found.count("near_tie"),
        "violations": found.count("violation"),
    }


def _choose_frspec(methods: Sequence[Method]) -> Method:
    """The reference of ratios to FR-Spec: frspec@0.25 if it ran, else the first frspec."""
    usual = Method.parse("frspec@0.25")
    others = [method for method in methods if method.name == "frspec" and not method.adapt]
    return usual if usual in others else next(iter(others), usual)
