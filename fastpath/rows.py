"""Which rows of a head are read, and where they lie (Numba, CPU).

A list of ids that stays is worth a copy of its rows, side by side, which is then streamed. A
list that changes a little is worth keeping that copy up to date: only the rows of ids that
came are copied, into the places of those that went. A list that changes a lot is read where
its rows lie (``gathered``), since a row copied costs several rows streamed.

Knows nothing of models, nor of why an id is on a list.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from numba import get_num_threads, njit, prange
from torch import Tensor

from fastpath.dots import laid
from fastpath.kernels import AHEAD, ask, fitting, met, product, room, scaled, spanned
from fastpath.ranks import ranked, scored
from fastpath.scores import Scores
from minispec.errors import ArgumentError

Rows = npt.NDArray[Any]
_CHURN = 0.125  # above this share of new ids a list is gathered, not packed: see docs
_STAYS = 16  # a list that outlasts the longest round is there to stay
_EARLY = 2  # rows: those that come are asked for that much before their turn


def home(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Uninitialised memory for rows: it begins at a cache line, and numpy asks the system for
    large pages, without which finding out where a row lies costs a tenth of reading it."""
    size = math.prod(shape) * dtype.itemsize
    memory = np.empty(size + 64, np.uint8)
    first = -memory.ctypes.data % 64
    return torch.from_numpy(memory[first : first + size]).view(dtype).view(*shape)


@njit(parallel=True, cache=True)
def gathered(rows, scales, ids, states, out, threads):
    """rows (V, D), ids (K,), states (T, D) -> out (T, K), the rows read where they lie."""
    size, width, read = len(ids), rows.shape[1], fitting(rows, states)
    for thread in prange(threads):
        first, last = thread * size // threads, (thread + 1) * size // threads
        met(rows, ids, read, out, (first, last), (0, width), AHEAD, (last, 0))
        scaled(rows, scales, ids, out, first, last)


@njit(cache=True)
def _put(rows, row, packed, slot):
    """packed[slot] = rows[row]."""
    if rows.shape[1] * rows.itemsize % 64 == 0 and packed.ctypes.data % 64 == 0:
        laid(rows, row, packed, slot)
    else:
        packed[slot] = rows[row]


@njit(cache=True)
def _streamed(rows, ids, fresh, packed, states, by_slot, first, last):
    """Slots first to last of the packed rows meet the states -> by_slot (T, K), after those of
    them that are ``fresh`` (slot, place in the list) were copied to there."""
    slots, places = fresh
    for turn in range(-_EARLY, len(slots)):
        soon = turn + _EARLY
        if soon < len(slots) and first <= slots[soon] < last:
            ask(rows, ids[places[soon]])
        if turn >= 0 and first <= slots[turn] < last:
            _put(rows, ids[places[turn]], packed, slots[turn])
    spanned(packed, states, by_slot, first, last)


@njit(parallel=True, cache=True)
def _shared_out(rows, ids, fresh, packed, states, by_slot, threads):
    for thread in prange(threads):
        first, last = thread * len(ids) // threads, (thread + 1) * len(ids) // threads
        _streamed(rows, ids, fresh, packed, states, by_slot, first, last)


@njit(parallel=True, cache=True)
def runs(rows, scales, starts, lengths, states, out, threads):
    """Runs of rows, where rows that are asked for together lie together: rows (V, D) from
    ``starts`` (R,), ``lengths`` (R,) of each -> out (T, sum of lengths), one after the other."""
    places = np.zeros(len(starts) + 1, np.int64)
    places[1:] = np.cumsum(lengths)
    ids, read = np.empty(places[-1], np.int64), fitting(rows, states)
    for run in range(len(starts)):
        for row in range(lengths[run]):
            ids[places[run] + row] = starts[run] + row
    width = rows.shape[1]
    for thread in prange(threads):
        first, last = thread * len(ids) // threads, (thread + 1) * len(ids) // threads
        met(rows, ids, read, out, (first, last), (0, width), AHEAD, (last, 0))
        scaled(rows, scales, ids, out, first, last)


