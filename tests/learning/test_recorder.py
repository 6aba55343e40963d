"""The recorder stores each position with the distribution of the token after it."""

from dataclasses import replace

import pytest
import torch

from helpers.online_learning import DRAFT, EXTREME, run, tokens_of
from minispec.learning.learner import OnlineLearner
from minispec.learning.recorder import PositionRecorder, is_consistent
from minispec.learning.replay_buffer import ReplayBuffer
from minispec.types import Distribution, Evidence, Proposal, Round


def test_recorder_stores_positions_in_order_with_the_next_token() -> None:
    """Of greedy text the target's distributions are one-hot on the tokens of the answer."""
    learner = OnlineLearner(DRAFT, replace(EXTREME, window_size=32))
    answer = tokens_of(run(learner, prompt=(1, 2, 3), temperature=0.0, limit=40))
    buffer = learner.recorder.buffer
    # Of the last round only the first token is recorded.
    assert 36 < len(buffer) <= len(answer) == 40
    entries = buffer.entries.select(slice(len(buffer)))
    assert entries.ids[:, 0].tolist() == list(answer[: len(buffer)])
    assert torch.equal(entries.probs[:, 0], torch.ones(len(buffer)))
    tokens = (1, 2, 3, *answer)
    for i, ngram in enumerate(entries.ngrams.tolist()):
        recent = [-1, *tokens[1 : i + 3]]  # the draft does not process the first token
        assert ngram == recent[: -len(ngram) - 1 : -1]
    assert torch.allclose(entries.keys.norm(dim=1), torch.ones(len(buffer)))


def reference_rates(finished: Round) -> list[float]:
    """sum min(p, q) of each drafted token, id by id."""
    assert finished.evidence is not None
    return [
        sum(min(float(p.probability(i)), float(q.probability(i))) for i in q.ids.tolist())
        for p, q in zip(
            finished.evidence.target_distributions,
            finished.evidence.proposal.draft_distributions,
            strict=False,
        )
    ]


