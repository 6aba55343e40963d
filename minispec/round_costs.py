"""What a round costs: seconds of target passes and draft steps, measured at some numbers of rows.

Knows nothing of how they are measured, nor of what they are needed for.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from minispec.errors import ArgumentError

Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True)
class PassCosts:
    """Seconds of passes, measured at some numbers of rows, ascending; between them they are
    interpolated. ``target``: pairs of rows and seconds of a target pass with its verification;
    ``draft``: of a draft step with the logits of a shortlist, () without a draft; ``rest``,
    ``plain_rest``: seconds of a round besides, with a draft and without. Raises ArgumentError on
    construction."""

    target: tuple[tuple[int, float], ...]
    draft: tuple[tuple[int, float], ...] = ()
    rest: float = 0.0
    plain_rest: float = 0.0

    def __post_init__(self) -> None:
        for name, pairs in (("target", self.target), ("draft", self.draft or self.target)):
            rows = [row for row, _ in pairs]
            if rows != sorted({*rows}) or not rows or rows[0] != 1:
                raise ArgumentError(f"costs of {name} passes are for {rows} rows: expected 1, ...")
            if not all(0 < seconds < float("inf") for _, seconds in pairs):
                raise ArgumentError(f"costs of {name} passes must be finite numbers above 0")

    def target_seconds(self, rows: npt.ArrayLike) -> Numbers:
        """Seconds of target passes, for numbers of rows of any shape."""
        return _interpolate(self.target, rows)

    def drafting_seconds(self, depth: int, beam: int) -> float:
        """Seconds of a round besides its target pass, with a tree of this depth and beam; of one
        without a draft for depth 0."""
        if depth == 0:
            return self.plain_rest
        first, level = _interpolate(self.draft, [1, beam])
        return float(first + (depth - 1) * level + self.rest)

    def round_seconds(self, depth: int, beam: int, nodes: int) -> float:
        """Seconds of a round with a tree of this shape; of a plain one for depth 0."""
        rows = 1 + nodes if depth else 1
        return float(self.target_seconds(rows)) + self.drafting_seconds(depth, beam)


def _interpolate(pairs: Sequence[tuple[int, float]], rows: npt.ArrayLike) -> Numbers:
    """Seconds for numbers of rows; beyond the last one measured, along the last slope."""
    (xs, ys), wanted = np.array(pairs, np.float64).T, np.asarray(rows, np.float64)
    slope = max(0.0, (ys[-1] - ys[-2]) / (xs[-1] - xs[-2])) if len(xs) > 1 else 0.0
    return np.asarray(np.interp(wanted, xs, ys) + slope * np.maximum(wanted - xs[-1], 0.0))
