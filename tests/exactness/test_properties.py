"""Sixteen properties of exact speculative decoding, each over cases drawn by hypothesis.

The numbers are those of ``docs/exactness.md``. Each property is broken by at least one planted
defect that its check must detect, so no check passes whatever happens.
"""

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from helpers.exactness import output_checks, round_checks, sampling_checks
from helpers.exactness.planted import DEFECTS
from helpers.exactness.planting import PlantedDefect
from helpers.exactness.shortlists import SHORTLISTS, build_frspec
from helpers.exactness.strategies import (
    DrawnCase,
    draw_case,
    draw_sampling,
    draw_shape,
    draw_shortlist,
    output_distance,
    property_settings,
)
from helpers.exactness.tree_checks import check_exhausted_siblings
from minispec.certificate.decodings import Backend, decode_with
from minispec.growth import TreeShape
from minispec.sampling import Sampling, SeededRandom
from minispec.shortlists.frspec import FRSpecShortlist
from minispec.shortlists.full import FullShortlist
from minispec.verify import VERIFIERS, Verifier

each_verifier = pytest.mark.parametrize("verifier", VERIFIERS.values(), ids=VERIFIERS)
SMALL_SHAPES = [(2, 1, 2), (3, 1, 2), (2, 2, 3), (2, 3, 3), (3, 2, 2)]
weights = st.lists(st.integers(0, 4), min_size=2, max_size=6).filter(any)


@property_settings
@given(data=st.data(), weights=weights)
@each_verifier
def test_1_verifier_handles_a_residual_of_zero_mass(
    data: st.DataObject, weights: list[int], verifier: Verifier
) -> None:
    """p and q are equal, or equal up to the last bits."""
    nudge = st.lists(st.integers(-2, 2), min_size=len(weights), max_size=len(weights))
    nudges = data.draw(nudge, label="units in the last place")
    assert round_checks.check_zero_mass_residual(verifier, weights, nudges) < 1e-12


@property_settings
@given(size=st.integers(2, 6), data=st.data())
@each_verifier
def test_2_verifier_never_emits_a_token_that_p_excludes(
    size: int, data: st.DataObject, verifier: Verifier
) -> None:
    """Disjoint supports among them."""
    row = st.lists(st.integers(0, 3), min_size=size, max_size=size).filter(any)
    round_checks.check_excluded_tokens(verifier, data.draw(row), data.draw(row), SeededRandom)


@property_settings
@given(case=draw_case(SMALL_SHAPES), data=st.data(), seed=st.integers(0, 99))
@each_verifier
def test_3_recorded_distributions_may_have_ids_in_any_order(
    case: DrawnCase, data: st.DataObject, seed: int, verifier: Verifier
) -> None:
    """Verification needs no sorted ids, as long as ids and probabilities stay together."""

    def order(length: int) -> list[int]:
        return torch.randperm(length, generator=torch.Generator().manual_seed(seed)).tolist()

    permuted = round_checks.permute_recorded(verifier, order)
    assert output_distance(decode_with(draw_shortlist(data), permuted), case) == 0


@property_settings
@given(case=draw_case(SMALL_SHAPES), data=st.data())
@each_verifier
def test_3_recorded_distributions_survive_a_reused_buffer(
    case: DrawnCase, data: st.DataObject, verifier: Verifier
) -> None:
    """The head overwrites its logits: the recorded distribution must be a copy."""
    decode = round_checks.reuse_one_buffer(decode_with(draw_shortlist(data), verifier))
    assert output_distance(decode, case, backend=Backend("float64")) < 1e-12


@property_settings
@given(case=draw_case(), data=st.data(), sampling=draw_sampling())
def test_4_picked_candidates_are_point_masses(
    case: DrawnCase, data: st.DataObject, sampling: Sampling
) -> None:
    decode = decode_with(draw_shortlist(data), tree=TreeShape(1, 2, 2))
    assert output_distance(decode, case, sampling) == 0


@property_settings
@given(case=draw_case(), data=st.data(), sampling=draw_sampling())
@each_verifier
def test_5_shortlist_may_change_at_every_step(
    case: DrawnCase, data: st.DataObject, sampling: Sampling, verifier: Verifier
) -> None:
    assert output_distance(decode_with(draw_shortlist(data), verifier), case, sampling) == 0


