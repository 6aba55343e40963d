"""Training the draft on what the target wrote (see ``minispec.distill``).

**Training-time test** (EAGLE-3, arXiv 2503.01840): when it drafts, the draft reads its own
states from its second step on, and they are worse than the target's. So it is trained as it
is used: the layer runs several times over each text, each time on the states of the run
before, shifted by one. Step j at position t stands for a chain that began at t - (j - 1):
it may look at the states that the target vouches for up to the chain's beginning, and at
the chain's own from there on.

**Loss**, per step: cross-entropy to the target's law, which is the Kullback-Leibler divergence
up to a constant, over a part of the vocabulary: the likeliest ids of the training text and
some random others; plus the distance to the target's own hidden state, which the law is a
function of. Every token is thus worth D numbers of evidence instead of one law's few.

Everything random is a function of the seed and the number of the update, so a run that was
killed goes on, from its last checkpoint, to the very same weights.
"""

import json
import math
import random
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from minispec.batches import Batch, Corpus, batch_of
from minispec.checkpoint import read_metadata, read_tensors, write_json, write_tensors
from minispec.distill import Shard
from minispec.draft import EagleDraft
from minispec.errors import ArgumentError, FileError, MinispecError

_BUCKET = 32  # updates that are put together at a time


@dataclass(frozen=True)
class TrainConfig:
    """How a draft is trained; ``tokens`` counts answer tokens seen, repeats included."""

    tokens: int
    seed: int = 0
    steps: int = 4  # of the training-time test
    step_decay: float = 0.8  # weight of step j: decay^(j - 1)
    feature_weight: float = 0.5
    peak_rate: float = 2e-3
    warmup: float = 0.03  # share of the run
    sequences: int = 1  # an update
    common_ids: int = 6144
    random_ids: int = 1024
    report: int = 50_000  # tokens between two lines of figures, and two checkpoints


def unrolled(draft: EagleDraft, batch: Batch, steps: int) -> Iterator[tuple[Tensor, Tensor]]:
    """For each step of the training-time test: what the head would be multiplied with
    (B, m, D), and at which places a chain has come that far (B, m) bool."""
    m = batch.ids.shape[1]
    places = torch.arange(m)
    cos, sin = draft.rope.turns(places, batch.taps.dtype)
    behind = places[:, None] - places  # (m, m): how far a key lies behind a query
    states = draft.fusion(batch.taps)  # (B, m, D)
    keys: list[Tensor] = []
    values: list[Tensor] = []
    for step in range(steps):

        def attend(x: Tensor, step: int = step) -> Tensor:
            queries, new_keys, new_values = draft.attention.project(x, cos, sin)
            keys.append(new_keys)
            values.append(new_values)
            # The target's states up to the chain's beginning; then one state for each step.
            seen = [behind >= step] + [behind == step - i for i in range(1, step + 1)]
            mask = torch.cat(seen, dim=1).repeat_interleave(draft.rope.group, dim=0)
            return draft.attention.attend(
                queries, torch.cat(keys, dim=1), torch.cat(values, dim=1), mask
            )

        states = draft.layer(batch.ids, states, attend)
        # A chain's first token must be the answer's too: its place lies ``step`` earlier.
        begun = F.pad(batch.learn, (step, 0))[:, :m] & batch.learn
        yield draft.norm(states), begun
        states = F.pad(states, (0, 0, 1, 0))[:, :m]  # step j + 1 at t reads step j at t - 1


def loss_of(
    draft: EagleDraft, batch: Batch, rows: Tensor, config: TrainConfig
) -> tuple[Tensor, list[float]]:
    """The loss, a scalar, of a batch over the head's ``rows`` (K, D), and each step's
    cross-entropy."""
    total = torch.zeros(())
    parts = []
    goal = batch.hidden[batch.learn]  # (n, D)
    with torch.no_grad():
        laws = torch.softmax(F.linear(goal, rows).float(), dim=-1)  # (n, K)
        scale = goal.square().mean()
    for step, (states, begun) in enumerate(unrolled(draft, batch, config.steps)):
        hidden = states[batch.learn]  # (n, D)
        logs = torch.log_softmax(F.linear(hidden, rows).float(), dim=-1)  # (n, K)
        cross_entropy = -(laws * logs).sum(-1)  # (n,)
        distance = (hidden.float() - goal).square().mean(-1) / scale
        # Answers of a few tokens have no chain of four: then there is nothing to average.
        weight = begun[batch.learn] / begun.sum().clamp(min=1)
        loss = cross_entropy + config.feature_weight * distance
        total = total + config.step_decay**step * (loss * weight).sum()
        parts.append((cross_entropy * weight).sum().item())
    return total, parts