@pytest.mark.parametrize("temperature", [0.0, 8.0])
def test_recorder_stores_what_belongs_to_each_position(
    temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The state that a token was predicted from, p there, and how hard it was; the mean acceptance
    rate is that of all rounds, of which each rate counts a 64th."""
    learner = OnlineLearner(DRAFT, replace(EXTREME, window_size=64, learning_rate=0.0))
    recorder, seen = learner.recorder, list[tuple[torch.Tensor, torch.Tensor]]()
    take = recorder.on_prefill

    def on_prefill(ids: torch.Tensor, aux: torch.Tensor, hidden: torch.Tensor) -> None:
        seen.extend(zip(aux, hidden, strict=True))
        take(ids, aux, hidden)

    monkeypatch.setattr(recorder, "on_prefill", on_prefill)
    prompt = (1, 2, 3, 4)
    rounds = run(learner, prompt=prompt, temperature=temperature, limit=50, gamma=7)
    acceptance, distributions, difficulties = 0.0, [], []
    for finished in rounds:
        rates = reference_rates(finished)
        for rate in rates:
            acceptance += (rate - acceptance) / 64
        evidence, count = finished.evidence, 1 if finished.stop else len(finished.tokens)
        assert evidence is not None
        distributions += evidence.target_distributions[:count]
        rates = [*rates, *[acceptance] * len(finished.tokens)][:count]
        difficulties += [1 - rate * 0.9**step for step, rate in enumerate(rates)]
    assert recorder.acceptance == pytest.approx(acceptance, abs=1e-9)
    used = recorder.buffer.entries.select(slice(len(recorder.buffer)))
    assert len(used.ids) == len(distributions)
    assert used.difficulty.tolist() == pytest.approx(difficulties, abs=1e-5)
    assert (used.sequence == 1).all()
    for i, p in enumerate(distributions):
        probs, order = p.probs.topk(min(EXTREME.top_k, len(p.ids)))
        assert torch.equal(used.probs[i, : len(probs)], probs.float())
        assert torch.equal(used.ids[i, : len(probs)], p.ids[order])
        aux, hidden = seen[len(prompt) - 2 + i]
        assert torch.equal(used.aux_hidden_states[i], aux.bfloat16())
        assert torch.allclose(used.keys[i].double(), hidden / hidden.norm(), atol=1e-6)


def start_recorder(positions: int = 3) -> PositionRecorder:
    """A recorder of windows of 4 that has begun a text; its positions have states 1, 2, ..."""
    recorder = PositionRecorder(ReplayBuffer(4, 4, 2, 3, 2, 0))
    recorder.start()
    process(recorder, range(positions))
    return recorder


def process(recorder: PositionRecorder, positions: range) -> None:
    ids = torch.tensor([10 + i for i in positions])
    aux = torch.tensor([[1.0 + i, 0] for i in positions])
    recorder.on_prefill(ids, aux, torch.ones(len(positions), 3))


def finish(count: int, *, stop: str | None = None, drafted: int = 0, bad: int = -1) -> Round:
    """A round of tokens whose p is (0.5, 0.5), as is the drafted ones' q; NaN at index ``bad``."""
    half = Distribution(torch.tensor([0, 1]), torch.tensor([0.5, 0.5]))
    wrong = Distribution(half.ids, half.probs * torch.nan)
    targets = tuple(wrong if i == bad else half for i in range(count))
    evidence = Evidence(Proposal((0,) * drafted, (half,) * drafted), targets, (), None)
    path = tuple(range(min(count, drafted) - 1))
    return Round((0,) * count, "", path, (0,) * drafted, (), {}, stop, evidence)


def list_stored(recorder: PositionRecorder) -> list[float]:
    return recorder.buffer.entries.aux_hidden_states[: len(recorder.buffer), 0].tolist()


@pytest.mark.parametrize("drafted", [0, 1, 2])
def test_record_takes_the_positions_that_the_round_revealed(drafted: int) -> None:
    recorder = start_recorder()
    assert recorder.record(finish(1, stop="length", drafted=drafted)) == {"refused_verdicts": 0}
    assert list_stored(recorder) == [3.0]
    recorder = start_recorder()
    process(recorder, range(3, 5))
    assert recorder.record(finish(2, drafted=drafted)) == {"refused_verdicts": 0}
    assert list_stored(recorder) == [3.0, 4.0]  # of the last one nothing is known yet
    process(recorder, range(5, 6))
    recorder.record(finish(1))
    assert list_stored(recorder) == [3.0, 4.0, 5.0]


def test_record_refuses_numbers_that_are_not_finite() -> None:
    recorder = start_recorder()
    process(recorder, range(3, 6))
    assert recorder.record(finish(3, drafted=3, bad=1)) == {"refused_verdicts": 1}
    assert list_stored(recorder) == [3.0, 5.0]
    assert recorder.acceptance == pytest.approx((1 - (1 - 1 / 64) ** 2), abs=1e-12)


def test_record_without_positions_updates_the_acceptance_alone() -> None:
    """A prompt of one token: its round comes before the draft has processed anything."""
    recorder = PositionRecorder(ReplayBuffer(4, 4, 2, 3, 2, 0))
    recorder.start()
    assert recorder.record(finish(2, stop="length", drafted=1)) == {}
    assert recorder.acceptance == pytest.approx(1 / 64) and list_stored(recorder) == []


def test_positions_of_a_round_that_was_not_recorded_are_dropped() -> None:
    """Of those before a round only the last can be revealed by it."""
    recorder = start_recorder(4)
    process(recorder, range(4, 6))
    process(recorder, range(6, 8))
    recorder.record(finish(2))
    assert list_stored(recorder) == [6.0, 7.0]


def test_start_forgets_positions_and_recent_tokens_and_counts_texts() -> None:
    recorder = start_recorder()
    recorder.start()
    process(recorder, range(3, 5))
    recorder.record(finish(1))
    entries = recorder.buffer.entries
    assert list_stored(recorder) == [4.0] and int(entries.sequence[0]) == 2
    assert entries.ngrams[0].tolist() == [13] + [-1] * (entries.ngrams.shape[1] - 1)
    recorder.reset()
    assert len(recorder.buffer) == 0 and recorder.acceptance == 0.0


def test_is_consistent_refuses_evidence_of_another_length() -> None:
    half = Distribution(torch.tensor([0, 1]), torch.tensor([0.5, 0.5]))
    for count in (1, 3):
        evidence = Evidence(Proposal((), ()), (half,) * count, (), None)
        with pytest.raises(ValueError, match="zip"):
            is_consistent(Round((0, 0), "", (), (), (), {}, None, evidence))


def test_is_consistent_needs_a_positive_probability_of_each_token() -> None:
    half = Distribution(torch.tensor([0, 1]), torch.tensor([0.5, 0.5]))
    for index in range(3):
        for probs, good in [((0.5, 0.5), True), ((0.0, 1.0), False), ((torch.nan, 1.0), False)]:
            p = Distribution(half.ids, torch.tensor(probs))
            targets = tuple(p if i == index else half for i in range(3))
            evidence = Evidence(Proposal((), ()), targets, (), None)
            assert is_consistent(Round((0, 0, 0), "", (), (), (), {}, None, evidence)) is good
