"""Reading shards of target-generated text as batches to train a draft on.

The features of a training run are larger than a laptop's memory, so sequences are read from their
shards when a batch needs them. Knows nothing of losses.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minispec.errors import FileError
from minispec.io.files import is_finite
from minispec.models.lm_head import LinearHead
from minispec.models.model_config import ModelConfig
from minispec.tools.data.shards import AUX_KEY, Shard, open_shard, read_spans


class ShardDataset:
    """The sequences of some shards, read from disk one at a time."""

    def __init__(self, paths: Sequence[Path], config: ModelConfig) -> None:
        """``config`` is that of the model that generated them. Raises FileError if a shard is
        missing, damaged or of a model with other sizes."""
        self.paths = list(paths)
        self._spans: list[tuple[int, int, int, int]] = []  # shard, and start, answer, end in it
        self._files: list[Any] = []
        for number, path in enumerate(self.paths):
            self._files.append(open_shard(path, config))
            self._spans += [(number, *span) for span in read_spans(path)]

    def __len__(self) -> int:
        """The number of sequences."""
        return len(self._spans)

    def hold_out(self, every: int) -> list[Shard]:
        """Removes one sequence in ``every`` from the dataset and returns the removed ones."""
        held_out = [self.read_sequence(index) for index in range(0, len(self), every)]
        self._spans = [span for index, span in enumerate(self._spans) if index % every]
        return held_out

    def read_sequence(self, index: int) -> Shard:
        """Reads one sequence, as a shard of its own. Raises FileError for features that are not
        finite."""
        shard, start, answer, end = self._spans[index]
        tokens, hidden, aux_hidden_states = (
            self._files[shard].get_slice(name)[start:end] for name in ("tokens", "hidden", AUX_KEY)
        )
        if not (is_finite(hidden) and is_finite(aux_hidden_states)):
            raise FileError(
                f"{self.paths[shard]}: the features of tokens {start}..{end - 1} contain NaN or "
                "infinity: the file is damaged"
            )
        offsets = [torch.tensor([position - start]) for position in (start, answer, end)]
        return Shard(tokens, hidden, aux_hidden_states, *offsets)

    def answer_length(self, index: int) -> int:
        """The number of tokens in the answer of a sequence."""
        _, _, answer, end = self._spans[index]
        return end - answer

    def count_ids(self, vocab_size: int) -> Tensor:
        """Counts how often each id (V,) occurs in the answers."""
        counts = torch.zeros(vocab_size, dtype=torch.int64)
        for shard, _, answer, end in self._spans:
            tokens = self._files[shard].get_slice("tokens")[answer:end]
            counts += torch.bincount(tokens, minlength=vocab_size)
        return counts


@dataclass(frozen=True, eq=False)
class Batch:
    """Sequences padded at the end to ``m`` positions at which the draft can be trained.

    At position t the draft's input is ``ids[t]`` (token t+1) and ``aux_hidden_states[t]``, its
    target is ``hidden[t]`` (the target model's hidden state at t+1), and the target model's next
    token there is ``labels[t]`` (token t+2).
    """

    ids: Tensor  # (B, m)
    aux_hidden_states: Tensor  # (B, m, n_aux * D)
    hidden: Tensor  # (B, m, D)
    labels: Tensor  # (B, m)
    loss_mask: Tensor  # (B, m) bool, true where the label is a token of the answer


def make_batch(sequences: Sequence[Shard], dtype: torch.dtype = torch.float32) -> Batch:
    """Pads sequences (each of at least three tokens) into one batch of the draft's dtype."""

    def pad(parts: list[Tensor]) -> Tensor:
        return torch.nn.utils.rnn.pad_sequence(parts, batch_first=True)

    return Batch(
        ids=pad([s.tokens[1:-1] for s in sequences]),
        aux_hidden_states=pad([s.aux_hidden_states[:-2].to(dtype) for s in sequences]),
        hidden=pad([s.hidden[1:-1].to(dtype) for s in sequences]),
        labels=pad([s.tokens[2:] for s in sequences]),
        loss_mask=pad([torch.arange(2, len(s.tokens)) >= s.answers for s in sequences]),
    )


def is_greedy(sequence: Shard, head: LinearHead) -> bool:
    """Whether an answer was decoded greedily: more than 95 % of its tokens are the argmax (stored
    features are rounded, so a few may differ)."""
    answer = int(sequence.answers)
    hidden = sequence.hidden[answer - 1 : -1].to(head.weight.dtype)  # (answer length, D)
    argmax = head.logits(hidden).argmax(-1)  # (answer length,)
    return float((argmax == sequence.tokens[answer:]).float().mean()) > 0.95
