import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastpath.cpu.head import CpuHead
from minispec.models.lm_head import LinearHead
from minispec.ranked_head import RankedHead, RankingHead

ROWS = torch.randn(90, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class _Counting(LinearHead):
    """Counts the states whose logits are computed."""

    states = 0

    def logits(self, hidden):
        self.states += len(hidden)
        return super().logits(hidden)


@pytest.mark.parametrize("count", [1, 5, 90, 200])
@pytest.mark.parametrize("levels", [3, 10**6])
def test_rank_is_by_logit_and_then_by_id(count, levels):
    """Few levels make many equal logits."""
    identity = LinearHead(torch.eye(90, dtype=torch.float64))
    hidden = (
        (torch.rand(7, 90, generator=torch.Generator().manual_seed(1)) * levels).long().double()
    )
    ids, logits = RankedHead(identity, count).rank(hidden)
    for row, found, values in zip(hidden.tolist(), ids.tolist(), logits.tolist(), strict=True):
        assert found == sorted(range(90), key=lambda i: (-row[i], i))[:count]
        assert values == [row[i] for i in found]


def test_logits_argmax_and_rank_share_one_product():
    head = _Counting(ROWS)
    ranked = RankedHead(head, 5)
    hidden = torch.randn(6, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    assert torch.equal(ranked.logits(hidden), LinearHead(ROWS).logits(hidden))
    for ours, theirs in zip(ranked.argmax(hidden), LinearHead(ROWS).argmax(hidden), strict=True):
        assert torch.equal(ours, theirs)
    assert torch.equal(ranked.rank(hidden)[0][:, 0], ranked.argmax(hidden)[0])
    assert head.states == 6
    # Another tensor with the same values is not the same pass.
    ranked.logits(hidden.clone())
    assert head.states == 12


def test_rank_takes_a_prompt_in_blocks():
    hidden = torch.randn(200, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    ids, logits = RankedHead(LinearHead(ROWS), 3).rank(hidden)
    assert torch.equal(ids, (hidden @ ROWS.T).topk(3).indices)
    assert torch.allclose(logits, (hidden @ ROWS.T).topk(3).values)


@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(1, 12))
def test_a_head_that_ranks_by_itself_gives_the_same(seed: int, states: int, count: int) -> None:
    """The CPU backend's, over small integers, which are exact and have many ties."""
    draws = torch.Generator().manual_seed(seed)
    rows = torch.randint(-2, 3, (40, 16), generator=draws).float()
    hidden = torch.randint(-2, 3, (states, 16), generator=draws).float()
    fast = RankedHead(CpuHead(rows.numpy(), np.ones(40, np.float32)), count)
    plain = RankedHead(LinearHead(rows), count)
    assert isinstance(fast.wrapped, RankingHead) and not isinstance(plain.wrapped, RankingHead)
    assert torch.equal(fast.logits(hidden), plain.logits(hidden))
    for ours, theirs in zip(fast.argmax(hidden), plain.argmax(hidden), strict=True):
        assert torch.equal(ours, theirs)
    for ours, theirs in zip(fast.rank(hidden), plain.rank(hidden), strict=True):
        assert torch.equal(ours, theirs)
    again = RankedHead(fast.wrapped, count).rank(hidden)  # without a pass before
    assert torch.equal(again[0], plain.rank(hidden)[0])