@njit(cache=True)
def planned(old, slots, new, packed, churn):
    """Where the rows of a list ``new`` (K,) will lie, in slots 0..K-1, after those of ``old``
    lay in ``slots``: its slots (K,), and of the ids that came, whose rows are to be copied, the
    slots (n,) and the places in the list (n,). All are empty where more than a share ``churn``
    of the ids came."""
    size, nothing = len(new), np.empty(0, np.int32)
    new_slots, free = np.empty(size, np.int32), np.empty(len(old), np.int32)
    came_to = np.empty(size, np.int32)
    gone = came = position = 0
    for place in range(size):  # walks the two sorted lists side by side
        while position < len(old) and old[position] < new[place]:
            free[gone] = slots[position]
            gone += slots[position] < size
            position += 1
        if position < len(old) and old[position] == new[place]:
            new_slots[place] = slots[position]
            position += 1
        else:
            new_slots[place] = -1
            came_to[came] = place
            came += 1
    if came > churn * size:
        return nothing, (nothing, nothing)
    for place in range(position, len(old)):
        free[gone] = slots[place]
        gone += slots[place] < size
    end = len(old)
    if end > size:  # the list shrank: rows from beyond move into holes
        for place in range(size):
            slot = new_slots[place]
            if slot >= size:
                gone -= 1
                packed[free[gone]] = packed[slot]
                new_slots[place] = free[gone]
    fresh = np.empty(came, np.int32)
    for turn in range(came):
        if gone:
            gone -= 1
            fresh[turn] = free[gone]
        else:
            fresh[turn] = end
            end += 1
        new_slots[came_to[turn]] = fresh[turn]
    return new_slots, (fresh, came_to[:came])


@njit(cache=True)
def followed(rows, scales, old, slots, new, stays, packed, churn, states, out, threads):
    """Brings packed rows from the list ``old`` to the list ``new`` (K,), and these through the
    states -> out (T, K); returns the slots (K,) as they are then, or none, and does nothing,
    where more than a share ``churn`` of the ids would have to be copied. A list that ``stays`` is
    the old one, with nothing to be copied."""
    fresh = np.empty(0, np.int32), np.empty(0, np.int32)
    if not stays:
        slots, fresh = planned(old, slots, new, packed, churn)
    if len(slots):
        read, by_slot = fitting(rows, states), room(len(states), len(new))
        if threads == 1:  # a list is short: calling the threads together would cost a fifth of it
            _streamed(rows, new, fresh, packed, read, by_slot, 0, len(new))
        else:
            _shared_out(rows, new, fresh, packed, read, by_slot, threads)
        for state in range(len(states)):
            for place in range(len(new)):
                out[state, place] = by_slot[state, slots[place]]
        scaled(rows, scales, new, out, 0, len(new))
    return slots


class PackedRows:
    """The rows of the list asked for last, side by side and kept up to date.

    ``rows`` (V, D) float32, bfloat16 bits or int8; ``scales`` (V,) float32.
    """

    def __init__(self, rows: np.ndarray, scales: np.ndarray) -> None:
        self._rows, self._scales = rows, scales
        self._ids, self._slots = np.empty(0, np.int64), np.empty(0, np.int32)
        self._packed = np.empty((0, rows.shape[1]), rows.dtype)

    def follow(
        self, ids: np.ndarray, states: np.ndarray, out: np.ndarray, churn: float = 1.0
    ) -> bool:
        """Makes ids (K,), sorted and unique, the list that is packed: states (T, D) -> out
        (T, K). Does neither, and says so, if more than a share ``churn`` of the ids is new."""
        if len(ids) > len(self._packed):
            packed = home((len(ids), self._rows.shape[1]), torch.from_numpy(self._rows).dtype)
            packed[: len(self._packed)] = torch.from_numpy(self._packed)
            self._packed = packed.numpy()
        slots = followed(
            self._rows, self._scales, self._ids, self._slots, ids, False, self._packed, churn,
            states, out, get_num_threads(),
        )  # fmt: skip
        if not len(slots):
            return False
        self._ids, self._slots = ids, slots
        return True

    def product(self, states: np.ndarray, out: np.ndarray) -> None:
        """The list that is packed: states (T, D) -> out (T, K), in the order of the ids."""
        followed(
            self._rows, self._scales, self._ids, self._slots, self._ids, True, self._packed, 0.0,
            states, out, get_num_threads(),
        )  # fmt: skip


