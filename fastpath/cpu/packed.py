"""The rows of a list, side by side in a copy that follows the list as it changes (Numba, CPU).

Only the rows of ids that came are copied, into the places of those that went. Knows nothing of
models, nor of why an id is on a list.
"""

import numpy as np
import torch
from numba import get_num_threads, njit, prange

from fastpath.cpu.dots import laid, told
from fastpath.cpu.kernels import fitting, met, room, scaled
from fastpath.cpu.rows import home


@njit(cache=True)
def _put(rows, came, packed, slots):
    """packed[slots] = rows[came], of as many slots as ids.

    Rows lie far apart, and so do slots: finding out where takes as long as reading and writing
    them, so memory is told of all beforehand. Like those of a list that is met where it lies
    (``kernels.met``), it is told of the rows three times more while others are copied.
    """
    lines = rows.shape[1] * rows.itemsize % 64 == 0 and packed.ctypes.data % 64 == 0
    for turn in range(len(came)):
        told(rows, came[turn])
        told(packed, slots[turn])
    end = len(came) - 1
    for turn in range(len(came)):
        if lines:
            later = came[min(turn + 3, end)], came[min(turn + 2, end)], came[min(turn + 1, end)]
            laid(rows, came[turn], later, packed, slots[turn])
        else:
            packed[slots[turn]] = rows[came[turn]]


@njit(cache=True)
def _streamed(rows, came, slots, packed, states, by_slot, first, last):
    """The packed rows ``first`` to ``last`` meet the states -> by_slot (T, K), once the rows that
    came, ids (n,), lie in their slots (n,), which are among them."""
    _put(rows, came, packed, slots)
    met(packed, np.empty(0, np.int64), states, by_slot, first, last)


@njit(parallel=True, cache=True)
def _shared_out(rows, came, slots, packed, states, by_slot, threads):
    size = by_slot.shape[1]
    for thread in prange(threads):
        first, last = thread * size // threads, (thread + 1) * size // threads
        ours = (first <= slots) & (slots < last)
        _streamed(rows, came[ours], slots[ours], packed, states, by_slot, first, last)


@njit(cache=True)
def _in_order(rows, scales, came, to, packed, ids, slots, states, out, threads):
    """The list ids (K,), packed in the slots (K,) but for the rows that came, ids (n,), which are
    to be copied ``to`` slots (n,): its rows meet the states -> out (T, K)."""
    read, by_slot = fitting(rows, states), room(len(states), len(ids))
    if threads == 1:  # a list is short: calling the threads together would cost a fifth of it
        _streamed(rows, came, to, packed, read, by_slot, 0, len(ids))
    else:
        _shared_out(rows, came, to, packed, read, by_slot, threads)
    for state in range(len(states)):
        for place in range(len(ids)):
            out[state, place] = by_slot[state, slots[place]]
    scaled(rows, scales, ids, out, 0, len(ids))


@njit(cache=True)
def planned(old, slots, new, new_slots, packed, churn):
    """Where the rows of a list ``new`` (K,) will lie, after those of ``old`` lay in ``slots``: in
    ``new_slots``, 0..K-1. Returns the ids that came (n,), whose rows are to be copied, their slots
    (n,), and whether this was done at all: it is not where they are more than a share ``churn``."""
    size = len(new)
    free, came_to = np.empty(len(old), np.int32), np.empty(size, np.int32)
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
        return new[:0], free[:0], False
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
    return new[came_to[:came]], fresh, True


@njit(cache=True)
def followed(rows, scales, old, slots, new, new_slots, packed, churn, states, out, threads):
    """Brings packed rows from the list ``old``, in ``slots``, to the list ``new`` (K,), in
    ``new_slots``, and these through the states -> out (T, K). Does neither, and says so, where
    more than a share ``churn`` of the ids would have to be copied."""
    came, to, done = planned(old, slots, new, new_slots, packed, churn)
    if done:
        _in_order(rows, scales, came, to, packed, new, new_slots, states, out, threads)
    return done


@njit(cache=True)
def stayed(scales, ids, slots, packed, states, out, threads):
    """As ``followed``, of a list that is packed already."""
    _in_order(packed, scales, ids[:0], slots[:0], packed, ids, slots, states, out, threads)


class PackedRows:
    """The rows of the list asked for last, side by side and kept up to date, by as many threads as
    Numba has when this is made (to ask it at each call costs a tenth of a short list).

    ``rows`` (V, D) float32, bfloat16 bits or int8; ``scales`` (V,) float32.
    """

    def __init__(self, rows: np.ndarray, scales: np.ndarray) -> None:
        self._rows, self._scales, self._threads = rows, scales, get_num_threads()
        self._ids = np.empty(0, np.int64)
        # The list's slots, and room for those of the next.
        self._slots, self._spare = np.empty(0, np.int32), np.empty(0, np.int32)
        self._packed = np.empty((0, rows.shape[1]), rows.dtype)

    def follow(
        self, ids: np.ndarray, states: np.ndarray, out: np.ndarray, churn: float = 1.0
    ) -> bool:
        """Makes ids (K,), sorted and unique, the list that is packed: states (T, D) -> out
        (T, K). Does neither, and says so, if more than a share ``churn`` of the ids is new."""
        if len(ids) > len(self._packed):
            self._grow(len(ids))
        done = followed(
            self._rows, self._scales, self._ids, self._slots, ids, self._spare, self._packed,
            churn, states, out, self._threads,
        )  # fmt: skip
        if done:
            self._ids, self._slots, self._spare = ids, self._spare, self._slots
        return bool(done)

    def product(self, states: np.ndarray, out: np.ndarray) -> None:
        """The list that is packed: states (T, D) -> out (T, K), in the order of the ids."""
        stayed(self._scales, self._ids, self._slots, self._packed, states, out, self._threads)

    def _grow(self, size: int) -> None:
        packed = home((size, self._rows.shape[1]), torch.from_numpy(self._rows).dtype)
        packed[: len(self._packed)] = torch.from_numpy(self._packed)
        slots, self._spare = np.empty(size, np.int32), np.empty(size, np.int32)
        slots[: len(self._slots)] = self._slots
        self._packed, self._slots = packed.numpy(), slots
