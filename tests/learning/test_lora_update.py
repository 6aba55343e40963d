"""The LoRA learner's update: when it is due, which loss it minimises, what its guard compares."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.online_learning import DRAFT, EXTREME, run
from minispec.learning import lora
from minispec.learning.config import LearnerConfig
from minispec.learning.learner import OnlineLearner
from minispec.learning.lora_learner import LoraLearner
from minispec.learning.losses import LOSSES, sample_softmax_ids, sampled_log_softmax
from minispec.learning.replay_buffer import Entries
from minispec.learning.training_forward import training_forward
from minispec.types import LearnerUpdate, Round

W = 6
CONFIG = replace(EXTREME, window_size=W, num_random_ids=5, learning_rate=0.02)


def emit(count: int) -> Round:
    return Round((0,) * count, "", (), (), (), {}, None)


@pytest.mark.parametrize(
    ("recent", "sizes", "updates"),
    [
        (6, [2, 2, 1, 4, 1, 9, 5], [0, 0, 1, 0, 1, 1, 1]),
        (5, [5, 5], [0, 0]),  # no window of 6 is complete
        (7, [1, 1, 1, 1, 1, 4], [0, 0, 0, 0, 1, 0]),
    ],
)
def test_observe_updates_once_enough_tokens_were_emitted(
    recent: int, sizes: list[int], updates: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder: Any = SimpleNamespace(buffer=SimpleNamespace(num_recent=recent))
    learner = LoraLearner(DRAFT, recorder, replace(CONFIG, update_interval=5))
    update = LearnerUpdate(True, {"positions": 3})
    monkeypatch.setattr(learner, "_update", lambda: update)
    for size, due in zip(sizes, updates, strict=True):
        found = learner.observe(emit(size))
        assert found is update if due else found == LearnerUpdate()


def test_observe_waits_for_a_window_and_for_the_guard(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was emitted in the meantime counts: the update follows at once."""
    recorder: Any = SimpleNamespace(buffer=SimpleNamespace(num_recent=0))
    learner = LoraLearner(DRAFT, recorder, replace(CONFIG, update_interval=5))
    monkeypatch.setattr(learner, "_update", lambda: LearnerUpdate(True))
    assert not learner.observe(emit(5)).weights_changed
    recorder.buffer.num_recent = W
    learner._guard.active = True
    assert not learner.observe(emit(5)).weights_changed
    learner._guard.active = False
    assert learner.observe(emit(1)).weights_changed
    assert not learner.observe(emit(4)).weights_changed
    learner.reset()
    assert not learner.observe(emit(1)).weights_changed


def build_learner(**changes: Any) -> OnlineLearner:
    """A learner that has recorded a text, and would learn from it at temperature 2."""
    learner = OnlineLearner(DRAFT, replace(CONFIG, update_interval=10**6, **changes))
    run(learner, limit=60, temperature=2.0)
    assert len(learner.recorder.buffer) > 2 * W
    return learner


def peek(learner: OnlineLearner, replay: bool) -> tuple[Entries, Tensor, Tensor]:
    """The batch of the next update, and the ids and offsets of its softmax; none are used up."""
    buffer, generator = learner.recorder.buffer, torch.Generator()
    state = buffer._rng.getstate()
    batch = buffer.entries.select(buffer.sample_batch(replay))
    buffer._rng.setstate(state)
    generator.set_state(learner.lora._generator.get_state())
    return batch, *sample_softmax_ids(batch.ids, CONFIG.num_random_ids, 50, generator)


def log_q_of(draft: Any, batch: Entries, ids: Tensor, offsets: Tensor) -> Tensor:
    hidden = training_forward(draft, batch) / 2.0
    return sampled_log_softmax(hidden, DRAFT.head.weight[ids], offsets)


def columns_of(batch: Entries, ids: Tensor) -> Tensor:
    places = {token: place for place, token in enumerate(ids.tolist())}
    return torch.tensor([[places[i] for i in row] for row in batch.ids.flatten(0, 1).tolist()])


