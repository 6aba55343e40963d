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

from minispec.commit import StopRule
from minispec.decode import prefill, speculative
from minispec.sampling import Sampling, SeededRandom
from minispec.tools.evaluation.measure import Figures, measure
from minispec.tree import find_depths
from minispec.types import BaseShortlist, Context, Draft, Features, Head, Round, Shortlist, Target

TEMPERATURE = 0.8  # at which p and q are compared
RETRIEVED = (10, 50, 100)  # the numbers of the target's likeliest ids that are looked for


class _RecordedHead:
    """A head whose hidden states (..., 1) are positions of a text: its likeliest id is the next
    one. The others follow in the order of the target's logits if these are recorded, else the next
    id is the only likely one."""

    def __init__(
        self,
        following: Tensor,
        vocab_size: int,
        dtype: torch.dtype,
        recorded: tuple[Head, Tensor] | None,
    ) -> None:
        """``following`` (T,): the id after each position; ``dtype`` of the logits; ``recorded``:
        the target's head and its hidden states (T, D)."""
        self.vocab_size, self._dtype = vocab_size, dtype
        self._following, self._recorded = following, recorded

    def logits(self, hidden: Tensor) -> Tensor:
        following = self._following[hidden[..., 0]]  # (...)
        if self._recorded is None:
            return F.one_hot(following, self.vocab_size).to(self._dtype)  # (..., V)
        head, states = self._recorded
        logits = head.logits(states[hidden[..., 0]])  # (..., V)
        # Another backend may have decided a near tie the other way: exchange the two logits.
        top, values = logits.argmax(-1, keepdim=True), logits.amax(-1, keepdim=True)
        lower = logits.gather(-1, following[..., None])
        return logits.scatter(-1, top, lower).scatter(-1, following[..., None], values)

    def logits_of(self, hidden: Tensor, ids: Tensor) -> Tensor:
        return self.logits(hidden)[..., ids]  # (..., K)

    def argmax(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        ids = self._following[hidden[:, 0]]  # (T,)
        return ids, torch.ones(len(ids), dtype=self._dtype)


@dataclass
class _Position:
    """The cache of a replay target: a position in the recorded text."""

    length: int = 0

    def keep(self, start: int, path: Sequence[int]) -> None:
        self.length = start + len(path)


class ReplayTarget:
    """A target that predicts one recorded answer to one prompt (see ``types.Target``).

    ``answer``: one id or more, from greedy decoding. ``aux_hidden_states`` (T - 1, n_aux * D): of
    every token of prompt and answer but the last. ``recorded``: the target's head and its hidden
    states (T - 1, D), if ids below the likeliest are wanted too.
    """

    def __init__(
        self,
        prompt: Sequence[int],
        answer: Sequence[int],
        aux_hidden_states: Tensor,
        vocab_size: int,
        context_limit: int,
        recorded: tuple[Head, Tensor] | None = None,
    ) -> None:
        self.prompt, self.context_limit = tuple(prompt), context_limit
        self._aux_hidden_states = aux_hidden_states
        following = torch.tensor((*prompt[1:], *answer))  # (T - 1,)
        self.head = _RecordedHead(following, vocab_size, aux_hidden_states.dtype, recorded)

    def new_cache(self, capacity: int) -> _Position:
        """A cache at the start of the text."""
        return _Position()

    def step(self, ids: Tensor, cache: _Position, parents: Sequence[int] | None = None) -> Features:
        # In a tree, what is predicted on a path that leaves the text is never looked at.
        depths = range(len(ids)) if parents is None else find_depths(parents)
        # A path may run past the end of the text. The stop rule cuts it off there, so any
        # prediction will do: the last one is repeated.
        positions = cache.length + torch.tensor(depths)  # (T,)
        positions = positions.clamp(max=len(self._aux_hidden_states) - 1)
        cache.length += len(ids)
        return Features(positions[:, None], self._aux_hidden_states[positions])


class RecordedTarget(ReplayTarget):
    """A replay target, with the hidden states, the softmax normalisers and the likeliest ids of the
    target recorded.

    ``hidden`` (T - 1, D); ``norms`` (T - 1,): logsumexp of the logits at ``TEMPERATURE``;
    ``top_ids`` (T - 1, 100): the best first.
    """

    def __init__(self, target: Target, prompt: Sequence[int], answer: Sequence[int]) -> None:
        """``answer``: one id or more, from the target's greedy decoding."""
        tokens = (*prompt, *answer)
        features = list(prefill(target, tokens[:-1], target.new_cache(len(tokens))))
        self.hidden = torch.cat([f.hidden for f in features])  # (T - 1, D)
        super().__init__(
            prompt, answer, torch.cat([f.aux_hidden_states for f in features]),
            target.head.vocab_size, target.context_limit, (target.head, self.hidden),
        )  # fmt: skip
        norms, top_ids = [], []
        for hidden in self.hidden.split(256):
            logits = target.head.logits(hidden).float()  # (T, V)
            norms.append((logits / TEMPERATURE).logsumexp(-1))
            top_ids.append(logits.topk(min(RETRIEVED[-1], logits.shape[-1])).indices)
        self.norms, self.top_ids = torch.cat(norms), torch.cat(top_ids)


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

    ``steps``: at the first draft step of each round. ``origin``: accepted tokens by the part of the
    shortlist that contained them; empty for shortlists without parts.
    """

    figures: Figures
    steps: tuple["StepFigures", ...]
    origin: Mapping[str, int]


@dataclass(frozen=True)
class StepFigures:
    """A draft step beside the target's distribution there, both at ``TEMPERATURE``.

    ``overlap``: sum_x min(p(x), q(x)) = 1 - TV(p, q), the probability that a token drawn there is
    accepted (Leviathan et al., Theorem 3.5). ``mass``: the sum of p over the shortlist, which the
    overlap cannot exceed, whatever the draft (SlimSpec, arXiv 2605.10453). ``parts``: the same of
    each part. ``recall``: the share of the target's likeliest ids that are on the shortlist, for
    each number of ``RETRIEVED``.
    """

    overlap: float
    mass: float
    parts: Mapping[str, float]
    recall: tuple[float, ...]


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
    compared: list[StepFigures] = []
    origin: Counter[str] = Counter()

    def record_rounds() -> Iterator[Round]:
        for finished in speculative(
            text, draft, recording, text.prompt, gamma=gamma, sampling=Sampling(),
            rng=SeededRandom(0), stop=stop, trace=True, continued=continued,
        ):  # fmt: skip
            steps, recording.steps = recording.steps, []
            if steps:
                compared.append(_compare_step(text, draft, steps[0]))
            for node in finished.path:
                parts = steps[0 if recording.per_round else node].parts
                origin.update(name for name, ids in parts.items() if finished.tokens[node] in ids)
            yield finished

    figures = measure(record_rounds(), text.prompt)
    return Replay(figures, tuple(compared), origin)


def _compare_step(text: RecordedTarget, draft: Draft, step: Step) -> StepFigures:
    position, ids = len(step.context.tokens) - 1, step.ids
    both = torch.stack((text.hidden[position], step.context.hidden))  # (2, D)
    p, q = draft.head.logits_of(both, ids).float() / TEMPERATURE  # (K,) each
    p, q = (p - text.norms[position]).exp(), q.softmax(-1)  # q is zero outside of the shortlist
    listed = torch.isin(text.top_ids[position], ids)  # (100,)
    return StepFigures(
        overlap=float(torch.minimum(p, q).sum()),
        mass=float(p.sum()),
        parts={name: float(p[torch.isin(ids, part)].sum()) for name, part in step.parts.items()},
        recall=tuple(float(listed[:count].float().mean()) for count in RETRIEVED),
    )
