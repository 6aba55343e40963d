"""The LM head of the CPU backend, which decides how a shortlist's rows are read.

A shortlist that stays is worth a contiguous copy of its rows. One that changes a little is worth
keeping that copy up to date. One that changes a lot is gathered from the head itself, since
copying a row costs as much as streaming several.
"""

import numpy as np
import torch
from numba import get_num_threads
from torch import Tensor

from fastpath.cpu.kernels import multiply
from fastpath.cpu.packed import PackedRows
from fastpath.cpu.packed_panels import PackedPanels
from fastpath.cpu.ranks import multiply_and_rank, rank_logits
from fastpath.cpu.rows import multiply_gathered
from fastpath.scores import Scores
from minispec.errors import ArgumentError
from minispec.models.quantized_matrix import QuantizedMatrix

_CHURN = 0.125  # with a larger share of new ids a shortlist is gathered: see docs/performance.md
_STAYS = 16  # uses after which a shortlist counts as lasting: more than the longest round
_MAX_MISSES = 16  # after so many unpacked shortlists in a row, the packed one is replaced


class CpuHead:
    """The LM head (V, D) of a target or draft; the rows are shared, not copied."""

    def __init__(
        self, rows: np.ndarray, scales: np.ndarray, matrix: QuantizedMatrix | None = None
    ) -> None:
        """``rows`` and ``scales``: see ``kernels``. ``matrix``: a quantised head's rows as they lie
        in the file, from which shortlists are packed."""
        self._rows, self._scales, self._matrix = rows, scales, matrix
        self._packed: PackedRows | PackedPanels
        self._packed = PackedRows(rows, scales) if matrix is None else PackedPanels(matrix)
        self._size = len(rows) if matrix is None else len(matrix)
        self._threads = get_num_threads()
        self._last_ids: Tensor | None = None  # the shortlist of the last call
        self._repeats = 0  # consecutive calls with it before
        self._packed_ids: Tensor | None = None  # the packed shortlist
        self._misses = 0  # shortlists since then that were not worth a copy

    @property
    def vocab_size(self) -> int:
        return self._size

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden (..., D) -> logits of the whole vocabulary (..., V)."""
        states, out = self._allocate(hidden, self.vocab_size)
        multiply(self._rows, self._scales, states, out.numpy(), self._threads)
        return out.view(*hidden.shape[:-1], -1)

    def logits_of(self, hidden: Tensor, ids: Tensor) -> Tensor:
        """hidden (..., D), ids (K,) sorted and unique -> their logits (..., K)."""
        if len(ids) == self.vocab_size:
            return self.logits(hidden)
        states, out = self._allocate(hidden, len(ids))
        # The same tensor means the same ids (``types.Shortlist``).
        self._repeats = self._repeats + 1 if ids is self._last_ids else 0
        self._last_ids = ids
        # After too many misses any shortlist is packed, so that later small changes can be applied.
        packs = self._repeats or self._misses == _MAX_MISSES or self._matrix is not None
        churn = 1.0 if packs else _CHURN
        if ids is self._packed_ids:
            self._packed.multiply(states, out.numpy())
        elif (self._repeats in (0, _STAYS) or self._matrix is not None) and self._packed.update(
            ids.numpy(), states, out.numpy(), churn
        ):
            self._packed_ids, self._misses = ids, 0
        else:
            self._misses += not self._repeats
            multiply_gathered(
                self._rows, self._scales, ids.numpy(), states, out.numpy(), self._threads
            )
        return out.view(*hidden.shape[:-1], -1)

    def argmax(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """hidden (T, D) -> the ids (T,) of the largest logits, ties to the lowest id, and these
        logits (T,). The other logits are not stored."""
        states, no_logits = hidden.contiguous().numpy(), np.empty((len(hidden), 0), np.float32)
        logits, indices, _ = multiply_and_rank(
            self._rows, self._scales, self._size, states, no_logits, 1, 0.0, self._threads
        )
        return torch.from_numpy(indices[:, 0]), torch.from_numpy(logits[:, 0])

    def rank_logits(self, hidden: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """hidden (T, D) -> logits (T, V), the ``count`` likeliest ids (T, count), ties to the lower
        id, and their logits (T, count): ranked while they are computed."""
        states, logits = self._allocate(hidden, self.vocab_size)
        values, ids, _ = multiply_and_rank(
            self._rows, self._scales, self._size, states, logits.numpy(), count, 0.0, self._threads
        )
        return logits, torch.from_numpy(ids), torch.from_numpy(values)

    def scores(
        self, hidden: Tensor, ids: Tensor | None = None, top: int = 1, temperature: float = 1.0
    ) -> Scores:
        """Logits, top-k and sum of exponentials of hidden (H, D) over the whole vocabulary, or over
        ids (K,), sorted and unique. ``top`` is at most the number of rows.

        Raises ArgumentError for another ``top`` and for a temperature that is not above 0.
        """
        count = self.vocab_size if ids is None else len(ids)
        if not 1 <= top <= count:
            raise ArgumentError(f"top must be 1 to {count}, the number of rows, but is {top}")
        if not temperature > 0:
            raise ArgumentError(f"temperature must be above 0, but is {temperature}")
        if ids is None or count == self.vocab_size:
            states, logits = self._allocate(hidden, count)
            ranked = multiply_and_rank(
                self._rows, self._scales, self._size, states, logits.numpy(), top, temperature,
                self._threads,
            )  # fmt: skip
        else:
            logits = self.logits_of(hidden, ids)
            ranked = rank_logits(logits.numpy(), top, temperature)
        return Scores(logits, *map(torch.from_numpy, ranked))

    def with_own_packing(self) -> "CpuHead":
        """A head over the same rows that packs another shortlist."""
        return CpuHead(self._rows, self._scales, self._matrix)

    @staticmethod
    def _allocate(hidden: Tensor, size: int) -> tuple[np.ndarray, Tensor]:
        """The states (T, D) as an array, and a tensor (T, size) for their logits."""
        states = hidden.reshape(-1, hidden.shape[-1]).float().contiguous().numpy()
        # New memory for each call: recorded distributions keep views of it.
        return states, torch.empty(len(states), size)
