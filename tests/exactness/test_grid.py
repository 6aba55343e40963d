"""The certificate's own rows, as many as fit into a test run: every verifier with every list
and every way of sampling, in fractions; `make exactness` walks all of the grid."""

import itertools
from collections import Counter, defaultdict
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import certificate
from learners import layer
from lists import LISTS, static
from minispec.certificate.certify import (
    GRID,
    Backend,
    Certificate,
    Decoding,
    Toys,
    certify,
    speculation,
)
from minispec.certificate.exact_sampling import ExactSampling
from minispec.certificate.walker import every_branch
from minispec.errors import ArgumentError
from minispec.sampling import Sampling
from minispec.types import Distribution, Proposal, RandomSource, Verdict
from minispec.verify import verify
from parts import (
    ARITHMETICS,
    BACKENDS,
    CHAINS,
    DRAFTING,
    LEARNING,
    SAMPLING,
    VERIFIERS,
    backend_of,
    decoding,
    impossible,
)

PART = [GRID[i] for i in (2, 8, 11, 13)]


@pytest.mark.parametrize("sampling", SAMPLING)
@pytest.mark.parametrize("shortlist", LISTS)
@pytest.mark.parametrize("verifier", VERIFIERS)
def test_the_law_is_exactly_the_targets(verifier: str, shortlist: str, sampling: str) -> None:
    decode = decoding(verifier, shortlist)
    found = certify(decode, SAMPLING[sampling], PART)
    assert isinstance(found.worst_tv, Fraction | int) and found.worst_tv == 0
    assert found.branches > len(PART) or SAMPLING[sampling].temperature == 0


FLOATS = [
    (b, a) for b in BACKENDS for a in ("float64", "float32")
    if not impossible(b, a, "token", "learning")
]  # fmt: skip


@pytest.mark.parametrize(("backend", "arithmetic"), FLOATS)
@pytest.mark.parametrize("verifier", VERIFIERS)
def test_rounding_stays_rounding(verifier: str, backend: str, arithmetic: str) -> None:
    decode = decoding(verifier, "learning")
    found = certify(decode, Sampling(1.0), PART, backend_of(backend, arithmetic))
    assert found.worst_tv <= ARITHMETICS[arithmetic]


Laws = dict[tuple[int, ...], set[tuple[object, ...]]]


def laws_walked(decode: Decoding, toys: Toys) -> tuple[Laws, Counter[str]]:
    """All laws that a text is drafted on by, wherever it came about; and what learners did."""
    distributions: Laws = defaultdict(set)
    events = Counter[str]()
    for rounds, _ in every_branch(lambda source: list(decode(toys, source))):
        said: tuple[int, ...] = ()
        for finished in rounds:
            assert finished.evidence is not None
            for q in finished.evidence.proposal.draft_distributions[:1]:
                ids = q.ids.tolist()
                distributions[said].add((*ids, *(f"{float(share):.9f}" for share in q.probs)))
            said += finished.tokens
            events.update(finished.events)
    return distributions, events


@pytest.mark.parametrize("shortlist", certificate.LEARNS)
def test_lists_that_learn_from_rejected_drafts_are_walked_learning(shortlist: str) -> None:
    """The same text, come about with other drafts refused, is drafted on by other laws: without
    that, the walk would prove nothing of learning."""
    found: set[int] = set()
    for case in certificate.LONG:
        toys = Toys.of(case, Sampling(1.0), Backend())
        distributions, _ = laws_walked(decoding("token", shortlist), toys)
        found.update(map(len, distributions.values()))
    assert max(found) > 1


@pytest.mark.parametrize("drafting", LEARNING)
def test_drafts_that_learn_are_walked_learning(drafting: str) -> None:
    toys = Toys.of(GRID[18], Sampling(1.0), Backend("float64"))
    distributions, events = laws_walked(decoding("token", drafting), toys)
    frozen = speculation(LEARNING[drafting][0])
    known, _ = laws_walked(frozen, replace(toys, draft=layer(toys)))
    assert distributions[()] == known[()], "nothing is learnt yet"
    assert any(distributions[text] != known[text] for text in distributions.keys() & known.keys())
    assert events["changed"] > 10
    assert bool(events["refused_verdicts"]) == ("lied to" in drafting)


