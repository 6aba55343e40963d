"""Spherical k-means: clusters of the LM head's rows by direction (Dhillon and Modha 2001).

Rows are scaled to unit length first: with plain distances the longest rows would get clusters of
their own. Knows nothing of shortlists.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from minispec.errors import ArgumentError

_BLOCK = 8192  # rows multiplied with all centroids at once


def cluster_rows(
    rows: Tensor,
    clusters: int,
    seed: int = 0,
    rounds: int = 20,
    progress: Callable[[], object] = lambda: None,
) -> Tensor:
    """Spherical k-means (Dhillon and Modha 2001): rows (V, D) -> the cluster of each row (V,)
    int64. No cluster is empty.

    ``progress`` is called after each of the ``rounds``. Raises ArgumentError.
    """
    if not 1 <= clusters <= len(rows):
        raise ArgumentError(f"clusters {clusters} must lie in 1..{len(rows)}, the number of rows")
    unit = F.normalize(rows.float(), dim=1)  # (V, D)
    generator = torch.Generator().manual_seed(seed)
    centroids = unit[torch.randperm(len(unit), generator=generator)[:clusters]]  # (C, D)
    for _ in range(rounds):
        blocks = [(block @ centroids.T).max(1) for block in unit.split(_BLOCK)]
        assigned = torch.cat([block.indices for block in blocks])  # (V,)
        similarities = torch.cat([block.values for block in blocks])  # (V,)
        _reseed_empty_clusters(assigned, similarities, clusters)
        sums = torch.zeros_like(centroids).index_add_(0, assigned, unit)
        centroids = F.normalize(sums, dim=1)  # (C, D)
        progress()
    return assigned


def _reseed_empty_clusters(assigned: Tensor, similarities: Tensor, clusters: int) -> None:
    """Re-seed empty clusters with the rows farthest from their centroid, but never take a cluster's
    closest row, so that none becomes empty. Edits ``assigned`` (V,), given each row's similarity
    (V,) to its centroid."""
    farthest = similarities.argsort()  # (V,) rows, the farthest from their centroid first
    own, positions = assigned[farthest], torch.arange(len(assigned))
    closest = torch.zeros(clusters, dtype=torch.int64).scatter_reduce(0, own, positions, "amax")
    empty = (torch.bincount(assigned, minlength=clusters) == 0).nonzero().flatten()
    assigned[farthest[positions < closest[own]][: len(empty)]] = empty
