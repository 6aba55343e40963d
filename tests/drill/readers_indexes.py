"""Readers of what shortlists are made from: clusters, routers, bigrams, low-rank factors, and the
HNSW index that is kept in the user's cache."""

import os
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from drill.format_json import Json
from drill.format_safetensors import Safetensors
from drill.format_text import Lines
from drill.reader import ANY, Outcome, Part, Reader, digest
from drill.readers_own import TOKENIZER
from drill.rules import are_ids, is_finite_data
from drill.values import Rule
from minispec.io import bigram_file, index_file, lowrank_file
from minispec.shortlists.bigrams import BigramGraph
from minispec.shortlists.dynaspec import Router
from minispec.tools.models import hnsw_cache

_IDS, _CLUSTERS, _SIZE = 200, 12, 16


def _write_index(folder: Path) -> None:
    torch.manual_seed(0)
    clusters = torch.arange(_IDS) % _CLUSTERS
    weights = Router(_SIZE, _CLUSTERS).state_dict()
    index_file.write_index(folder / "index.safetensors", clusters, weights, TOKENIZER, TOKENIZER)


def _load_index(folder: Path) -> Outcome:
    path = folder / "index.safetensors"
    clusters, weights = index_file.read_index(path, _IDS, TOKENIZER, TOKENIZER)
    count = int(clusters.max()) + 1
    router = index_file.build_router(weights, _SIZE, count, str(path))
    return {"clusters": digest(clusters), "router": digest(router(torch.ones(1, _SIZE)))}


def _write_bigrams(folder: Path) -> None:
    degrees = np.arange(_IDS) % 4
    edges = int(degrees.sum())
    graph = BigramGraph(degrees, np.arange(edges) % _IDS, np.full(edges, 0.25, np.float32))
    bigram_file.write_bigrams(folder / "bigrams.safetensors", graph, TOKENIZER, {"texts": "one"})


def _load_bigrams(folder: Path) -> Outcome:
    graph = bigram_file.read_bigrams(folder / "bigrams.safetensors", _IDS, TOKENIZER)
    successors, weights = graph.edges
    return {"degrees": digest(graph.degrees), "ids": digest(successors), "weights": digest(weights)}


def _write_factors(folder: Path) -> None:
    generator = torch.Generator().manual_seed(1)
    expand, projection = (torch.randn(_SIZE, 4, generator=generator) for _ in range(2))
    lowrank_file.write_factors(folder / "factors.safetensors", (expand, projection), TOKENIZER)


def _load_factors(folder: Path) -> Outcome:
    factors = lowrank_file.read_factors(folder / "factors.safetensors", _SIZE, TOKENIZER)
    return {"expand": digest(factors[0]), "projection": digest(factors[1])}


def _rows() -> torch.Tensor:
    return torch.randn(_IDS, _SIZE, generator=torch.Generator().manual_seed(2))


def _write_hnsw(folder: Path) -> None:
    os.environ["XDG_CACHE_HOME"] = str(folder)
    hnsw_cache.load_hnsw(_rows(), TOKENIZER)
    for path in (folder / "minispec" / "hnsw").iterdir():
        path.rename(path.with_name(f"index{path.suffix}"))


def _load_hnsw(folder: Path) -> Outcome:
    """A damaged index is built again."""
    os.environ["XDG_CACHE_HOME"] = str(folder)
    for path in (folder / "minispec" / "hnsw").iterdir():
        path.rename(path.with_stem(f"{TOKENIZER[:16]}-{hnsw_cache.NEIGHBOURS}"))
    index = hnsw_cache.load_hnsw(_rows(), TOKENIZER)
    return {"nearest": digest([index.find_nearest(row, 5).tolist() for row in _rows()[:20]])}


_INDEX = {"router.*.data": is_finite_data, "clusters.data": are_ids(_IDS, unique=False)}
_BIGRAMS: dict[str, Rule] = {
    "degrees.data": are_ids(_IDS, unique=False),
    "successors.data": are_ids(_IDS, unique=False),
    "weights.data": lambda value: is_finite_data(value) and 0 < value.min() <= value.max() <= 1,
}
READERS = (
    Reader("index with router", _write_index, _load_index,
           (Part("index.safetensors", Safetensors(), _INDEX),), 2),
    Reader("bigrams", _write_bigrams, _load_bigrams,
           (Part("bigrams.safetensors", Safetensors(), _BIGRAMS),), 2),
    Reader("low-rank factors", _write_factors, _load_factors,
           (Part("factors.safetensors", Safetensors(), {"*.data": is_finite_data}),), 2),
)  # fmt: skip
if find_spec("usearch"):
    READERS += (
        Reader("HNSW index", _write_hnsw, _load_hnsw,
               (Part("minispec/hnsw/index.json", Json(), ANY, optional=True),
                Part("minispec/hnsw/index.usearch", Lines(), ANY, optional=True)), 1),
    )  # fmt: skip
