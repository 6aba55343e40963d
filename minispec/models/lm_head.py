"""The LM head as rows: the place where vocabulary pruning saves its time.

Logit i is the product of the hidden state with row i of a (V, D) matrix. Drafting needs only
the rows of the ids that may be proposed, and reading rows from memory is what a head costs:
``K / V`` of the rows are ``K / V`` of the time, as long as the rows lie side by side.

Knows nothing of why an id is on a list.
"""

import hashlib

import torch
import torch.nn.functional as F
from torch import Tensor


class LinearHead:
    """The head of a target: ``weight`` (V, D), often the embedding itself (tied)."""

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight.detach()

    @property
    def vocab_size(self) -> int:
        """V, the number of rows."""
        return self.weight.shape[0]

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., D) -> logits of every id (..., V)."""
        return F.linear(hidden, self.weight)

    def logits_of(self, hidden: Tensor, ids: Tensor) -> Tensor:
        """(..., D), ids (K,) -> logits (..., K). Gathers the rows: K * D numbers are copied
        and then read, three times the traffic of rows that already lie together."""
        return F.linear(hidden, self.weight[ids])

    def argmax(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """(T, D) -> the ids (T,) of the largest logits, ties to the lowest, and these logits
        (T,); where a logit is no number, it is the largest."""
        logits = self.logits(hidden)
        ids = logits.argmax(-1)
        return ids, logits.gather(-1, ids[:, None])[:, 0]

    def fingerprint(self) -> str:
        """SHA-256 over the rows in float32: the model that a draft or an index belongs to."""
        digest = hashlib.sha256()
        for block in self.weight.split(4096):
            digest.update(block.to(torch.float32).contiguous().cpu().numpy().tobytes())
        return digest.hexdigest()


class PackedHead(LinearHead):
    """The head of a draft: keeps the rows of the last list asked for side by side.

    A static list (FR-Spec) is gathered once and then only streamed. A list that is a new
    tensor at every step is gathered at every step: this class makes that cost visible, it
    does not hide it. The full vocabulary needs no copy at all.
    """

    def __init__(self, weight: Tensor) -> None:
        """``weight`` (V, D): the target's own."""
        super().__init__(weight)
        self._ids: Tensor | None = None
        self._packed = self.weight

    def logits_of(self, hidden: Tensor, ids: Tensor) -> Tensor:
        """(..., D), ids (K,) sorted and unique -> logits (..., K)."""
        # Identity, not equality: comparing the ids would read as much as it saves. The list
        # is kept alive here, so its identity cannot be taken over by another tensor.
        if ids is not self._ids:
            whole = len(ids) == self.vocab_size
            self._packed = self.weight if whole else self.weight[ids]
            self._ids = ids
        return F.linear(hidden, self._packed)
