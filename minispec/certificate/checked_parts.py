"""A shortlist, verifier or learner of one's own, checked at every call while it is enumerated.

Each wrapper passes its calls on and raises an error that names the mistake where a part breaks
its contract: it changes state where it must not, edits what it was given, or draws random numbers
of its own. What they see is what an enumeration cannot: the branches of such a part do not fit
together. Knows nothing of cases.
"""

import itertools
import random
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from minispec.errors import ArgumentError, ShortlistError
from minispec.types import (
    BaseShortlist,
    Context,
    Distribution,
    Learner,
    LearnerUpdate,
    Proposal,
    RandomSource,
    Round,
    Shortlist,
)
from minispec.verify import Verdict, Verifier

# The states of global generators are read in the first calls only: reading them takes longer than
# a call. Later draws from them are noticed as any others that do not come from the source.
_CALLS_WITH_STATES = 100


class _History:
    """What a part has seen since it was reset, and its answers after each such history.

    A part that ``reset`` resets gives the same answer after the same history, in whatever run.
    """

    def __init__(self) -> None:
        self._past: Hashable = ()
        self._answers: dict[Hashable, Any] = {}

    def reset(self) -> None:
        self._past = ()

    def record(self, finished: Round) -> None:
        """Add a round that the part observed."""
        self._past = self._past, finished.tokens, finished.path, finished.proposed

    def matches(self, question: Hashable, answer: Any) -> bool:
        """Whether the answer to a question is the one that was given after the same history."""
        return bool(self._answers.setdefault((self._past, question), answer) == answer)


class CheckedShortlist(BaseShortlist):
    """A shortlist that raises ShortlistError if ``select`` changes state or draws random numbers,
    or if ``reset`` does not restore the state after construction. Use one for each case. Raises
    ShortlistError if a member is missing."""

    def __init__(self, shortlist: Shortlist) -> None:
        for member in ("name", "budget", "per_round", "select", "observe", "reset"):
            if not hasattr(shortlist, member):
                raise ShortlistError(
                    f"{type(shortlist).__name__} has no {member}: derive it from BaseShortlist, or "
                    "define all members of minispec.types.Shortlist"
                )
        self._shortlist = shortlist
        self._history = _History()
        self.name, self.budget = shortlist.name, shortlist.budget
        self.per_round = shortlist.per_round
        if isinstance(shortlist, BaseShortlist):
            self.rows_probed, self.top_ids_wanted = shortlist.rows_probed, shortlist.top_ids_wanted
            self.reads_prompt = shortlist.reads_prompt

    def select(self, context: Context) -> Tensor:
        first = self._shortlist.select(context)
        if not isinstance(first, Tensor):
            return first  # refused when it is drafted from
        values = first.tolist()
        ids = self._shortlist.select(context)  # the last one, which the shortlist may keep
        if ids.tolist() != values:
            raise ShortlistError(
                f"{self.name}: select gave other ids when it was called again with the same "
                "context: it must change no state and draw no random numbers"
            )
        question = context.tokens, context.depth, context.hidden.numpy().tobytes()
        if not self._history.matches(question, values):
            raise ShortlistError(
                f"{self.name}: select gave other ids in another run with the same history: reset "
                "must restore the state after construction"
            )
        return ids

    def on_prefill(self, tokens: Sequence[int], top_ids: Tensor) -> None:
        if isinstance(self._shortlist, BaseShortlist):
            self._shortlist.on_prefill(tokens, top_ids)

    def observe(self, finished: Round) -> None:
        self._history.record(finished)
        self._shortlist.observe(finished)

    def reset(self) -> None:
        self._history.reset()
        self._shortlist.reset()


