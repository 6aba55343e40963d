from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minispec.errors import ArgumentError
from minispec.shortlists import bigrams

_texts = st.lists(st.lists(st.integers(0, 6), max_size=40), min_size=1, max_size=6)


@given(_texts, st.integers(1, 3), st.sampled_from([0.0, 0.2, 0.5]), st.integers(1, 3))
def test_build_graph_keeps_the_edges_that_the_definition_names(texts, count, weight, most):
    pairs = Counter(pair for text in texts for pair in pairwise(text))
    if not pairs:
        with pytest.raises(ArgumentError, match="no two neighbouring ids"):
            bigrams.count_bigrams(texts, 7)
        return
    graph = bigrams.build_graph(
        *bigrams.count_bigrams(texts, 7), 7, min_count=count, min_weight=weight,
        max_successors=most,
    )  # fmt: skip
    totals = Counter(first for first, _ in pairs.elements())
    for first in range(7):
        expected = sorted(
            (-n / totals[first], second)
            for (u, second), n in pairs.items()
            if u == first and n >= count and n / totals[first] >= weight
        )[:most]
        ids, weights = graph.successors(first, most)
        assert ids.tolist() == [second for _, second in expected]
        assert weights == pytest.approx([-w for w, _ in expected])
        assert graph.successors(first, 1)[0].tolist() == ids[:1].tolist()


def test_count_bigrams_is_the_same_in_any_chunks(monkeypatch):
    texts = np.random.default_rng(0).integers(0, 50, (40, 30)).tolist()
    whole = bigrams.count_bigrams(texts, 50)
    monkeypatch.setattr(bigrams, "_CHUNK", 100)
    for ours, theirs in zip(bigrams.count_bigrams(texts, 50), whole, strict=True):
        assert (ours == theirs).all()