def test_most_cases_reject_and_miss() -> None:
    """At least half of all cases have more than 0.05 of the target's mass off the first list,
    and a first round that rejects with probability 0.05 to 0.95; of each list, at temperature 1,
    two thirds do. Every third case is asked here; the certificate counts all."""
    cases, stressed = 0, 0
    for drafting, sampling in itertools.product(DRAFTING, SAMPLING):
        decode = decoding("token", drafting)
        arithmetic = "float64" if drafting in LEARNING else "fraction"
        found = certify(
            lambda toys, source, decode=decode: itertools.islice(decode(toys, source), 1),
            SAMPLING[sampling], certificate.cases_of(arithmetic, drafting, sampling)[::3],
            Backend(arithmetic),
        )  # fmt: skip
        cases, stressed = cases + found.cases, stressed + found.stressed
        assert (
            drafting == "full"
            or sampling != "temperature 1"
            or 3 * found.stressed > 2 * found.cases
        )
    assert 2 * stressed > cases


def test_a_row_says_what_is_wrong_with_it() -> None:
    row: dict[str, Any] = {
        "arithmetic": "float64", "worst_tv": 1e-13, "worst_case": None, "inapplicable": {},
        "kinds": {"eos_inside": 1},
    }  # fmt: skip
    assert certificate.wrong(row) == []
    assert len(certificate.wrong(row | {"arithmetic": "fraction"})) == 1
    assert len(certificate.wrong(row | {"worst_tv": 2e-12})) == 1
    assert certificate.wrong(row | {"kinds": {"eos_inside": 0}}) == ["no branch with eos_inside"]
    assert certificate.wrong(
        row | {"kinds": {"eos_inside": 0}, "inapplicable": {"eos_inside": "why"}}
    ) == []  # fmt: skip


def test_the_whole_product_is_either_walked_or_refused() -> None:
    possible, refused = certificate.keys()
    count = len(BACKENDS) * len(ARITHMETICS) * len(VERIFIERS) * len(DRAFTING) * len(SAMPLING)
    assert len(possible) + len(refused) == count
    names = ("backend", "arithmetic", "verifier", "shortlist")
    assert all(impossible(*(row[n] for n in names)) == row["reason"] for row in refused)
    assert all(impossible("reference", "fraction", v, d) is None for v in VERIFIERS for d in LISTS)
    assert all(impossible("reference", "float64", v, d) is None for v in CHAINS for d in LEARNING)
    assert impossible("other", "fraction", "token", "full")


def test_a_block_never_accepts_fewer_tokens() -> None:
    """In the mean of the first round, case by case; in some it accepts more."""
    cases = [case for case in GRID if case.gamma > 1][4:]
    found: dict[tuple[str, ...], Certificate] = {}
    for verifier in ("token", "block"):
        key = ("reference", "fraction", verifier, "static", "temperature 1")
        found[key] = certify(decoding(verifier, "static"), Sampling(1.0), cases)
    gains = certificate.block_against_token(found)
    assert gains["cases"] == len(cases)
    assert gains["fewer"] == 0 and gains["more"] > 2


def test_a_verifier_that_is_too_kind_is_found_out() -> None:
    """Certified as a user's own part would be; the worst case is named."""

    def kind(proposal: Proposal, distributions: list[Distribution], rng: RandomSource) -> Verdict:
        return verify(proposal, distributions, type("Kind", (), {
            "bernoulli": lambda self, p: rng.bernoulli(min(1, p * 2)), "choose": rng.choose,
        })())  # fmt: skip

    found = certify(speculation(static, kind), Sampling(1.0), PART)  # type: ignore[arg-type]
    assert found.worst_tv > Fraction(1, 100) and found.worst_case in PART


@given(
    weights=st.lists(st.integers(0, 5), min_size=1, max_size=6).filter(any),
    sampling=st.sampled_from(list(SAMPLING.values())),
)
def test_the_two_samplings_are_one(weights: list[int], sampling: Sampling) -> None:
    """What fractions prove is said about the production law: both shape alike."""
    ids = torch.arange(len(weights))
    exact = ExactSampling(sampling).distribution(torch.tensor(weights), ids).probs
    logits = torch.tensor(weights, dtype=torch.float64).log().clamp(min=-1e4)
    distribution = sampling.distribution(logits, ids).probs
    assert sum(exact) == 1
    assert torch.allclose(
        distribution, torch.tensor([float(share) for share in exact], dtype=distribution.dtype)
    )


@pytest.mark.parametrize("temperature", [0.8, 3.0])
def test_a_temperature_without_exact_powers_is_refused(temperature: float) -> None:
    with pytest.raises(ArgumentError, match="0 or 1/n"):
        certify(speculation(static), Sampling(temperature), PART)
