"""EvoSpec's alignment as published: where it collects, when it steps, and on which loss."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.online_learning import DRAFT, run
from minispec.learning import lora
from minispec.learning.horizon import horizon_loss
from minispec.learning.paper_learner import PaperConfig, PaperLearner, _find_failure
from minispec.learning.trajectories import stack_trajectories, unroll
from minispec.sampling import Sampling
from minispec.types import Context, Distribution, Evidence, LearnerUpdate, Proposal, Round

CONFIG = PaperConfig(rank=2, learning_rate=0.02, steps=3, top_k=5, samples=4, temperature=1.5)
NEVER = replace(CONFIG, samples=10**6)
FOUR = Distribution(torch.tensor([1, 3, 5, 7]), torch.full((4,), 0.25))


def finish(tokens: tuple[int, ...], accepted: int, drafted: int) -> Round:
    """A round that emitted tokens, of whose drafted ones some were accepted."""
    proposal = Proposal((1,) * drafted, (FOUR,) * drafted)
    evidence = Evidence(proposal, (FOUR,) * len(tokens), (), None)
    return Round(tokens, "", tuple(range(accepted)), (1,) * drafted, (), {}, None, evidence)


@pytest.mark.parametrize(
    ("tokens", "accepted", "drafted", "failed"),
    [
        ((3,), 0, 2, [0]),  # the first was rejected
        ((1, 5), 1, 3, [1]),
        ((1, 1, 7), 2, 3, [2]),
        ((1, 4), 1, 3, []),  # the emitted token was not on the shortlist
        ((1, 1, 3), 2, 2, []),  # all accepted: the last is the target's own
        ((1, 1), 2, 2, []),  # stopped at an accepted token
        ((1,), 1, 3, []),
        ((3,), 0, 0, []),
    ],
)
def test_the_draft_fails_where_its_token_was_rejected(
    tokens: tuple[int, ...], accepted: int, drafted: int, failed: list[int]
) -> None:
    assert _find_failure(finish(tokens, accepted, drafted)) == failed


def build_learner(config: PaperConfig = NEVER, **options: bool) -> PaperLearner:
    """A learner that has observed a text."""
    learner = PaperLearner(DRAFT, config, **options)
    run(learner, limit=40, temperature=3.0)
    return learner


def reference_loss(learner: PaperLearner) -> float:
    """Of all trajectories that wait, with each logit by itself."""
    batch, config = stack_trajectories(learner._buffer), learner.config
    hidden = unroll(learner.draft, batch)  # (B, G, D)
    logits = torch.zeros(batch.top_ids.shape, dtype=hidden.dtype)
    for b, samples in enumerate(batch.top_ids.tolist()):
        for g, ids in enumerate(samples):
            for j, token in enumerate(ids):
                logits[b, g, j] = hidden[b, g] @ DRAFT.head.weight[token].to(hidden.dtype)
    return float(horizon_loss(
        batch.top_logits, logits, batch.labels, batch.known, config.beta, config.temperature
    ).detach())  # fmt: skip


@pytest.mark.parametrize("succeeds", [False, True])
def test_observe_steps_on_the_horizon_loss_once_enough_failed(
    succeeds: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = build_learner()
    waiting = len(learner._buffer)
    assert waiting > 4
    learner.config = replace(NEVER, samples=waiting + 1)
    losses: list[float] = []

    def step(loss: Tensor) -> bool:
        assert loss.requires_grad
        losses.append(float(loss.detach()))
        return succeeds

    monkeypatch.setattr(learner.optimizer, "step", step)
    quiet = finish((3,), 0, 0)
    quiet = replace(quiet, evidence=replace(quiet.evidence, top_ids=torch.zeros(1, 5).long(),
                                            top_logits=torch.zeros(1, 5)))  # fmt: skip
    assert learner.observe(quiet) == LearnerUpdate() and not losses
    assert len(learner._buffer) == waiting
    learner.config = replace(NEVER, samples=waiting)
    expected = reference_loss(learner)
    known = sum(int(sample.known.sum()) for sample in learner._buffer)
    counts = {"positions": known} | ({} if succeeds else {"refused_updates": 1})
    assert learner.observe(quiet) == LearnerUpdate(succeeds, counts)
    assert losses == [pytest.approx(expected, rel=1e-6)] and learner._buffer == []


def test_observe_uses_each_trajectory_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Updates at real rounds: each after at least four new trajectories, and none is lost."""
    collected = len(build_learner()._buffer)
    learner = PaperLearner(DRAFT, CONFIG)
    sizes: list[int] = []
    monkeypatch.setattr(
        learner, "_compute_loss", lambda batch: sizes.append(len(batch.ids)) or _some_loss(learner)
    )
    monkeypatch.setattr(learner.optimizer, "step", lambda loss: True)  # changes nothing
    rounds = run(learner, limit=40, temperature=3.0)
    assert sum(sizes) + len(learner._buffer) == collected and all(n >= 4 for n in sizes)
    updates = [finished for finished in rounds if finished.events]
    assert len(updates) == len(sizes) > 0 and len(learner._buffer) < 4
    assert all(set(finished.events) == {"positions", "changed"} for finished in updates)