@property_settings
@given(case=draw_case(SMALL_SHAPES))
@each_verifier
def test_6_draft_may_change_before_verification(case: DrawnCase, verifier: Verifier) -> None:
    assert output_distance(round_checks.change_draft(verifier), case) == 0


@property_settings
@given(case=draw_case(SMALL_SHAPES), name=st.sampled_from(["changing", "history"]))
@each_verifier
def test_7_shortlist_may_depend_on_the_whole_past(
    case: DrawnCase, name: str, verifier: Verifier
) -> None:
    """On rejected drafts, distributions and acceptance of earlier rounds (a ``DrawnShortlist``
    depends on rejected drafts too)."""
    assert output_distance(decode_with(SHORTLISTS[name], verifier), case) == 0


@property_settings
@given(case=draw_case([(2, 1, 2), (3, 1, 2), (2, 2, 2)]))
@each_verifier
def test_7_shortlist_may_toss_coins_of_its_own(case: DrawnCase, verifier: Verifier) -> None:
    assert output_distance(round_checks.peek_at_coins(verifier, honest=True), case) == 0


@property_settings
@given(case=draw_case([(2, 2, 3), (2, 3, 4), (3, 2, 3)]), data=st.data())
@each_verifier
def test_7_chain_may_end_after_an_unsure_token(
    case: DrawnCase, data: st.DataObject, verifier: Verifier
) -> None:
    cut = round_checks.cut_at_unsure_token(verifier, keep=True)
    assert output_distance(decode_with(draw_shortlist(data), cut), case) == 0


@property_settings
@given(ids=st.lists(st.integers(-2, 6), max_size=5))
def test_8_and_9_illegal_shortlist_is_refused(ids: list[int]) -> None:
    """Duplicates, wrong order, ids out of range, no ids, too many ids."""
    if ids == sorted(set(ids)) and 1 <= len(ids) <= 3 and ids[0] >= 0 and ids[-1] < 4:
        with pytest.raises(pytest.fail.Exception):
            output_checks.check_refused(torch.tensor(ids))
    else:
        output_checks.check_refused(torch.tensor(ids, dtype=torch.int64))


@property_settings
@given(
    ranking=st.permutations(range(6)), budget=st.integers(1, 6), eos_ids=st.sets(st.integers(0, 5))
)
def test_8_frspec_shortlist_has_each_id_once(
    ranking: list[int], budget: int, eos_ids: set[int]
) -> None:
    ids = FRSpecShortlist(torch.tensor(ranking), budget, tuple(eos_ids))._ids.tolist()
    assert ids == sorted(set(ids)) and len(ids) == budget
    assert len(eos_ids & set(ids)) == min(len(eos_ids), budget)


@property_settings
@given(case=draw_case(SMALL_SHAPES), ids=st.sampled_from(["one", "all", "all but EOS"]))
@each_verifier
def test_9_degenerate_shortlist_is_exact(case: DrawnCase, ids: str, verifier: Verifier) -> None:
    def build_shortlist(vocab_size: int) -> output_checks.FixedShortlist:
        count = {"one": 1, "all": vocab_size, "all but EOS": max(1, vocab_size - 1)}[ids]
        return output_checks.FixedShortlist(torch.arange(count), vocab_size)

    assert output_distance(decode_with(build_shortlist, verifier), case) == 0


@property_settings
@given(data=st.data(), stops=st.lists(st.sampled_from(["ba", "aba", "bb", "b", "aaa"]), max_size=2))
@each_verifier
def test_10_eos_and_stop_strings_end_the_output(
    data: st.DataObject, stops: list[str], verifier: Verifier
) -> None:
    """Also across token borders, with one EOS id or two."""
    shape = data.draw(st.sampled_from([(3, 2, 3), (3, 1, 3), (4, 1, 3), (6, 1, 2), (4, 2, 2)]))
    case = DrawnCase(data, shape, eos_count=data.draw(st.integers(1, 2), label="EOS ids"))
    assert output_checks.text_distance(verifier, case, tuple(stops)) == 0


