"""What shortlists are built from, read from a model's files."""

from pathlib import Path

from torch import Tensor

from minispec.errors import ArgumentError
from minispec.io import bigram_file, index_file, lowrank_file
from minispec.io.artifacts import find_artifact
from minispec.shortlists.bigrams import BigramGraph
from minispec.shortlists.dynaspec import Router
from minispec.tools.data import ranking
from minispec.tools.models.pretrained import Pretrained


def read_ranking(model: Pretrained, name: str) -> tuple[Tensor, Path]:
    """Ids (N,) of a ranking of the model, most frequent first, and its file. Raises ArgumentError,
    FileError, FingerprintError."""
    file = ranking.find_ranking(model.name, name)
    size = model.target.head.vocab_size
    return ranking.read_ranking(file, model.tokenizer.fingerprint, size), file


def read_clusters(model: Pretrained) -> Tensor:
    """The cluster of each row of the LM head (V,), from the model's index. Raises ArgumentError,
    FileError, FingerprintError."""
    return _read_index(model, index_file.find_index(model.name, model.index))[0]


def read_router(model: Pretrained) -> tuple[Tensor, Router]:
    """A router and the clusters (V,) that it was trained for. Raises ArgumentError, FileError,
    FingerprintError."""
    given = model.index or find_artifact(model.name, "router")
    file = index_file.find_index(model.name, given)
    clusters, weights = _read_index(model, file)
    width = model.reference.config.hidden_size
    return clusters, index_file.build_router(weights, width, int(clusters.max()) + 1, str(file))


def read_bigrams(model: Pretrained) -> BigramGraph:
    """The graph of bigrams that ships for the model, or the one in its index's folder. Raises
    ArgumentError, FileError, FingerprintError."""
    file = _find_part(model, "bigrams", "--bigrams")
    size = model.target.head.vocab_size
    return bigram_file.read_bigrams(file, size, model.tokenizer.fingerprint)


def read_factors(model: Pretrained) -> tuple[Tensor, Tensor]:
    """The factors (D, r) and (D, r) of a low-rank head that ship for the model, or those in its
    index's folder. Raises ArgumentError, FileError, FingerprintError."""
    file = _find_part(model, "lowrank", "--lowrank")
    width = model.reference.config.hidden_size
    return lowrank_file.read_factors(file, width, model.fingerprint)


def _find_part(model: Pretrained, name: str, option: str) -> Path:
    """The file ``name``.safetensors beside the index that was given, else the shipped one."""
    beside = model.index and model.index.with_name(f"{name}.safetensors")
    file = beside if beside and beside.is_file() else find_artifact(model.name, name)
    if file is None:
        raise ArgumentError(
            f"model {model.name} has no {name}.safetensors: build one beside an index with "
            f"`minispec index build {option}`, and pass the index with --index"
        )
    return file


def _read_index(model: Pretrained, file: Path) -> tuple[Tensor, dict[str, Tensor]]:
    return index_file.read_index(
        file, model.target.head.vocab_size, model.fingerprint, model.tokenizer.fingerprint
    )
