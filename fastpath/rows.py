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

from fastpath.dots import dots, laid
from fastpath.kernels import AHEAD, ask, fitting, largest, meet, product

Rows = npt.NDArray[Any]
_CHURN = 0.125  # above this share of new ids a list is gathered, not packed: see docs
_STAYS = 16  # a list that outlasts the longest round is there to stay
_EARLY = 2  # rows: those that come are asked for that much before their turn
_NONE = np.empty(0, np.int64)


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
        last = (thread + 1) * size // threads
        for place in range(thread * size // threads, last):
            coming = ids[min(place + AHEAD, last - 1)]
            meet(rows, ids[place], coming, 0, read, out, place, 0, width)
            for state in range(len(states)):
                out[state, place] *= scales[ids[place]]


@njit(cache=True)
def _met_one(rows, scales, row, ahead, place, states, out):
    """out[:, place] = states @ rows[row] * scales[row]; row ``ahead`` is asked for."""
    if len(states) == 1:  # straight to it: what else a loop does, memory waits for
        dots(rows, row, ahead, 0, states, out, place, 0, rows.shape[1], 1)
    else:
        meet(rows, row, ahead, 0, states, out, place, 0, rows.shape[1])
    for state in range(len(states)):
        out[state, place] *= scales[row]


@njit(cache=True)
def _met(rows, scales, places, states, out, first, last):
    """Row ``slot`` of a stream meets the states -> out[:, places[slot]], for slots first..last."""
    if len(states) == 1:
        for slot in range(first, last):
            dots(rows, slot, slot + 1, 0, states, out, places[slot], 0, rows.shape[1], 1)
            out[0, places[slot]] *= scales[slot]
    else:
        for slot in range(first, last):
            _met_one(rows, scales, slot, slot + AHEAD, places[slot], states, out)


@njit(cache=True)
def _put(rows, row, packed, slot):
    """packed[slot] = rows[row]."""
    if rows.shape[1] * rows.itemsize % 64 == 0 and packed.ctypes.data % 64 == 0:
        laid(rows, row, packed, slot)
    else:
        packed[slot] = rows[row]


@njit(cache=True)
def _streamed(rows, scales, ids, fresh, places, packed, packed_scales, states, out, first, last):
    first_turn, end = np.searchsorted(fresh, first), np.searchsorted(fresh, last)
    for turn in range(first_turn, min(first_turn + _EARLY, end)):
        ask(rows, ids[places[fresh[turn]]])
    begin = first
    for turn in range(first_turn, end):
        slot = fresh[turn]
        _met(packed, packed_scales, places, states, out, begin, slot)
        # A row that came meets the states on its way: so it is read once, from where it lies.
        row = ids[places[slot]]
        _met_one(rows, scales, row, row, places[slot], states, out)
        _put(rows, row, packed, slot)
        packed_scales[slot] = scales[row]
        if turn + _EARLY < end:
            ask(rows, ids[places[fresh[turn + _EARLY]]])
        begin = slot + 1
    _met(packed, packed_scales, places, states, out, begin, last)


@njit(parallel=True, cache=True)
def _shared_out(rows, scales, ids, fresh, places, packed, packed_scales, states, out, threads):
    read = fitting(rows, states)
    for thread in prange(threads):
        first, last = thread * len(ids) // threads, (thread + 1) * len(ids) // threads
        _streamed(rows, scales, ids, fresh, places, packed, packed_scales, read, out, first, last)


@njit(cache=True)
def streamed(rows, scales, ids, fresh, places, packed, packed_scales, states, out, threads):
    """packed (>= K, D), one row after the other -> out (T, K), row ``slot`` at ``places[slot]``.
    The rows of the slots ``fresh`` (n,), ascending, are copied to there on the way."""
    if threads == 1:  # a list is short: calling the threads together would cost a fifth of it
        read = fitting(rows, states)
        _streamed(rows, scales, ids, fresh, places, packed, packed_scales, read, out, 0, len(ids))
    else:
        _shared_out(rows, scales, ids, fresh, places, packed, packed_scales, states, out, threads)


@njit(parallel=True, cache=True)
def runs(rows, scales, starts, lengths, states, out, threads):
    """Runs of rows, where rows that are asked for together lie together: rows (V, D) from
    ``starts`` (R,), ``lengths`` (R,) of each -> out (T, sum of lengths), one after the other."""
    places = np.zeros(len(starts) + 1, np.int64)
    places[1:] = np.cumsum(lengths)
    width, read = rows.shape[1], fitting(rows, states)
    for thread in prange(threads):
        for run in range(thread * len(starts) // threads, (thread + 1) * len(starts) // threads):
            for row in range(starts[run], starts[run] + lengths[run]):
                place = places[run] + row - starts[run]
                meet(rows, row, row + AHEAD, 0, read, out, place, 0, width)
                for state in range(len(states)):
                    out[state, place] *= scales[row]


@njit(cache=True)
def planned(old, slots, new, packed, packed_scales, churn):
    """Where the rows of a list ``new`` (K,) will lie, in slots 0..K-1, after those of ``old``
    lay in ``slots``: its slots (K,), the places (K,) in the list of the rows in the slots, and
    the slots (n,), ascending, of the ids that came, whose rows are to be copied. All are empty
    where more than a share ``churn`` of the ids came."""
    size, nothing = len(new), np.empty(0, np.int64)
    new_slots, free = np.empty(size, np.int64), np.empty(len(old), np.int64)
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
            came += 1
    if came > churn * size:
        return nothing, nothing, nothing
    for place in range(position, len(old)):
        free[gone] = slots[place]
        gone += slots[place] < size
    places, end, fresh = np.empty(size, np.int64), len(old), np.zeros(size, np.bool_)
    for place in range(size):
        slot = new_slots[place]
        if slot < 0 or slot >= size:
            if gone:
                gone -= 1
                hole = free[gone]
            else:
                hole = end
                end += 1
            if slot < 0:
                fresh[hole] = True
            else:  # the list shrank: a row from beyond moves into a hole
                packed[hole] = packed[slot]
                packed_scales[hole] = packed_scales[slot]
            new_slots[place] = slot = hole
        places[slot] = place
    return new_slots, places, np.flatnonzero(fresh)


@njit(cache=True)
def followed(rows, scales, old, slots, new, packed, packed_scales, churn, states, out, threads):
    """Brings packed rows from the list ``old`` to the list ``new`` (K,), and these through the
    states -> out (T, K); returns slots and places (K,) as they are then, or none, and does
    nothing, where more than a share ``churn`` of the ids would have to be copied."""
    slots, places, fresh = planned(old, slots, new, packed, packed_scales, churn)
    if len(places):
        streamed(rows, scales, new, fresh, places, packed, packed_scales, states, out, threads)
    return slots, places


class PackedRows:
    """The rows of the list asked for last, side by side and kept up to date.

    ``rows`` (V, D) float32, bfloat16 bits or int8; ``scales`` (V,) float32.
    """

    def __init__(self, rows: np.ndarray, scales: np.ndarray) -> None:
        self._rows, self._scales = rows, scales
        self._ids = self._slots = self._places = np.empty(0, np.int64)
        self._packed = np.empty((0, rows.shape[1]), rows.dtype)
        self._packed_scales = np.empty(0, np.float32)

    def follow(
        self, ids: np.ndarray, states: np.ndarray, out: np.ndarray, churn: float = 1.0
    ) -> bool:
        """Makes ids (K,), sorted and unique, the list that is packed: states (T, D) -> out
        (T, K). Does neither, and says so, if more than a share ``churn`` of the ids is new."""
        if len(ids) > len(self._packed):
            self._grow(len(ids))
        slots, places = followed(
            self._rows, self._scales, self._ids, self._slots, ids,
            self._packed, self._packed_scales, churn, states, out, get_num_threads(),
        )  # fmt: skip
        if not len(places):
            return False
        self._ids, self._slots, self._places = ids, slots, places
        return True

    def product(self, states: np.ndarray, out: np.ndarray) -> None:
        """The list that is packed: states (T, D) -> out (T, K), in the order of the ids."""
        streamed(
            self._rows, self._scales, self._ids, _NONE, self._places,
            self._packed, self._packed_scales, states, out, get_num_threads(),
        )  # fmt: skip

    def _grow(self, size: int) -> None:
        packed = home((size, self._rows.shape[1]), torch.from_numpy(self._rows).dtype).numpy()
        packed[: len(self._packed)] = self._packed
        scales = np.empty(size, np.float32)
        scales[: len(self._packed_scales)] = self._packed_scales
        self._packed, self._packed_scales = packed, scales


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
        threads, states = get_num_threads(), hidden.contiguous().numpy()
        found = np.empty((threads, len(states)), np.float32)
        places = np.empty((threads, len(states)), np.int64)
        largest(self._rows, self._scales, states, found, places, threads)
        # Of equal ones the first thread's, whose rows come before the others'.
        own = found.argmax(0), np.arange(len(states))
        return torch.from_numpy(places[own]), torch.from_numpy(found[own])

    def twin(self) -> "CpuHead":
        """The same rows, to pack for another list."""
        return CpuHead(self._rows, self._scales)

    @staticmethod
    def _room(hidden: Tensor, size: int) -> tuple[np.ndarray, Tensor]:
        states = hidden.reshape(-1, hidden.shape[-1]).contiguous().numpy()
        return states, torch.empty(len(states), size)  # fresh: laws are made of it, and kept
