from pathlib import Path

import numpy as np
import pytest
import torch

from minispec.errors import FileError, FingerprintError
from minispec.io.bigram_file import read_bigrams, write_bigrams
from minispec.io.files import write_tensors
from minispec.io.lowrank_file import read_factors, write_factors
from minispec.shortlists.bigrams import build_graph, count_bigrams

TOKENIZER, OTHER = "a" * 64, "b" * 64


@pytest.mark.parametrize("vocab_size", [300, 60_000, 262_144])
def test_read_bigrams_restores_the_graph(tmp_path: Path, vocab_size: int) -> None:
    random = np.random.default_rng(0)
    texts = [(random.zipf(1.3, 4000) * 7919) % vocab_size for _ in range(3)]
    graph = build_graph(*count_bigrams(texts, vocab_size), vocab_size, min_count=2)
    path = tmp_path / "bigrams.safetensors"
    write_bigrams(path, graph, TOKENIZER, {"tokens": "12000"})
    found = read_bigrams(path, vocab_size, TOKENIZER)
    assert (found.degrees == graph.degrees).all()
    assert int(graph.degrees.sum()) > 100
    assert (found.edges[0] == graph.edges[0]).all()
    assert found.edges[1] == pytest.approx(graph.edges[1], rel=1e-3)
    with pytest.raises(FingerprintError, match="index build --bigrams"):
        read_bigrams(path, vocab_size, OTHER)


def _graph(**changes):
    degrees = torch.zeros(300, dtype=torch.int16)
    degrees[4] = 2
    successors = torch.tensor([7, 9], dtype=torch.int16)
    weights = torch.tensor([0.5, 0.25], dtype=torch.float16)
    return {"degrees": degrees, "successors": successors, "weights": weights} | changes


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (_graph(degrees=torch.zeros(299, dtype=torch.int16)), "shape"),
        (_graph(degrees=torch.zeros(300, dtype=torch.int16)), "add up to 0 edges"),
        (_graph(degrees=torch.full((300,), -1, dtype=torch.int16)), "add up to -300 edges"),
        (_graph(successors=torch.tensor([7, 301], dtype=torch.int16)), "outside 0..299"),
        (_graph(successors=torch.tensor([7, 9], dtype=torch.int64)), "dtype"),
        (_graph(weights=torch.tensor([0.5, 1.5], dtype=torch.float16)), r"outside \(0, 1\]"),
        (_graph(weights=torch.tensor([0.5, torch.nan], dtype=torch.float16)), "NaN"),
        (_graph(weights=torch.tensor([0.5], dtype=torch.float16)), "1 weights"),
    ],
)
def test_read_bigrams_refuses_a_damaged_file(tmp_path: Path, tensors, message: str) -> None:
    path = tmp_path / "bigrams.safetensors"
    write_tensors(path, tensors, {"tokenizer": TOKENIZER})
    with pytest.raises(FileError, match=message):
        read_bigrams(path, 300, TOKENIZER)


def test_read_factors_restores_the_factors_and_refuses_others(tmp_path: Path) -> None:
    path = tmp_path / "lowrank.safetensors"
    factors = torch.randn(2, 16, 3, generator=torch.Generator().manual_seed(0))
    write_factors(path, (factors[0], factors[1]), TOKENIZER)
    for ours, theirs in zip(read_factors(path, 16, TOKENIZER), factors, strict=True):
        assert torch.equal(ours, theirs.bfloat16().float())
    with pytest.raises(FingerprintError, match="index build --lowrank"):
        read_factors(path, 16, OTHER)
    with pytest.raises(FileError, match="shape"):
        read_factors(path, 17, TOKENIZER)
    write_tensors(
        path,
        {"expand": torch.ones(16, 3).bfloat16(), "projection": torch.ones(16, 4).bfloat16()},
        {"model": TOKENIZER},
    )
    with pytest.raises(FileError, match="expected the same"):
        read_factors(path, 16, TOKENIZER)
