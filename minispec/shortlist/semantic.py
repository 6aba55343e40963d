"""The semantic index: which ids have LM head rows that point where the state points.

The head's rows are clustered once per model. A state is then compared with each cluster's mean
row before any member's row is read, as in an inverted file (IVF) of a vector search, so that
ids which no one has counted on are found by what the draft is about to say.

Cost, in numbers read from memory: C * D for the centroids and K * D for a list's rows, beside
V * D for the whole head. At V = 49,152, C = 512 and K = 1,536 that is 4% of it.

Clusters are of rows scaled to unit length (spherical k-means), since by plain distance the
longest rows, which are of the rarest ids, get clusters of their own. They are scored by the
mean of their *raw* rows, which is the mean logit of their members.

Knows nothing of budgets and of the other parts of a list.
"""

from collections.abc import Callable
from importlib import resources
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from minispec.checkpoint import read_metadata, read_tensors, write_tensors
from minispec.errors import ArgumentError, FileError, FingerprintError

_BLOCK = 8192  # rows compared with all centroids at once
Ids = npt.NDArray[np.int64]


def clustered(
    rows: Tensor,
    clusters: int,
    seed: int = 0,
    rounds: int = 20,
    progress: Callable[[], object] = lambda: None,
) -> Tensor:
    """Spherical k-means: rows (V, D) -> the cluster of each row (V,) int64, none empty.

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
        # A cluster that lost all its rows takes over one that lies far from its own centre.
        loneliest = torch.cat([b.values for b in best]).argsort()
        sizes = torch.bincount(nearest, minlength=clusters)
        empty = (sizes == 0).nonzero().flatten()
        spare = loneliest[sizes[nearest[loneliest]] > len(empty)]
        nearest[spare[: len(empty)]] = empty[: len(spare)]
        sums = torch.zeros_like(centroids).index_add_(0, nearest, unit)
        centroids = F.normalize(sums, dim=1)
        progress()
    return nearest


class SemanticIndex:
    """Clusters of ids, each by descending rank, and what a state is compared with."""

    def __init__(self, clusters: Tensor, rows: Tensor) -> None:
        """``clusters`` (V,) int64, none empty; ``rows`` (V, D): the head's, whose dtype the
        centroids are kept in."""
        self.clusters = clusters.numpy()  # (V,)
        sizes = torch.bincount(clusters)
        sums = torch.zeros(len(sizes), rows.shape[1]).index_add_(0, clusters, rows.float())
        self.centroids = (sums / sizes[:, None]).to(rows.dtype)  # (C, D)

    def inverted(self, ranking: Ids) -> tuple[Ids, Ids]:
        """Ids (N,) in descending rank -> the same cluster by cluster, ranked within each, and
        where each cluster begins and the last one ends (C + 1,)."""
        clusters = self.clusters[ranking]
        sizes = np.bincount(clusters, minlength=len(self.centroids))
        return ranking[clusters.argsort(kind="stable")], np.concatenate(([0], sizes.cumsum()))

    def probe(self, hidden: Tensor, most: int) -> Ids:
        """hidden (D,) -> the clusters of highest mean logit, best first, at most ``most``."""
        scores = torch.mv(self.centroids, hidden)  # (C,)
        return scores.topk(min(most, len(scores))).indices.numpy()


def write_index(path: Path, clusters: Tensor, model: str, tokenizer: str) -> None:
    """Writes the cluster of each id (V,), with the fingerprints that it was made for."""
    metadata = {"model": model, "tokenizer": tokenizer}
    write_tensors(path, {"clusters": clusters.to(torch.int32)}, metadata)


def read_index(path: Path, rows: Tensor, model: str, tokenizer: str) -> SemanticIndex:
    """The index of a model with these rows (V, D).

    Raises FileError for a damaged file, FingerprintError for another model's or tokenizer's.
    """
    metadata = read_metadata(path)
    for kind, wanted in (("model", model), ("tokenizer", tokenizer)):
        made_for = metadata.get(kind, "none")
        if made_for != wanted:
            raise FingerprintError(
                f"{path} was made for {kind} {made_for[:12]}, this one is {wanted[:12]}: "
                "make its own with `minispec index build`"
            )
    clusters = read_tensors(path, {"clusters": (len(rows),)})["clusters"].long()
    within = clusters.min() >= 0 and clusters.max() < len(rows)
    if not within or not torch.bincount(clusters).all():
        raise FileError(f"{path} is no index: its clusters are not numbered 0, 1, 2 and so on")
    return SemanticIndex(clusters, rows)


def shipped(model: str) -> Path | None:
    """Where the package keeps the index of a known model, None for any other."""
    if Path(model).name != model:
        return None  # a path, not a name
    path = Path(str(resources.files("minispec"))) / "data" / "indices" / f"{model}.safetensors"
    return path if path.is_file() else None


def find(model: str, given: Path | None) -> Path:
    """The index that was given, or the model's own. Raises ArgumentError."""
    path = given or shipped(model)
    if path is None:
        raise ArgumentError(
            f"no index of the head of model {model} is known: make one with "
            "`minispec index build` and give it with --index"
        )
    return path
