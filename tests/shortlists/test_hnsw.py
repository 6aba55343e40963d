import builtins
import hashlib

import numpy as np
import pytest
import torch

from minispec.errors import ArgumentError, FileError
from minispec.shortlists import hnsw

# Rows in 40 directions, of very different norms, as those of an LM head; states near some rows.
_random = torch.Generator().manual_seed(0)
_DIRECTIONS = torch.randn(40, 24, generator=_random).repeat(50, 1)
ROWS = _DIRECTIONS + 0.3 * torch.randn(2000, 24, generator=_random)
ROWS *= torch.linspace(0.5, 2, 2000)[:, None]
HIDDEN = ROWS[::40] + 0.5 * torch.randn(50, 24, generator=_random)


def test_augment_rows_keeps_inner_products_and_makes_norms_equal():
    rows = hnsw.augment_rows(ROWS)
    assert torch.equal(rows[:, :-1], ROWS)
    assert rows.norm(dim=1) == pytest.approx(float(ROWS.norm(dim=1).max()), rel=1e-5)


def test_build_hnsw_finds_most_of_the_exact_answer_best_first():
    index = hnsw.build_hnsw(ROWS)
    assert hnsw.measure_recall(index, ROWS, HIDDEN) > 0.9
    found = index.find_nearest(HIDDEN[0], 10)
    logits = (ROWS @ HIDDEN[0]).numpy()[found]
    assert len(found) == 10
    assert found.dtype == np.int64
    assert (np.diff(logits) <= 1e-5).all()


def test_build_hnsw_gives_the_same_file_for_the_same_rows(tmp_path):
    first, again = tmp_path / "first", tmp_path / "again"
    digest = hnsw.build_hnsw(ROWS).write(first)
    assert hnsw.build_hnsw(ROWS.clone()).write(again) == digest
    assert hashlib.sha256(first.read_bytes()).hexdigest() == digest
    built, read = hnsw.build_hnsw(ROWS), hnsw.read_hnsw(first, 2000, 24)
    for hidden in HIDDEN:
        assert read.find_nearest(hidden, 10).tolist() == built.find_nearest(hidden, 10).tolist()
    with pytest.raises(FileError, match="a graph of 2000 rows of 25 numbers, expected 2000 of 33"):
        hnsw.read_hnsw(first, 2000, 32)


def test_build_hnsw_names_the_extra_that_is_missing(monkeypatch):
    real = builtins.__import__

    def refuse(name, *rest, **more):
        if name.startswith("usearch"):
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ArgumentError, match=r"extra \[hnsw\]"):
        hnsw.build_hnsw(ROWS)