@property_settings
@given(data=st.data(), size=st.integers(2, 3), gamma=st.integers(1, 3))
@each_verifier
def test_11_limit_inside_an_accepted_run_is_exact(
    data: st.DataObject, size: int, gamma: int, verifier: Verifier
) -> None:
    limit = data.draw(st.sampled_from(sorted({0, 1, 2, gamma, gamma + 1})), label="limit")
    eos_count = data.draw(st.integers(0, 1), label="EOS ids")
    case = DrawnCase(data, (size, gamma, limit), eos_count)
    assert output_distance(decode_with(FullShortlist, verifier), case) == 0


@property_settings
@given(case=draw_case(SMALL_SHAPES), sampling=draw_sampling())
@each_verifier
def test_12_every_position_is_shaped(
    case: DrawnCase, sampling: Sampling, verifier: Verifier
) -> None:
    assert output_distance(decode_with(build_frspec, verifier), case, sampling) == 0
    assert output_distance(decode_with(FullShortlist, verifier), case, sampling) == 0


@property_settings
@given(case=draw_case(SMALL_SHAPES))
@each_verifier
def test_12_logits_processor_sees_the_drafted_tokens(case: DrawnCase, verifier: Verifier) -> None:
    assert output_checks.processor_distance(case, verifier, emitted_only=False) == 0


@property_settings
@given(weights=weights, sampling=draw_sampling())
def test_13_ties_go_to_the_lower_id(weights: list[int], sampling: Sampling) -> None:
    """Equal logits at every cut, and rows that are -inf except for one id."""
    assert sampling_checks.tie_distance(weights, sampling) < 1e-12


@pytest.mark.parametrize("top_p", [0.25, 0.5, 0.75])
@pytest.mark.parametrize("weights", [[1] * 4, [0, 1, 1, 1, 1], [1, 2, 1], [2, 1, 1], [0, 3, 0]])
def test_13_top_p_on_a_border_is_exact(weights: list[int], top_p: float) -> None:
    """Sums of dyadic shares are exact in floating point too."""
    assert sampling_checks.tie_distance(weights, Sampling(1.0, top_p=top_p)) < 1e-12


@property_settings
@given(
    logits=st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=40),
    temperature=st.floats(0.1, 3),
    dtype=st.sampled_from([torch.bfloat16, torch.float16, torch.float32]),
)
def test_14_distribution_of_low_precision_logits_is_precise(
    logits: list[float], temperature: float, dtype: torch.dtype
) -> None:
    assert sampling_checks.precision_distance(logits, temperature, dtype) < 1e-6


@property_settings
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    rows=st.integers(1, 4),
    temperatures=st.lists(st.sampled_from([0.0, 5.0, 8.0]), min_size=1, max_size=3),
)
def test_15_rows_of_a_batch_are_independent(
    lengths: list[int], rows: int, temperatures: list[float]
) -> None:
    sampling_checks.check_rows_independent(lengths, rows, temperatures)


@property_settings
@given(case=draw_case(SMALL_SHAPES), data=st.data(), sampling=draw_sampling(), shape=draw_shape())
@each_verifier
def test_16_trees_are_exact(
    case: DrawnCase, data: st.DataObject, sampling: Sampling, shape: TreeShape, verifier: Verifier
) -> None:
    """Of any shape, with shortlists that depend on the path and on what was rejected."""
    decode = decode_with(draw_shortlist(data), verifier, tree=shape)
    assert output_distance(decode, case, sampling) == 0


@property_settings
@given(case=draw_case([(3, 1, 3), (4, 1, 2)]), shape=draw_shape())
@each_verifier
def test_16_every_node_is_shaped_after_its_own_path(
    case: DrawnCase, shape: TreeShape, verifier: Verifier
) -> None:
    shaping = Sampling(1.0, presence_penalty=math.log(4), bad_words=((0, 2), (1, 1)))
    assert output_distance(decode_with(FullShortlist, verifier, tree=shape), case, shaping) == 0


@pytest.mark.parametrize("verifier", VERIFIERS.values(), ids=VERIFIERS)
def test_16_siblings_may_take_all_of_p(verifier: Verifier) -> None:
    assert check_exhausted_siblings(verifier) == 0


@pytest.mark.parametrize("planted", DEFECTS, ids=lambda d: f"{d.property}, {d.defect}")
def test_planted_defect_is_detected(planted: PlantedDefect) -> None:
    detected, distance = planted.detect()
    assert detected and (distance is None or math.isfinite(distance))


def test_every_property_has_a_planted_defect() -> None:
    assert {planted.property for planted in DEFECTS} == set(range(1, 17))
