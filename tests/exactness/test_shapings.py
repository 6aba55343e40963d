"""Every shaping at every row of a pass: whole generations through the production ``Sampling``,
chains of up to 8 tokens, against plain decoding in fractions."""

import pytest

from helpers.exactness.output_checks import is_bonus
from helpers.exactness.shaping_defects import leave_out, measure_defect
from helpers.exactness.shapings import (
    ALONE,
    CHAIN_CASES,
    SHAPINGS,
    SQUARE_CASES,
    TOGETHER,
    shaping_distance,
)
from helpers.exactness.shortlists import build_frspec
from minispec.certificate.decodings import Backend, decode_with
from minispec.certificate.enumeration import certify_decoding
from minispec.certificate.toys import ChangingShortlist
from minispec.sampling import Sampling
from minispec.shortlists.full import FullShortlist
from minispec.verify import VERIFIERS

CHAINS = [case for gamma in (5, 4, 6) for case in CHAIN_CASES if case.gamma == gamma]
# Shapings under which no id is certain: many branches. ``make exactness`` walks them all.
MANY_BRANCHES = ("logit_bias", "repetition is encouraged")
ROWS = {
    "first": lambda row, rows: row == 0,
    "third": lambda row, rows: row == 2,
    "bonus": is_bonus,
    "bonus after five or more": lambda row, rows: row == rows - 1 >= 5,
    "fifth and later": lambda row, rows: row >= 4,
}


def uses(sampling: Sampling, name: str) -> bool:
    """Whether a sampling has a shaping; greedy sampling has no temperature to leave out."""
    neutral = 1.0 if name == "temperature" else getattr(Sampling(), name)
    return bool(getattr(sampling, name) != neutral) and sampling.temperature > 0


@pytest.mark.parametrize(
    "shaping",
    [pytest.param(s, marks=pytest.mark.slow) if s in MANY_BRANCHES else s for s in SHAPINGS],
)
def test_decoding_with_a_shaping_has_the_distribution_of_plain_decoding(shaping: str) -> None:
    for verifier in VERIFIERS.values():
        decode = decode_with(FullShortlist, verifier)
        assert shaping_distance(decode, SHAPINGS[shaping], CHAINS[1], "float64") < 1e-12


@pytest.mark.parametrize("shaping", SHAPINGS)
@pytest.mark.parametrize("shortlist", [build_frspec, ChangingShortlist])
def test_decoding_with_a_shaping_is_exact_over_shortlists(shaping: str, shortlist: type) -> None:
    certificate = certify_decoding(decode_with(shortlist), SHAPINGS[shaping], SQUARE_CASES[:2])
    assert certificate.worst_tv == 0
    floats = certify_decoding(
        decode_with(shortlist), SHAPINGS[shaping], SQUARE_CASES[:2], Backend("float64")
    )
    assert floats.worst_tv < 1e-12


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("name", ALONE)
def test_a_shaping_left_out_in_some_rows_is_detected(name: str, rows: str) -> None:
    defect = leave_out(name, ALONE[name], ROWS[rows])
    assert measure_defect(defect, ALONE[name], CHAINS) > 1e-6


@pytest.mark.parametrize("rows", ["third", "bonus"])
@pytest.mark.parametrize("name", ALONE)
def test_a_shaping_left_out_of_several_is_detected(name: str, rows: str) -> None:
    several = [sampling for sampling in TOGETHER.values() if uses(sampling, name)]
    assert several
    assert any(
        measure_defect(leave_out(name, sampling, ROWS[rows]), sampling, CHAINS) > 1e-6
        for sampling in several
    )
