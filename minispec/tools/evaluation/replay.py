"""Replay: draft again over text that the target has already written, without running the target.

The target reads the text once and its features are recorded. A ``ReplayTarget`` then predicts
exactly that text, so greedy decoding with it runs the same rounds through the same code of
``minispec.decode``, at the cost of the draft alone. Other shortlists can be tried on the same
text, and they can be asked for explanations that would distort a timed run.

Knows nothing of methods.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from minispec.checks import refuse_tree
from minispec.commit import StopRule
from minispec.decode import prefill, speculative
from minispec.sampling import Sampling, SeededRandom
from minispec.tools.evaluation.measure import Figures, measure
from minispec.types import BaseShortlist, Context, Draft, Features, Round, Shortlist, Target

TEMPERATURE = 0.8  # at which the overlap of p and q is computed


class _OneHotHead:
    """A head whose hidden states (..., 1) are the next ids: its distributions are one-hot."""

    def __init__(self, vocab_size: int, dtype: torch.dtype) -> None:
        self.vocab_size, self._dtype = vocab_size, dtype

    def logits(self, hidden: Tensor) -> Tensor:
        return F.one_hot(hidden[..., 0], self.vocab_size).to(self._dtype)  # (..., V)

    def logits_of(self, hidden: Tensor, ids: Tensor) -> Tensor:
        return self.logits(hidden)[..., ids]  # (..., K)

    def argmax(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        return hidden[:, 0], torch.ones(len(hidden), dtype=self._dtype)  # (T,) each


@dataclass
class _Position:
    """The cache of a replay target: a position in the recorded text."""

    length: int = 0

    def keep(self, start: int, path: Sequence[int]) -> None:
        self.length = start + len(path)


class ReplayTarget:
    """A target that predicts one recorded answer to one prompt (see ``types.Target``).

    ``answer``: one id or more, from greedy decoding. ``aux_hidden_states`` (T - 1, n_aux * D): of
    every token of prompt and answer but the last.
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
        self.head = _OneHotHead(vocab_size, aux_hidden_states.dtype)
        self._aux_hidden_states = aux_hidden_states
        self._next = torch.tensor((*prompt[1:], *answer))  # (T - 1,)

    def new_cache(self, capacity: int) -> _Position:
        """A cache at the start of the text."""
        return _Position()

    def step(self, ids: Tensor, cache: _Position, parents: Sequence[int] | None = None) -> Features:
        refuse_tree(self, parents)
        # A chain may run past the end of the text. The stop rule cuts it off there, so any
        # prediction will do: the last one is repeated.
        positions = torch.arange(cache.length, cache.length + len(ids))  # (T,)
        positions = positions.clamp(max=len(self._next) - 1)
        cache.length += len(ids)
        return Features(self._next[positions, None], self._aux_hidden_states[positions])


class RecordedTarget(ReplayTarget):
    """A replay target, with the hidden states and softmax normalisers of the target recorded.

    ``hidden`` (T - 1, D); ``norms`` (T - 1,): logsumexp of the logits at ``TEMPERATURE``.
    """

    def __init__(self, target: Target, prompt: Sequence[int], answer: Sequence[int]) -> None:
        """``answer``: one id or more, from the target's greedy decoding."""
        tokens = (*prompt, *answer)
        features = list(prefill(target, tokens[:-1], target.new_cache(len(tokens))))
        aux_hidden_states = torch.cat([f.aux_hidden_states for f in features])
        size = target.head.vocab_size
        super().__init__(prompt, answer, aux_hidden_states, size, target.context_limit)
        self.hidden = torch.cat([f.hidden for f in features])  # (T - 1, D)
        logits = (target.head.logits(hidden) for hidden in self.hidden.split(256))
        norms = [(rows.float() / TEMPERATURE).logsumexp(-1) for rows in logits]
        self.norms = torch.cat(norms)  # (T - 1,)


@dataclass(frozen=True, eq=False)
class Step:
    """One call of ``select``: its context, the ids selected, and the ids of each part."""

    context: Context
    ids: Tensor  # (K,)
    parts: Mapping[str, Tensor]


class RecordingShortlist(BaseShortlist):
    """A shortlist that records each call of ``select`` in ``steps``; otherwise as ``inner``."""

    def __init__(self, inner: Shortlist) -> None:
        self._inner = inner
        self.name, self.budget, self.per_round = inner.name, inner.budget, inner.per_round
        if isinstance(inner, BaseShortlist):
            self.rows_probed, self.part_names = inner.rows_probed, inner.part_names
            self.top_ids_wanted, self.reads_prompt = inner.top_ids_wanted, inner.reads_prompt
        self.steps: list[Step] = []

    def select(self, context: Context) -> Tensor:
        # The parts together are the shortlist, and it is computed once: it may be timed here.
        parts = self.explain(context)
        merged = torch.cat([*parts.values()]).sort().values if parts else None  # (K,)
        ids = self._inner.select(context) if merged is None else merged
        self.steps.append(Step(context, ids, parts))
        return ids

    def explain(self, context: Context) -> Mapping[str, Tensor]:
        return self._inner.explain(context) if isinstance(self._inner, BaseShortlist) else {}

    def on_prefill(self, tokens: Sequence[int], top_ids: Tensor) -> None:
        if isinstance(self._inner, BaseShortlist):
            self._inner.on_prefill(tokens, top_ids)

    def observe(self, finished: Round) -> None:
        self._inner.observe(finished)

    def reset(self) -> None:
        self._inner.reset()


@dataclass(frozen=True)
class Replay:
    """What a shortlist achieved on one text.

    ``overlaps``: sum_x min(p(x), q(x)) = 1 - TV(p, q) at ``TEMPERATURE``, for the first draft step
    of each round: the probability that a token drawn there is accepted (Leviathan et al.,
    Theorem 3.5). ``origin``: accepted tokens by the part of the shortlist that contained them;
    empty for shortlists without parts.
    """

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
    """Draft again over a recorded text.

    ``stop``: the rule that ended the text; the other arguments as in ``speculative``. The draft's
    head must have the rows of the target's head.
    """
    recording = RecordingShortlist(shortlist)
    overlaps: list[float] = []
    origin: Counter[str] = Counter()

    def record_rounds() -> Iterator[Round]:
        for finished in speculative(
            text, draft, recording, text.prompt, gamma=gamma, sampling=Sampling(),
            rng=SeededRandom(0), stop=stop, trace=True, continued=continued,
        ):  # fmt: skip
            steps, recording.steps = recording.steps, []
            if steps:
                overlaps.append(_overlap(text, draft, steps[0]))
            for node in finished.path:
                parts = steps[0 if recording.per_round else node].parts
                origin.update(name for name, ids in parts.items() if finished.tokens[node] in ids)
            yield finished

    figures = measure(record_rounds(), text.prompt)
    return Replay(figures, tuple(overlaps), origin)


def _overlap(text: RecordedTarget, draft: Draft, step: Step) -> float:
    """sum_x min(p(x), q(x)) over the shortlist, outside of which q is zero."""
    position = len(step.context.tokens) - 1
    both = torch.stack((text.hidden[position], step.context.hidden))  # (2, D)
    p, q = draft.head.logits_of(both, step.ids).float() / TEMPERATURE  # (K,) each
    return float(torch.minimum((p - text.norms[position]).exp(), q.softmax(-1)).sum())
