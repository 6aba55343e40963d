"""``certify`` refuses the mistakes that are made most often, and its message names each."""

from typing import Any

import pytest

from helpers.exactness.learners import build_learner
from helpers.exactness.wrong_parts import (
    LEARNER_MISTAKES,
    SHORTLIST_MISTAKES,
    BiasLearner,
    OneId,
    UnshapedBonus,
)
from helpers.exactness.wrong_verifiers import MISTAKES, build_verifier
from minispec.certificate.cases import GRID
from minispec.certificate.certify import certify
from minispec.certificate.decodings import ToyModels
from minispec.certificate.toys import ChangingShortlist, ToyDraft, random_table
from minispec.errors import ArgumentError
from minispec.sampling import Sampling

UNSHAPED = [Sampling(1.0)]
# Short chains over few ids, with every kind of relation between draft and target.
CASES = [GRID[2], GRID[9]]


@pytest.mark.parametrize("mistake", MISTAKES)
def test_certify_names_the_mistake_of_a_verifier(mistake: str) -> None:
    verifier, message = MISTAKES[mistake]
    result = certify(verifier=verifier, samplings=UNSHAPED, cases=CASES)
    assert not result.exact
    assert message in " ".join(str(result).split()), result


def test_certify_finds_the_verifier_without_a_mistake_exact() -> None:
    assert certify(verifier=build_verifier(), samplings=UNSHAPED, cases=CASES).exact


@pytest.mark.parametrize("mistake", SHORTLIST_MISTAKES)
def test_certify_names_the_mistake_of_a_shortlist(mistake: str) -> None:
    shortlist, message = SHORTLIST_MISTAKES[mistake]
    result = certify(shortlist, samplings=UNSHAPED, cases=CASES)
    assert not result.exact
    assert message in " ".join(str(result).split()), result


def test_certify_passes_on_errors_that_fractions_do_not_cause() -> None:
    def verify(*arguments: Any) -> Any:
        raise TypeError("a bug")

    with pytest.raises(TypeError, match="a bug"):
        certify(verifier=verify, samplings=UNSHAPED, cases=CASES)


def test_certify_shows_a_shortlist_the_ids_that_it_asks_for() -> None:
    seen = set()

    class Watching(OneId):
        top_ids_wanted, reads_prompt = 2, True

        def on_prefill(self, tokens: Any, top_ids: Any) -> None:
            seen.add(("prefill", top_ids.shape[-1]))

        def observe(self, finished: Any) -> None:
            seen.add(("observe", finished.evidence.top_ids.shape[-1]))

    assert certify(Watching, samplings=UNSHAPED, cases=CASES[:1]).exact
    assert seen == {("prefill", 2), ("observe", 2)}


def test_certify_finds_the_shortlist_without_a_mistake_exact() -> None:
    assert certify(OneId, samplings=UNSHAPED, cases=CASES).exact


@pytest.mark.parametrize("mistake", LEARNER_MISTAKES)
def test_certify_names_the_mistake_of_a_learner(mistake: str) -> None:
    learner, message = LEARNER_MISTAKES[mistake]
    result = certify(
        learner=learner, shortlist=ChangingShortlist, samplings=UNSHAPED, cases=CASES[1:]
    )
    assert not result.exact
    assert message in " ".join(str(result).split()), result


@pytest.mark.parametrize("learner", [BiasLearner, build_learner])
def test_certify_finds_learners_without_a_mistake_exact(learner: Any) -> None:
    result = certify(
        learner=learner, shortlist=ChangingShortlist, samplings=UNSHAPED, cases=CASES[1:]
    )
    assert result.exact, result


def test_certify_finds_a_bad_draft_exact() -> None:
    """A draft costs acceptance at worst."""

    def build_draft(models: ToyModels) -> ToyDraft:
        return ToyDraft(models.case.vocab_size, random_table(models.case.vocab_size, seed=3))

    result = certify(draft=build_draft, samplings=UNSHAPED, cases=CASES[:1])
    assert result.exact, result


def test_certify_finds_a_sampling_that_shapes_positions_differently() -> None:
    result = certify(samplings=[UnshapedBonus(1.0, top_p=0.7)], cases=CASES)
    assert not result.exact and result.worst_tv > 0.01
    assert "bonus token: " in str(result)
    with pytest.raises(ArgumentError, match="use arithmetic='float64'"):
        certify(samplings=[UnshapedBonus(1.0)], cases=CASES, arithmetic="fraction")
