"""The semantic index: which ids have LM head rows that point where the state points.

The head's rows are clustered once per model. A state is then compared with each cluster's mean
row before any member's row is read, as in an inverted file of a vector search, so that ids
which no one has counted on are found by what the draft is about to say.

Cost, in numbers read from memory: C * D for the centroids, once for each list, and K * D for
the list's rows, at each draft step, beside V * D for the whole head. A list that serves a round
of gamma steps can so afford gamma times the clusters of one that serves a step.

Clusters are of rows scaled to unit length (spherical k-means), since by plain distance the
longest rows get clusters of their own. They are scored by the mean of their *raw* rows, which
is the mean logit of their members. Of the clusters scored highest, more than there is room for,
those ids are taken whose own logit can be expected to be highest: frequent ids' logits lie above
their cluster's mean, rare ones' below it.

Knows nothing of budgets and of the other parts of a list.
"""

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from minispec.errors import ArgumentError

_BLOCK = 8192  # rows compared with all centroids at once
_PROBED = 2  # ids looked at for each that is taken, where clusters are of average size
_RARITY = 2.0  # nats that a logit is expected to lose where a rank is e times as high
Ids = npt.NDArray[np.int64]


def cluster_rows(
    rows: Tensor,
    clusters: int,
    seed: int = 0,
    rounds: int = 20,
    progress: Callable[[], object] = lambda: None,
) -> Tensor:
    """Spherical k-means (Dhillon and Modha 2001): rows (V, D) -> the cluster of each row (V,)
    int64, none empty.

    ``progress`` is called after each of the ``rounds``. Raises ArgumentError.
    """
    if not 1 <= clusters <= len(rows):
        raise ArgumentError(f"clusters {clusters} must lie in 1..{len(rows)}, the rows there are")
    unit = F.normalize(rows.float(), dim=1)
    generator = torch.Generator().manual_seed(seed)
    centroids = unit[torch.randperm(len(unit), generator=generator)[:clusters]]  # (C, D)
    for _ in range(rounds):
        best = [(block @ centroids.T).max(1) for block in unit.split(_BLOCK)]
        nearest = torch.cat([b.indices for b in best])  # (V,)
        # A cluster that lost all its rows takes over one that lies far from its own centre, but
        # never the one of a cluster that lies nearest to it: no other is emptied by that.
        loneliest = torch.cat([b.values for b in best]).argsort()
        own, places = nearest[loneliest], torch.arange(len(unit))
        last = torch.zeros(clusters, dtype=torch.int64).scatter_reduce(0, own, places, "amax")
        empty = (torch.bincount(nearest, minlength=clusters) == 0).nonzero().flatten()
        nearest[loneliest[places < last[own]][: len(empty)]] = empty
        sums = torch.zeros_like(centroids).index_add_(0, nearest, unit)
        centroids = F.normalize(sums, dim=1)
        progress()
    return nearest


class InvertedLists:
    """Inverted lists: for each cluster its members, by descending rank."""

    def __init__(self, clusters: Tensor, ranking: Ids, without: Ids) -> None:
        """``clusters`` (V,) int64; ``ranking`` (V,) all ids, most frequent first; ``without``
        (n,): ids that need not be found, being on the list anyway."""
        ids = ranking[~np.isin(ranking, without)]
        # The numbers (C,) of the clusters that have members, in the order of everything here.
        self.numbers, cluster = np.unique(clusters.numpy()[ids], return_inverse=True)
        self.members = ids[cluster.argsort(kind="stable")]  # (N,)
        self.sizes = np.bincount(cluster)  # (C,)
        self._ends = self.sizes.cumsum()  # where each cluster's members end

    def places(self, clusters: Ids) -> Ids:
        """The numbers of some clusters (c,) -> where in ``members`` their members are (n,), cluster
        by cluster."""
        sizes = self.sizes[clusters]
        ends = sizes.cumsum()  # of the clusters' members, laid end to end
        shifts = (self._ends[clusters] - ends).repeat(sizes)
        return np.arange(len(shifts)) + shifts

    def best(self, scores: npt.NDArray[np.floating], least: int) -> Ids:
        """scores (C,) -> the members (n,) of the clusters of highest score, whole clusters, best
        first: at least so many ids where there are as many."""
        best = np.argsort(-scores)
        ends = self.sizes[best].cumsum()
        return self.members[self.places(best[: np.searchsorted(ends, least) + 1])]


class SemanticIndex:
    """Inverted lists, and for each cluster the mean row that a state is compared with."""

    def __init__(
        self,
        clusters: Tensor,
        rows: Tensor,
        ranking: Ids,
        without: Ids,
        rarity: float = _RARITY,
    ) -> None:
        """``rows`` (V, D): the head's; ``clusters`` (V,), ``ranking`` (V,) and ``without`` (n,) as
        for ``InvertedLists``. Means are weighted by one over an id's rank, which is its frequency by
        Zipf's law. ``rarity``: nats that a logit loses where its id's rank is e times as high,
        0 for a ranking that says nothing."""
        self.lists = InvertedLists(clusters, ranking, without)
        members, sizes = self.lists.members, self.lists.sizes
        cluster = np.repeat(np.arange(len(sizes)), sizes)
        ranks = 1 + ranking.argsort()[members]
        weights = 1 / ranks
        weights /= np.bincount(cluster, weights)[cluster]
        means = torch.zeros(len(sizes), rows.shape[1])
        for start in range(0, len(members), _BLOCK):
            block = slice(start, start + _BLOCK)
            share = torch.from_numpy(weights[block]).float()[:, None]
            weighted = share * rows[torch.from_numpy(members[block])].float()
            means.index_add_(0, torch.from_numpy(cluster[block]), weighted)
        # (C, D), float16 whatever the rows are: half the bytes, and fine enough to rank by.
        self.centroids = means.half()
        self._rarity = (rarity * np.log(ranks)).astype(np.float32)  # (N,)

    def near(self, hidden: Tensor, count: int, taken: npt.NDArray[np.bool_]) -> Ids:
        """hidden (D,) -> the ids (n,), in any order, whose logits can be expected to be highest:
        ``count`` of those that are not ``taken`` (V,), fewer where there are not as many."""
        scores = torch.mv(self.centroids, hidden.half()).numpy().astype(np.float32)  # (C,)
        lists, clusters = self.lists, len(scores)
        probed = math.ceil(_PROBED * count * clusters / max(1, len(lists.members)))
        while True:
            best = (-scores).argpartition(min(probed, clusters - 1))[:probed]
            places = lists.places(best)
            members = lists.members[places]
            fresh = ~taken[members]
            if probed >= clusters or np.count_nonzero(fresh) >= count:
                break
            probed *= 2  # clusters that were small, or mostly taken
        ids = members[fresh]
        if len(ids) <= count:
            return ids
        lost = (self._rarity[places] - scores[best].repeat(lists.sizes[best]))[fresh]
        return ids[lost.argpartition(count)[:count]]


def whole(ranking: Tensor, vocab_size: int) -> Ids:
    """All ids (V,): those of a ranking (N,) in its order, then the others."""
    rest = np.setdiff1d(np.arange(vocab_size), ranking.numpy())
    return np.concatenate((ranking.numpy(), rest))
