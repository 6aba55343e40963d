"""A graph of bigrams on disk, with the fingerprint of the tokenizer whose ids it links."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from minispec.errors import FileError
from minispec.io.files import (
    Fingerprints,
    TensorSpec,
    check_fingerprints,
    read_metadata,
    read_tensors,
    write_tensors,
)
from minispec.shortlists.bigrams import BigramGraph

_REMEDY = "count its own with `minispec index build --bigrams`"


def write_bigrams(
    path: Path, graph: BigramGraph, tokenizer: str, details: Mapping[str, str]
) -> None:
    """Write a graph with its tokenizer's fingerprint and ``details`` of the text it was counted
    on: 4 bytes an edge if the vocabulary has at most 65,536 ids, else 6. Raises FileError."""
    successors, weights = graph.edges
    small = len(graph.degrees) <= 2**16
    ids = torch.from_numpy(successors)
    tensors = {
        "degrees": torch.from_numpy(graph.degrees).to(torch.int16),
        # Two bytes hold 65,536 ids if the upper half is written as negative numbers.
        "successors": ((ids + 2**15) % 2**16 - 2**15).to(torch.int16) if small else ids.int(),
        "weights": torch.from_numpy(weights).half(),
    }
    write_tensors(path, tensors, {"tokenizer": tokenizer, **details})


def read_bigrams(path: Path, vocab_size: int, tokenizer: str) -> BigramGraph:
    """Read the graph of a vocabulary of ``vocab_size`` ids.

    Raises FileError for a damaged file, FingerprintError for another tokenizer's.
    """
    check_fingerprints(path, read_metadata(path, Fingerprints), {"tokenizer": tokenizer}, _REMEDY)
    small = vocab_size <= 2**16
    ids = torch.int16 if small else torch.int32
    tensors = read_tensors(path, {
        "degrees": TensorSpec((vocab_size,), frozenset([torch.int16])),
        "successors": TensorSpec((None,), frozenset([ids])),
        "weights": TensorSpec((None,), frozenset([torch.float16])),
    })  # fmt: skip
    degrees = tensors["degrees"].long()
    successors = tensors["successors"].long() % 2**16 if small else tensors["successors"].long()
    weights = tensors["weights"].float()
    edges = int(degrees.sum())
    if int(degrees.min()) < 0 or not edges == len(successors) == len(weights):
        raise FileError(
            f"{path} is damaged: its degrees add up to {edges} edges, but it has "
            f"{len(successors)} successors and {len(weights)} weights"
        )
    if edges and not 0 <= int(successors.min()) <= int(successors.max()) < vocab_size:
        raise FileError(f"{path} is damaged: it has successors outside 0..{vocab_size - 1}")
    if edges and not 0 < float(weights.min()) <= float(weights.max()) <= 1:
        raise FileError(f"{path} is damaged: it has weights outside (0, 1]")
    return BigramGraph(degrees.numpy(), successors.numpy(), np.asarray(weights))