class CpuHead:
    """The LM head (V, D) of a target or draft; the rows themselves are shared, not copied."""

    def __init__(self, rows: np.ndarray, scales: np.ndarray) -> None:
        self._rows, self._scales = rows, scales
        self._packed = PackedRows(rows, scales)
        self._list: Tensor | None = None  # that was asked for last
        self._asked = 0  # how often before
        self._packed_list: Tensor | None = None

    @property
    def vocabulary_size(self) -> int:
        return len(self._rows)

    def full(self, hidden: Tensor) -> Tensor:
        """(..., D) -> logits of every id (..., V)."""
        states, out = self._room(hidden, self.vocabulary_size)
        product(self._rows, self._scales, states, out.numpy(), get_num_threads())
        return out.view(*hidden.shape[:-1], -1)

    def rows(self, hidden: Tensor, ids: Tensor) -> Tensor:
        """(..., D), ids (K,) sorted and unique -> logits (..., K)."""
        if len(ids) == self.vocabulary_size:
            return self.full(hidden)
        states, out = self._room(hidden, len(ids))
        # The same tensor means the same ids (``types.Shortlist``).
        self._asked = self._asked + 1 if ids is self._list else 0
        self._list = ids
        churn = 1.0 if self._asked else _CHURN
        if ids is self._packed_list:
            self._packed.product(states, out.numpy())
        elif self._asked in (0, _STAYS) and self._packed.follow(
            ids.numpy(), states, out.numpy(), churn
        ):
            self._packed_list = ids
        else:
            gathered(self._rows, self._scales, ids.numpy(), states, out.numpy(), get_num_threads())
        return out.view(*hidden.shape[:-1], -1)

    def best(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """(T, D) -> the ids (T,) of the largest logits, ties to the lowest, and these logits
        (T,), of which no others are kept."""
        states, nothing = hidden.contiguous().numpy(), np.empty((len(hidden), 0), np.float32)
        best, places, _ = scored(
            self._rows, self._scales, states, nothing, 1, 0.0, get_num_threads()
        )
        return torch.from_numpy(places[:, 0]), torch.from_numpy(best[:, 0])

    def scores(
        self, hidden: Tensor, ids: Tensor | None = None, top: int = 1, temperature: float = 1.0
    ) -> Scores:
        """hidden (H, D) against all rows, or against those of ids (K,), sorted and unique: the
        logits, the ``top`` best of them, at most K, and the sum of their exponentials. Raises
        ArgumentError."""
        count = self.vocabulary_size if ids is None else len(ids)
        if not 1 <= top <= count:
            raise ArgumentError(f"top {top} must be 1 to {count}, as many as there are rows")
        if not temperature > 0:
            raise ArgumentError(f"temperature {temperature} must be above 0: 0 has no exponentials")
        if ids is None or count == self.vocabulary_size:
            states, logits = self._room(hidden, count)
            found = scored(
                self._rows, self._scales, states, logits.numpy(), top, temperature,
                get_num_threads(),
            )  # fmt: skip
        else:
            logits = self.rows(hidden, ids)
            found = ranked(logits.numpy(), top, temperature)
        return Scores(logits, *map(torch.from_numpy, found))

    def twin(self) -> "CpuHead":
        """The same rows, to pack for another list."""
        return CpuHead(self._rows, self._scales)

    @staticmethod
    def _room(hidden: Tensor, size: int) -> tuple[np.ndarray, Tensor]:
        states = hidden.reshape(-1, hidden.shape[-1]).contiguous().numpy()
        return states, torch.empty(len(states), size)  # fresh: laws are made of it, and kept
