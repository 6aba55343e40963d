"""What a statistical index has learnt, on disk."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from minispec.errors import FileError, FingerprintError
from minispec.io.files import check_tensors, read_metadata, read_tensors, write_tensors
from minispec.shortlists.statistical import StatisticalIndex


def write_state(path: Path, index: StatisticalIndex, tokenizer: str) -> None:
    """Writes what an index has learnt, with the fingerprint of the tokenizer of its ids."""
    write_tensors(path, index.state(), {"tokenizer": tokenizer})


def read_state(path: Path, index: StatisticalIndex, tokenizer: str) -> None:
    """Has an index take up what was written; on any error it keeps what it has.

    Raises FileError for a damaged file, FingerprintError for another tokenizer's.
    """
    made_for = read_metadata(path).get("tokenizer", "none")
    if made_for != tokenizer:
        raise FingerprintError(
            f"{path} is the state of tokenizer {made_for[:12]}, this one is {tokenizer[:12]}: "
            "begin without it"
        )
    restore_state(index, read_tensors(path), str(path))


def restore_state(index: StatisticalIndex, state: Mapping[str, Tensor], origin: str) -> None:
    """Has an index take up a state that ``origin`` held. Raises FileError for one of another
    shape or with ids outside the vocabulary; the index then keeps what it has."""
    own = index.state()
    check_tensors(state, {name: tuple(value.shape) for name, value in own.items()}, origin)
    values = torch.cat([value.flatten().long() for value in state.values()])
    size = len(own["after"])
    if values.min() < -1 or values.max() >= size:
        raise FileError(f"{origin} has ids outside 0..{size - 1}")
    index.restore(state)
