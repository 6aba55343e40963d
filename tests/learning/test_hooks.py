"""The hooks of the online learner, one by one: what each passes on, drops and restores."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from helpers.online_learning import DRAFT, EXTREME, run, tokens_of
from minispec.learning import lora
from minispec.learning.config import LearnerConfig
from minispec.learning.learner import OnlineLearner
from minispec.sampling import Sampling
from minispec.types import Context, Distribution, Evidence, LearnerUpdate, Proposal, Round

CONFIG = replace(EXTREME, window_size=8)


def build_learner(*, carry: bool = False, tokens: int = 24) -> OnlineLearner:
    """A learner that has observed a text."""
    learner = OnlineLearner(DRAFT, CONFIG, carry=carry)
    if tokens:
        run(learner, temperature=0.0, limit=tokens)
    return learner


def ask(learner: OnlineLearner, depth: int, temperature: float = 1.0) -> tuple[torch.Tensor, ...]:
    """The logits given to the learner's hook, and those that it returns."""
    generator = torch.Generator().manual_seed(4)
    hidden = torch.randn(DRAFT.config.hidden_size, generator=generator, dtype=torch.float64)
    logits = DRAFT.head.logits(hidden)
    context = Context((1, 2, 3, 4), hidden, depth)
    ids = torch.arange(len(logits))
    return logits, learner.adjust_logits(logits, ids, context, Sampling(temperature))


def test_adjust_logits_passes_the_temperature_to_training() -> None:
    """Of greedy decoding q is compared at temperature 1."""
    learner = build_learner(tokens=0)
    for temperature, expected in [(0.5, 0.5), (2.0, 2.0), (0.0, 1.0)]:
        ask(learner, 0, temperature)
        assert learner.lora.temperature == expected


def test_adjust_logits_changes_nothing_without_entries() -> None:
    logits, adjusted = ask(build_learner(tokens=0), 0)
    assert adjusted is logits


def test_adjust_logits_only_measures_while_the_guard_is_active() -> None:
    learner = build_learner()
    for depth in (0, 1):
        logits, adjusted = ask(learner, depth)
        assert not torch.equal(adjusted, logits)
    learner.retrieval._guard.active = True
    for depth in (0, 1):
        logits, adjusted = ask(learner, depth)
        assert torch.equal(adjusted, logits)
        assert learner.retrieval._compared is not None  # of the first step, measured


def test_start_of_a_text_drops_the_distributions_of_the_round_before() -> None:
    """Also where everything learnt is carried on: they belong to a position of another text."""
    for carry in (False, True):
        learner = build_learner(carry=carry)
        ask(learner, 0)
        assert learner.retrieval._compared is not None or not len(learner.recorder.buffer)
        learner.start()
        assert learner.retrieval._compared is None
        assert bool(len(learner.recorder.buffer)) == carry


def test_start_gives_each_text_a_number_of_its_own() -> None:
    learner = build_learner(carry=True, tokens=12)
    first = set(learner.recorder.buffer.entries.sequence.tolist()) - {-1}
    run(learner, temperature=0.0, limit=12)
    both = set(learner.recorder.buffer.entries.sequence.tolist()) - {-1}
    assert len(first) == 1 and len(both) == 2 and first < both


def test_reset_restores_everything_but_the_number_of_the_text() -> None:
    """A text decoded after a reset is the one that a new learner decodes, round by round."""
    learner = build_learner()
    learner.lora._guard.active, learner.retrieval._guard.active = True, True
    learner.lora.temperature = 3.0
    learner.lora._generator.manual_seed(99)
    learner.reset()
    assert not (learner.lora._guard.active or learner.retrieval._guard.active)
    assert learner.recorder.acceptance == 0 and not len(learner.recorder.buffer)
    assert learner.lora.temperature == 1
    fresh = OnlineLearner(DRAFT, CONFIG)
    assert torch.equal(learner.lora._generator.get_state(), fresh.lora._generator.get_state())
    again, other = run(learner, limit=30), run(fresh, limit=30)
    assert tokens_of(again) == tokens_of(other)
    assert [dict(r.events) for r in again] == [dict(r.events) for r in other]
    assert [r.path for r in again] == [r.path for r in other]


