"""The online learner: it learns, resets, keeps the output exact, and is reset when harmful."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from helpers.drafts import toy_draft
from helpers.online_learning import DRAFT, EXTREME, run, tokens_of
from helpers.toys import TOY, toy_transformer
from minispec.certificate.walker import BranchingSource, distribution_of, total_variation
from minispec.commit import StopRule
from minispec.decode import autoregressive, speculative
from minispec.errors import ArgumentError
from minispec.learning import lora
from minispec.learning.config import LearnerConfig
from minispec.learning.learner import OnlineLearner
from minispec.sampling import Sampling
from minispec.shortlists.frspec import FRSpecShortlist
from minispec.tools.evaluation.methods import Method
from minispec.types import Distribution, Evidence, LearnerUpdate, Proposal, Round
from minispec.verify import verify

# ------------------------------------------------------------------ exactness

FOUR_IDS = toy_transformer(vocab_size=4)
FOUR_IDS_DRAFT = toy_draft(FOUR_IDS)


def output_distribution(learning: bool, verifier: Any = verify) -> dict[object, float]:
    """The distribution of outputs of three tokens of four ids, with an update after every round."""
    config = replace(
        EXTREME, update_interval=1, window_size=1, num_windows=2, num_random_ids=2, rank=1,
        learning_rate=0.5,
    )  # fmt: skip

    def program(rng: BranchingSource) -> tuple[int, ...]:
        stop, sampling = StopRule(3, (3,)), Sampling(8.0)
        if not learning:
            rounds = autoregressive(FOUR_IDS, [0, 1], sampling=sampling, rng=rng, stop=stop)
            return tokens_of(list(rounds))
        learner = OnlineLearner(FOUR_IDS_DRAFT, config)
        shortlist = FRSpecShortlist(torch.tensor([1, 2, 0, 3]), 3, ())
        return tokens_of(list(speculative(
            FOUR_IDS, learner.draft, shortlist, [0, 1], gamma=1, sampling=sampling, rng=rng,
            stop=stop, learner=learner, verifier=verifier,
        )))  # fmt: skip

    return distribution_of(program)


def test_learning_between_rounds_keeps_the_output_distribution() -> None:
    assert total_variation(output_distribution(True), output_distribution(False)) < 1e-10


def test_verifying_with_another_draft_distribution_is_detected() -> None:
    """A planted defect: verification gets distributions that the tokens were not drawn from."""

    def verify_recomputed(proposal: Proposal, *rest: Any) -> Any:
        distributions = tuple(
            replace(distribution, probs=(distribution.probs + 1) / (distribution.probs + 1).sum())
            for distribution in proposal.draft_distributions
        )
        return verify(Proposal(proposal.tokens, distributions), *rest)

    defective = output_distribution(True, verify_recomputed)
    assert total_variation(defective, output_distribution(False)) > 0.01


# ------------------------------------------------------------------ learning and resetting


def test_learner_halves_the_rounds_of_repeated_text() -> None:
    """The same text eight times, with LoRA alone and with retrieval alone."""
    large = replace(EXTREME, num_windows=16, window_size=8, update_interval=8)
    for config in (replace(large, retrieval=False), replace(large, learning_rate=0.0)):
        learner = OnlineLearner(DRAFT, config, carry=True)
        num_rounds = [len(run(learner, temperature=0.0, limit=60)) for _ in range(8)]
        assert num_rounds[-1] < 0.5 * len(run(None, temperature=0.0, limit=60))


def test_learner_resets_between_texts_unless_carried() -> None:
    config = replace(EXTREME, num_windows=16)
    learner = OnlineLearner(DRAFT, config)
    first, second = (run(learner, temperature=0.0) for _ in range(2))
    assert [r.proposed for r in first] == [r.proposed for r in second]
    carried = OnlineLearner(DRAFT, config, carry=True)
    run(carried, temperature=0.0)
    assert [r.proposed for r in run(carried, temperature=0.0)] != [r.proposed for r in first]


def test_reset_restarts_the_random_draws() -> None:
    """Both those of the reservoir and those of replayed windows."""
    learner = OnlineLearner(DRAFT, replace(EXTREME, window_size=2, num_windows=3))
    first, second = (run(learner, temperature=8.0) for _ in range(2))
    for ours, theirs in zip(first, second, strict=True):
        assert ours.evidence is not None and theirs.evidence is not None
        pairs = zip(
            ours.evidence.proposal.draft_distributions,
            theirs.evidence.proposal.draft_distributions,
            strict=True,
        )
        assert all(torch.equal(p.probs, q.probs) for p, q in pairs)


# ------------------------------------------------------------------ wrong evidence

Poison = Callable[[Distribution, int], Distribution]


class Poisoned(OnlineLearner):
    """Observes wrong target distributions."""

    def __init__(self, config: LearnerConfig, poison: Poison, *, carry: bool = False) -> None:
        super().__init__(DRAFT, config, carry=carry)
        self.poison = poison

    def observe(self, finished: Round) -> LearnerUpdate:
        evidence = finished.evidence
        assert evidence is not None
        pairs = zip(evidence.target_distributions, finished.tokens, strict=True)
        distributions = tuple(self.poison(distribution, token) for distribution, token in pairs)
        poisoned = Evidence(
            evidence.proposal, distributions, evidence.acceptance, evidence.next_distribution
        )
        return super().observe(replace(finished, evidence=poisoned))


def nan(distribution: Distribution, token: int) -> Distribution:
    return Distribution(distribution.ids, distribution.probs * torch.nan)


def shift_ids(distribution: Distribution, token: int) -> Distribution:
    """The same probabilities on other ids: each increased by seven, modulo V."""
    ids, order = ((distribution.ids + 7) % TOY.vocab_size).sort()
    return Distribution(ids, distribution.probs[order])


@pytest.mark.parametrize("poison", [nan, shift_ids])
def test_observe_refuses_inconsistent_evidence_of_greedy_text(poison: Poison) -> None:
    rounds = run(Poisoned(EXTREME, poison), temperature=0.0)
    frozen = run(None, temperature=0.0)
    assert tokens_of(rounds) == tokens_of(frozen) and len(rounds) == len(frozen)
    assert sum(finished.events.get("refused_verdicts", 0) for finished in rounds) == 40


def test_guard_restores_the_frozen_drafts_acceptance() -> None:
    """A draft trained at an extreme rate on noise is reset; after that it accepts as many tokens
    as the frozen one."""

    def noise(distribution: Distribution, token: int) -> Distribution:
        probs = torch.zeros_like(distribution.probs)
        probs[token] = 1e-3
        probs[(token * 7 + 3) % 50] = 1 - 1e-3
        return Distribution(distribution.ids, probs)

    learner = Poisoned(replace(EXTREME, learning_rate=0.5), noise, carry=True)
    rounds = []
    for seed in range(6):
        if seed == 3:
            learner.poison = lambda distribution, token: distribution  # correct from now on
        rounds += run(learner, limit=40, seed=seed, temperature=8.0)
    events = [name for r in rounds for name, count in r.events.items() if count]
    assert "adapter_switched_off" in events
    later = [run(learner, limit=60, seed=seed, temperature=8.0) for seed in range(20, 28)]
    frozen = [run(None, limit=60, seed=seed, temperature=8.0) for seed in range(20, 28)]
    assert sum(map(len, later)) < 1.02 * sum(map(len, frozen))


def test_step_undoes_an_update_that_is_not_finite() -> None:
    learner = OnlineLearner(DRAFT, EXTREME)
    learner.start()
    before = lora.get_adapter_state(learner.draft)
    weight = next(iter(lora.find_adapters(learner.draft).values())).lora_b
    assert not learner.lora.optimizer.step((weight.sum() * torch.inf) - (weight.sum() * torch.inf))
    after = lora.get_adapter_state(learner.draft)
    assert all(torch.equal(value, before[name]) for name, value in after.items())
    assert learner.lora.optimizer.step((weight - 1).square().sum())  # and later updates work


# ------------------------------------------------------------------ settings


def test_method_names_with_adapt_select_learning() -> None:
    method = Method.parse("frspec@0.25:mix+adapt")
    assert method.adapt and str(method) == "frspec@0.25:mix+adapt" and method.ranking == "mix"
    assert method != Method.parse("frspec@0.25:mix")
    with pytest.raises(ArgumentError, match="no draft"):
        Method.parse("autoregressive+adapt")


@pytest.mark.parametrize(
    "changes",
    [
        {"window_size": 0}, {"num_windows": 1}, {"learning_rate": -1.0}, {"loss": "unknown"},
        {"update_interval": 0},
    ],
    ids=str,
)  # fmt: skip
def test_learner_config_refuses_bad_settings(changes: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError):
        LearnerConfig(**changes)
