"""The semantic index: which ids are nearest to a hidden state."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from minispec.shortlists.semantic import SemanticIndex


def test_find_nearest_takes_the_ids_of_highest_expected_logit() -> None:
    """Among the members of as many clusters as are probed, those of highest mean logit."""
    generator = torch.Generator().manual_seed(1)
    rows, states = (torch.randn(n, 6, generator=generator) for n in (50, 20))
    clusters = torch.arange(50) % 7
    ranking = torch.randperm(50, generator=generator).numpy()
    rank = {int(token): 1 + position for position, token in enumerate(ranking)}
    members = {c: [i for i in range(c, 50, 7) if i not in (3, 4)] for c in range(7)}
    index = SemanticIndex(clusters, rows, ranking, np.array([3, 4]))

    for state in states:
        logits = (rows @ state).tolist()
        means = [
            sum(logits[i] / rank[i] for i in ids) / sum(1 / rank[i] for i in ids)
            for ids in members.values()
        ]
        scores = dict(enumerate(index.head.logits(state).tolist()))
        assert [*scores.values()] == pytest.approx(means, abs=0.01)
        expected_logits = {
            i: scores[c] - 2 * math.log(rank[i]) for c, ids in members.items() for i in ids
        }

        def find_expected(
            count: int, probed: int, taken: Sequence[int],
            scores: dict[int, float] = scores, logits: dict[int, float] = expected_logits,
        ) -> set[int]:  # fmt: skip
            top = sorted(scores, key=lambda cluster: -scores[cluster])[:probed]
            free = [i for cluster in top for i in members[cluster] if i not in taken]
            return set(sorted(free, key=lambda i: -logits[i])[:count])

        first = list(find_expected(5, 2, []))
        crowded = [i for i in range(50) if i not in first[:3]]
        for count, probed, taken in [(5, 2, []), (5, 2, first[:2]), (0, 0, []), (3, 7, crowded)]:
            mask = np.isin(np.arange(50), taken)
            nearest = index.find_nearest(state, count, mask).tolist()
            assert len(nearest) == count and set(nearest) == find_expected(count, probed, taken)
        assert len(index.find_nearest(state, 60, np.zeros(50, bool))) == 48  # all of them
