"""The state of a statistical index on disk."""

from pathlib import Path

import pytest
import torch

from helpers.shortlists import make_round
from minispec.errors import FileError, FingerprintError
from minispec.io.files import write_tensors
from minispec.io.statistical_state import read_state, restore_state, write_state
from minispec.shortlists.statistical import StatisticalIndex


def test_read_state_restores_what_was_written_or_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    index = StatisticalIndex(12)
    index.observe(make_round((3, 4, 5)))
    write_state(path, index, "a" * 64)
    other = StatisticalIndex(12)
    read_state(path, other, "a" * 64)
    assert other.successors(4).tolist() == [5]
    with pytest.raises(FingerprintError, match=r"made for tokenizer aaaaaaaaaaaa, .*bbbbbbbbbbbb"):
        read_state(path, other, "b" * 64)
    with pytest.raises(FileError, match="shape"):
        read_state(path, StatisticalIndex(13), "a" * 64)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(FileError, match=str(path)):
        read_state(path, other, "a" * 64)
    with pytest.raises(FileError, match=r"outside 0\.\.11"):
        state = {"after": torch.full((12, 4), 12, dtype=torch.int32), "last": torch.tensor([0])}
        restore_state(other, state, "state")
    assert other.successors(4).tolist() == [5]  # errors changed nothing


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"after": torch.ones(12, 4, dtype=torch.bool)}, "after has dtype BOOL, expected I32"),
        ({"after": torch.ones(12, 4, dtype=torch.complex64)}, "has dtype C64"),
        ({"after": torch.ones(12, 4)}, "after has dtype F32"),
        ({"after": torch.zeros(12, 5, dtype=torch.int32)}, r"after has shape \(12, 5\)"),
        ({"after": torch.full((12, 4), -2, dtype=torch.int32)}, r"outside 0\.\.11"),
        ({"last": torch.tensor([12])}, r"outside 0\.\.11"),
        ({"last": torch.tensor([0, 1])}, r"last has shape \(2,\)"),
        ({"last": torch.tensor([0.0])}, "last has dtype F32"),
        ({"more": torch.tensor([0])}, "1 unexpected tensors"),
    ],
)
def test_read_state_refuses_other_tensors(
    tmp_path: Path, change: dict[str, torch.Tensor], reason: str
) -> None:
    path, index = tmp_path / "state.safetensors", StatisticalIndex(12)
    write_tensors(path, {**index.state(), **change}, {"tokenizer": "a" * 64})
    with pytest.raises(FileError, match=reason):
        read_state(path, index, "a" * 64)