@torch.inference_mode()
def replayed_tau(draft: EagleDraft, sequences: Sequence[Shard], gamma: int) -> float:
    """Mean accepted length (tokens per target pass) of greedy drafting over text that the
    target wrote greedily, by replay: the draft's guesses along a text are those that real
    rounds would make, as long as they are accepted, so rounds can be walked afterwards.
    Prompts have at least two tokens, since the draft has nothing to go on after one."""
    tokens = passes = 0
    for sequence in sequences:
        batch = batch_of([sequence], draft.fusion.weight.dtype)
        right = torch.zeros(gamma, batch.ids.shape[1], dtype=torch.bool)
        for step, (hidden, begun) in enumerate(unrolled(draft, batch, gamma)):
            if step:  # where the guess before was wrong no round comes to this one
                begun[0, 1:] &= right[step - 1, :-1]
            guesses = draft.head.full(hidden[begun]).argmax(-1)
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
    corpus: Corpus,
    held_out: Sequence[Shard],
    config: TrainConfig,
    folder: Path,
    fingerprint: str,
    progress: Callable[[int], object] = lambda seen: None,
) -> Iterator[dict[str, float]]:
    """Trains a draft in place; yields a line of figures every ``config.report`` tokens.

    ``folder`` keeps the checkpoint (weights and optimiser) and the log, ``training.json``; if
    it holds those of this very configuration and data, training goes on from there. Raises
    ArgumentError if they belong to another run, MinispecError where a loss is not finite.
    """
    identity = {
        "model": fingerprint,
        "config": asdict(config),
        "shards": [path.name for path in corpus.paths],
        "sequences": len(corpus.places),
    }
    run = _Run(draft, corpus, config)
    log: list[dict[str, float]] = []
    checkpoint, log_path = folder / "checkpoint.safetensors", folder / "training.json"
    if checkpoint.exists():
        log = run.restore(checkpoint, identity)
        write_json(log_path, {**identity, "log": log})  # a kill may have come between the two
    started = time.perf_counter() - (log[-1]["seconds"] if log else 0.0)
    while run.seen < config.tokens:
        goal = min(run.seen + config.report, config.tokens)
        losses: list[list[float]] = []
        while run.seen < goal:
            losses.append(run.update())
            progress(run.seen)
        line = {
            "tokens": run.seen,
            "updates": run.updates,
            "seconds": round(time.perf_counter() - started, 1),
            "rate": run.rate(),
        }
        if held_out:
            line["tau"] = round(replayed_tau(draft, held_out, config.steps), 4)
        means = torch.tensor(losses).mean(0).tolist()
        line |= {f"loss_{step + 1}": round(loss, 4) for step, loss in enumerate(means)}
        if not all(map(math.isfinite, means)):
            raise MinispecError(
                f"training diverged after {run.seen} tokens: the last checkpoint in {folder} is "
                "sound; train with a lower peak_rate in a new folder"
            )
        log.append(line)
        run.save(checkpoint, identity, log)
        write_json(log_path, {**identity, "log": log})
        yield line


