"""Training the draft on text that the target generated (see ``minispec.tools.data.distill``).

**Training-time test** (EAGLE-3, arXiv 2503.01840): from its second step on, a draft reads its own
states, which are less accurate than the target's. So training unrolls drafting: the layer runs
several times over each text, each time on the states of the run before, shifted by one. Step j at
position t belongs to a chain that started at t - (j - 1): it attends to states computed from the
target up to the start of the chain, and to the chain's own states from there on.

**Loss** per step: the rejection probability 1 - alpha, plus the cross-entropy to the target's
distribution weighted with that probability, which gives a gradient where the two distributions
hardly overlap (derived in ``minispec.learning.losses``). Both are computed over a part of the
vocabulary: the most frequent ids of the training text and some random others. With a
``feature_weight``, the squared distance to the target's hidden state is added, which gives D
regression targets per token and which EAGLE-3 leaves out.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from minispec.models.eagle_draft import EagleDraft
from minispec.models.lm_head import LinearHead
from minispec.tools.data.batches import Batch, ShardDataset, make_batch
from minispec.tools.data.shards import Shard
from minispec.tools.models import matmul_dtype
from minispec.tools.training.resumable import LogLine, TrainingConfig, TrainingRun

_BUCKET = 32  # updates whose sequences are sorted by length together


@dataclass(frozen=True)
class TrainConfig(TrainingConfig):
    """How a draft is trained; ``tokens`` counts tokens of answers only."""

    steps: int = 4  # of the training-time test
    step_decay: float = 0.8  # the weight of step j is step_decay^(j - 1)
    rejection_weight: float = 8.0
    feature_weight: float = 0.5  # of the distance to the target's hidden states; 0: none
    norms: bool = False  # those of EAGLE-3.1
    sequences: int = 1  # per update
    common_ids: int = 6144
    random_ids: int = 1024
    start: str | None = None  # the draft file that training starts from, if any


def unroll(draft: EagleDraft, batch: Batch, steps: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Runs the training-time test; yields for each step the normed states (B, m, D), which the LM
    head multiplies, and the positions (B, m) bool at which a chain has reached this step."""
    m = batch.ids.shape[1]
    cos, sin = draft.rope.cos_sin(torch.arange(m), batch.aux_hidden_states.dtype)
    states = draft.run_fusion(batch.aux_hidden_states)  # (B, m, D)
    scale = draft.attention.scale or draft.config.head_dim**-0.5
    keys: list[Tensor] = []
    values: list[Tensor] = []

    def attend(x: Tensor) -> Tensor:
        queries, new_keys, new_values = draft.attention.project(x, cos, sin)
        keys.append(new_keys)
        values.append(new_values)
        return draft.attention.output(_attend_across_steps(queries * scale, keys, values))

    for step in range(steps):
        states = draft.run_layer(batch.ids, states, attend)  # (B, m, D)
        # The chain's first token, ``step`` positions earlier, must belong to the answer too.
        yield draft.norm(states), _shift(batch.loss_mask, step) & batch.loss_mask
        states = _shift(states, 1)  # step j + 1 at t reads step j at t - 1


def _attend_across_steps(
    queries: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor]
) -> Tensor:
    """Attention in the last of the steps so far: its queries (B, m, heads, hw), scaled, over the
    keys and values (B, m, kv, hw) of each step -> (B, m, heads * hw).

    A chain attends to the keys of the first step (states from the target) up to its start, and
    then to one key per later step (its own states). The latter lie on diagonals of the attention
    matrix, so each costs one product per position, not one per pair of positions.
    """
    step, m = len(keys) - 1, queries.shape[1]
    grouped = queries.unflatten(2, (keys[0].shape[2], -1))  # (B, m, kv, group, hw)
    scores = torch.einsum("btkgw,bskw->bkgts", grouped, keys[0])
    positions = torch.arange(m)
    scores = scores.masked_fill(positions[:, None] - positions < step, -torch.inf)
    # These keys are zeros at the first positions, which no chain has reached in this step.
    own_keys, own_values = (
        [_shift(each, step - i) for i, each in enumerate(side[1:], start=1)]
        for side in (keys, values)
    )
    own = [torch.einsum("btkgw,btkw->bkgt", grouped, each)[..., None] for each in own_keys]
    weights = torch.softmax(torch.cat((scores, *own), dim=-1), dim=-1)  # (B, kv, g, m, m + step)
    mixed = torch.einsum("bkgts,bskw->btkgw", weights[..., :m], values[0])
    for column, each in enumerate(own_values, start=m):
        mixed = mixed + torch.einsum("bkgt,btkw->btkgw", weights[..., column], each)
    return mixed.flatten(2)


def _shift(x: Tensor, count: int) -> Tensor:
    """x (B, m, ...) shifted by ``count`` positions to the right, with zeros at the start."""
    return torch.cat((torch.zeros_like(x[:, :count]), x[:, : x.shape[1] - count]), dim=1)


