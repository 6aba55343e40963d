"""The rows of the certificate over a few cases: every verifier with every shortlist at every
sampling, in fractions. `make exactness` enumerates the whole grid."""

import itertools
from collections import Counter, defaultdict
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helpers.exactness.combinations import (
    ARITHMETICS,
    BACKENDS,
    CHAIN_VERIFIERS,
    DRAFTERS,
    LEARNING,
    SAMPLINGS_BY_NAME,
    VERIFIERS,
    build_backend,
    build_decoding,
    explain_refusal,
)
from helpers.exactness.continuations import CONTINUATIONS
from helpers.exactness.learners import build_layer
from helpers.exactness.rows import (
    LEARNING_SHORTLISTS,
    LONG_CASES,
    Key,
    compare_block_with_token,
    find_faults,
    list_keys,
    select_cases,
)
from helpers.exactness.shortlists import SHORTLISTS, build_frspec
from minispec.certificate.cases import GRID
from minispec.certificate.decodings import Backend, Decoding, ToyModels, decode_with
from minispec.certificate.enumeration import Certificate, certify_decoding
from minispec.certificate.exact_sampling import ExactSampling
from minispec.certificate.walker import enumerate_branches
from minispec.errors import ArgumentError
from minispec.sampling import Sampling
from minispec.types import Distribution, Proposal, RandomSource
from minispec.verify import Verdict, verify

SOME_CASES = [GRID[i] for i in (2, 8, 11, 13)]


@pytest.mark.parametrize("sampling", SAMPLINGS_BY_NAME)
@pytest.mark.parametrize("drafter", [*SHORTLISTS, *CONTINUATIONS])
@pytest.mark.parametrize("verifier", VERIFIERS)
def test_decoding_has_exactly_the_target_distribution(
    verifier: str, drafter: str, sampling: str
) -> None:
    decode = build_decoding(verifier, drafter)
    certificate = certify_decoding(decode, SAMPLINGS_BY_NAME[sampling], SOME_CASES)
    assert isinstance(certificate.worst_tv, Fraction | int) and certificate.worst_tv == 0
    greedy = SAMPLINGS_BY_NAME[sampling].temperature == 0
    assert certificate.branches > len(SOME_CASES) or greedy


FLOATS = [
    (b, a) for b in BACKENDS for a in ("float64", "float32")
    if not explain_refusal(b, a, "token", "history")
]  # fmt: skip


@pytest.mark.parametrize(("backend", "arithmetic"), FLOATS)
@pytest.mark.parametrize("verifier", VERIFIERS)
def test_decoding_in_floats_differs_by_rounding_only(
    verifier: str, backend: str, arithmetic: str
) -> None:
    decode = build_decoding(verifier, "history")
    certificate = certify_decoding(
        decode, Sampling(1.0), SOME_CASES, build_backend(backend, arithmetic)
    )
    assert certificate.worst_tv <= ARITHMETICS[arithmetic]


Distributions = dict[tuple[int, ...], set[tuple[object, ...]]]


def collect_draft_distributions(
    decode: Decoding, models: ToyModels
) -> tuple[Distributions, Counter[str]]:
    """Every distribution that the first draft step after a text has in any branch, and the
    learner's events."""
    distributions: Distributions = defaultdict(set)
    events = Counter[str]()
    for rounds, _ in enumerate_branches(lambda source: list(decode(models, source))):
        emitted: tuple[int, ...] = ()
        for finished in rounds:
            assert finished.evidence is not None
            for q in finished.evidence.proposal.draft_distributions[:1]:
                ids = q.ids.tolist()
                distributions[emitted].add((*ids, *(f"{float(share):.9f}" for share in q.probs)))
            emitted += finished.tokens
            events.update(finished.events)
    return distributions, events


@pytest.mark.parametrize("shortlist", LEARNING_SHORTLISTS)
def test_learning_shortlist_changes_with_rejected_drafts(shortlist: str) -> None:
    """The same text, reached with other rejected drafts, has other draft distributions. Without
    that, the enumeration would prove nothing about learning."""
    counts: set[int] = set()
    for case in LONG_CASES:
        models = ToyModels.build(case, Sampling(1.0), Backend())
        distributions, _ = collect_draft_distributions(build_decoding("token", shortlist), models)
        counts.update(map(len, distributions.values()))
    assert max(counts) > 1


@pytest.mark.parametrize("drafter", LEARNING)
def test_learning_draft_changes_while_it_is_enumerated(drafter: str) -> None:
    models = ToyModels.build(GRID[18], Sampling(1.0), Backend("float64"))
    learned, events = collect_draft_distributions(build_decoding("token", drafter), models)
    decode_frozen = decode_with(LEARNING[drafter][0])
    frozen, _ = collect_draft_distributions(
        decode_frozen, replace(models, draft=build_layer(models))
    )
    assert learned[()] == frozen[()], "the draft has learned nothing yet"
    assert any(learned[text] != frozen[text] for text in learned.keys() & frozen.keys())
    assert events["changed"] > 10
    assert bool(events["refused_verdicts"]) == ("poisoned" in drafter)


