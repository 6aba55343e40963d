"""A contiguous copy of a shortlist's head rows, updated as the shortlist changes (Numba, CPU).

Only the rows of added ids are copied, into the slots of removed ones. Knows nothing of models,
nor of why an id is in a shortlist.
"""

import numpy as np
import torch
from numba import get_num_threads, njit, prange

from fastpath.cpu.dots import copy_row, prefetch_row
from fastpath.cpu.kernels import allocate_buffer, apply_scales, cast_states, multiply_rows
from fastpath.cpu.process import CACHE
from fastpath.cpu.rows import allocate_rows


@njit(cache=CACHE)
def _copy_rows(rows, added, packed, slots):
    """packed[slots] = rows[added], both (n,).

    Rows and slots are scattered over many pages, and translating their addresses takes as long as
    reading and writing them, so the first line of each is prefetched first. While rows are
    copied, the next ones are prefetched as in ``kernels.multiply_rows``.
    """
    aligned = rows.shape[1] * rows.itemsize % 64 == 0 and packed.ctypes.data % 64 == 0
    for i in range(len(added)):
        prefetch_row(rows, added[i])
        prefetch_row(packed, slots[i])
    end = len(added) - 1
    for i in range(len(added)):
        if aligned:
            prefetch_ids = added[min(i + 3, end)], added[min(i + 2, end)], added[min(i + 1, end)]
            copy_row(rows, added[i], prefetch_ids, packed, slots[i])
        else:
            packed[slots[i]] = rows[added[i]]


@njit(cache=CACHE)
def _copy_and_multiply(rows, added, added_slots, packed, states, by_slot, first, last):
    """Copies the rows ``added`` (n,) into ``added_slots`` (n,), all within ``first`` to ``last``,
    then multiplies the packed rows of that range with the states -> by_slot (T, K)."""
    _copy_rows(rows, added, packed, added_slots)
    multiply_rows(packed, np.empty(0, np.int64), states, by_slot, first, last)


@njit(parallel=True, cache=CACHE)
def _copy_and_multiply_parallel(rows, added, added_slots, packed, states, by_slot, threads):
    """``_copy_and_multiply`` of all slots, in equal ranges for the threads."""
    size = by_slot.shape[1]
    for thread in prange(threads):
        first, last = thread * size // threads, (thread + 1) * size // threads
        own = (first <= added_slots) & (added_slots < last)
        _copy_and_multiply(rows, added[own], added_slots[own], packed, states, by_slot, first, last)


@njit(cache=CACHE)
def _multiply_in_order(rows, scales, added, added_slots, packed, ids, slots, states, out, threads):
    """Logits out (T, K) of a shortlist ids (K,) whose rows are packed in slots (K,), once the rows
    ``added`` (n,) are copied into ``added_slots`` (n,)."""
    inputs, by_slot = cast_states(rows, states), allocate_buffer(len(states), len(ids))
    if threads == 1:  # calling the thread pool would cost a fifth of a shortlist's product
        _copy_and_multiply(rows, added, added_slots, packed, inputs, by_slot, 0, len(ids))
    else:
        _copy_and_multiply_parallel(rows, added, added_slots, packed, inputs, by_slot, threads)
    for state in range(len(states)):
        for i in range(len(ids)):
            out[state, i] = by_slot[state, slots[i]]
    apply_scales(rows, scales, ids, out, 0, len(ids))


