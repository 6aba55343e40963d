"""What a switch of topic costs: tau in the tokens before and after it.

The reference is full-vocabulary speculation around the same switches, since some texts are
harder to draft than others. Knows nothing of methods.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from minispec.tools.evaluation.measure import Figures

WINDOW = 32  # tokens per window
_STEP, _WINDOWS = 8, 9  # tokens between the starts of windows, and windows on each side
_REGAINED = 0.95  # of full's tau
_RESAMPLES = 2000


def compute_curve(
    ours: Sequence[Sequence[Figures]], full: Sequence[Sequence[Figures]] | None
) -> dict[str, Any]:
    """tau around the switches, pooled over all of them; figures by conversation and turn.

    A window's ``start`` counts tokens from the switch, negative before it; a round belongs to
    every window in which it begins. ``ratio_to_full`` has a 95% interval, bootstrapped over
    switches. ``regained_after``: the start of the first window after the switch in which the
    ratio is at least 0.95, so 0 if nothing is lost; None if no window reaches it or without
    ``full``.
    """
    before = [-WINDOW - _STEP * i for i in reversed(range(_WINDOWS))]
    windows, regained = [], None
    for start in (*before, *(_STEP * i for i in range(_WINDOWS))):
        sums = _sum_windows(ours, start)  # (switches, 2)
        if not sums[:, 1].sum():
            continue  # no answer is long enough
        ratio = _bootstrap_ratio(sums, _sum_windows(full, start)) if full else None
        if start >= 0 and regained is None and ratio and ratio["value"] >= _REGAINED:
            regained = start
        tau = float(sums[:, 0].sum() / sums[:, 1].sum())
        windows.append({"start": start, "tau": tau, "ratio_to_full": ratio})
    return {
        "switches": sum(len(conversation) - 1 for conversation in ours),
        "window": WINDOW,
        "windows": windows,
        "regained_after": regained,
    }


def _sum_windows(conversations: Sequence[Sequence[Figures]], start: int) -> Tensor:
    """Tokens and rounds (switches, 2) of the rounds that begin in the window at ``start``."""
    rows = []
    for conversation in conversations:
        for earlier, later in pairwise(conversation):
            answer, begin = (later, start) if start >= 0 else (earlier, len(earlier.tokens) + start)
            lengths = torch.tensor(answer.emitted, dtype=torch.float64)  # (rounds,)
            begins = lengths.cumsum(0) - lengths
            inside = lengths[(begins >= begin) & (begins < begin + WINDOW)]
            rows.append([float(inside.sum()), float(len(inside))])
    return torch.tensor(rows, dtype=torch.float64).reshape(-1, 2)


def _bootstrap_ratio(ours: Tensor, full: Tensor) -> dict[str, float] | None:
    """Pooled tau of ``ours`` over that of ``full``, (switches, 2) each, over the switches that
    both have."""
    both = torch.cat((ours, full), dim=1)[(ours[:, 1] > 0) & (full[:, 1] > 0)]  # (n, 4)
    if not len(both):
        return None
    draws = torch.Generator().manual_seed(0)
    picks = torch.randint(len(both), (_RESAMPLES, len(both)), generator=draws)

    def tau_over_tau(sums: Tensor) -> Tensor:
        return (sums[..., 0] / sums[..., 1]) / (sums[..., 2] / sums[..., 3])

    means = tau_over_tau(both[picks].sum(1))  # (resamples,)
    low, high = means.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return {"value": float(tau_over_tau(both.sum(0))), "low": low, "high": high}
