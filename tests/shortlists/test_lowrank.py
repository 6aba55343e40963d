import pytest
import torch

from minispec.errors import ArgumentError
from minispec.shortlists.lowrank import LowRankShortlist, fit_factors
from minispec.tools.models.backend import choose_head
from minispec.types import Context

_random = torch.Generator().manual_seed(0)
ROWS = torch.randn(500, 32, generator=_random)
# Hidden states that lie near eight directions, as those of a model do.
_DIRECTIONS = torch.randn(8, 32, generator=_random)
HIDDEN = torch.randn(400, 8, generator=_random) @ _DIRECTIONS
HIDDEN += 0.05 * torch.randn(400, 32, generator=_random)
MOMENT = HIDDEN.T @ HIDDEN / len(HIDDEN)
IDENTITY = torch.eye(32)


def _context(hidden):
    return Context((1,), hidden, 0)


def _error(factors):
    logits = HIDDEN @ factors[1] @ (ROWS @ factors[0]).T
    return float((logits - HIDDEN @ ROWS.T).square().mean())


def test_fit_factors_of_the_identity_is_the_truncated_singular_value_decomposition():
    expand, projection = fit_factors(ROWS, IDENTITY, 5)
    u, s, v = torch.linalg.svd(ROWS, full_matrices=False)
    expected = u[:, :5] @ s[:5].diag() @ v[:5]
    assert torch.allclose(ROWS @ expand @ projection.T, expected, atol=1e-3)


def test_fit_factors_has_the_least_error_over_the_hidden_states():
    best = _error(fit_factors(ROWS, MOMENT, 8))
    assert best < 0.1 * _error(fit_factors(ROWS, IDENTITY, 8))
    # The least error of any product of this rank: of the logits' own decomposition.
    values = torch.linalg.svdvals((HIDDEN @ ROWS.T).double())
    assert best == pytest.approx(float(values[8:].square().sum()) / (400 * 500), rel=1e-2)


@pytest.mark.parametrize("rank", [0, 33])
def test_fit_factors_refuses_an_impossible_rank(rank):
    with pytest.raises(ArgumentError, match=r"must lie in 1\.\.32"):
        fit_factors(ROWS, IDENTITY, rank)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_select_finds_the_ids_of_the_largest_logits(backend):
    factors = fit_factors(ROWS, MOMENT, 12)
    shortlist = LowRankShortlist(ROWS, 40, (7, 499), factors, choose_head(backend))
    for hidden in HIDDEN[:20]:
        ids = shortlist.select(_context(hidden))
        assert ids.dtype == torch.int64
        assert ids.tolist() == sorted(set(ids.tolist()))
        assert len(ids) == 40
        assert {7, 499} <= set(ids.tolist())
        top = (ROWS @ hidden).topk(10).indices
        assert set(top.tolist()) <= set(ids.tolist())


def test_select_takes_all_ids_and_end_ids_within_the_budget():
    context, factors = _context(torch.ones(32)), fit_factors(ROWS, IDENTITY, 4)
    assert LowRankShortlist(ROWS, 500, (3,), factors).select(context).tolist() == [*range(500)]
    assert LowRankShortlist(ROWS, 1, (3, 4), factors).select(context).tolist() == [3]


def test_rows_probed_counts_the_numbers_read():
    factors = fit_factors(ROWS, IDENTITY, 4)
    assert LowRankShortlist(ROWS, 40, (), factors).rows_probed == 67  # 532 * 4 / 32 = 66.5


def test_fit_factors_of_directions_that_no_hidden_state_has():
    """A moment without full rank has no Cholesky factor of its own."""
    moment = MOMENT.clone()
    moment[20:], moment[:, 20:] = 0, 0
    assert _error(fit_factors(ROWS, moment, 8)) < _error(fit_factors(ROWS, IDENTITY, 8))
    for factors in (fit_factors(ROWS, moment, 8), fit_factors(ROWS.double(), moment.double(), 8)):
        assert all(factor.dtype == torch.float32 for factor in factors)


def test_select_takes_factors_of_any_precision():
    factors = fit_factors(ROWS, MOMENT, 12)
    expected = LowRankShortlist(ROWS, 40, (7,), factors).select(_context(HIDDEN[0]))
    wide = tuple(factor.double() for factor in factors)
    for rows, hidden in ((ROWS, HIDDEN[0]), (ROWS.double(), HIDDEN[0].double())):
        found = LowRankShortlist(rows, 40, (7,), wide).select(_context(hidden))
        assert torch.equal(found, expected)


@pytest.mark.parametrize("eos_ids", [(9, 8, 7), (7, 8, 9), (8, 7, 9), (400, 3, 80, 499)])
def test_select_keeps_the_first_end_ids_that_its_budget_holds(eos_ids):
    shortlist = LowRankShortlist(ROWS, 2, eos_ids, fit_factors(ROWS, MOMENT, 12))
    for hidden in HIDDEN[:5]:
        assert shortlist.select(_context(hidden)).tolist() == sorted(eos_ids[:2])


def test_fit_factors_of_small_hidden_states_are_those_of_large_ones():
    """What is added to the moment is relative to it."""
    expected = _error(fit_factors(ROWS, MOMENT, 8))
    assert _error(fit_factors(ROWS, 1e-12 * MOMENT, 8)) == pytest.approx(expected, rel=1e-3)


def test_fit_factors_of_hidden_states_on_a_line():
    """A moment without full rank whose entries add up to 0."""
    direction = torch.tensor([1.0, -1.0])
    rows = ROWS[:, :2]
    expand, projection = fit_factors(rows, torch.outer(direction, direction), 1)
    assert torch.allclose(rows @ expand @ (projection.T @ direction), rows @ direction, atol=1e-3)


def test_select_without_end_ids():
    shortlist = LowRankShortlist(ROWS, 40, (), fit_factors(ROWS, MOMENT, 12))
    ids = shortlist.select(_context(HIDDEN[0]))
    assert ids.dtype == torch.int64 and len(ids) == 40