def _some_loss(learner: PaperLearner) -> Tensor:
    return sum(p.sum() for p in learner.optimizer._parameters())  # type: ignore[return-value]


def test_observe_refuses_inconsistent_evidence_and_forgets_the_text() -> None:
    learner = build_learner()
    history, waiting = learner._history, len(learner._buffer)
    assert learner.observe(finish((1, 2), 1, 2)) == LearnerUpdate(counts={"refused_verdicts": 2})
    assert learner._history is not history and learner._history._end == 0
    assert learner._history._steps == NEVER.steps and len(learner._buffer) == waiting


@pytest.mark.parametrize("carry", [False, True])
@pytest.mark.parametrize("continued", [False, True])
def test_start_keeps_what_was_learnt_if_it_is_carried_or_continued(
    continued: bool, carry: bool
) -> None:
    learner = build_learner(carry=carry)
    waiting, history = len(learner._buffer), learner._history
    assert learner.optimizer.step(_some_loss(learner)) and waiting
    learner.start(continued)
    kept = carry or continued
    assert len(learner._buffer) == (waiting if kept else 0)
    assert learner.optimizer.has_stepped is kept
    assert learner._history is not history and learner._history._end == 0
    learner.start()
    assert bool(learner._buffer) is (kept and carry)


def test_reset_restores_untrained_adapters() -> None:
    learner = build_learner(replace(CONFIG, samples=1))
    untrained = lora.get_adapter_state(PaperLearner(DRAFT, CONFIG).draft)
    state = lora.get_adapter_state(learner.draft)
    assert any(not torch.equal(value, untrained[name]) for name, value in state.items())
    learner.reset()
    state = lora.get_adapter_state(learner.draft)
    assert all(torch.equal(value, untrained[name]) for name, value in state.items())
    assert learner._buffer == [] and learner._history._end == 0
    again = run(learner, limit=20)
    fresh = run(PaperLearner(DRAFT, replace(CONFIG, samples=1)), limit=20)
    assert [r.tokens for r in again] == [r.tokens for r in fresh]
    assert [dict(r.events) for r in again] == [dict(r.events) for r in fresh]


def test_construction_follows_its_config() -> None:
    default = PaperLearner(DRAFT)
    assert default.config == PaperConfig() and default.top_ids_wanted == 64
    assert default.invalidates_cache is True
    adapters = lora.find_adapters(default.draft)
    assert set(adapters) == {"attention.query", "attention.value"}
    assert all(len(each.lora_a) == 32 for each in adapters.values())
    config = replace(CONFIG, targets=("attention.output",), seed=3, adam=False)
    learner = PaperLearner(DRAFT, config)
    assert learner.invalidates_cache is False and learner.top_ids_wanted == 5
    assert isinstance(learner.optimizer._optimizer, torch.optim.SGD)
    assert learner.optimizer._optimizer.defaults["lr"] == 0.02
    expected = lora.get_adapter_state(lora.add_adapters(DRAFT, ("attention.output",), 2, 3))
    for name, value in lora.get_adapter_state(learner.draft).items():
        assert torch.equal(value, expected[name])
    assert isinstance(default.optimizer._optimizer, torch.optim.Adam)


def test_adjust_logits_returns_them_as_they_are() -> None:
    logits = torch.zeros(3)
    context = Context((1,), torch.zeros(2), 0)
    assert build_learner().adjust_logits(logits, torch.arange(3), context, Sampling()) is logits


def test_tensors_are_those_of_training_and_of_the_waiting_trajectories() -> None:
    learner = PaperLearner(DRAFT, NEVER)
    assert learner.tensors()["buffer"] == []
    run(learner, limit=40, temperature=3.0)
    tensors: Any = learner.tensors()
    assert set(tensors) == {"weights", "gradients", "optimiser", "buffer"}
    assert len(tensors["buffer"]) == 7 * len(learner._buffer) > 0
    assert tensors["buffer"][0] is learner._buffer[0].ids
    assert tensors["buffer"][-1] is learner._buffer[-1].known
