"""The LM head on the CPU backend, which chooses how a list's rows are read.

A list of ids that stays is worth a copy of its rows, side by side, which is then streamed. A
list that changes a little is worth keeping that copy up to date. A list that changes a lot is read
where its rows lie, since a row copied costs several rows streamed.
"""

import numpy as np
import torch
from numba import get_num_threads
from torch import Tensor

from fastpath.cpu.kernels import product
from fastpath.cpu.packed import PackedRows
from fastpath.cpu.ranks import ranked, scored
from fastpath.cpu.rows import gathered
from fastpath.scores import Scores
from minispec.errors import ArgumentError

_CHURN = 0.125  # above this share of new ids a list is gathered, not packed: see docs
_STAYS = 16  # a list that outlasts the longest round is there to stay
_STRANGE = 16  # so many lists in a row that are none of the packed one's: it is given up


class CpuHead:
    """The LM head (V, D) of a target or draft; the rows themselves are shared, not copied."""

    def __init__(self, rows: np.ndarray, scales: np.ndarray) -> None:
        self._rows, self._scales = rows, scales
        self._packed, self._threads = PackedRows(rows, scales), get_num_threads()
        self._list: Tensor | None = None  # that was asked for last
        self._asked = 0  # how often before
        self._packed_list: Tensor | None = None
        self._strange = 0  # lists since, that were not worth a copy

    @property
    def vocab_size(self) -> int:
        return len(self._rows)

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., D) -> logits of every id (..., V)."""
        states, out = self._room(hidden, self.vocab_size)
        product(self._rows, self._scales, states, out.numpy(), self._threads)
        return out.view(*hidden.shape[:-1], -1)

    def logits_of(self, hidden: Tensor, ids: Tensor) -> Tensor:
        """(..., D), ids (K,) sorted and unique -> logits (..., K)."""
        if len(ids) == self.vocab_size:
            return self.logits(hidden)
        states, out = self._room(hidden, len(ids))
        # The same tensor means the same ids (``types.Shortlist``).
        self._asked = self._asked + 1 if ids is self._list else 0
        self._list = ids
        # One that was given up is replaced, so that lists which then change little can follow.
        churn = 1.0 if self._asked or self._strange == _STRANGE else _CHURN
        if ids is self._packed_list:
            self._packed.product(states, out.numpy())
        elif self._asked in (0, _STAYS) and self._packed.follow(
            ids.numpy(), states, out.numpy(), churn
        ):
            self._packed_list, self._strange = ids, 0
        else:
            self._strange += not self._asked
            gathered(self._rows, self._scales, ids.numpy(), states, out.numpy(), self._threads)
        return out.view(*hidden.shape[:-1], -1)

    def argmax(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """(T, D) -> the ids (T,) of the largest logits, ties to the lowest, and these logits
        (T,), of which no others are kept."""
        states, nothing = hidden.contiguous().numpy(), np.empty((len(hidden), 0), np.float32)
        best, places, _ = scored(self._rows, self._scales, states, nothing, 1, 0.0, self._threads)
        return torch.from_numpy(places[:, 0]), torch.from_numpy(best[:, 0])

    def scores(
        self, hidden: Tensor, ids: Tensor | None = None, top: int = 1, temperature: float = 1.0
    ) -> Scores:
        """hidden (H, D) against all rows, or against those of ids (K,), sorted and unique: the
        logits, the ``top`` best of them, at most K, and the sum of their exponentials. Raises
        ArgumentError."""
        count = self.vocab_size if ids is None else len(ids)
        if not 1 <= top <= count:
            raise ArgumentError(f"top {top} must be 1 to {count}, as many as there are rows")
        if not temperature > 0:
            raise ArgumentError(f"temperature {temperature} must be above 0: 0 has no exponentials")
        if ids is None or count == self.vocab_size:
            states, logits = self._room(hidden, count)
            found = scored(
                self._rows, self._scales, states, logits.numpy(), top, temperature,
                self._threads,
            )  # fmt: skip
        else:
            logits = self.logits_of(hidden, ids)
            found = ranked(logits.numpy(), top, temperature)
        return Scores(logits, *map(torch.from_numpy, found))

    def twin(self) -> "CpuHead":
        """The same rows, to pack for another list."""
        return CpuHead(self._rows, self._scales)

    @staticmethod
    def _room(hidden: Tensor, size: int) -> tuple[np.ndarray, Tensor]:
        states = hidden.reshape(-1, hidden.shape[-1]).contiguous().numpy()
        return states, torch.empty(len(states), size)  # fresh: laws are made of it, and kept
