"""Losses, the sampled softmax, the curriculum and the guard."""

import pytest
import torch

from minispec.learning import curriculum
from minispec.learning.guard import Guard
from minispec.learning.losses import (
    LOSSES,
    acceptance_rate,
    acceptance_rates,
    sample_softmax_ids,
)
from minispec.types import Distribution


def test_acceptance_rates_are_one_minus_total_variation() -> None:
    p, q = torch.randn(2, 7).softmax(1).double()
    alpha = acceptance_rates(q.log()[None], p[None], torch.arange(7)[None])
    assert torch.allclose(alpha, 1 - (p - q).abs().sum() / 2)


def test_acceptance_rate_counts_common_ids_only() -> None:
    p = Distribution(torch.tensor([1, 4, 6]), torch.tensor([0.5, 0.25, 0.25]))
    q = Distribution(torch.tensor([2, 4, 6]), torch.tensor([0.25, 0.5, 0.25]))
    assert acceptance_rate(p, q) == acceptance_rate(q, p) == 0.5


def test_tv_gradient_is_the_one_in_the_docstring() -> None:
    logits = torch.randn(7, dtype=torch.float64, requires_grad=True)
    p, q = torch.randn(7).softmax(0).double(), logits.softmax(0)
    LOSSES["tv"](q.log()[None], p[None], torch.arange(7)[None]).sum().backward()
    below = (q < p).double()
    expected = -q * (below - (q * below).sum())
    assert logits.grad is not None and torch.allclose(logits.grad, expected, atol=1e-12)


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_is_minimal_at_the_target_distribution(name: str) -> None:
    torch.manual_seed(0)
    p = torch.tensor([[0.7, 0.2, 0.1, 0.0]])
    logits = torch.zeros(1, 4, requires_grad=True)
    optimizer = torch.optim.Adam([logits], 0.05)
    for _ in range(400):
        optimizer.zero_grad()
        LOSSES[name](logits.log_softmax(1), p, torch.arange(4)[None]).sum().backward()
        optimizer.step()
    assert (logits.softmax(1) - p).abs().sum() < 0.06


def test_sample_softmax_ids_represent_the_whole_vocabulary() -> None:
    generator = torch.Generator().manual_seed(0)
    ids, offsets = sample_softmax_ids(torch.tensor([[3, 5], [5, 9]]), 100, 1000, generator)
    assert {3, 5, 9} <= set(ids.tolist()) and torch.equal(ids, ids.unique())
    assert float(offsets.exp().sum()) == pytest.approx(1000, rel=1e-5)
    assert offsets[torch.isin(ids, torch.tensor([3, 5, 9]))].tolist() == [0, 0, 0]


def test_curriculum_weights_decrease_with_difficulty() -> None:
    easy, later, rejected = (curriculum.difficulty(*x) for x in ((1.0, 0), (1.0, 2), (0.0, 0)))
    assert easy == 0 < later < rejected == 1
    levels = [curriculum.competence(a / 10) for a in range(11)]
    assert levels == sorted(levels) and levels[0] == pytest.approx(0.3) and levels[-1] == 1
    difficulties = torch.tensor([0.0, 0.5, 1.0])
    assert curriculum.weights(difficulties, 1.0).tolist() == [1, 1, 1]
    assert curriculum.weights(difficulties, 0.3).tolist() == pytest.approx([1, 0.8, 0.3])


def test_guard_switches_on_below_the_margin_and_off_above_zero() -> None:
    guard = Guard(horizon=4, margin=0.1)
    assert not any(guard.record(gain) for gain in (-0.5, -0.5, -0.5))  # fewer than the horizon
    assert guard.record(-0.5) and guard.active and not guard.record(-0.5)
    while guard.gain < 0:
        assert guard.active
        guard.record(0.3)
    assert not guard.active