@njit(cache=CACHE)
def plan_slots(old_ids, old_slots, new_ids, new_slots, churn):
    """Assigns slots 0..K-1 to a shortlist ``new_ids`` (K,), written to ``new_slots`` (K,).

    Ids kept from ``old_ids`` keep their slots, unless these lie beyond K - 1. Returns the other ids
    (n,), whose rows have to be copied, their slots (n,), and True; or nothing, nothing and False
    where n > ``churn`` * K.
    """
    size = len(new_ids)
    free, added_indices = np.empty(len(old_ids), np.int32), np.empty(size, np.int32)
    num_free = num_added = position = 0
    for i in range(size):  # merges the two sorted shortlists
        while position < len(old_ids) and old_ids[position] < new_ids[i]:
            free[num_free] = old_slots[position]
            num_free += old_slots[position] < size
            position += 1
        kept = position < len(old_ids) and old_ids[position] == new_ids[i]
        if kept and old_slots[position] < size:
            new_slots[i] = old_slots[position]
        else:
            added_indices[num_added] = i
            num_added += 1
        position += kept
    if num_added > churn * size:
        return new_ids[:0], free[:0], False
    for i in range(position, len(old_ids)):
        free[num_free] = old_slots[i]
        num_free += old_slots[i] < size
    end = len(old_ids)
    added_slots = np.empty(num_added, np.int32)
    for i in range(num_added):
        if num_free:
            num_free -= 1
            added_slots[i] = free[num_free]
        else:
            added_slots[i] = end
            end += 1
        new_slots[added_indices[i]] = added_slots[i]
    return new_ids[added_indices[:num_added]], added_slots, True


@njit(cache=CACHE)
def update_and_multiply(
    rows, scales, old_ids, old_slots, new_ids, new_slots, packed, churn, states, out, threads
):
    """Updates the packed rows from the shortlist ``old_ids`` in ``old_slots`` to ``new_ids`` (K,)
    in ``new_slots`` (K,), and computes its logits: states (T, D) -> out (T, K). Returns whether
    it did: it does neither where more than a share ``churn`` of the ids is new."""
    added, added_slots, done = plan_slots(old_ids, old_slots, new_ids, new_slots, churn)
    if done:
        _multiply_in_order(
            rows, scales, added, added_slots, packed, new_ids, new_slots, states, out, threads
        )
    return done


@njit(cache=CACHE)
def multiply_packed(scales, ids, slots, packed, states, out, threads):
    """Logits of a shortlist ids (K,) that is packed already: states (T, D) -> out (T, K)."""
    _multiply_in_order(packed, scales, ids[:0], slots[:0], packed, ids, slots, states, out, threads)


class PackedRows:
    """The head rows of the current shortlist, contiguous and kept up to date.

    ``rows`` (V, D) float32, bfloat16 bits or int8; ``scales`` (V,) float32. The number of threads
    is Numba's at construction: asking for it at each call costs a tenth of a short product.
    """

    def __init__(self, rows: np.ndarray, scales: np.ndarray) -> None:
        self._rows, self._scales, self._threads = rows, scales, get_num_threads()
        self._ids = np.empty(0, np.int64)
        # The slots of the current shortlist, and memory for those of the next.
        self._slots, self._next_slots = np.empty(0, np.int32), np.empty(0, np.int32)
        self._packed = np.empty((0, rows.shape[1]), rows.dtype)  # (capacity, D)

    def update(
        self, ids: np.ndarray, states: np.ndarray, out: np.ndarray, churn: float = 1.0
    ) -> bool:
        """Makes ids (K,), sorted and unique, the packed shortlist, and computes its logits:
        states (T, D) -> out (T, K). Returns whether it did: it does neither if more than a share
        ``churn`` of the ids is new."""
        if len(ids) > len(self._packed):
            self._grow(len(ids))
        done = update_and_multiply(
            self._rows, self._scales, self._ids, self._slots, ids, self._next_slots,
            self._packed, churn, states, out, self._threads,
        )  # fmt: skip
        if done:
            self._ids, self._slots, self._next_slots = ids, self._next_slots, self._slots
        return bool(done)

    def multiply(self, states: np.ndarray, out: np.ndarray) -> None:
        """Logits of the packed shortlist, in the order of its ids: states (T, D) -> out (T, K)."""
        multiply_packed(
            self._scales, self._ids, self._slots, self._packed, states, out, self._threads
        )

    def _grow(self, capacity: int) -> None:
        packed = allocate_rows((capacity, self._rows.shape[1]), torch.from_numpy(self._rows).dtype)
        packed[: len(self._packed)] = torch.from_numpy(self._packed)
        slots, self._next_slots = np.empty(capacity, np.int32), np.empty(capacity, np.int32)
        slots[: len(self._slots)] = self._slots
        self._packed, self._slots = packed.numpy(), slots
