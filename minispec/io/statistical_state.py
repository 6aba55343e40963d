"""The state of a statistical index, what it has learnt, on disk."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from minispec.errors import FileError
from minispec.io.files import check_fingerprints, check_tensors, read_tensors, write_tensors
from minispec.shortlists.statistical import StatisticalIndex


def write_state(path: Path, index: StatisticalIndex, tokenizer: str) -> None:
    """Write the state of an index with the fingerprint of its tokenizer. Raises FileError."""
    write_tensors(path, index.state(), {"tokenizer": tokenizer})


def read_state(path: Path, index: StatisticalIndex, tokenizer: str) -> None:
    """Read a state into an index; on any error the index keeps what it has.

    Raises FileError for a damaged file, FingerprintError for another tokenizer's.
    """
    check_fingerprints(path, {"tokenizer": tokenizer}, "start without it")
    restore_state(index, read_tensors(path), str(path))


def restore_state(index: StatisticalIndex, state: Mapping[str, Tensor], origin: str) -> None:
    """Restore a state read from ``origin``. Raises FileError for another shape or ids outside the
    vocabulary; the index then keeps what it has."""
    own = index.state()
    check_tensors(state, {name: tuple(value.shape) for name, value in own.items()}, origin)
    values = torch.cat([value.flatten().long() for value in state.values()])
    size = len(own["after"])
    if values.min() < -1 or values.max() >= size:
        raise FileError(f"{origin} has ids outside 0..{size - 1}")
    index.restore(state)
