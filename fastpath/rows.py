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

from fastpath.kernels import AHEAD, ask, fitting, largest, meet, product

Rows = npt.NDArray[Any]
_CHURN = 0.125  # above this share of new ids a list is gathered, not packed: see docs
_STAYS = 16  # a list that outlasts the longest round is there to stay


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
def _streamed(rows, scales, places, states, out, first, last):
    width = rows.shape[1]
    for slot in range(first, last):
        meet(rows, slot, slot + AHEAD, 0, states, out, places[slot], 0, width)
        for state in range(len(states)):
            out[state, places[slot]] *= scales[slot]


@njit(parallel=True, cache=True)
def _shared_out(rows, scales, places, states, out, threads):
    size, read = len(places), fitting(rows, states)
    for thread in prange(threads):
        first, last = thread * size // threads, (thread + 1) * size // threads
        _streamed(rows, scales, places, read, out, first, last)


def streamed(rows: Rows, scales: Rows, places: Rows, states: Rows, out: Rows, threads: int) -> None:
    """rows (>= K, D), one after the other -> out (T, K), row ``slot`` at ``places[slot]``."""
    if threads == 1:  # a list is short: calling the threads together would cost a fifth of it
        _streamed(rows, scales, places, fitting(rows, states), out, 0, len(places))
    else:
        _shared_out(rows, scales, places, states, out, threads)


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
def newcomers(old, new):
    """How many ids of a sorted list are not in another."""
    count = position = 0
    for place in range(len(new)):
        while position < len(old) and old[position] < new[place]:
            position += 1
        count += position == len(old) or old[position] != new[place]
    return count


@njit(cache=True)
def compared(old, slots, new, new_slots, rows, packed):
    """Walks two sorted lists side by side: ``new_slots`` takes the slots (K,) of ids that
    stay. Returns the places of those that came, and the slots of those that went. The rows
    that will have to be copied, and those to be overwritten, are asked for on the way."""
    went, came = np.empty(len(old), np.int64), np.empty(len(new), np.int64)
    gone = found = position = 0
    for place in range(len(new)):
        while position < len(old) and old[position] < new[place]:
            went[gone] = slots[position]
            ask(packed, went[gone])
            gone += 1
            position += 1
        if position < len(old) and old[position] == new[place]:
            new_slots[place] = slots[position]
            position += 1
        else:
            came[found] = place
            found += 1
            ask(rows, new[place])
    while position < len(old):
        went[gone] = slots[position]
        gone += 1
        position += 1
    return came[:found], went[:gone]


@njit(cache=True)
def exchanged(rows, scales, ids, slots, came, went, before, packed, packed_scales, places):
    """Copies the rows of ids (K,) that came into slots that became free, and fills what is
    still empty, so that the slots in use are again 0..K-1; ``places`` (K,) is their order.
    ``before``: how many slots were in use."""
    size, free, end = len(ids), len(went), before
    for place in came:
        if free:
            free -= 1
            slot = went[free]
        else:
            slot = end
            end += 1
        slots[place] = slot
        packed[slot] = rows[ids[place]]
        packed_scales[slot] = scales[ids[place]]
    for place in range(size):
        if slots[place] >= size:  # the list shrank: a row from beyond moves into a hole
            free -= 1
            while went[free] >= size:
                free -= 1
            packed[went[free]] = packed[slots[place]]
            packed_scales[went[free]] = packed_scales[slots[place]]
            slots[place] = went[free]
        places[slots[place]] = place


@njit(cache=True)
def followed(rows, scales, old, slots, new, packed, packed_scales, churn):
    """Brings packed rows from the list ``old`` to the list ``new``: slots and places (K,) as
    they are then, or none where more than a share ``churn`` of the ids would have to be copied.
    """
    new_slots, places = np.empty(len(new), np.int64), np.empty(len(new), np.int64)
    if churn < 1 and newcomers(old, new) > churn * len(new):
        return new_slots[:0], places[:0]
    came, went = compared(old, slots, new, new_slots, rows, packed)
    exchanged(rows, scales, new, new_slots, came, went, len(old), packed, packed_scales, places)
    return new_slots, places


class PackedRows:
    """The rows of the list asked for last, side by side and kept up to date.

    ``rows`` (V, D) float32, bfloat16 bits or int8; ``scales`` (V,) float32.
    """

    def __init__(self, rows: np.ndarray, scales: np.ndarray) -> None:
        self._rows, self._scales = rows, scales
        self._ids = self._slots = self._places = np.empty(0, np.int64)
        self._packed = np.empty((0, rows.shape[1]), rows.dtype)
        self._packed_scales = np.empty(0, np.float32)

    def update(self, ids: np.ndarray, churn: float = 1.0) -> bool:
        """Makes ids (K,), sorted and unique, the list that is packed, unless more than a
        share ``churn`` of them is new; says whether it did."""
        if len(ids) > len(self._packed):
            self._grow(len(ids))
        slots, places = followed(
            self._rows, self._scales, self._ids, self._slots, ids,
            self._packed, self._packed_scales, churn,
        )  # fmt: skip
        if not len(places):
            return False
        self._ids, self._slots, self._places = ids, slots, places
        return True

    def product(self, states: np.ndarray, out: np.ndarray) -> None:
        """states (T, D) -> out (T, K), in the order of the ids."""
        streamed(self._packed, self._packed_scales, self._places, states, out, get_num_threads())

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
        if (
            ids is not self._packed_list
            and self._asked in (0, _STAYS)
            and self._packed.update(ids.numpy(), 1.0 if self._asked else _CHURN)
        ):
            self._packed_list = ids
        if ids is self._packed_list:
            self._packed.product(states, out.numpy())
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
