"""Which rows of a head are read, and where they lie (Numba, CPU).

A list of ids that stays is worth a copy of its rows, side by side, which is then streamed. A
list that changes a little is worth keeping that copy up to date: only the rows of ids that
came are copied, into the places of those that went. A list that changes a lot is read where
its rows lie (``gathered``), since a row copied costs several rows streamed.

Knows nothing of models, nor of why an id is on a list.
"""

import numpy as np
import torch
from numba import get_num_threads, njit, prange
from torch import Tensor

from fastpath.kernels import AHEAD, meet, product

_CHURN = 0.125  # above this share of new ids a list is gathered, not packed: see docs


@njit(parallel=True, cache=True)
def gathered(rows, scales, ids, states, out, threads):
    """rows (V, D), ids (K,), states (T, D) -> out (T, K), the rows read where they lie."""
    size, width = len(ids), rows.shape[1]
    for thread in prange(threads):
        last = (thread + 1) * size // threads
        for place in range(thread * size // threads, last):
            meet(
                rows,
                ids[place],
                ids[min(place + AHEAD, last - 1)],
                states,
                out,
                place,
                0,
                rows.shape[1],
            )
            for state in range(len(states)):
                out[state, place] *= scales[ids[place]]


@njit(parallel=True, cache=True)
def streamed(rows, scales, places, states, out, threads):
    """rows (>= K, D), one after the other -> out (T, K), row ``slot`` at ``places[slot]``."""
    size = len(places)
    for thread in prange(threads):
        for slot in range(thread * size // threads, (thread + 1) * size // threads):
            meet(rows, slot, slot + AHEAD, states, out, places[slot], 0, rows.shape[1])
            for state in range(len(states)):
                out[state, places[slot]] *= scales[slot]


@njit(cache=True)
def compared(old, slots, new, new_slots):
    """Walks two sorted lists side by side: ``new_slots`` takes the slots (K,) of ids that
    stay, -1 for those that came; returns the slots of those that went, and how many came."""
    went = np.empty(len(old), np.int64)
    gone = came = position = 0
    for place in range(len(new)):
        while position < len(old) and old[position] < new[place]:
            went[gone] = slots[position]
            gone += 1
            position += 1
        if position < len(old) and old[position] == new[place]:
            new_slots[place] = slots[position]
            position += 1
        else:
            new_slots[place] = -1
            came += 1
    while position < len(old):
        went[gone] = slots[position]
        gone += 1
        position += 1
    return went[:gone], came


@njit(cache=True)
def exchanged(rows, scales, ids, slots, went, before, packed, packed_scales, places):
    """Copies the rows of ids (K,) without a slot into slots that became free, and fills what
    is still empty, so that the slots in use are again 0..K-1; ``places`` (K,) is their order.
    ``before``: how many slots were in use."""
    size, free, end = len(ids), len(went), before
    for place in range(size):
        if slots[place] < 0:
            if free:
                free -= 1
                slots[place] = went[free]
            else:
                slots[place] = end
                end += 1
            packed[slots[place]] = rows[ids[place]]
            packed_scales[slots[place]] = scales[ids[place]]
    for place in range(size):
        if slots[place] >= size:  # the list shrank: a row from beyond moves into a hole
            while went[free - 1] >= size:
                free -= 1
            free -= 1
            packed[went[free]] = packed[slots[place]]
            packed_scales[went[free]] = packed_scales[slots[place]]
            slots[place] = went[free]
        places[slots[place]] = place


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
        slots = np.empty_like(ids)
        went, came = compared(self._ids, self._slots, ids, slots)
        if came > churn * len(ids):
            return False
        if len(ids) > len(self._packed):
            self._grow(len(ids))
        places = np.empty_like(ids)
        exchanged(
            self._rows, self._scales, ids, slots, went, len(self._ids),
            self._packed, self._packed_scales, places,
        )  # fmt: skip
        self._ids, self._slots, self._places = ids, slots, places
        return True

    def product(self, states: np.ndarray, out: np.ndarray) -> None:
        """states (T, D) -> out (T, K), in the order of the ids."""
        streamed(self._packed, self._packed_scales, self._places, states, out, get_num_threads())

    def _grow(self, size: int) -> None:
        # torch's memory begins at a cache line, numpy's does not: reading is faster for it.
        kind = torch.from_numpy(self._packed).dtype
        packed = torch.empty(size, self._rows.shape[1], dtype=kind).numpy()
        packed[: len(self._packed)] = self._packed
        scales = np.empty(size, np.float32)
        scales[: len(self._packed_scales)] = self._packed_scales
        self._packed, self._packed_scales = packed, scales


class CpuHead:
    """The LM head (V, D) of a target or draft; the rows themselves are shared, not copied."""

    def __init__(self, rows: np.ndarray, scales: np.ndarray) -> None:
        self._rows, self._scales = rows, scales
        self._packed = PackedRows(rows, scales)
        self._list: Tensor | None = None

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
        # The same tensor means the same ids (``types.Shortlist``). A list that comes a second
        # time will come again.
        seen = ids is self._list
        self._list = ids
        numbers = ids.numpy()
        if self._packed.update(numbers, 1.0 if seen else _CHURN):
            self._packed.product(states, out.numpy())
        else:
            gathered(self._rows, self._scales, numbers, states, out.numpy(), get_num_threads())
        return out.view(*hidden.shape[:-1], -1)

    def twin(self) -> "CpuHead":
        """The same rows, to pack for another list."""
        return CpuHead(self._rows, self._scales)

    @staticmethod
    def _room(hidden: Tensor, size: int) -> tuple[np.ndarray, Tensor]:
        states = hidden.reshape(-1, hidden.shape[-1]).contiguous().numpy()
        return states, torch.empty(len(states), size)  # fresh: laws are made of it, and kept
