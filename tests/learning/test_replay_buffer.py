"""The replay buffer and retrieval from it."""

import torch

from minispec.learning.replay_buffer import NGRAM_SIZE, ReplayBuffer
from minispec.learning.retrieval import interpolate_neighbours
from minispec.types import Distribution


def build_buffer(num_entries: int = 3, num_windows: int = 2, window_size: int = 4) -> ReplayBuffer:
    """Entry i has the unit vector i as key, and 0.9 of the probability on id i."""
    buffer = ReplayBuffer(num_windows, window_size, 6, 5, 3, 0)
    for i in range(num_entries):
        distribution = Distribution(torch.arange(9), torch.eye(9)[i] * 0.9 + 0.1 / 9)
        ngram, key = torch.tensor([[i, i + 1, i + 2]]), torch.eye(5)[i % 5][None]
        aux_hidden_states = torch.full((1, 6), float(i))
        assert buffer.add(aux_hidden_states, key, ngram, [distribution], [0.5], 0) == 0
    return buffer


def test_interpolate_neighbours_matches_the_formula() -> None:
    """In probabilities. What is retrieved for ids outside the shortlist is dropped."""
    entries = build_buffer().entries.select(slice(3))
    ids, logits = torch.tensor([1, 2, 5, 8]), torch.tensor([0.3, -1.0, 2.0, 0.1])
    hidden, ngram = torch.tensor([0.0, 3.0, 1.0, 0.0, 0.0]), torch.tensor([1, 2, 0])
    distribution = interpolate_neighbours(logits, hidden, ids, ngram, entries).softmax(0)
    key = hidden / hidden.norm()
    scores = entries.keys @ key + 0.1 * torch.tensor([0, 2, 0])
    weights = ((scores - 1) / 0.05).exp()
    lambda_ = 0.7 * weights.sum() / (weights.sum() + 2)
    retrieved = torch.zeros(9)
    for weight, i in zip(weights / weights.sum(), range(3), strict=True):
        retrieved.index_add_(0, entries.ids[i], weight * entries.probs[i])
    expected = (1 - lambda_) * logits.softmax(0) + lambda_ * retrieved[ids]
    assert torch.allclose(distribution, expected / expected.sum(), atol=1e-6)
    assert distribution[0] > logits.softmax(0)[0]


def test_interpolate_neighbours_ignores_dissimilar_entries() -> None:
    logits = torch.randn(9)
    opposite, ngram = -torch.ones(5), torch.tensor([7, 7, 7])
    adjusted = interpolate_neighbours(
        logits, opposite, torch.arange(9), ngram, build_buffer().entries
    )
    assert torch.allclose(adjusted.softmax(0), logits.softmax(0), atol=1e-6)


def test_replay_buffer_is_bounded_and_samples_old_windows_uniformly() -> None:
    size, counts = build_buffer(0, num_windows=6).num_bytes, torch.zeros(50)
    for seed in range(60):
        buffer = ReplayBuffer(6, 4, 6, 5, 3, seed)
        for i in range(200):
            distribution = Distribution(torch.arange(9), torch.full((9,), 1 / 9))
            ngram = torch.full((1, NGRAM_SIZE), i)
            buffer.add(torch.ones(1, 6), torch.ones(1, 5), ngram, [distribution], [0.5], i // 50)
        assert buffer.num_bytes == size and len(buffer) == 24
        positions = buffer.entries.ngrams[:, 0]
        assert positions[buffer.newest_window()].tolist() == [196, 197, 198, 199]
        old = positions[12:].unflatten(0, (3, 4))
        assert all((window.diff() == 1).all() for window in old)  # complete windows
        counts[old[:, 0] // 4] += 1
        older = buffer.sample_older_window()
        assert older is not None and positions[older].diff().tolist() == [1, 1, 1]
    assert counts[:47].sum() == 180 and (counts[:23].sum() / counts[:47].sum() - 23 / 47) < 0.12
    assert counts[:23].sum() > 60  # the older half is as likely: 88 expected, sigma 6.7


def test_add_refuses_entries_that_are_not_finite() -> None:
    buffer, nan = build_buffer(), Distribution(torch.arange(9), torch.full((9,), torch.nan))
    uniform = Distribution(torch.arange(9), torch.full((9,), 1 / 9))
    key, ngram = torch.ones(1, 5), torch.zeros(1, NGRAM_SIZE, dtype=torch.int64)
    assert buffer.add(torch.ones(1, 6), key, ngram, [nan], [0.5], 0) == 1
    assert buffer.add(torch.full((1, 6), torch.nan), key, ngram, [uniform], [0.5], 0) == 1
    assert len(buffer) == 3
