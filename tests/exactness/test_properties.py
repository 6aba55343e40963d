"""Fifteen properties that a suite for speculative decoding must hold, by drawn cases.

Numbers and order are those of ``docs/exactness.md``. Each check is also failed by at least one
planted defect (``defects.py``), so none of them passes whatever is done.
"""

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

import checks
from defects import PLANTED, Planted
from drawn import DrawnCase, cases, distance, drawn, lists, samplings
from lists import LISTS, static
from minispec.certificate.certify import Backend, speculation
from minispec.sampling import Sampling, SeededRandom
from minispec.shortlists.frspec import FRSpecShortlist
from minispec.shortlists.full import FullShortlist
from minispec.verify import Verifier, verify, verify_block
from parts import candidates

CHAINS = {"token": verify, "block": verify_block}
chains = pytest.mark.parametrize("verifier", CHAINS.values(), ids=CHAINS)
FEW = [(2, 1, 2), (3, 1, 2), (2, 2, 3), (2, 3, 3), (3, 2, 2)]
weights = st.lists(st.integers(0, 4), min_size=2, max_size=6).filter(any)


@drawn
@given(data=st.data(), weights=weights)
@chains
def test_1_a_residual_without_mass(
    data: st.DataObject,
    weights: list[int],
    verifier: Verifier,
) -> None:
    """p and q that are equal, or equal but for the last bits."""
    nudge = st.lists(st.integers(-2, 2), min_size=len(weights), max_size=len(weights))
    assert (
        checks.zero_mass(verifier, weights, data.draw(nudge, label="units in the last place"))
        < 1e-12
    )


@drawn
@given(size=st.integers(2, 6), data=st.data())
@chains
def test_2_what_p_excludes_is_never_said(
    size: int,
    data: st.DataObject,
    verifier: Verifier,
) -> None:
    """Disjoint supports among them."""
    row = st.lists(st.integers(0, 3), min_size=size, max_size=size).filter(any)
    checks.nothing_impossible(verifier, data.draw(row), data.draw(row), SeededRandom)


@drawn
@given(case=cases(FEW), data=st.data(), seed=st.integers(0, 99))
@chains
def test_3_recorded_laws_in_any_order(
    case: DrawnCase,
    data: st.DataObject,
    seed: int,
    verifier: Verifier,
) -> None:
    """Ids need not be sorted for verification, as long as ids and shares stay together."""

    def order(length: int) -> list[int]:
        return torch.randperm(length, generator=torch.Generator().manual_seed(seed)).tolist()

    apply_rope = checks.permuted(verifier, order)
    assert distance(speculation(lists(data), apply_rope), case) == 0


@drawn
@given(case=cases(FEW), data=st.data())
@chains
def test_3_a_buffer_that_is_used_again(
    case: DrawnCase,
    data: st.DataObject,
    verifier: Verifier,
) -> None:
    """A head that answers in the same memory: the recorded law must have left it."""
    decode = checks.one_buffer(speculation(lists(data), verifier))
    assert distance(decode, case, backend=Backend("float64")) < 1e-12


@drawn
@given(case=cases(), data=st.data(), sampling=samplings())
def test_4_candidates_that_were_picked(
    case: DrawnCase,
    data: st.DataObject,
    sampling: Sampling,
) -> None:
    assert distance(candidates(lists(data)), case, sampling) == 0


@drawn
@given(case=cases(), data=st.data(), sampling=samplings())
@chains
def test_5_a_list_that_changes_at_every_step(
    case: DrawnCase,
    data: st.DataObject,
    sampling: Sampling,
    verifier: Verifier,
) -> None:
    assert distance(speculation(lists(data), verifier), case, sampling) == 0


@drawn
@given(case=cases(FEW))
@chains
def test_6_a_draft_that_changes_before_it_is_judged(case: DrawnCase, verifier: Verifier) -> None:
    assert distance(checks.changing_draft(verifier), case) == 0


@drawn
@given(case=cases(FEW), name=st.sampled_from(["restless", "learning"]))
@chains
def test_7_a_list_may_learn_from_all_that_is_past(
    case: DrawnCase,
    name: str,
    verifier: Verifier,
) -> None:
    """Rejected drafts, laws and acceptance of earlier rounds (``drawn`` lists learn too)."""
    assert distance(speculation(LISTS[name], verifier), case) == 0


@drawn
@given(case=cases([(2, 1, 2), (3, 1, 2), (2, 2, 2)]))
@chains
def test_7_a_list_may_toss_coins_of_its_own(case: DrawnCase, verifier: Verifier) -> None:
    assert distance(checks.peeking(verifier, honest=True), case) == 0


@drawn
@given(case=cases([(2, 2, 3), (2, 3, 4), (3, 2, 3)]), data=st.data())
@chains
def test_7_a_chain_may_end_behind_an_unsure_token(
    case: DrawnCase,
    data: st.DataObject,
    verifier: Verifier,
) -> None:
    assert distance(speculation(lists(data), checks.cut_short(verifier, keep=True)), case) == 0