def record_losses(learner: OnlineLearner, monkeypatch: pytest.MonkeyPatch, result: bool) -> Any:
    losses: list[float] = []

    def step(loss: Tensor) -> bool:
        assert loss.requires_grad
        losses.append(float(loss.detach()))
        return result

    monkeypatch.setattr(learner.lora.optimizer, "step", step)
    return losses


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("curriculum", [False, True])
@pytest.mark.parametrize("replay", [False, True])
def test_update_minimises_the_mean_loss_of_its_batch(
    loss: str, curriculum: bool, replay: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = build_learner(loss=loss, curriculum=curriculum, replay=replay)
    assert learner.lora.temperature == 2.0
    learner.recorder.acceptance = 0.125  # some difficulties exceed the competence
    batch, ids, offsets = peek(learner, replay)
    assert batch.ids.shape[:2] == (1 + replay, W)
    log_q = log_q_of(learner.draft, batch, ids, offsets)
    each = LOSSES[loss](log_q, batch.probs.flatten(0, 1), columns_of(batch, ids))
    competence = 0.3 + 0.7 * 0.125 / 0.8
    weights = (1 + competence - batch.difficulty.flatten()).clamp(0, 1)
    assert not bool((weights == weights[0]).all())
    weights = weights if curriculum else torch.ones(len(each))
    found = record_losses(learner, monkeypatch, True)
    update = learner.lora._update()
    assert found == [
        pytest.approx(float((each * weights).sum().detach() / weights.sum()), rel=1e-6)
    ]
    assert update == LearnerUpdate(True, {"positions": (1 + replay) * W})


def test_update_of_weights_below_one_divides_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    learner = build_learner(replay=False)
    learner.recorder.acceptance = 0.0
    learner.recorder.buffer.entries.difficulty.fill_(1.25)  # each of weight 0.05
    batch, ids, offsets = peek(learner, replay=False)
    log_q = log_q_of(learner.draft, batch, ids, offsets)
    each = LOSSES[CONFIG.loss](log_q, batch.probs.flatten(0, 1), columns_of(batch, ids))
    found = record_losses(learner, monkeypatch, False)
    update = learner.lora._update()
    assert found == [pytest.approx(0.05 * float(each.detach().sum()), rel=1e-5)]
    assert update == LearnerUpdate(False, {"positions": W, "refused_updates": 1})


@pytest.mark.parametrize("harmful", [False, True])
def test_guard_compares_the_newest_window_with_the_frozen_draft(
    harmful: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner, gains = build_learner(), list[float]()

    def record(gain: float) -> bool:
        gains.append(gain)
        return harmful

    monkeypatch.setattr(learner.lora._guard, "record", record)
    assert learner.lora._update().weights_changed and not gains  # untrained before
    assert learner.lora.optimizer.has_stepped
    batch, ids, offsets = peek(learner, replay=True)
    columns, probs = columns_of(batch, ids)[:W], batch.probs.flatten(0, 1)[:W]
    rates = [
        torch.minimum(probs, log_q_of(draft, batch, ids, offsets)[:W].gather(1, columns).exp()).sum(
            1
        )
        for draft in (learner.draft, DRAFT)
    ]
    steps = record_losses(learner, monkeypatch, True)
    update = learner.lora._update()
    assert gains == [pytest.approx(float((rates[0] - rates[1]).detach().mean()), abs=1e-7)]
    assert abs(gains[0]) > 1e-4
    if harmful:
        assert update == LearnerUpdate(True, {"adapter_switched_off": 1}) and not steps
        assert not learner.lora.optimizer.has_stepped
        untrained = lora.get_adapter_state(OnlineLearner(DRAFT, CONFIG).draft)
        for name, value in lora.get_adapter_state(learner.draft).items():
            assert torch.equal(value, untrained[name])
    else:
        assert len(steps) == 1 and update.counts == {"positions": 2 * W}


def test_a_learner_without_guard_compares_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    learner = build_learner(guard=False)
    monkeypatch.setattr(learner.lora._guard, "record", lambda gain: pytest.fail("compared"))
    assert learner.lora._update().weights_changed and learner.lora._update().weights_changed


@pytest.mark.parametrize(
    ("targets", "invalidates"),
    [(("attention.output", "mlp.down"), False), (("attention.query",), None), (lora.TARGETS, True)],
)
def test_updates_of_keys_and_values_alone_invalidate_the_cache(
    targets: tuple[str, ...], invalidates: bool | None
) -> None:
    expected = bool(set(targets) & set(lora.CACHE_TARGETS)) if invalidates is None else invalidates
    learner = OnlineLearner(DRAFT, LearnerConfig(targets=targets))
    assert learner.invalidates_cache is learner.lora.invalidates_cache is expected
