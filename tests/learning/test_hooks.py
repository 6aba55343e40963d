"""The hooks of the online learner, one by one: what each passes on, drops and restores."""

from dataclasses import replace

import torch

from helpers.online_learning import DRAFT, EXTREME, run, tokens_of
from minispec.learning.learner import OnlineLearner
from minispec.sampling import Sampling
from minispec.types import Context

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