@drawn
@given(ids=st.lists(st.integers(-2, 6), max_size=5))
def test_8_and_9_what_breaks_the_contract_is_refused(ids: list[int]) -> None:
    """Duplicates, disorder, ids that do not exist, none at all, too many."""
    if ids == sorted(set(ids)) and 1 <= len(ids) <= 3 and ids[0] >= 0 and ids[-1] < 4:
        with pytest.raises(pytest.fail.Exception):
            checks.refused(torch.tensor(ids))
    else:
        checks.refused(torch.tensor(ids, dtype=torch.int64))


@drawn
@given(ranking=st.permutations(range(6)), budget=st.integers(1, 6), ends=st.sets(st.integers(0, 5)))
def test_8_our_lists_hold_each_id_once(ranking: list[int], budget: int, ends: set[int]) -> None:
    ids = FRSpecShortlist(torch.tensor(ranking), budget, tuple(ends))._ids.tolist()
    assert ids == sorted(set(ids)) and len(ids) == budget
    assert len(ends & set(ids)) == min(len(ends), budget)


@drawn
@given(case=cases(FEW), ids=st.sampled_from(["one", "all", "no end"]))
@chains
def test_9_degenerate_lists(case: DrawnCase, ids: str, verifier: Verifier) -> None:
    def listed(size: int) -> checks.Told:
        count = {"one": 1, "all": size, "no end": max(1, size - 1)}[ids]
        return checks.Told(torch.arange(count), size)

    assert distance(speculation(listed, verifier), case) == 0


@drawn
@given(data=st.data(), stops=st.lists(st.sampled_from(["ba", "aba", "bb", "b", "aaa"]), max_size=2))
@chains
def test_10_ends_and_stop_strings(
    data: st.DataObject,
    stops: list[str],
    verifier: Verifier,
) -> None:
    """Also across the borders of tokens, with one end id or two."""
    shape = data.draw(st.sampled_from([(3, 2, 3), (3, 1, 3), (4, 1, 3), (6, 1, 2), (4, 2, 2)]))
    case = DrawnCase(data, shape, ends=data.draw(st.integers(1, 2), label="end ids"))
    assert checks.text_distance(verifier, case, tuple(stops)) == 0


@drawn
@given(data=st.data(), size=st.integers(2, 3), gamma=st.integers(1, 3))
@chains
def test_11_limits_inside_a_run(
    data: st.DataObject,
    size: int,
    gamma: int,
    verifier: Verifier,
) -> None:
    limit = data.draw(st.sampled_from(sorted({0, 1, 2, gamma, gamma + 1})), label="limit")
    case = DrawnCase(data, (size, gamma, limit), ends=data.draw(st.integers(0, 1), label="end ids"))
    assert distance(speculation(FullShortlist, verifier), case) == 0


@drawn
@given(case=cases(FEW), sampling=samplings())
@chains
def test_12_every_position_is_shaped(
    case: DrawnCase,
    sampling: Sampling,
    verifier: Verifier,
) -> None:
    assert distance(speculation(static, verifier), case, sampling) == 0
    assert distance(speculation(FullShortlist, verifier), case, sampling) == 0


@drawn
@given(case=cases(FEW))
@chains
def test_12_a_processor_sees_the_drafted_tokens(case: DrawnCase, verifier: Verifier) -> None:
    assert checks.processed(case, verifier, blind=False) == 0


@drawn
@given(weights=weights, sampling=samplings())
def test_13_ties(weights: list[int], sampling: Sampling) -> None:
    """Equal logits at every cut, and rows of -inf with a single exception."""
    assert checks.tied(weights, sampling) < 1e-12


@pytest.mark.parametrize("top_p", [0.25, 0.5, 0.75])
@pytest.mark.parametrize("weights", [[1] * 4, [0, 1, 1, 1, 1], [1, 2, 1], [2, 1, 1], [0, 3, 0]])
def test_13_cuts_that_fall_on_a_border(weights: list[int], top_p: float) -> None:
    """Sums of dyadic shares are exact in floating point too."""
    assert checks.tied(weights, Sampling(1.0, top_p=top_p)) < 1e-12


@drawn
@given(
    logits=st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=40),
    temperature=st.floats(0.1, 3),
    dtype=st.sampled_from([torch.bfloat16, torch.float16, torch.float32]),
)
def test_14_low_precision_logits(
    logits: list[float],
    temperature: float,
    dtype: torch.dtype,
) -> None:
    assert checks.precise(logits, temperature, dtype) < 1e-6


@drawn
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    rows=st.integers(1, 4),
    temperatures=st.lists(st.sampled_from([0.0, 5.0, 8.0]), min_size=1, max_size=3),
)
def test_15_rows_as_if_alone(lengths: list[int], rows: int, temperatures: list[float]) -> None:
    checks.rows_as_alone(lengths, rows, temperatures)


@pytest.mark.parametrize("planted", PLANTED, ids=lambda p: f"{p.property}, {p.defect}")
def test_a_planted_defect_is_seen(planted: Planted) -> None:
    seen, distance = planted.seen()
    assert seen and (distance is None or math.isfinite(distance))


def test_every_property_has_a_defect() -> None:
    assert {planted.property for planted in PLANTED} == set(range(1, 16))