class _Run:
    """The state of a training run: what a checkpoint must hold, and how it moves on."""

    def __init__(self, draft: EagleDraft, corpus: Corpus, config: TrainConfig) -> None:
        self.draft, self.corpus, self.config = draft, corpus, config
        draft.requires_grad_(True)
        self.optimiser = torch.optim.AdamW(
            draft.parameters(), betas=(0.9, 0.95), weight_decay=0.01, fused=True
        )
        counts = corpus.counts(draft.head.vocabulary_size)
        common = counts.argsort(descending=True, stable=True)[: config.common_ids]
        self._is_common = torch.zeros(len(counts), dtype=torch.bool)
        self._is_common[common] = True
        self._common_rows = self._rows(common)  # (common_ids, D), the same in every update
        self.seen = self.updates = 0
        self._order = self._sequences()

    def rate(self) -> float:
        """The learning rate now: a linear warm-up, then down to nothing along a cosine."""
        done = self.seen / self.config.tokens
        if done < self.config.warmup:
            return self.config.peak_rate * (done + 1e-3) / self.config.warmup
        turn = (done - self.config.warmup) / (1 - self.config.warmup)
        return self.config.peak_rate * (1 + math.cos(math.pi * turn)) / 2

    def update(self) -> list[float]:
        """One step of the optimiser; each unroll step's cross-entropy."""
        batch = batch_of([self.corpus.sequence(index) for index in next(self._order)])
        generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + self.updates)
        vocabulary = self.draft.head.vocabulary_size
        others = torch.randint(vocabulary, (self.config.random_ids,), generator=generator)
        ids = torch.cat((others, batch.following[batch.learn])).unique()
        rows = torch.cat((self._common_rows, self._rows(ids[~self._is_common[ids]])))  # (K, D)
        with torch.autocast("cpu", torch.bfloat16), warnings.catch_warnings():
            # The norms' weights stay in float32, which costs PyTorch a fused kernel it regrets.
            warnings.filterwarnings("ignore", "Mismatch dtype")
            loss, parts = loss_of(self.draft, batch, rows, self.config)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.draft.parameters(), 1.0)
        for group in self.optimiser.param_groups:
            group["lr"] = self.rate()
        self.optimiser.step()
        self.optimiser.zero_grad()
        self.updates += 1
        self.seen += int(batch.learn.sum())
        return parts

    def _rows(self, ids: Tensor) -> Tensor:
        """Rows of the head, in the dtype that the products run in."""
        return self.draft.head.weight[ids].bfloat16()

    def _sequences(self) -> Iterator[list[int]]:
        """Which sequences make an update, epoch after epoch; of similar length, since the
        shorter are padded to the longest."""
        size, epoch = self.config.sequences, 0
        while True:
            shuffled = random.Random(f"{self.config.seed} {epoch}")
            order = list(range(len(self.corpus.places)))
            shuffled.shuffle(order)
            batches = []
            for start in range(0, len(order), _BUCKET * size):
                bucket = sorted(
                    order[start : start + _BUCKET * size], key=self.corpus.answer_tokens
                )
                batches += [bucket[i : i + size] for i in range(0, len(bucket), size)]
            shuffled.shuffle(batches)
            yield from batches
            epoch += 1

    def save(self, path: Path, identity: dict[str, object], log: list[dict[str, float]]) -> None:
        tensors = {f"draft.{k}": v for k, v in self.draft.state_dict().items()}
        for name, parameter in self.draft.named_parameters():
            for key in ("exp_avg", "exp_avg_sq", "step"):
                tensors[f"{key}.{name}"] = self.optimiser.state[parameter][key]
        state = {"identity": identity, "seen": self.seen, "updates": self.updates, "log": log}
        write_tensors(path, tensors, {"state": json.dumps(state)})

    def restore(self, path: Path, identity: dict[str, object]) -> list[dict[str, float]]:
        try:
            state = json.loads(read_metadata(path)["state"])
        except (KeyError, ValueError):
            raise FileError(f"{path} is no checkpoint of a training run") from None
        if state["identity"] != identity:
            raise ArgumentError(
                f"{path.parent} holds another training run: give its settings, or a new folder"
            )
        shapes = {f"draft.{k}": tuple(v.shape) for k, v in self.draft.state_dict().items()}
        for name, parameter in self.draft.named_parameters():
            shapes |= {f"exp_avg.{name}": tuple(parameter.shape), f"step.{name}": ()}
            shapes |= {f"exp_avg_sq.{name}": tuple(parameter.shape)}
        tensors = read_tensors(path, shapes)
        self.draft.load_state_dict(
            {k.removeprefix("draft."): v for k, v in tensors.items() if k.startswith("draft.")}
        )
        for name, parameter in self.draft.named_parameters():
            self.optimiser.state[parameter] = {
                key: tensors[f"{key}.{name}"] for key in ("exp_avg", "exp_avg_sq", "step")
            }
        self.seen, self.updates = state["seen"], state["updates"]
        for _ in range(self.updates):
            next(self._order)
        return state["log"]