def test_most_cases_reject_and_miss_mass() -> None:
    """At least half of all cases have more than 0.05 of the target's mass outside the first
    shortlist, and a first round that rejects with probability 0.05 to 0.95; at temperature 1 two
    thirds of each shortlist's cases do. Every third case is tested here; the certificate counts
    all."""
    cases, stressed = 0, 0
    for drafter, sampling in itertools.product(DRAFTERS, SAMPLINGS_BY_NAME):
        decode = build_decoding("token", drafter)
        arithmetic = "float64" if drafter in LEARNING else "fraction"
        certificate = certify_decoding(
            lambda models, source, decode=decode: itertools.islice(decode(models, source), 1),
            SAMPLINGS_BY_NAME[sampling], select_cases(arithmetic, drafter, sampling)[::3],
            Backend(arithmetic),
        )  # fmt: skip
        cases, stressed = cases + certificate.cases, stressed + certificate.stressed
        assert (
            drafter == "full"
            or sampling != "temperature 1"
            or 3 * certificate.stressed > 2 * certificate.cases
        )
    assert 2 * stressed > cases


def test_find_faults_names_each_fault_of_a_row() -> None:
    row: dict[str, Any] = {
        "arithmetic": "float64", "worst_tv": 1e-13, "worst_case": None, "inapplicable": {},
        "kinds": {"eos_inside": 1},
    }  # fmt: skip
    assert find_faults(row) == []
    assert len(find_faults(row | {"arithmetic": "fraction"})) == 1
    assert len(find_faults(row | {"worst_tv": 2e-12})) == 1
    assert find_faults(row | {"kinds": {"eos_inside": 0}}) == ["no branch with eos_inside"]
    assert find_faults(
        row | {"kinds": {"eos_inside": 0}, "inapplicable": {"eos_inside": "why"}}
    ) == []  # fmt: skip


def test_list_keys_covers_the_whole_product() -> None:
    possible, refused = list_keys()
    count = 1
    for options in (BACKENDS, ARITHMETICS, VERIFIERS, DRAFTERS, SAMPLINGS_BY_NAME):
        count *= len(options)
    assert len(possible) + len(refused) == count
    names = ("backend", "arithmetic", "verifier", "shortlist")
    assert all(explain_refusal(*(row[n] for n in names)) == row["reason"] for row in refused)
    for verifier, shortlist in itertools.product(VERIFIERS, SHORTLISTS):
        assert explain_refusal("reference", "fraction", verifier, shortlist) is None
    for verifier, drafter in itertools.product(CHAIN_VERIFIERS, LEARNING):
        assert explain_refusal("reference", "float64", verifier, drafter) is None
    assert explain_refusal("other", "fraction", "token", "full")


def test_verify_block_never_accepts_fewer_tokens() -> None:
    """In the mean of the first round, case by case; in some cases it accepts more."""
    cases = [case for case in GRID if case.gamma > 1][4:]
    certificates: dict[Key, Certificate] = {}
    for verifier in ("token", "block"):
        key = ("reference", "fraction", verifier, "frspec", "temperature 1")
        decode = build_decoding(verifier, "frspec")
        certificates[key] = certify_decoding(decode, Sampling(1.0), cases)
    gains = compare_block_with_token(certificates)
    assert gains["cases"] == len(cases)
    assert gains["fewer"] == 0 and gains["more"] > 2


def test_certify_decoding_detects_a_verifier_that_accepts_too_often() -> None:
    def lenient(
        proposal: Proposal, distributions: list[Distribution], rng: RandomSource
    ) -> Verdict:
        return verify(proposal, distributions, type("Lenient", (), {
            "bernoulli": lambda self, p: rng.bernoulli(min(1, p * 2)), "choose": rng.choose,
        })())  # fmt: skip

    decode = decode_with(build_frspec, lenient)  # type: ignore[arg-type]
    certificate = certify_decoding(decode, Sampling(1.0), SOME_CASES)
    assert certificate.worst_tv > Fraction(1, 100) and certificate.worst_case in SOME_CASES


@given(
    weights=st.lists(st.integers(0, 5), min_size=1, max_size=6).filter(any),
    sampling=st.sampled_from(list(SAMPLINGS_BY_NAME.values())),
)
def test_exact_sampling_equals_production_sampling(weights: list[int], sampling: Sampling) -> None:
    """A proof in fractions then holds for the production distribution too."""
    ids = torch.arange(len(weights))
    exact = ExactSampling(sampling).distribution(torch.tensor(weights), ids).probs
    logits = torch.tensor(weights, dtype=torch.float64).log().clamp(min=-1e4)
    probs = sampling.distribution(logits, ids).probs
    assert sum(exact) == 1
    assert torch.allclose(probs, torch.tensor([float(share) for share in exact], dtype=probs.dtype))


@pytest.mark.parametrize("temperature", [0.8, 3.0])
def test_exact_sampling_refuses_a_temperature_that_is_not_exact(temperature: float) -> None:
    with pytest.raises(ArgumentError, match="0 or 1/n"):
        certify_decoding(decode_with(build_frspec), Sampling(temperature), SOME_CASES)
