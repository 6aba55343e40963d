"""What the target wrote, cut into what a draft trains on.

Sequences are read from their shards as they are needed, since a run's features are larger
than a laptop's memory, and laid side by side. Knows nothing of losses.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from minispec.io.files import open_safetensors
from minispec.models.lm_head import LinearHead
from minispec.tools.data.distill import Shard


class ShardDataset:
    """The sequences of some shards, read from disk as they are needed."""

    def __init__(self, paths: Sequence[Path]) -> None:
        """Raises FileError if one is missing or damaged."""
        self.paths = list(paths)
        self.places: list[tuple[int, int, int, int]] = []  # file, start, answer, end
        for number, path in enumerate(self.paths):
            with open_safetensors(path) as file:
                bounds = [file.get_tensor(name).tolist() for name in ("starts", "answers", "ends")]
            self.places += [(number, *each) for each in zip(*bounds, strict=True)]
        self._files = [safe_open(path, framework="pt") for path in self.paths]

    def split(self, every: int) -> list[Shard]:
        """Takes one sequence in ``every`` out of the corpus, and returns those."""
        taken = [self.sequence(index) for index in range(0, len(self.places), every)]
        self.places = [place for index, place in enumerate(self.places) if index % every]
        return taken

    def sequence(self, index: int) -> Shard:
        """One sequence, as a shard of its own."""
        file, start, answer, end = self.places[index]
        tensors = {
            name: self._files[file].get_slice(name)[start:end]
            for name in ("tokens", "hidden", "aux_hidden_states")
        }
        here = [torch.tensor([place - start]) for place in (start, answer, end)]
        return Shard(**tensors, starts=here[0], answers=here[1], ends=here[2])

    def answer_tokens(self, index: int) -> int:
        """How many tokens of a sequence are its answer's."""
        _, _, answer, end = self.places[index]
        return end - answer

    def counts(self, vocab_size: int) -> Tensor:
        """How often each id (V,) occurs in the answers."""
        counts = torch.zeros(vocab_size, dtype=torch.int64)
        for index in range(len(self.places)):
            file, _, answer, end = self.places[index]
            tokens = self._files[file].get_slice("tokens")[answer:end]
            counts += torch.bincount(tokens, minlength=vocab_size)
        return counts


@dataclass(frozen=True, eq=False)
class Batch:
    """Sequences side by side, padded at the end: ``m`` places where the draft can learn.

    At place t the draft reads ``ids[t]`` (token t+1) with ``aux_hidden_states[t]``, and is to imitate
    ``hidden[t]`` (the target's at t+1); ``learn[t]`` says that the token there is the answer's.
    """

    ids: Tensor  # (B, m)
    aux_hidden_states: Tensor  # (B, m, n_aux * D)
    hidden: Tensor  # (B, m, D)
    following: Tensor  # (B, m), token t+2: what the target said there
    learn: Tensor  # (B, m) bool


def make_batch(sequences: Sequence[Shard], dtype: torch.dtype = torch.float32) -> Batch:
    """Pads sequences (each of at least three tokens) into one batch of the draft's dtype."""

    def padded(parts: list[Tensor]) -> Tensor:
        return torch.nn.utils.rnn.pad_sequence(parts, batch_first=True)

    places = [torch.arange(2, len(s.tokens)) >= s.answers for s in sequences]
    return Batch(
        ids=padded([s.tokens[1:-1] for s in sequences]),
        aux_hidden_states=padded([s.aux_hidden_states[:-2].to(dtype) for s in sequences]),
        hidden=padded([s.hidden[1:-1].to(dtype) for s in sequences]),
        following=padded([s.tokens[2:] for s in sequences]),
        learn=padded(places),
    )


def is_greedy(sequence: Shard, head: LinearHead) -> bool:
    """Whether an answer is its target's greedy one, up to the rounding of stored features."""
    answer = int(sequence.answers)
    best = head.logits(sequence.hidden[answer - 1 : -1].float()).argmax(-1)
    return float((best == sequence.tokens[answer:]).float().mean()) > 0.95
