"""Each call of a part is booked to the phase that it belongs to."""

import functools
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from minispec import decode, propose, ranked_head, stopwatch
from minispec.certificate.toys import ToyCache, ToyDraft, ToyTarget, random_table
from minispec.commit import StopRule
from minispec.decode import speculative
from minispec.growth import Growth
from minispec.models.lm_head import LinearHead
from minispec.sampling import Sampling, SeededRandom
from minispec.suffix_candidates import SuffixProposer
from minispec.suffix_index import SuffixIndex
from minispec.types import BaseShortlist, Context, LearnerUpdate, Round
from minispec.verify import verify

V, PROMPT = 8, [0, 1, 2]
EYE = torch.eye(V, dtype=torch.float64)
TABLE = random_table(V, seed=3)


class Clock:
    """Stands still but for what the parts spend, each a second with every call."""

    def __init__(self) -> None:
        self.now, self.prefilling = 0.0, True
        self.expected = Counter[str]()

    def read(self) -> float:
        return self.now

    def spend(self, phase: str) -> None:
        self.now += 1
        self.expected["prefill" if self.prefilling else phase] += 1

    def wrap(self, function: Any, phase: str) -> Any:
        @functools.wraps(function, updated=())
        def spend_and_call(*args: Any) -> Any:
            self.spend(phase)
            return function(*args)

        return spend_and_call


class TimedHead(LinearHead):
    def __init__(self, clock: Clock, phase: str) -> None:
        super().__init__(EYE)
        self.logits = clock.wrap(super().logits, phase)  # type: ignore[method-assign]
        self.logits_of = clock.wrap(super().logits_of, phase)  # type: ignore[method-assign]


class TimedCache(ToyCache):
    def __init__(self, capacity: int, clock: Clock) -> None:
        super().__init__(capacity)
        self.truncate = clock.wrap(super().truncate, "commit")  # type: ignore[method-assign]
        self.keep = clock.wrap(super().keep, "commit")  # type: ignore[method-assign]


class TimedTarget(ToyTarget):
    def __init__(self, clock: Clock) -> None:
        super().__init__(V, TABLE, head=TimedHead(clock, "target"))
        self._clock = clock
        self.step = clock.wrap(super().step, "target")  # type: ignore[method-assign]

    def new_cache(self, capacity: int) -> ToyCache:
        return TimedCache(capacity, self._clock)


class TimedDraft(ToyDraft):
    def __init__(self, clock: Clock) -> None:
        super().__init__(V, random_table(V, seed=4), head=TimedHead(clock, "draft_head"))
        self.step = clock.wrap(super().step, "draft")  # type: ignore[method-assign]
        self._norm = clock.wrap(super().apply_final_norm, "draft")

    def apply_final_norm(self, states: Tensor) -> Tensor:
        return self._norm(states)  # type: ignore[no-any-return]


class TimedShortlist(BaseShortlist):
    name, budget, reads_prompt, top_ids_wanted = "timed", V, True, 2

    def __init__(self, clock: Clock, per_round: bool) -> None:
        self.per_round, self._clock = per_round, clock

    def on_prefill(self, tokens: Sequence[int], top_ids: Tensor) -> None:
        self._clock.spend("prefill")
        self._clock.prefilling = False

    def select(self, context: Context) -> Tensor:
        self._clock.spend("shortlist")
        return torch.arange(V)

    def observe(self, finished: Round) -> None:
        self._clock.spend("observe")


class TimedLearner:
    invalidates_cache, top_ids_wanted = False, 0

    def __init__(self, clock: Clock) -> None:
        self.draft, self._clock = TimedDraft(clock), clock

    def start(self, continued: bool) -> None: ...

    def on_prefill(self, ids: Tensor, aux_hidden_states: Tensor, hidden: Tensor) -> None:
        self._clock.spend("draft")

    def adjust_logits(self, logits: Tensor, *rest: Any) -> Tensor:
        self._clock.spend("learn")
        return logits

    def observe(self, finished: Round) -> LearnerUpdate:
        self._clock.spend("learn")
        return LearnerUpdate()


@pytest.mark.parametrize("index", [None, SuffixIndex()], ids=["draft", "draft+suffix"])
@pytest.mark.parametrize("learns", [False, True])
@pytest.mark.parametrize("per_round", [False, True])
def test_round_seconds_are_those_of_the_parts_that_spent_them(
    per_round: bool, learns: bool, index: SuffixIndex | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr(stopwatch.time, "perf_counter", clock.read)
    for place, name in [
        (Growth, "finish"), (SuffixProposer, "find"), (decode, "merge_continuations")
    ]:  # fmt: skip
        monkeypatch.setattr(place, name, clock.wrap(getattr(place, name), "draft"))
    timed = clock.wrap(ranked_head._rank_rows, "target")
    monkeypatch.setattr(ranked_head, "_rank_rows", timed)
    if not per_round:  # else a later step's goes with what follows
        monkeypatch.setattr(propose, "Context", clock.wrap(Context, "shortlist"))
    learner = TimedLearner(clock)
    rounds = speculative(
        TimedTarget(clock), learner.draft, TimedShortlist(clock, per_round), PROMPT, gamma=2,
        sampling=Sampling(1.0), rng=SeededRandom(1), stop=StopRule(7),
        verifier=clock.wrap(verify, "verify"), learner=learner if learns else None,
        index=index,
    )  # fmt: skip
    clock.expected.clear()  # of what was checked before
    count = 0
    for finished in rounds:
        assert {phase: s for phase, s in finished.seconds.items() if s} == clock.expected
        clock.expected.clear()
        clock.now += 100  # spent by the caller
        count += 1
    assert count > 2
