"""The LM head of the CPU backend: scores, packed shortlists, and results in memory of their own."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastpath.cpu.head import CpuHead
from fastpath.cpu.packed import PackedRows
from helpers.kernel_checks import (
    FORMATS,
    TEMPERATURES,
    assert_logits,
    assert_scores,
    convert_rows,
)
from minispec.errors import ArgumentError
from minispec.sampling import Sampling

SHORTLISTS = st.lists(st.sets(st.integers(0, 39), min_size=1).map(sorted), min_size=1, max_size=8)


def build_head(weight, kind=CpuHead):
    return kind(*convert_rows(weight, "float32")[:2])


@given(top=st.integers(1, 8), temperature=TEMPERATURES, data=st.data())
def test_scores_of_shortlist_agree_with_its_logits(top, temperature, data):
    head = build_head(torch.randn(40, 20))
    ids = torch.tensor(data.draw(st.sets(st.integers(0, 39), min_size=top).map(sorted)))
    hidden = torch.randn(3, 20)
    scores = head.scores(hidden, ids, top, temperature)
    assert torch.equal(scores.logits, head.logits_of(hidden, ids))
    ranked = scores.top_logits, scores.top_indices, scores.exp_sums
    assert_scores(ranked, scores.logits.numpy(), top, temperature)
    exact = head.scores(hidden).logits.double().logsumexp(1)
    assert (head.scores(hidden).log_sum_exp() - exact).abs().max() < 2e-6


@pytest.mark.parametrize("infinite", [math.inf, -math.inf, math.nan])
def test_scores_without_finite_top_logit_have_nan_sum(infinite):
    scores = build_head(torch.full((700, 1), infinite)).scores(torch.ones(2, 1), top=3)
    assert scores.top_indices.tolist() == [[0, 1, 2]] * 2
    assert scores.exp_sums.isnan().all()


@pytest.mark.parametrize(
    ("top", "temperature", "message"),
    [
        (0, 1.0, "top must be 1 to 5, the number of rows, but is 0"),
        (6, 1.0, "top must be 1 to 5, the number of rows, but is 6"),
        (1, 0.0, "temperature must be above 0, but is 0.0"),
        (1, math.nan, "temperature must be above 0, but is nan"),
    ],
)
def test_scores_rejects_invalid_arguments(top, temperature, message):
    head = build_head(torch.randn(9, 4))
    with pytest.raises(ArgumentError, match=message):
        head.scores(torch.ones(1, 4), torch.arange(5), top, temperature)


@pytest.mark.parametrize("row", [0, 299, 699])
def test_argmax_returns_nan_row(row):
    weight = torch.randn(700, 8)
    weight[row, 3] = float("nan")
    head = build_head(weight)
    ids, logits = head.argmax(torch.randn(2, 8))
    assert ids.tolist() == [row, row] and logits.isnan().all()
    with pytest.raises(ArgumentError, match="nan"):
        Sampling().target_distributions(head, torch.randn(2, 8))


@given(shortlists=SHORTLISTS, rows_format=st.sampled_from(FORMATS))
def test_packed_rows_update_to_any_shortlist(shortlists, rows_format):
    weight, states = torch.randn(40, 20), torch.randn(3, 20)
    rows, scales, exact = convert_rows(weight, rows_format)
    packed = PackedRows(rows, scales)
    for ids in shortlists:
        out, again = np.empty((2, 3, len(ids)), np.float32)
        assert packed.update(np.array(ids), states.numpy(), out)
        packed.multiply(states.numpy(), again)
        assert_logits(out, states, exact[ids], rows_format)
        assert np.array_equal(again, out)


@given(shortlists=SHORTLISTS)
def test_logits_of_any_sequence_of_shortlists_stay_unchanged(shortlists):
    weight, hidden = torch.randn(40, 20), torch.randn(20)
    head = build_head(weight)
    results = []
    for ids in (torch.tensor(ids) for ids in (*shortlists, *shortlists[::-1])):
        results += [(ids, head.logits_of(hidden, ids)), (ids, head.logits_of(hidden, ids))]
        results.append((torch.arange(40), head.logits(hidden)))
    # Checked only now: no result may be a view of memory that was used again.
    for ids, logits in results:
        assert logits.shape == (len(ids),)
        assert_logits(logits[None].numpy(), hidden[None], weight[ids].double())


def test_logits_in_reused_memory_are_detected():
    """The negative control of the test above."""
    weight, hidden, buffer = torch.randn(40, 20), torch.randn(20), torch.empty(1, 40)

    class Reusing(CpuHead):
        @staticmethod
        def _allocate(hidden, size):
            return hidden.reshape(1, -1).numpy(), buffer[:, :size]

    head = build_head(weight, Reusing)
    ids = torch.tensor([1, 2])
    kept = head.logits_of(hidden, ids)
    head.logits_of(2 * hidden, ids)
    with pytest.raises(AssertionError):
        assert_logits(kept[None].numpy(), hidden[None], weight[ids].double())


@pytest.mark.parametrize(("added", "packs"), [(4, True), (20, False)])
def test_logits_of_packs_shortlists_that_change_little(added, packs, monkeypatch):
    head, packed = build_head(torch.randn(400, 20)), []
    update = PackedRows.update

    def record(self, *arguments):
        packed.append(update(self, *arguments))
        return packed[-1]

    monkeypatch.setattr(PackedRows, "update", record)
    for first in range(0, 50 * added, added):  # shortlists of 40, with ``added`` new ids each
        ids = torch.arange(first, first + 40).remainder(400).sort().values
        head.logits_of(torch.randn(20), ids)
    assert sum(packed) == (50 - 16 if packs else 50 // 17)
