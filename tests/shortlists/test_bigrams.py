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
    texts = np.random.default_rng(0).integers(0, 50, (42, 30)).tolist()
    whole, merge, sizes = bigrams.count_bigrams(texts, 50), bigrams._merge_counts, []
    monkeypatch.setattr(bigrams, "_CHUNK", 100)
    monkeypatch.setattr(
        bigrams, "_merge_counts", lambda *args: sizes.append(len(args[2])) or merge(*args)
    )
    for ours, theirs in zip(bigrams.count_bigrams(texts, 50), whole, strict=True):
        assert (ours == theirs).all()
    # Four texts of 30 ids, the first to reach 100, at a time.
    assert sizes == [4 * 29] * 10 + [2 * 29] and whole[0].dtype == whole[1].dtype == np.int64


def test_edges_are_those_of_each_graph():
    for weight in (0.5, 0.25, 0.75):
        degrees, ids = np.array([1, 0]), np.array([1])
        graph = bigrams.BigramGraph(degrees, ids, np.array([weight], np.float32))
        assert graph.edges[0] is ids and graph.edges[1].tolist() == [weight]
        del graph


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        ({}, [(1, 0.5), (2, 0.25), (3, 0.125), (4, 0.125)]),
        ({"min_count": 2}, [(1, 0.5), (2, 0.25)]),
        ({"min_weight": 0.2}, [(1, 0.5), (2, 0.25)]),
        ({"max_successors": 3}, [(1, 0.5), (2, 0.25), (3, 0.125)]),
    ],
)
def test_build_graph_of_one_id_by_hand(changes, kept):
    """After id 6 there are 1 four times, 2 twice, 3 and 4 once; after id 5, 6 six times."""
    texts = [[6, 1]] * 4 + [[6, 2]] * 2 + [[6, 4], [6, 3]] + [[5, 6]] * 6
    options = {"min_count": 1, "min_weight": 0.0, "max_successors": 9} | changes
    graph = bigrams.build_graph(*bigrams.count_bigrams(texts, 7), 7, **options)
    ids, weights = graph.successors(6, 9)
    assert [*zip(ids.tolist(), weights.tolist(), strict=True)] == kept
    assert graph.successors(5, 9)[0].tolist() == [6]
    assert ids.dtype == np.int64 and weights.dtype == np.float32


def test_successors_of_counts_in_one_byte():
    degrees, ids = np.array([200, 200, 3], np.uint8), np.arange(403)
    graph = bigrams.BigramGraph(degrees, ids, ids.astype(np.float32))
    assert graph.successors(1, 2)[0].tolist() == [200, 201]
    assert graph.successors(2, 9)[1].tolist() == [400.0, 401.0, 402.0]


@pytest.mark.parametrize("texts", [[], [[]], [[3], [4]]])
def test_count_bigrams_refuses_text_without_pairs(texts):
    with pytest.raises(ArgumentError, match="no two neighbouring ids"):
        bigrams.count_bigrams(texts, 7)
