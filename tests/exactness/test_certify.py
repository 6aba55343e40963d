"""``certify``: exact parts pass, wrong ones fail with a counterexample.

``test_certify_defects.py`` has the mistakes that it must name.
"""

from collections.abc import Sequence
from fractions import Fraction

import pytest
import torch

from helpers.exactness.learners import build_learner
from helpers.exactness.planting import restrict_residual
from minispec import verify as verification
from minispec.certificate.cases import GRID, SAMPLINGS
from minispec.certificate.certification_result import CertificationResult
from minispec.certificate.certify import certify
from minispec.certificate.mismatch import ORIGINS, Mismatch, find_mismatch
from minispec.certificate.toys import ChangingShortlist
from minispec.errors import ArgumentError
from minispec.sampling import Sampling
from minispec.shortlists.frspec import FRSpecShortlist
from minispec.shortlists.full import FullShortlist
from minispec.types import BaseShortlist, Context, Distribution, Proposal, RandomSource
from minispec.verify import Verdict, Verifier, residual, verify, verify_block

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
        ChangingShortlist,
        lambda vocab_size: ChangingShortlist(vocab_size),
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
    assert result.worst_tv == 0 and result.worst_case is None
    assert result.kinds["residual_off_list"] > 0
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


@pytest.mark.parametrize("verifier", [verify_on_shortlist, verify])
def test_certify_refuses_a_certificate_without_a_token_from_outside(verifier: Verifier) -> None:
    """Over a full shortlist the commonest mistake makes no difference."""
    result = certify(shortlist=FullShortlist, verifier=verifier, samplings=UNSHAPED, cases=CASES)
    assert result.worst_tv == 0 and result.error is None and not result.exact
    assert str(result).startswith("not certified: saw no rejection after which a token outside")
    assert not certify(FullShortlist, samplings=UNSHAPED, cases=CASES).exact


def test_certification_result_names_the_shortest_wrong_output() -> None:
    result = certify(verify_on_shortlist, samplings=UNSHAPED, cases=CASES)
    mismatch = result.mismatch
    assert mismatch is not None and mismatch.probability != mismatch.plain_probability
    assert sum(mismatch.origins) == mismatch.probability
    assert sum(mismatch.token_level) == mismatch.plain_probability
    assert mismatch.origins[ORIGINS.index("rejection, then a token outside it")] == 0
    text = str(result)
    assert text.startswith("not exact: total variation 0.")
    assert "verifier verify_on_shortlist" in text and str(UNSHAPED[0]) in text
    assert str(mismatch) in text and all(line in text for line in mismatch.list_origins())
    assert result.explanation is not None
    assert result.explanation.replace("; ", ";\n    ") in text
    assert "never a token outside the shortlist, such as" in result.explanation
    assert result.explanation.endswith("all calls agree with (p - q)+ within the shortlist")


def verify_in_floats(
    proposal: Proposal, target_distributions: Sequence[Distribution], rng: RandomSource
) -> Verdict:
    """Token-level verification in floating point: off by rounding."""
    for i, (x, q) in enumerate(zip(proposal.tokens, proposal.draft_distributions, strict=True)):
        p = target_distributions[i]
        if not rng.bernoulli(min(1.0, float(p.probability(x)) / float(q.probability(x)))):
            r = residual(p, q)
            return Verdict(tuple(range(i)), int(r.ids[rng.choose(r.probs)]), r, ())
    p = target_distributions[-1]
    return Verdict(tuple(range(len(proposal))), int(p.ids[rng.choose(p.probs)]), p, ())


def test_certify_says_that_rounding_is_not_a_mistake() -> None:
    result = certify(verify_in_floats, samplings=UNSHAPED, cases=CASES)
    assert not result.exact and 0 < result.worst_tv < 1e-12
    assert "as small as rounding: certify with arithmetic='float64'" in str(result)
    result = certify(verify_in_floats, samplings=UNSHAPED, cases=CASES, arithmetic="float64")
    assert result.exact and str(result).startswith("exact: total variation ")


def verify_with_torch(
    proposal: Proposal, target_distributions: Sequence[Distribution], rng: RandomSource
) -> Verdict:
    """Token-level verification by operations that only tensors have."""
    for i, (x, q) in enumerate(zip(proposal.tokens, proposal.draft_distributions, strict=True)):
        p = target_distributions[i]
        ratio = torch.clamp(p.probability(x) / q.probability(x), max=1)
        if not rng.bernoulli(ratio):
            r = residual(p, q)
            return Verdict(tuple(range(i)), int(r.ids[rng.choose(r.probs)]), r, ())
    p = target_distributions[-1]
    return Verdict(tuple(range(len(proposal))), int(p.ids[rng.choose(p.probs)]), p, ())


def test_certify_takes_operations_of_tensors_in_float64() -> None:
    result = certify(verify_with_torch, samplings=UNSHAPED, cases=CASES)
    assert not result.exact and result.error is not None
    assert "TypeError in verify_with_torch, line" in result.error
    assert "certify with arithmetic='float64'" in result.error
    assert certify(verify_with_torch, samplings=UNSHAPED, cases=CASES, arithmetic="float64").exact


def test_mismatch_reads_as_a_sentence() -> None:
    assert str(Mismatch((0, 2), None, Fraction(1, 4), Fraction(1, 8))) == (
        "output begins with [0, 2]: probability 1/4 = 0.25, in plain decoding 1/8 = 0.125"
    )
    assert str(Mismatch((1,), "eos", Fraction(0), Fraction(1, 100_000))) == (
        "output [1], eos: probability 0, in plain decoding 1e-05"
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
    [
        (UnsortedShortlist, "even: ids are not"),
        (StatefulShortlist, "even: select gave other ids in"),
    ],
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
        ({"part": verify, "arithmetic": "float16"}, "arithmetic 'float16' is not known"),
        ({"learner": build_learner, "arithmetic": "fraction"}, "use arithmetic='float64'"),
    ],
)
def test_certify_refuses_what_it_cannot_certify(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        certify(**arguments)  # type: ignore[arg-type]
