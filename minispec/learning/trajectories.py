"""The runs of emitted tokens that the horizon curriculum trains on, and the draft's pass over them.

At the draft's position t it reads the token t + 1 and a state, and predicts the token t + 2. A
trajectory begins at a token where the draft failed. Its first step starts from the target's
hidden states at the positions before, of which the last ``CONTEXT`` are kept; each later step from
the draft's own output, as in drafting, but on the tokens that were really emitted. EvoSpec's paper
(arXiv 2605.27390 v1) speaks of verified trajectories and leaves open what one holds: the positions
before it, and the states and tokens of its later steps, are our choice.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from minispec.models.eagle_draft import EagleDraft
from minispec.types import Round

CONTEXT = 32


@dataclass(frozen=True, eq=False)
class Trajectories:
    """B trajectories of G steps over C + G - 1 positions, the last G of them in order.

    ``ids`` (B, C + G - 1): the token after each position; ``aux_hidden_states`` (B, C, n_aux * D)
    of the first C; ``valid`` (B, C): False before the text's first position; ``top_ids`` (B, G, k)
    and ``top_logits`` (B, G, k): the target's at each step; ``labels`` (B,): the column of the
    first step's token; ``known`` (B, G): False beyond the end of the text.
    """

    ids: Tensor
    aux_hidden_states: Tensor
    valid: Tensor
    top_ids: Tensor
    top_logits: Tensor
    labels: Tensor
    known: Tensor


def stack_trajectories(samples: Sequence[Trajectories]) -> Trajectories:
    """The trajectories of all samples as one batch."""
    parts = ([getattr(s, field.name) for s in samples] for field in fields(Trajectories))
    return Trajectories(*map(torch.cat, parts))


class TextHistory:
    """What trajectories still need of one text: positions, and the target's logits."""

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self._end = 0  # the number of positions taken
        self._ids: dict[int, int] = {}  # by position: the token after it
        self._aux: dict[int, Tensor] = {}  # by position: (n_aux * D,)
        self._top: dict[int, tuple[Tensor, Tensor]] = {}  # by position that predicted: (k,), (k,)
        self._starts: list[int] = []  # where trajectories begin that are not complete

    def add_positions(self, ids: Tensor, aux_hidden_states: Tensor) -> None:
        """Take T positions that the draft has processed: ids (T,) of the tokens after them, and
        auxiliary hidden states (T, n_aux * D)."""
        for token, states in zip(ids.tolist(), aux_hidden_states, strict=True):
            self._ids[self._end], self._aux[self._end] = token, states
            self._end += 1

    def add_round(self, finished: Round, failed: Sequence[int]) -> None:
        """Take a round, and the indices of its tokens at which a trajectory begins. Its positions
        were added before, unless it ended the text."""
        evidence = finished.evidence
        assert evidence is not None  # always present for learners
        # The position that predicted the first token is two before it.
        first = self._end - 1 - (0 if finished.stop else len(finished.tokens))
        for index, top in enumerate(zip(evidence.top_ids, evidence.top_logits, strict=True)):
            self._top[first + index] = top
        self._ids |= {first + 1 + index: token for index, token in enumerate(finished.tokens)}
        self._starts += [first + index for index in failed if first + index in self._aux]

    def take_complete(self, *, ended: bool = False) -> list[Trajectories]:
        """The trajectories that have all their steps, or all of them once the text has ``ended``,
        with the steps they have. What no other trajectory can need is dropped."""
        known = max(self._top, default=-1) + 1
        complete = [s for s in self._starts if ended or s + self._steps <= known]
        samples = [self._build(start) for start in complete]
        self._starts = [s for s in self._starts if s not in complete]
        oldest = min(self._starts, default=known)
        self._top = {p: top for p, top in self._top.items() if p >= oldest}
        for kept in (self._ids, self._aux):
            for position in [p for p in kept if p <= oldest - CONTEXT]:
                del kept[position]
        return samples

    def _build(self, start: int) -> Trajectories:
        positions = range(start - CONTEXT + 1, start + 1)
        padding = torch.zeros_like(self._aux[start])
        steps = [self._top[p] for p in range(start, start + self._steps) if p in self._top]
        missing = self._steps - len(steps)
        top_ids, top_logits = zip(*steps, *[steps[0]] * missing, strict=True)
        label = (top_ids[0] == self._ids[start + 1]).nonzero().flatten()
        return Trajectories(
            ids=torch.tensor(
                [[self._ids.get(p, 0) for p in range(positions[0], start + self._steps)]]
            ),
            aux_hidden_states=torch.stack([self._aux.get(p, padding) for p in positions])[None],
            valid=torch.tensor([[p >= 0 for p in positions]]),
            top_ids=torch.stack(top_ids)[None],
            top_logits=torch.stack(top_logits)[None],
            labels=label[:1] if len(label) else torch.zeros(1, dtype=torch.int64),
            known=torch.tensor([[step < len(steps) for step in range(self._steps)]]),
        )


def unroll(draft: EagleDraft, batch: Trajectories) -> Tensor:
    """Hidden states (B, G, D), the input of the LM head, of each step of B trajectories.

    A position attends to the earlier ones of its trajectory. Rotary positions are relative, so
    each trajectory counts from 0.
    """
    size, steps = batch.valid.shape[1], batch.top_ids.shape[1]
    positions = torch.arange(size + steps - 1)
    cos, sin = draft.rope.cos_sin(positions, draft.embedding.dtype)
    group = draft.rope.group
    keys: list[Tensor] = []
    values: list[Tensor] = []

    def attend(x: Tensor) -> Tensor:
        begin = sum(each.shape[1] for each in keys)
        end = begin + x.shape[1]
        queries, new_keys, new_values = draft.attention.project(x, cos[begin:end], sin[begin:end])
        keys.append(new_keys)
        values.append(new_values)
        valid = torch.cat((batch.valid, batch.valid.new_ones(len(x), end)), 1)[:, :end]  # (B, S)
        distances = positions[begin:end, None] - positions[:end]  # (T, S)
        # Padding attends to itself, so that no row of the softmax is empty.
        mask = ((distances >= 0) & valid[:, None]) | (distances == 0)  # (B, T, S)
        mask = mask.repeat_interleave(group, dim=1)[:, None]  # (B, 1, T * group, S)
        return draft.attention.attend(queries, torch.cat(keys, 1), torch.cat(values, 1), mask)

    states = draft.run_fusion(batch.aux_hidden_states.to(draft.embedding.dtype))  # (B, C, D)
    state = draft.run_layer(batch.ids[:, :size], states, attend)[:, -1:]  # (B, 1, D)
    outputs = [state]
    for step in range(1, steps):
        state = draft.run_layer(batch.ids[:, size + step - 1 : size + step], state, attend)
        outputs.append(state)
    return draft.norm(torch.cat(outputs, 1))  # (B, G, D)
