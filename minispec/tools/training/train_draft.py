"""Training the draft on what the target wrote (see ``minispec.tools.data.distill``).

**Training-time test** (EAGLE-3, arXiv 2503.01840): when it drafts, the draft reads its own
states from its second step on, and they are worse than the target's. So it is trained as it
is used: the layer runs several times over each text, each time on the states of the run
before, shifted by one. Step j at position t stands for a chain that began at t - (j - 1):
it may look at the states that the target vouches for up to the chain's beginning, and at
the chain's own from there on.

**Loss**, per step: the chance 1 - alpha that verification rejects, and, times that chance, the
cross-entropy to the target's law, which shows the way where the two laws hardly meet (derived in
``minispec.learning.losses``); both over a part of the vocabulary: the likeliest ids of the training
text and some random others. To this comes the distance to the target's own hidden state, which
the law is a function of: every token is thus worth D numbers of evidence instead of one law's
few.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from minispec.models.eagle_draft import EagleDraft
from minispec.tools.data.batches import Batch, ShardDataset, make_batch
from minispec.tools.data.distill import Shard
from minispec.tools.models import matmul_dtype
from minispec.tools.training.resumable import Line, Run, TrainingConfig

_BUCKET = 32  # updates that are put together at a time


@dataclass(frozen=True)
class TrainConfig(TrainingConfig):
    """How a draft is trained; only tokens of answers are counted."""

    steps: int = 4  # of the training-time test
    step_decay: float = 0.8  # weight of step j: decay^(j - 1)
    rejection_weight: float = 8.0
    feature_weight: float = 0.5
    sequences: int = 1  # an update
    common_ids: int = 6144
    random_ids: int = 1024
    start: str | None = None  # the file of the draft that it goes on from, if it does


def unroll(draft: EagleDraft, batch: Batch, steps: int) -> Iterator[tuple[Tensor, Tensor]]:
    """For each step of the training-time test: what the head would be multiplied with
    (B, m, D), and at which places a chain has come that far (B, m) bool."""
    m = batch.ids.shape[1]
    cos, sin = draft.rope.turns(torch.arange(m), batch.aux_hidden_states.dtype)
    states = draft.fusion(batch.aux_hidden_states)  # (B, m, D)
    scale = draft.attention.scale or draft.config.head_dim**-0.5
    keys: list[Tensor] = []
    values: list[Tensor] = []

    def attend(x: Tensor) -> Tensor:
        queries, new_keys, new_values = draft.attention.project(x, cos, sin)
        keys.append(new_keys)
        values.append(new_values)
        return draft.attention.output(_attended(queries * scale, keys, values))

    for step in range(steps):
        states = draft.layer(batch.ids, states, attend)
        # A chain's first token must be the answer's too: its place lies ``step`` earlier.
        yield draft.norm(states), _behind(batch.learn, step) & batch.learn
        states = _behind(states, 1)  # step j + 1 at t reads step j at t - 1


def _attended(queries: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor]) -> Tensor:
    """Attention at the last of some steps: its queries (B, m, heads, hw), scaled, over the keys
    and values (B, m, kv, hw) of each step up to it -> (B, m, heads * hw).

    A chain sees the target's states up to its beginning, each with the keys of the first step;
    then one state of its own for each further step. These lie on diagonals, so they cost as many
    products as there are chains, and not as many as there are pairs of places.
    """
    step, m = len(keys) - 1, queries.shape[1]
    grouped = queries.unflatten(2, (keys[0].shape[2], -1))  # (B, m, kv, group, hw)
    known = torch.einsum("btkgw,bskw->bkgts", grouped, keys[0])
    places = torch.arange(m)
    known = known.masked_fill(places[:, None] - places < step, -torch.inf)
    # At the first places, where no chain has come so far, these keys are zeros.
    own_keys, own_values = (
        [_behind(each, step - i) for i, each in enumerate(side[1:], start=1)]
        for side in (keys, values)
    )
    own = [torch.einsum("btkgw,btkw->bkgt", grouped, each)[..., None] for each in own_keys]
    weights = torch.softmax(torch.cat((known, *own), dim=-1), dim=-1)
    mixed = torch.einsum("bkgts,bskw->btkgw", weights[..., :m], values[0])
    for place, each in enumerate(own_values, start=m):
        mixed = mixed + torch.einsum("bkgt,btkw->btkgw", weights[..., place], each)
    return mixed.flatten(2)


def _behind(x: Tensor, count: int) -> Tensor:
    """x (B, m, ...) with every place taken ``count`` places later, zeros at the beginning."""
    return torch.cat((torch.zeros_like(x[:, :count]), x[:, : x.shape[1] - count]), dim=1)


def compute_loss(
    draft: EagleDraft, batch: Batch, rows: Tensor, config: TrainConfig
) -> tuple[Tensor, list[float]]:
    """The loss, a scalar, of a batch over the head's ``rows`` (K, D), and each step's
    cross-entropy."""
    total = torch.zeros(())
    parts = []
    goal = batch.hidden[batch.learn]  # (n, D)
    with torch.no_grad():
        distributions = torch.softmax(F.linear(goal, rows).float(), dim=-1)  # (n, K)
        scale = goal.square().mean()
    for step, (states, begun) in enumerate(unroll(draft, batch, config.steps)):
        hidden = states[batch.learn]  # (n, D)
        logs = torch.log_softmax(F.linear(hidden, rows).float(), dim=-1)  # (n, K)
        cross_entropy = -(distributions * logs).sum(-1)  # (n,)
        distance = (hidden.float() - goal).square().mean(-1) / scale
        # Answers of a few tokens have no chain of four: then there is nothing to average.
        weight = begun[batch.learn] / begun.sum().clamp(min=1)
        rejected = 1 - torch.minimum(distributions, logs.exp()).sum(-1)
        loss = config.rejection_weight * rejected + rejected.detach() * cross_entropy
        loss = loss + config.feature_weight * distance
        total = total + config.step_decay**step * (loss * weight).sum()
        parts.append((cross_entropy * weight).sum().item())
    return total, parts


@torch.inference_mode()
def replay_tau(draft: EagleDraft, sequences: Sequence[Shard], gamma: int) -> float:
    """Mean accepted length (tokens per target pass) of greedy drafting over text that the
    target wrote greedily, by replay: the draft's guesses along a text are those that real
    rounds would make, as long as they are accepted, so rounds can be walked afterwards.
    Prompts have at least two tokens, since the draft has nothing to go on after one."""
    tokens = passes = 0
    for sequence in sequences:
        batch = make_batch([sequence], draft.fusion.weight.dtype)
        right = torch.zeros(gamma, batch.ids.shape[1], dtype=torch.bool)
        for step, (hidden, begun) in enumerate(unroll(draft, batch, gamma)):
            if step:  # where the guess before was wrong no round comes to this one
                begun[0, 1:] &= right[step - 1, :-1]
            guesses = draft.head.logits(hidden[begun]).argmax(-1)
            right[step, begun[0]] = guesses == batch.following[begun]
        place, last = int(sequence.answers) - 2, batch.ids.shape[1]
        while place < last:
            accepted = 0
            while accepted < min(gamma, last - 1 - place) and right[accepted, place + accepted]:
                accepted += 1
            tokens += accepted + 1
            passes += 1
            place += accepted + 1
    return tokens / passes


def train(
    draft: EagleDraft,
    corpus: ShardDataset,
    held_out: Sequence[Shard],
    config: TrainConfig,
    folder: Path,
    fingerprint: str,
    progress: Callable[[int], object] = lambda seen: None,
) -> Iterator[Line]:
    """Trains a draft in place, for the model of this fingerprint; see ``Run.train``."""
    identity = {
        "model": fingerprint,
        "config": asdict(config),
        "shards": [path.name for path in corpus.paths],
        "sequences": len(corpus.places),
    }
    return _DraftRun(draft, corpus, held_out, config).train(folder, identity, progress)


class _DraftRun(Run):
    config: TrainConfig
    model: EagleDraft

    def __init__(
        self, draft: EagleDraft, corpus: ShardDataset, held_out: Sequence[Shard], config: TrainConfig
    ) -> None:
        super().__init__("draft", draft, config, _sequences(corpus, config))
        self.corpus, self.held_out = corpus, held_out
        counts = corpus.counts(draft.head.vocab_size)
        common = counts.argsort(descending=True, stable=True)[: config.common_ids]
        self._is_common = torch.zeros(len(counts), dtype=torch.bool)
        self._is_common[common] = True
        self._common_rows = self._rows(common)  # (common_ids, D), the same in every update

    def loss(self, generator: torch.Generator) -> tuple[Tensor, list[float], int]:
        batch = make_batch([self.corpus.sequence(index) for index in next(self.order)])
        vocabulary = self.model.head.vocab_size
        others = torch.randint(vocabulary, (self.config.random_ids,), generator=generator)
        ids = torch.cat((others, batch.following[batch.learn])).unique()
        rows = torch.cat((self._common_rows, self._rows(ids[~self._is_common[ids]])))  # (K, D)
        with matmul_dtype.autocast():
            loss, parts = compute_loss(self.model, batch, rows, self.config)
        return loss, parts, int(batch.learn.sum())

    def figures(self) -> Line:
        if not self.held_out:
            return {}
        return {"tau": round(replay_tau(self.model, self.held_out, self.config.steps), 4)}

    def _rows(self, ids: Tensor) -> Tensor:
        """Rows of the head, in the dtype that the products run in."""
        return self.model.head.weight[ids].to(matmul_dtype.fastest_dtype())


def _sequences(corpus: ShardDataset, config: TrainConfig) -> Iterator[list[int]]:
    """Which sequences make an update, epoch after epoch; of similar length, since the shorter
    are padded to the longest."""
    size, epoch = config.sequences, 0
    while True:
        shuffled = random.Random(f"{config.seed} {epoch}")
        order = list(range(len(corpus.places)))
        shuffled.shuffle(order)
        batches = []
        for start in range(0, len(order), _BUCKET * size):
            bucket = sorted(order[start : start + _BUCKET * size], key=corpus.answer_tokens)
            batches += [bucket[i : i + size] for i in range(0, len(bucket), size)]
        shuffled.shuffle(batches)
        yield from batches
        epoch += 1
