"""Exercises of chapter 7: the semantic index."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from minispec.exercises.grading import Exercise, compare_values, is_same


def _make_rows(seed: int, count: int) -> Tensor:
    """Rows (count, 4) float64 of different lengths."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(count, 4, generator=generator, dtype=torch.float64)
    return rows * torch.rand(count, 1, generator=generator, dtype=torch.float64).mul(2).exp()


def _grade_augment(answer: Callable[[Tensor], Tensor]) -> str | None:
    rows, queries = _make_rows(0, 40), _make_rows(1, 40)
    longer = answer(rows)
    if tuple(longer.shape) != (40, 5):
        return f"rows (40, 4) become {tuple(longer.shape)}, expected (40, 5): one more coordinate"
    if not is_same(longer[:, :4], rows):
        return (
            "the first coordinates must stay as they are: a product with a hidden state needs them"
        )
    lengths = longer.norm(dim=1)
    if lengths.max() - lengths.min() > 1e-6:
        return (
            f"the lengths range from {float(lengths.min()):.3g} to {float(lengths.max()):.3g}: the "
            "new coordinate must make all rows as long as the longest one"
        )
    wanted = (queries @ rows.T).argmax(dim=1)
    nearest = torch.cdist(F.pad(queries, (0, 1)), longer).argmin(dim=1)
    missed = int((nearest != wanted).sum())
    return (
        f"for {missed} of 40 queries the nearest row has not the largest product"
        if missed
        else None
    )


def _grade_assign(answer: Callable[..., Tensor]) -> str | None:
    return compare_values(
        answer,
        lambda rows, centroids: (F.normalize(rows) @ F.normalize(centroids).T).argmax(dim=1),
        [(_make_rows(seed, 30), _make_rows(seed + 10, 5)) for seed in range(2)],
        {
            "by distance, long rows end up in clusters of their own: compare directions": (
                lambda rows, centroids: torch.cdist(rows, centroids).argmin(dim=1)
            ),
            "the longest centroid wins: scale the centroids to unit length": (
                lambda rows, centroids: (rows @ centroids.T).argmax(dim=1)
            ),
            "the cluster that is farthest away": (
                lambda rows, centroids: (F.normalize(rows) @ F.normalize(centroids).T).argmin(dim=1)
            ),
        },
    )


EXERCISES = (
    Exercise("augment", "Nearest rows that are those of the largest product.", _grade_augment),
    Exercise("assign", "The cluster of each row, by direction.", _grade_assign, defect=True),
)
