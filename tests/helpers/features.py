"""How far apart two passes of a target are."""

import torch

from minispec.types import Features


def max_error(features: Features, expected: Features) -> float:
    """The largest difference; infinite where the shapes differ or a number is NaN or infinite."""
    worst = 0.0
    for a, b in (
        (features.hidden, expected.hidden),
        (features.aux_hidden_states, expected.aux_hidden_states),
    ):
        if a.shape != b.shape or not torch.isfinite(a).all():
            return float("inf")
        worst = max(worst, float((a - b).abs().max())) if a.numel() else worst
    return worst


def drop_positions(features: Features, count: int) -> Features:
    """Features without those of the first ``count`` positions."""
    return Features(features.hidden[count:], features.aux_hidden_states[count:])
