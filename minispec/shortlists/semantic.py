"""The semantic index: ids whose LM head rows point in the direction of the draft's hidden state.

The rows are clustered once per model (``kmeans``). At drafting time the hidden state is compared
with one mean row per cluster, as in the inverted file of a vector search, and only the members of
the best clusters are considered. So an id can be found that is frequent in no text seen before.

Cost, in numbers read from memory: C * D for the centroids, once per shortlist, and K * D for the
shortlist's head rows, once per draft step, against V * D for the whole head. A shortlist that is
chosen once for a round of gamma steps can afford gamma times as many clusters.

A cluster's centroid is the mean of its *raw* rows, so its score is the mean logit of its members.
More clusters are probed than fill the count. Of their members, those ids are taken whose own logit
is expected to be highest: logits of frequent ids lie above their cluster's mean, those of rare ids
below it.

Knows nothing of budgets and of the other parts of a shortlist.
"""

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from minispec.models.lm_head import LinearHead
from minispec.models.quantized_matrix import BLOCK, Rows, quantize
from minispec.types import Head

_CHUNK = 8192  # rows added to the means at once
_PROBED = 2  # ids considered for each that is taken, if clusters are of average size
_RARITY = 2.0  # nats by which the expected logit falls where a rank is e times as high
Ids = npt.NDArray[np.int64]


class InvertedLists:
    """Inverted lists: the members of each cluster, most frequent first."""

    def __init__(self, clusters: Tensor, ranking: Ids, without: Ids) -> None:
        """``clusters`` (V,) int64; ``ranking`` (V,) all ids, most frequent first; ``without``
        (n,): ids to leave out, because the shortlist has them anyway."""
        ids = ranking[~np.isin(ranking, without)]  # (N,)
        # Only clusters that have members count here; ``numbers`` (C,) are their own numbers.
        self.numbers, cluster = np.unique(clusters.numpy()[ids], return_inverse=True)
        self.members = ids[cluster.argsort(kind="stable")]  # (N,) cluster by cluster
        self.sizes = np.bincount(cluster)  # (C,)
        self._ends = self.sizes.cumsum()  # (C,) where each cluster ends in ``members``

    def positions(self, clusters: Ids) -> Ids:
        """Indices of clusters (c,) -> the positions of their members in ``members`` (n,), cluster
        by cluster."""
        sizes = self.sizes[clusters]  # (c,)
        ends = sizes.cumsum()  # (c,) of the same clusters in the result
        shifts = (self._ends[clusters] - ends).repeat(sizes)  # (n,)
        return np.arange(len(shifts)) + shifts

    def top_clusters(self, scores: npt.NDArray[np.floating], count: int) -> Ids:
        """scores (C,) -> the members (n,) of the highest-scoring clusters, best first: as many
        whole clusters as are needed for ``count`` ids, or all of them."""
        order = np.argsort(-scores)
        ends = self.sizes[order].cumsum()
        return self.members[self.positions(order[: np.searchsorted(ends, count) + 1])]


class SemanticIndex:
    """Inverted lists with a mean row for each cluster, which hidden states are compared with."""

    def __init__(
        self,
        clusters: Tensor,
        rows: Rows,
        ranking: Ids,
        without: Ids,
        rarity: float = _RARITY,
    ) -> None:
        """``rows`` (V, D) of the LM head; ``clusters`` (V,), ``ranking`` (V,) and ``without`` (n,)
        as for ``InvertedLists``. Means are weighted by 1 / rank, an id's frequency by Zipf's law.
        ``rarity``: nats by which the expected logit falls where a rank is e times as high; 0 if
        the ranking is arbitrary."""
        self.inverted = InvertedLists(clusters, ranking, without)
        members, sizes = self.inverted.members, self.inverted.sizes
        cluster = np.repeat(np.arange(len(sizes)), sizes)  # (N,)
        ranks = 1 + ranking.argsort()[members]  # (N,)
        weights = 1 / ranks
        weights /= np.bincount(cluster, weights)[cluster]  # (N,), summing to one in each cluster
        means = torch.zeros(len(sizes), rows.shape[1])  # (C, D)
        for start in range(0, len(members), _CHUNK):
            block = slice(start, start + _CHUNK)
            share = torch.from_numpy(weights[block]).float()[:, None]  # (n, 1)
            weighted = share * rows[torch.from_numpy(members[block])].float()  # (n, D)
            means.index_add_(0, torch.from_numpy(cluster[block]), weighted)
        # (C, D), in bytes whatever the rows are: a quarter, and precise enough to rank by.
        self.centroids: Rows = quantize(means) if means.shape[1] % BLOCK == 0 else means
        self.head: Head = LinearHead(self.centroids)  # what multiplies them, a backend's or this
        self._penalties = (rarity * np.log(ranks)).astype(np.float32)  # (N,)

    def find_nearest(self, hidden: Tensor, count: int, taken: npt.NDArray[np.bool_]) -> Ids:
        """hidden (D,) -> the ``count`` ids (n,) of highest expected logit among those not in
        ``taken`` (V,), in any order; fewer if fewer are left."""
        scores = self.head.logits(hidden.float()).numpy()  # (C,)
        inverted, clusters = self.inverted, len(scores)
        probed = math.ceil(_PROBED * count * clusters / max(1, len(inverted.members)))
        while True:
            top = (-scores).argpartition(min(probed, clusters - 1))[:probed]  # (c,) clusters
            positions = inverted.positions(top)  # (n,)
            members = inverted.members[positions]  # (n,)
            free = ~taken[members]
            if probed >= clusters or np.count_nonzero(free) >= count:
                break
            probed *= 2  # the clusters were small, or most of their ids taken
        ids = members[free]
        if len(ids) <= count:
            return ids
        costs = (self._penalties[positions] - scores[top].repeat(inverted.sizes[top]))[free]
        return ids[costs.argpartition(count)[:count]]  # (count,)
