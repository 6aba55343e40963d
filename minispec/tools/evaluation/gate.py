"""The gate of a shortlist (SlimSpec, arXiv 2605.10453): whether it saves more than it loses.

    speed over full's = (tau over full's) * (1 + kappa) / (1 + nu * kappa)

kappa: the seconds of the draft's head over all other seconds of a round, with the full vocabulary;
nu: the head rows that a draft step reads over V, with those read to select them. A shortlist pays
where this is above 1. It leaves out what selecting costs beyond reading rows.

Knows nothing of methods.
"""

from collections.abc import Sequence
from typing import Any

from minispec.tools.evaluation.measure import Figures, speed

_HEAD = "draft_head"  # the phase of a round


def compute_kappa(full: Sequence[Figures]) -> float:
    """The seconds of the draft's head over all other seconds of decoding, prefill excluded, of
    speculation with the full vocabulary."""
    head = sum(figures.seconds.get(_HEAD, 0.0) for figures in full)
    return head / (sum(figures.decode_seconds for figures in full) - head)


def predict_speed(tau_to_full: float, nu: float, kappa: float) -> float:
    """The speed of a shortlist over that of the full vocabulary, by the formula above."""
    return tau_to_full * (1 + kappa) / (1 + nu * kappa)


def compute_nu(row: dict[str, Any], vocab_size: int) -> float:
    """The rows that a draft step reads over V, of figures that ``measure.pool`` summed up."""
    return ((row["shortlist_mean"] or 0.0) + (row["rows_probed"] or 0.0)) / vocab_size


def measure_speed(ours: Sequence[Figures], full: Sequence[Figures]) -> float:
    """The pooled speed over that of the full vocabulary, as it was measured."""
    return speed(ours) / speed(full)
