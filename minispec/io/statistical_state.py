"""The state of a statistical index, what it has learnt, on disk."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from minispec.errors import FileError
from minispec.io.files import (
    Fingerprints,
    Layout,
    TensorSpec,
    check_fingerprints,
    check_tensors,
    read_metadata,
    read_tensors,
    write_tensors,
)
from minispec.shortlists.statistical import StatisticalIndex


def write_state(path: Path, index: StatisticalIndex, tokenizer: str) -> None:
    """Write the state of an index with the fingerprint of its tokenizer. Raises FileError."""
    write_tensors(path, index.state(), {"tokenizer": tokenizer})


def read_state(path: Path, index: StatisticalIndex, tokenizer: str) -> None:
    """Read a state into an index; on any error the index keeps what it has.

    Raises FileError for a damaged file, FingerprintError for another tokenizer's.
    """
    found = read_metadata(path, Fingerprints)
    check_fingerprints(path, found, {"tokenizer": tokenizer}, "start without it")
    restore_state(index, read_tensors(path, _list_tensors(index)), str(path))


def restore_state(index: StatisticalIndex, state: Mapping[str, Tensor], origin: str) -> None:
    """Restore a state read from ``origin``. Raises FileError for other shapes or dtypes, and for
    ids outside the vocabulary; the index then keeps what it has."""
    layout = _list_tensors(index)
    check_tensors(state, layout, origin)
    values = torch.cat([value.flatten().long() for value in state.values()])
    size = layout["after"].shape[0] or 0
    if values.min() < -1 or values.max() >= size:
        raise FileError(f"{origin} has ids outside 0..{size - 1}")
    index.restore(state)


def _list_tensors(index: StatisticalIndex) -> Layout:
    return {
        name: TensorSpec(tuple(value.shape), frozenset((value.dtype,)))
        for name, value in index.state().items()
    }
