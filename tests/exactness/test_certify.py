"""``certify``: exact parts pass, wrong ones fail with a counterexample."""

from collections.abc import Sequence
from fractions import Fraction

import pytest
import torch

from helpers.exactness.planting import restrict_residual
from minispec import verify as verification
from minispec.certificate.cases import GRID, SAMPLINGS
from minispec.certificate.certify import CertificationResult, Mismatch, certify, find_mismatch
from minispec.certificate.toys import ChangingShortlist
from minispec.errors import ArgumentError
from minispec.sampling import Sampling
from minispec.shortlists.frspec import FRSpecShortlist
from minispec.shortlists.full import FullShortlist
from minispec.types import BaseShortlist, Context, Distribution, Proposal, RandomSource
from minispec.verify import Verdict, verify, verify_block

CASES = [GRID[i] for i in (2, 5, 9)]
UNSHAPED = [Sampling(1.0)]


def verify_on_shortlist(
    proposal: Proposal, target_distributions: Sequence[Distribution], rng: RandomSource
) -> Verdict:
    """The defect: after a rejection only tokens of the shortlist are sampled."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verification, "residual", restrict_residual)
        return verify(proposal, target_distributions, rng)


class EvenShortlist(BaseShortlist):
    """The even ids. Needs no vocabulary size."""

    name, budget, per_round = "even", 2, True

    def select(self, context: Context) -> torch.Tensor:
        return torch.tensor([0, 2])


class UnsortedShortlist(EvenShortlist):
    def select(self, context: Context) -> torch.Tensor:
        return torch.tensor([2, 0])


class StatefulShortlist(EvenShortlist):
    """Depends on earlier outputs: ``reset`` resets nothing."""

    rounds = 0

    def select(self, context: Context) -> torch.Tensor:
        return torch.tensor([self.rounds % 3])

    def observe(self, finished: object) -> None:
        self.rounds += 1


@pytest.mark.parametrize(
    "part",
    [
        FullShortlist,
        lambda vocab_size: FullShortlist(vocab_size),
        ChangingShortlist,
        EvenShortlist,
        lambda: EvenShortlist(),
        verify,
        verify_block,
    ],
)
def test_certify_finds_exact_parts_exact(part: object) -> None:
    cases = [case for case in CASES if case.vocab_size > 2]
    result = certify(part, cases=cases)  # type: ignore[arg-type]
    assert result.exact, result
    assert isinstance(result.worst_tv, Fraction) and result.worst_case is None
    combinations = 3 if part in (verify, verify_block) else 2
    assert result.cases == combinations * len(SAMPLINGS) * len(cases)
    assert str(result).startswith("exact: total variation 0 (")


def test_certify_finds_a_verifier_that_ignores_tokens_outside_the_shortlist() -> None:
    """It is exact over a full shortlist, so a verifier must be certified over others too."""
    result = certify(verify_on_shortlist, samplings=UNSHAPED, cases=CASES)
    assert not result.exact and result.worst_tv > Fraction(1, 100)
    assert result.worst_case in CASES and result.worst_sampling == Sampling(1.0)
    assert result.worst_combination is not None
    assert result.worst_combination.shortlist_name in ("half", "changing")
    assert certify(
        shortlist=FullShortlist, verifier=verify_on_shortlist, samplings=UNSHAPED, cases=CASES
    ).exact


def test_certification_result_names_the_shortest_wrong_output() -> None:
    result = certify(verify_on_shortlist, samplings=UNSHAPED, cases=CASES)
    assert result.mismatch is not None
    assert result.mismatch.probability != result.mismatch.plain_probability
    text = str(result)
    assert text.startswith("not exact: total variation 0.")
    assert "verifier verify_on_shortlist" in text and "temperature=1.0" in text
    assert str(result.mismatch) in text


def test_mismatch_reads_as_a_sentence() -> None:
    assert str(Mismatch((0, 2), None, Fraction(1, 4), Fraction(1, 8))) == (
        "output begins with [0, 2]: probability 1/4 = 0.25, in plain decoding 1/8 = 0.125"
    )
    assert str(Mismatch((1,), "eos", Fraction(0), Fraction(1, 100_000))) == (
        "output [1], eos: probability 0 = 0, in plain decoding 1e-05"
    )


def test_find_mismatch_is_the_shortest_beginning_that_differs() -> None:
    half, quarter = Fraction(1, 2), Fraction(1, 4)
    plain = {((1,), "eos"): half, ((0, 0), "eos"): half}
    longer = {((1,), "eos"): half, ((0, 1), "eos"): quarter, ((0, 0), "eos"): quarter}
    assert find_mismatch(longer, plain) == Mismatch((0, 0), None, quarter, half)
    first = {((1,), "eos"): quarter, ((0, 0), "eos"): half, ((2,), "eos"): quarter}
    assert find_mismatch(first, plain) == Mismatch((1,), None, quarter, half)
    other_stop = {((1,), "length"): half, ((0, 0), "eos"): half}
    assert find_mismatch(other_stop, plain) == Mismatch((1,), "eos", Fraction(0), half)
    assert find_mismatch(plain, plain) is None


@pytest.mark.parametrize(
    ("part", "message"),
    [(UnsortedShortlist, "even: "), (StatefulShortlist, "keeps state between runs")],
)
def test_certify_reports_a_broken_contract(part: type, message: str) -> None:
    result = certify(part, samplings=UNSHAPED, cases=[GRID[2]])
    assert not result.exact and result.error is not None and message in result.error
    assert result.error in str(result) and part.__name__ in str(result)


def test_certify_counts_no_branch_before_an_error() -> None:
    result = certify(UnsortedShortlist, samplings=UNSHAPED, cases=[GRID[2]])
    assert isinstance(result, CertificationResult) and result.branches == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "nothing to certify"),
        ({"part": FullShortlist(4)}, "a FullShortlist cannot be certified"),
        ({"part": FRSpecShortlist}, "FRSpecShortlist needs 3 arguments"),
        ({"part": verify, "verifier": verify}, "two verifiers"),
        ({"part": FullShortlist, "shortlist": FullShortlist}, "two shortlists"),
    ],
)
def test_certify_refuses_what_it_cannot_certify(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        certify(**arguments)  # type: ignore[arg-type]
