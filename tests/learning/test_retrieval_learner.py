"""The retrieval learner: what it draws from, and what its guard compares."""

from dataclasses import replace

import pytest
import torch

from helpers.online_learning import DRAFT, EXTREME, run
from minispec.learning.learner import OnlineLearner
from minispec.learning.replay_buffer import NGRAM_SIZE
from minispec.learning.retrieval import interpolate_neighbours
from minispec.learning.retrieval_learner import RetrievalLearner
from minispec.sampling import Sampling
from minispec.types import Context, Distribution, Evidence, Proposal, Round

CONFIG = replace(EXTREME, window_size=8)
IDS = torch.arange(0, 50, 3)
HIDDEN = torch.randn(24, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


def build_learner(**changes: bool) -> RetrievalLearner:
    """The retrieval of a learner that has observed a text, without what it would compare."""
    learner = OnlineLearner(DRAFT, replace(CONFIG, **changes))
    run(learner, limit=24)
    learner.retrieval.discard()
    return learner.retrieval


def logits_of_ids() -> torch.Tensor:
    return DRAFT.head.logits_of(HIDDEN, IDS)


def distribution(*probs: float) -> Distribution:
    return Distribution(torch.arange(len(probs)), torch.tensor(probs, dtype=torch.float64))


def finish(*distributions: Distribution) -> Round:
    evidence = Evidence(Proposal((), ()), distributions, (), None)
    return Round((0,) * len(distributions), "", (), (), (), {}, None, evidence)


@pytest.mark.parametrize("temperature", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("length", [1, 2, NGRAM_SIZE, NGRAM_SIZE + 3])
@pytest.mark.parametrize("depth", [0, 1])
def test_adjust_logits_interpolates_at_the_temperature(
    depth: int, length: int, temperature: float
) -> None:
    retrieval = build_learner()
    tokens = tuple(range(7, 7 + length))
    recent = [tokens[-1 - i] if i < length else -1 for i in range(NGRAM_SIZE)]
    buffer = retrieval._recorder.buffer
    assert 0 < len(buffer) < len(buffer.entries.sequence)
    scale = temperature or 1.0
    logits = logits_of_ids()
    expected = scale * interpolate_neighbours(
        logits / scale, HIDDEN, IDS, torch.tensor(recent), buffer.entries.select(slice(len(buffer)))
    )
    sampling = Sampling(temperature)
    found = retrieval.adjust_logits(logits, IDS, Context(tokens, HIDDEN, depth), sampling)
    assert torch.equal(found, expected) and not torch.equal(found, logits)
    if depth:
        assert retrieval._compared is None
        return
    assert retrieval._compared is not None
    for ours, each in zip(retrieval._compared, (logits, expected), strict=True):
        exact = sampling.shape(each, IDS)
        assert torch.equal(ours.probs, exact.probs) and torch.equal(ours.ids, IDS)


def test_adjust_logits_of_half_precision_is_in_float32() -> None:
    retrieval = build_learner()
    half = logits_of_ids().bfloat16()
    found = retrieval.adjust_logits(half, IDS, Context((1, 2), HIDDEN, 0), Sampling(1.0))
    exact = retrieval.adjust_logits(half.float(), IDS, Context((1, 2), HIDDEN, 0), Sampling(1.0))
    assert found.dtype == torch.float32 and torch.equal(found, exact)


def test_adjust_logits_replaces_what_is_compared_at_the_first_step_alone() -> None:
    retrieval = build_learner()
    for depth, kept in [(0, False), (1, True), (2, True), (0, False)]:
        before = retrieval._compared
        retrieval.adjust_logits(logits_of_ids(), IDS, Context((1,), HIDDEN, depth), Sampling(1.0))
        assert retrieval._compared is not None and (retrieval._compared is before) == kept
    retrieval._recorder.reset()  # nothing is left to compare with
    retrieval.adjust_logits(logits_of_ids(), IDS, Context((1,), HIDDEN, 0), Sampling(1.0))
    assert retrieval._compared is None


@pytest.mark.parametrize(
    ("changes", "adjusts"), [({"guard": False}, True), ({"retrieval": False}, False)]
)
def test_settings_switch_the_guard_and_retrieval_off(
    changes: dict[str, bool], adjusts: bool
) -> None:
    retrieval, logits = build_learner(**changes), logits_of_ids()
    found = retrieval.adjust_logits(logits, IDS, Context((1, 2), HIDDEN, 0), Sampling(1.0))
    assert (found is not logits) == adjusts and retrieval._compared is None


def test_observe_records_the_gain_at_the_first_position() -> None:
    retrieval = build_learner()
    retrieval.reset()
    p, other = distribution(0.5, 0.5, 0.0), distribution(0.0, 0.0, 1.0)
    without, with_it = distribution(0.5, 0.25, 0.25), distribution(0.0, 0.5, 0.5)
    for number in range(1, 65):
        assert retrieval._guard.active is False
        retrieval._compared = without, with_it
        counts = retrieval.observe(finish(p, other))
        assert retrieval._guard.gain == pytest.approx(0.5 - 0.75)
        assert counts == ({"recall_switched_off": 1} if number == 64 else {})
        assert retrieval._compared is None
    assert retrieval._guard.active
    retrieval._compared = without, without
    assert retrieval.observe(finish(p, other)) == {}
    retrieval.reset()
    assert not retrieval._guard.active and retrieval._guard.gain == 0


def test_observe_ignores_a_gain_that_is_no_number_and_a_round_without_any() -> None:
    retrieval = build_learner()
    retrieval.reset()
    p, nan = distribution(0.5, 0.5), distribution(float("nan"), 0.5)
    retrieval._compared = p, nan
    assert retrieval.observe(finish(p)) == {} and retrieval._compared is None
    assert retrieval.observe(finish(p)) == {}
    assert (retrieval._guard.gain, retrieval._guard._num_recorded) == (0.0, 0)
