"""HNSW (Malkov and Yashunin, arXiv 1603.09320): nearest head rows without reading them all.

EvoSpec (arXiv 2605.27390 v1, S_sem in equation 3) retrieves ids whose head rows have the largest
inner product with a hidden state from such a graph over the target's LM head, with M = 32. Inner
products do not define neighbours, so the norms of the rows are augmented first, for which the paper
has no formula: here that of Bachrach et al. (RecSys 2014). With m the largest norm of a row,

    w' = [w ; sqrt(m^2 - |w|^2)]    h' = [h ; 0]    so that    w' . h' = w . h  and  |w'| = m

All augmented rows have the same norm, so the nearest by distance is the one of largest inner
product. The search is approximate: ``measure_recall`` says how much of the exact answer it finds.
Library, metric and the width of the beams are not in the paper: usearch, inner product, 128 while
building and 256 while searching are ours.

usearch is optional: extra "hnsw".
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from minispec.errors import ArgumentError, FileError

Ids = npt.NDArray[np.int64]
NEIGHBOURS = 32  # M, the paper's
_BLOCK = 4096  # rows added between two calls of ``progress``
_BUILD_BEAM, _SEARCH_BEAM = 128, 256  # candidates kept


def augment_rows(rows: Tensor) -> Tensor:
    """Rows (V, D) -> rows (V, D + 1) float32 of equal norm with the same inner products."""
    rows = rows.float()
    squares = rows.square().sum(1)  # (V,)
    return torch.cat((rows, (squares.max() - squares).sqrt()[:, None]), 1)


class HnswIndex:
    """A graph over the augmented rows of an LM head."""

    def __init__(self, graph: Any, hidden_size: int) -> None:
        """``graph``: a ``usearch.index.Index`` over ``hidden_size`` + 1 dimensions; see
        ``build_hnsw`` and ``read_hnsw``."""
        self._graph, self._hidden_size = graph, hidden_size

    def __len__(self) -> int:
        return len(self._graph)

    def find_nearest(self, hidden: Tensor, count: int) -> Ids:
        """hidden (D,) -> about the ``count`` ids (n,) of the largest logits, the best first."""
        query = np.zeros(self._hidden_size + 1, np.float32)
        query[:-1] = hidden.float().numpy()
        return np.asarray(self._graph.search(query, count).keys, np.int64)

    def write(self, path: Path) -> str:
        """Write the graph in usearch's format. Returns the SHA-256 of the file."""
        self._graph.save(str(path))
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


def build_hnsw(rows: Tensor, progress: Callable[[int], object] = lambda added: None) -> HnswIndex:
    """Build the graph of rows (V, D) of an LM head: by one thread and in the order of the ids, so
    that the same rows give the same graph. Takes about a minute for 50,000 rows; ``progress`` is
    called with the number of rows added. Raises ArgumentError without usearch."""
    graph, augmented = _new_graph(rows.shape[1]), augment_rows(rows).numpy()
    for start in range(0, len(rows), _BLOCK):
        block = augmented[start : start + _BLOCK]
        graph.add(np.arange(start, start + len(block)), block, threads=1)
        progress(len(block))
    return HnswIndex(graph, rows.shape[1])


def read_hnsw(path: Path, vocab_size: int, hidden_size: int) -> HnswIndex:
    """Read a graph that ``HnswIndex.write`` wrote, of a head of (V, D).

    The caller has checked the file's SHA-256: the library believes what it reads. Raises FileError
    for the graph of another head, ArgumentError without usearch.
    """
    graph = _new_graph(hidden_size)
    graph.load(str(path))
    found = (len(graph), graph.ndim)
    if found != (vocab_size, hidden_size + 1):
        raise FileError(
            f"{path} is a graph of {found[0]} rows of {found[1]} numbers, expected {vocab_size} of "
            f"{hidden_size + 1}"
        )
    return HnswIndex(graph, hidden_size)


def measure_recall(index: HnswIndex, rows: Tensor, hidden: Tensor, count: int = 10) -> float:
    """The share of the exact ``count`` ids of largest logits that the index finds, over hidden
    states (T, D), given the head's rows (V, D)."""
    exact = (hidden.float() @ rows.float().T).topk(count).indices.numpy()  # (T, count)
    found = [
        np.isin(index.find_nearest(h, count), ids).sum()
        for h, ids in zip(hidden, exact, strict=True)
    ]
    return float(np.mean(found) / count)


def _new_graph(hidden_size: int) -> Any:
    try:
        from usearch.index import Index
    except ImportError:
        raise ArgumentError("HNSW needs usearch: install minispec with its extra [hnsw]") from None
    return Index(
        ndim=hidden_size + 1, metric="ip", dtype="f32", connectivity=NEIGHBOURS,
        expansion_add=_BUILD_BEAM, expansion_search=_SEARCH_BEAM,
    )  # fmt: skip