class CheckedLearner:
    """A learner that raises ArgumentError if it edits ids or logits, learns within a round, or
    keeps state from one text to the next."""

    def __init__(self, learner: Learner) -> None:
        self._learner = learner
        self._history = _History()
        # The arguments and result of each call since the last round, and the draft's weights then.
        self._calls: list[tuple[tuple[Tensor, Tensor, Context, Any], list[float]]] = []
        self._weights: list[Tensor] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._learner, name)

    def start(self, continued: bool) -> None:
        """As ``Learner.start``."""
        self._history.reset()
        self._calls.clear()
        self._learner.start(continued)

    def adjust_logits(self, logits: Tensor, ids: Tensor, context: Context, sampling: Any) -> Tensor:
        """Logits (K,) over ids (K,) -> logits (K,), as ``Learner.adjust_logits``."""
        if not self._calls:
            self._weights = self._copy_weights()
        arguments = logits.clone(), ids.clone(), context, sampling
        adjusted = self._learner.adjust_logits(logits, ids, context, sampling)
        if not ids.equal(arguments[1]):
            raise ArgumentError(
                "the learner edited the ids that it was given: the distribution that is recorded "
                "for a token would change after the token was drawn"
            )
        self._calls.append((arguments, adjusted.tolist()))
        question = context.tokens, context.depth, tuple(ids.tolist())
        if not self._history.matches(question, adjusted.tolist()):
            raise ArgumentError(
                "the learner gave other logits in another run with the same history: start must "
                "restore the state after construction"
            )
        return adjusted

    def observe(self, finished: Round) -> LearnerUpdate:
        """As ``Learner.observe``."""
        repeated = [
            self._learner.adjust_logits(logits.clone(), ids.clone(), context, sampling).tolist()
            for (logits, ids, context, sampling), _ in self._calls
        ]
        weights = self._copy_weights() if self._calls else self._weights
        same = all(map(torch.equal, weights, self._weights))
        if repeated != [adjusted for _, adjusted in self._calls] or not same:
            raise ArgumentError(
                "the learner changed within a round: its logits or its draft's weights differ at "
                "the end of the round; it may change them in observe alone"
            )
        self._calls.clear()
        self._history.record(finished)
        return self._learner.observe(finished)

    def _copy_weights(self) -> list[Tensor]:
        draft = self._learner.draft
        parameters = draft.parameters() if isinstance(draft, torch.nn.Module) else ()
        return [weight.detach().clone() for weight in parameters]


class _RecordingSource:
    """A source that records its decisions, or repeats those of an earlier call of a verifier."""

    def __init__(self, source: RandomSource | None, repeated: Sequence[Any] = ()) -> None:
        self._source, self._repeated = source, list(repeated)
        self.decisions: list[tuple[str, Any, Any]] = []

    def bernoulli(self, probability: Any) -> bool:
        return bool(self._decide("bernoulli", probability))

    def choose(self, probs: Any) -> int:
        return int(self._decide("choose", probs))

    def _decide(self, method: str, probs: Any) -> Any:
        number = len(self.decisions)
        if self._source is not None:
            result = getattr(self._source, method)(probs)
        elif number < len(self._repeated) and self._repeated[number][0] == method:
            result = self._repeated[number][2]
        else:
            raise _DiffersError
        numbers = probs.tolist() if hasattr(probs, "tolist") else probs
        self.decisions.append((method, numbers, result))
        return result


class _DiffersError(Exception):
    """A repeated call makes other decisions than the first one."""


def check_verifier(verifier: Verifier, name: str) -> Verifier:
    """The verifier, with every call checked: raises ArgumentError if it edits a distribution, or
    draws random numbers that do not come from its source."""
    calls = itertools.count()

    def verify(
        proposal: Proposal, target_distributions: Sequence[Distribution], rng: RandomSource
    ) -> Verdict:
        distributions = [*target_distributions, *proposal.draft_distributions]
        before = [d.probs.tolist() for d in distributions]
        number = next(calls)
        states = _read_global_states() if number < _CALLS_WITH_STATES else {}
        recorded = _RecordingSource(rng)
        verdict = verifier(proposal, list(target_distributions), recorded)
        for library, state in (_read_global_states() if states else states).items():
            if state != states[library]:
                raise ArgumentError(
                    f"{name} draws from the global random numbers of {library}: draw from rng "
                    "alone, so that seeds fix a run and every branch is enumerated"
                )
        if [d.probs.tolist() for d in distributions] != before:
            raise ArgumentError(
                f"{name} edits the probabilities that it was given: compute new ones instead"
            )
        if isinstance(verdict, Verdict):  # anything else is refused by the decoding loop
            _repeat(verifier, name, proposal, target_distributions, recorded, verdict)
        return verdict

    return verify


def _repeat(
    verifier: Verifier,
    name: str,
    proposal: Proposal,
    target_distributions: Sequence[Distribution],
    recorded: _RecordingSource,
    verdict: Verdict,
) -> None:
    """Call a verifier again with the same decisions. Raises ArgumentError if the result differs."""
    replay = _RecordingSource(None, recorded.decisions)
    try:
        again: Any = verifier(proposal, list(target_distributions), replay)
        same = replay.decisions == recorded.decisions
        same &= (tuple(again.path), again.next_token) == (tuple(verdict.path), verdict.next_token)
    except _DiffersError:
        same = False
    if not same:
        raise ArgumentError(
            f"{name} gave another result for the same proposal and the same decisions of rng: it "
            "keeps state, or draws random numbers of its own; draw from rng alone"
        )


def _read_global_states() -> dict[str, Any]:
    """The states of the global random generators, by library."""
    numpy_state: Any = np.random.get_state()
    return {
        "torch": torch.get_rng_state().numpy().tobytes(),
        "numpy": (numpy_state[1].tobytes(), *numpy_state[2:]),
        "Python": random.getstate(),
    }
