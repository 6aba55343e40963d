"""The LM head as rows: where a pruned draft vocabulary saves time.

Logit i is the product of the hidden state with row i of a (V, D) matrix. Drafting needs only the
rows of the shortlist. The time of a head is the time to read its rows from memory, so K of V rows
take K / V of the time, provided that they lie side by side.

Knows nothing of why an id is on the shortlist.
"""

import hashlib

import torch
from torch import Tensor

from minispec.models.quantized_matrix import QuantizedMatrix, Rows, multiply


class LinearHead:
    """The head of a target: ``weight`` (V, D), often the embedding itself (tied). Some models add a
    ``bias`` (V,), or cap logits softly: ``softcap`` * tanh(logits / softcap) (Gemma 2, arXiv
    2408.00118). A draft's head has the rows alone."""

    def __init__(
        self, weight: Rows, bias: Tensor | None = None, softcap: float | None = None
    ) -> None:
        self.weight = weight.detach() if isinstance(weight, Tensor) else weight
        self.bias, self.softcap = bias, softcap

    @property
    def tensor(self) -> Tensor:
        """``weight`` as a tensor (V, D); a quantised one is dequantised in float32."""
        return self.weight if isinstance(self.weight, Tensor) else self.weight.weight

    @property
    def vocab_size(self) -> int:
        """V, the number of rows."""
        return self.weight.shape[0]

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., D) -> logits of every id (..., V)."""
        logits = multiply(hidden, self.weight)
        return self._cap(logits if self.bias is None else logits + self.bias)

    def logits_of(self, hidden: Tensor, ids: Tensor) -> Tensor:
        """(..., D), ids (K,) -> logits of those ids (..., K). Gathers the rows: K * D numbers are
        read, written and read again, three times the traffic of rows that lie side by side."""
        logits = multiply(hidden, _select(self.weight, ids))
        if self.bias is not None:
            logits = logits + self.bias[ids.to(self.bias.device)]
        return self._cap(logits)

    def select(self, ids: Tensor, dtype: torch.dtype) -> "LinearHead":
        """The head of some ids (K,) in a dtype: K rows, copied."""
        bias = None if self.bias is None else self.bias[ids.to(self.bias.device)].to(dtype)
        rows = self.weight[ids.to(self.weight.device)]
        return LinearHead(rows.to(dtype), bias, self.softcap)

    def argmax(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """(T, D) -> the ids (T,) of the largest logits, ties to the lowest id, and these logits
        (T,). NaN counts as the largest."""
        logits = self.logits(hidden)  # (T, V)
        ids = logits.argmax(-1)
        return ids, logits.gather(-1, ids[:, None])[:, 0]

    def _cap(self, logits: Tensor) -> Tensor:
        if self.softcap is None:
            return logits
        return torch.tanh(logits / self.softcap) * self.softcap

    def fingerprint(self) -> str:
        """SHA-256 of the rows in float32: identifies the model a draft or an index belongs to."""
        digest = hashlib.sha256()
        for start in range(0, len(self.weight), 4096):
            block = self.weight[start : start + 4096].to(torch.float32)
            digest.update(block.contiguous().cpu().numpy().tobytes())
        return digest.hexdigest()


class PackedHead(LinearHead):
    """The head of a draft: keeps the rows of the last shortlist packed side by side.

    The rows of a static shortlist (FR-Spec) are gathered once. A shortlist that is a new tensor at
    every step has its rows gathered at every step; that cost is real and not hidden here. The
    whole vocabulary needs no copy.
    """

    def __init__(self, weight: Rows) -> None:
        """``weight`` (V, D): the target's own."""
        super().__init__(weight)
        self._ids: Tensor | None = None
        self._packed = self.weight  # (K, D)

    def logits_of(self, hidden: Tensor, ids: Tensor) -> Tensor:
        """(..., D), ids (K,) sorted and unique -> logits of those ids (..., K)."""
        # Identity, not equality: comparing all ids costs time at each step. The reference kept
        # here ensures that no other tensor can get the same identity.
        if ids is not self._ids:
            all_ids = len(ids) == self.vocab_size
            self._packed = self.weight if all_ids else _select(self.weight, ids)
            self._ids = ids
        return multiply(hidden, self._packed)


def _select(rows: Rows, ids: Tensor) -> Rows:
    """The rows of some ids (K,)."""
    return rows.select(ids) if isinstance(rows, QuantizedMatrix) else rows[ids.to(rows.device)]
