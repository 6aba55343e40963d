"""Replay: drafts run again over a text that the target has written, without the target.

The text is read once, and what the target showed of each position is kept. A ``ReplayTarget`` then
stands in the target's place: it has that text by heart, so decoding greedily with it goes round
for round through the very code of ``minispec.decode``, at a draft's cost. Other lists can be
tried on the same text, and asked what they would never be asked while a clock runs.

Knows nothing of methods.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from minispec.commit import StopRule
from minispec.decode import read, speculative
from minispec.sampling import Sampling, SeededRandom
from minispec.tools.evaluation.measure import Figures, measure
from minispec.types import Context, Draft, Features, Round, Shortlist, Target

TEMPERATURE = 0.8  # at which the laws of target and draft are laid over each other


class _Certain:
    """A head over states (..., 1) that are the next id itself: all of the law is on it."""

    def __init__(self, vocab_size: int, dtype: torch.dtype) -> None:
        self.vocab_size, self._dtype = vocab_size, dtype

    def logits(self, hidden: Tensor) -> Tensor:
        return F.one_hot(hidden[..., 0], self.vocab_size).to(self._dtype)

    def logits_of(self, hidden: Tensor, ids: Tensor) -> Tensor:
        return self.logits(hidden)[..., ids]

    def argmax(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        return hidden[:, 0], torch.ones(len(hidden), dtype=self._dtype)


@dataclass
class _Place:
    """All that a cache over a known text needs to know."""

    length: int = 0

    def truncate(self, length: int) -> None:
        self.length = min(length, self.length)


class ReplayTarget:
    """A target that has one prompt and its answer by heart (see ``types.Target``).

    ``answer``: one id or more, as greedy decoding gave them; ``aux_hidden_states`` (T - 1, n_aux * D) of
    every token of the two but the last.
    """

    def __init__(
        self,
        prompt: Sequence[int],
        answer: Sequence[int],
        aux_hidden_states: Tensor,
        vocab_size: int,
        context_limit: int,
    ) -> None:
        self.prompt, self.context_limit = tuple(prompt), context_limit
        self.head = _Certain(vocab_size, aux_hidden_states.dtype)
        self._aux_hidden_states = aux_hidden_states
        self._next = torch.tensor((*prompt[1:], *answer))  # (T - 1,)

    def new_cache(self, capacity: int) -> _Place:
        """A place at the beginning of the text."""
        return _Place()

    def step(self, ids: Tensor, cache: _Place) -> Features:
        # Past the end of the text a chain has no true continuation; any is cut off there.
        places = torch.arange(cache.length, cache.length + len(ids)).clamp(max=len(self._next) - 1)
        cache.length += len(ids)
        return Features(self._next[places, None], self._aux_hidden_states[places])


class RecordedTarget(ReplayTarget):
    """A reciter of what a target said, with what the target made of it."""

    def __init__(self, target: Target, prompt: Sequence[int], answer: Sequence[int]) -> None:
        """``answer``: one id or more, as the target's greedy decoding gave them."""
        tokens = (*prompt, *answer)
        features = list(read(target, tokens[:-1], target.new_cache(len(tokens))))
        aux_hidden_states = torch.cat([f.aux_hidden_states for f in features])
        size = target.head.vocab_size
        super().__init__(prompt, answer, aux_hidden_states, size, target.context_limit)
        self.hidden = torch.cat([f.hidden for f in features])  # (T - 1, D)
        logits = (target.head.logits(hidden) for hidden in self.hidden.split(256))
        norms = [(rows.float() / TEMPERATURE).logsumexp(-1) for rows in logits]
        self.norms = torch.cat(norms)  # (T - 1,), of the softmax at that temperature


@dataclass(frozen=True, eq=False)
class Step:
    """One question to a list: what it saw, what it answered, and which part brought what."""

    context: Context
    ids: Tensor  # (K,)
    parts: Mapping[str, Tensor]


class RecordingShortlist:
    """A list that notes what it is asked; otherwise the list that it stands for."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self.name, self.budget, self.per_round = inner.name, inner.budget, inner.per_round
        self.steps: list[Step] = []

    def select(self, context: Context) -> Tensor:
        # Asked once, so that a list takes the time here that it takes unwatched.
        parts = self._inner.explain(context) if hasattr(self._inner, "explain") else {}
        brought = torch.cat([*parts.values()]).sort().values if parts else None
        ids: Tensor = self._inner.select(context) if brought is None else brought
        self.steps.append(Step(context, ids, parts))
        return ids

    def observe(self, finished: Round) -> None:
        self._inner.observe(finished)

    def reset(self) -> None:
        self._inner.reset()


@dataclass(frozen=True)
class Replay:
    """What a list did for one text. ``overlaps``: sum_x min(p(x), q(x)) at ``TEMPERATURE`` for the
    first draft step of each round, which is the probability that a token drawn there would be
    accepted (1 - total variation). ``origin``: accepted tokens by the part of the list that
    brought them, for lists that can explain themselves."""

    figures: Figures
    overlaps: tuple[float, ...]
    origin: Mapping[str, int]


def replay_text(
    text: RecordedTarget,
    draft: Draft,
    shortlist: Shortlist,
    *,
    gamma: int,
    stop: StopRule,
    continued: bool = False,
) -> Replay:
    """Drafts a text again; ``stop`` is the rule that ended it, the rest as in ``speculative``.
    The draft's head must have the target's own rows."""
    witness = RecordingShortlist(shortlist)
    overlaps: list[float] = []
    origin: Counter[str] = Counter()

    def watched() -> Iterator[Round]:
        for finished in speculative(
            text, draft, witness, text.prompt, gamma=gamma, sampling=Sampling(),
            rng=SeededRandom(0), stop=stop, trace=True, continued=continued,
        ):  # fmt: skip
            steps, witness.steps = witness.steps, []
            if steps:
                overlaps.append(_overlap(text, draft, steps[0]))
            for node in finished.path:
                parts = steps[0 if witness.per_round else node].parts
                origin.update(name for name, ids in parts.items() if finished.tokens[node] in ids)
            yield finished

    figures = measure(watched(), text.prompt)
    return Replay(figures, tuple(overlaps), origin)


def _overlap(text: RecordedTarget, draft: Draft, step: Step) -> float:
    place = len(step.context.tokens) - 1
    both = torch.stack((text.hidden[place], step.context.hidden))  # (2, D)
    p, q = draft.head.logits_of(both, step.ids).float() / TEMPERATURE  # (K,) each
    return float(torch.minimum((p - text.norms[place]).exp(), q.softmax(-1)).sum())
