"""The bigram graph of EvoSpec (arXiv 2605.27390 v1, S_graph in equation 3; appendix A.3, table 5):
which id follows which in text.

An edge u -> v has the weight p(v | u) = count(u, v) / count(u). An edge is kept if it was counted
often enough and is likely enough; of each id, at most 64: the heaviest, as we read it. The graph is
counted once, before serving, and never updated. The paper counts SlimPajama and does not say how
much of it; here any encoded texts are counted.

``statistical`` is another thing: it learns from the text at hand.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from minispec.errors import ArgumentError

Ids = npt.NDArray[np.int64]
MIN_COUNT, MIN_WEIGHT, MAX_SUCCESSORS = 5, 1e-4, 64  # the paper's, table 5
_CHUNK = 2**22  # pairs that are counted at once


class BigramGraph:
    """The heaviest successors of each id."""

    def __init__(
        self, degrees: npt.NDArray[np.integer], successors: Ids, weights: npt.NDArray[np.float32]
    ) -> None:
        """``degrees`` (V,): the number of successors of each id; ``successors`` (E,) and their
        ``weights`` (E,) p(v | u), id by id, the heaviest first."""
        self.degrees, self._successors, self._weights = degrees, successors, weights
        self._ends = degrees.astype(np.int64).cumsum()  # (V,)

    @property
    def edges(self) -> tuple[Ids, npt.NDArray[np.float32]]:
        """All successors (E,) and their weights (E,), as the constructor takes them."""
        return self._successors, self._weights

    def successors(self, token: int, count: int) -> tuple[Ids, npt.NDArray[np.float32]]:
        """The ``count`` heaviest successors (n,) of an id, or all if it has fewer, and their
        weights (n,); the heaviest first."""
        end = int(self._ends[token])
        start = end - int(self.degrees[token])
        part = slice(start, min(end, start + count))
        return self._successors[part], self._weights[part]


def count_bigrams(texts: Iterable[Sequence[int]], vocab_size: int) -> tuple[Ids, Ids]:
    """Count the pairs of neighbouring ids in encoded texts; no pair spans two texts.

    Returns the distinct pairs (n,), each as u * V + v in ascending order, and their counts (n,).
    Memory is bounded by the distinct pairs and a chunk of text. Raises ArgumentError if no text has
    two ids.
    """
    pairs = counts = np.zeros(0, np.int64)
    chunk: list[Ids] = []
    waiting = 0
    for text in texts:
        ids = np.asarray(text, np.int64)  # (T,)
        chunk.append(ids[:-1] * vocab_size + ids[1:])
        waiting += len(ids)
        if waiting >= _CHUNK:
            pairs, counts = _merge_counts(pairs, counts, np.concatenate(chunk))
            chunk, waiting = [], 0
    if chunk:
        pairs, counts = _merge_counts(pairs, counts, np.concatenate(chunk))
    if not len(pairs):
        raise ArgumentError("the text has no two neighbouring ids: bigrams need some text")
    return pairs, counts


def _merge_counts(pairs: Ids, counts: Ids, more: Ids) -> tuple[Ids, Ids]:
    """Add the pairs ``more`` (n,), with repetitions, to distinct pairs and their counts."""
    new, new_counts = np.unique(more, return_counts=True)
    merged, index = np.unique(np.concatenate((pairs, new)), return_inverse=True)
    sums = np.bincount(index, np.concatenate((counts, new_counts)))  # exact in float64 below 2**53
    return merged, sums.astype(np.int64)


def build_graph(
    pairs: Ids,
    counts: Ids,
    vocab_size: int,
    *,
    min_count: int = MIN_COUNT,
    min_weight: float = MIN_WEIGHT,
    max_successors: int = MAX_SUCCESSORS,
) -> BigramGraph:
    """The graph of counted pairs: ``pairs`` (n,) and ``counts`` (n,) of ``count_bigrams``.

    An edge has a count of at least ``min_count`` and a weight of at least ``min_weight``; of each
    id the ``max_successors`` heaviest are kept, ties to the lower id. Weights are relative to all
    pairs that begin with the id.
    """
    first, second = pairs // vocab_size, pairs % vocab_size  # (n,)
    totals = np.bincount(first, counts, minlength=vocab_size)  # (V,)
    weights = counts / totals[first]  # (n,)
    kept = (counts >= min_count) & (weights >= min_weight)
    first, second, weights = first[kept], second[kept], weights[kept]
    order = np.lexsort((second, -weights, first))
    first, second, weights = first[order], second[order], weights[order]
    starts = np.searchsorted(first, first)  # (n,) where each id's edges begin
    kept = np.arange(len(first)) - starts < max_successors
    degrees = np.bincount(first[kept], minlength=vocab_size)
    return BigramGraph(degrees, second[kept], weights[kept].astype(np.float32))