# ------------------------------------------------------------------ how the parts are put together

# No two sizes are equal, so that none can stand for another.
SIZES = LearnerConfig(rank=3, window_size=5, num_windows=6, top_k=7, num_random_ids=9)


def test_construction_builds_a_buffer_of_the_configured_sizes() -> None:
    learner = OnlineLearner(DRAFT, SIZES)
    entries = learner.recorder.buffer.entries
    assert learner.config is SIZES and learner.recorder.buffer.window_size == 5
    assert entries.aux_hidden_states.shape == (30, 3 * 24) and entries.keys.shape == (30, 24)
    assert entries.ids.shape == entries.probs.shape == (30, 7)
    assert learner.retrieval._recorder is learner.lora._recorder is learner.recorder
    assert OnlineLearner(DRAFT).config == LearnerConfig()
    draws = [
        OnlineLearner(DRAFT, replace(SIZES, seed=seed)).recorder.buffer._rng.random()
        for seed in (0, 1, 1)
    ]
    assert draws[0] != draws[1] == draws[2]
    assert learner.draft is learner.lora.draft and learner.draft is not DRAFT


@pytest.mark.parametrize("continued", [False, True])
@pytest.mark.parametrize("carry", [False, True])
def test_start_keeps_what_was_learnt_if_it_is_carried_or_continued(
    carry: bool, continued: bool
) -> None:
    learner = build_learner(carry=carry)
    used = len(learner.recorder.buffer)
    assert used and learner.lora.optimizer.has_stepped
    learner.start(continued)
    kept = carry or continued
    assert len(learner.recorder.buffer) == (used if kept else 0)
    assert learner.lora.optimizer.has_stepped is kept
    learner.start()
    assert bool(len(learner.recorder.buffer)) is carry


class Part:
    """Stands for a part of the learner; notes the calls."""

    def __init__(self, name: str, calls: list[str], result: Any = None) -> None:
        self._name, self._calls, self._result = name, calls, result

    def __getattr__(self, method: str) -> Any:
        def call(*args: Any) -> Any:
            self._calls.append(f"{self._name}.{method}")
            return self._result

        return call


@pytest.mark.parametrize("changed", [False, True])
def test_observe_records_before_it_trains_and_merges_the_counts(changed: bool) -> None:
    learner, calls = OnlineLearner(DRAFT, CONFIG), list[str]()
    update = LearnerUpdate(changed, {"positions": 4, "refused_updates": 1})
    learner.retrieval = Part("retrieval", calls, {"recall_switched_off": 1})  # type: ignore[assignment]
    learner.recorder = Part("recorder", calls, {"refused_verdicts": 2})  # type: ignore[assignment]
    learner.lora = Part("lora", calls, update)  # type: ignore[assignment]
    half = Distribution(torch.tensor([3, 4]), torch.tensor([0.5, 0.5]))

    def finish(*tokens: int) -> Round:
        evidence = Evidence(Proposal((), ()), (half,) * len(tokens), (), None)
        return Round(tokens, "", (), (), (), {}, None, evidence)

    assert learner.observe(finish(3, 4)) == LearnerUpdate(changed, {
        "positions": 4, "refused_updates": 1, "recall_switched_off": 1, "refused_verdicts": 2,
    })  # fmt: skip
    assert calls == ["retrieval.observe", "recorder.record", "lora.observe"]
    calls.clear()
    assert learner.observe(finish(3, 5, 4)) == LearnerUpdate(False, {"refused_verdicts": 3})
    assert calls == ["retrieval.discard"]


def test_tensors_are_those_of_training_and_of_the_buffer() -> None:
    learner = build_learner(tokens=0)
    assert not learner.tensors()["optimiser"]
    run(learner, temperature=0.0, limit=24)
    tensors: Any = learner.tensors()
    assert tensors["optimiser"]
    assert set(tensors) == {"weights", "gradients", "optimiser", "buffer"}
    assert len(tensors["weights"]) == 2 * len(lora.find_adapters(learner.draft))
    buffer = learner.recorder.buffer
    assert sum(tensor.nbytes for tensor in tensors["buffer"]) == buffer.num_bytes