def compute_loss(
    draft: EagleDraft, batch: Batch, head: LinearHead, config: TrainConfig
) -> tuple[Tensor, list[float]]:
    """The loss (scalar) of a batch over K rows of the target's head, and each step's cross-entropy
    in nats per token. The draft's logits are those of the rows alone."""
    total = torch.zeros(())
    cross_entropies = []
    wanted = batch.hidden[batch.loss_mask]  # (n, D)
    with torch.no_grad():
        p = torch.softmax(head.logits(wanted).float(), dim=-1)  # (n, K)
        scale = wanted.square().mean()
    for step, (states, reached) in enumerate(unroll(draft, batch, config.steps)):
        hidden = states[batch.loss_mask]  # (n, D)
        log_q = torch.log_softmax(F.linear(hidden, head.tensor).float(), dim=-1)  # (n, K)
        cross_entropy = -(p * log_q).sum(-1)  # (n,)
        # An answer shorter than the chain has no position that reaches this step: weight 0.
        weight = reached[batch.loss_mask] / reached.sum().clamp(min=1)  # (n,)
        rejection = F.relu(p - log_q.exp()).sum(-1)  # (n,), 1 - alpha = sum_x max(0, p(x) - q(x))
        loss = config.rejection_weight * rejection + rejection.detach() * cross_entropy
        if config.feature_weight:
            distance = (hidden.float() - wanted).square().mean(-1) / scale  # (n,)
            loss = loss + config.feature_weight * distance
        total = total + config.step_decay**step * (loss * weight).sum()
        cross_entropies.append((cross_entropy * weight).sum().item())
    return total, cross_entropies


@torch.inference_mode()
def replay_tau(draft: EagleDraft, sequences: Sequence[Shard], gamma: int) -> float:
    """The mean acceptance length tau (tokens per target pass) of greedy drafting, computed on text
    that the target decoded greedily.

    As long as its tokens are accepted, a chain along the text is the one that decoding would draft
    there, so rounds can be replayed from one unrolled pass. Prompts need two tokens or more: after
    a single one the draft has no state yet.
    """
    tokens = passes = 0
    for sequence in sequences:
        batch = make_batch([sequence], draft.fusion.weight.dtype)
        correct = torch.zeros(gamma, batch.ids.shape[1], dtype=torch.bool)
        for step, (hidden, reached) in enumerate(unroll(draft, batch, gamma)):
            if step:  # a chain ends after its first wrong token
                reached[0, 1:] &= correct[step - 1, :-1]
            drafted = draft.head.logits(hidden[reached]).argmax(-1)
            correct[step, reached[0]] = drafted == batch.labels[reached]
        position, last = int(sequence.answers) - 2, batch.ids.shape[1]
        while position < last:
            accepted, longest = 0, min(gamma, last - 1 - position)
            while accepted < longest and correct[accepted, position + accepted]:
                accepted += 1
            tokens += accepted + 1
            passes += 1
            position += accepted + 1
    return tokens / passes


def train(
    draft: EagleDraft,
    dataset: ShardDataset,
    held_out: Sequence[Shard],
    config: TrainConfig,
    folder: Path,
    fingerprint: str,
    progress: Callable[[int], object] = lambda seen: None,
    head: LinearHead | None = None,
) -> Iterator[LogLine]:
    """Trains a draft in place, for the model with this fingerprint; see ``TrainingRun.train``.
    ``head``: the target's, where it has more than the draft's, a bias or soft-capping."""
    identity = {
        "model": fingerprint,
        "config": asdict(config),
        "shards": [path.name for path in dataset.paths],
        "sequences": len(dataset),
    }
    run = _DraftRun(draft, dataset, held_out, config, head or draft.head)
    return run.train(folder, identity, progress)


class _DraftRun(TrainingRun):
    config: TrainConfig
    model: EagleDraft

    def __init__(
        self,
        draft: EagleDraft,
        dataset: ShardDataset,
        held_out: Sequence[Shard],
        config: TrainConfig,
        head: LinearHead,
    ) -> None:
        super().__init__("draft", draft, config, _shuffle_batches(dataset, config))
        self.dataset, self.held_out, self.head = dataset, held_out, head
        counts = dataset.count_ids(draft.head.vocab_size)
        common = counts.argsort(descending=True, stable=True)[: config.common_ids]
        self._is_common = torch.zeros(len(counts), dtype=torch.bool)
        self._is_common[common] = True
        self._common = common

    def compute_loss(self, generator: torch.Generator) -> tuple[Tensor, list[float], int]:
        batch = make_batch([self.dataset.read_sequence(index) for index in next(self.order)])
        vocab_size = self.model.head.vocab_size
        others = torch.randint(vocab_size, (self.config.random_ids,), generator=generator)
        ids = torch.cat((others, batch.labels[batch.loss_mask])).unique()
        ids = torch.cat((self._common, ids[~self._is_common[ids]]))  # (K,)
        head = self.head.select(ids, getattr(torch, self.config.dtype))
        with matmul_dtype.autocast(self.config.dtype):
            loss, cross_entropies = compute_loss(self.model, batch, head, self.config)
        return loss, cross_entropies, int(batch.loss_mask.sum())

    def evaluate(self) -> LogLine:
        if not self.held_out:
            return {}
        return {"tau": round(replay_tau(self.model, self.held_out, self.config.steps), 4)}


def _shuffle_batches(dataset: ShardDataset, config: TrainConfig) -> Iterator[list[int]]:
    """The sequences of each update, epoch after epoch in another order; those of one update have
    similar lengths, since they are padded to the longest."""
    size, epoch = config.sequences, 0
    while True:
        shuffled = random.Random(f"{config.seed} {epoch}")
        order = list(range(len(dataset)))
        shuffled.shuffle(order)
        batches = []
        for start in range(0, len(order), _BUCKET * size):
            bucket = sorted(order[start : start + _BUCKET * size], key=dataset.answer_length)
            batches += [bucket[i : i + size] for i in range(0, len(bucket), size)]
        shuffled.shuffle(batches)
        yield from batches
        epoch += 1
