"""A copy of a shortlist's rows of a quantised head, in panels, updated as the shortlist changes
(Numba, CPU).

The head's own rows are read as they lie in the file: in panels one row is spread over as many cache
lines as sixteen. Knows nothing of models, nor of why an id is in a shortlist.
"""

import numpy as np
import torch
from numba import get_num_threads, njit, prange

from fastpath.cpu.block_formats import CODES, PANEL, panel_parts, place_row
from fastpath.cpu.blocks import multiply_segments, round_states
from fastpath.cpu.kernels import allocate_buffer, split_rows
from fastpath.cpu.packed import plan_slots
from fastpath.cpu.process import CACHE
from fastpath.cpu.rows import allocate_rows
from minispec.models.quantized_matrix import QuantizedMatrix


@njit(cache=CACHE)
def _place_and_multiply(kind, blocks, added, slots, data, segments, states, out, first, last):
    """Copies the rows ``added`` (n,) of ``blocks`` to those of their ``slots`` (n,) that lie within
    ``first`` to ``last``, then multiplies the panels of that range -> out (T, K)."""
    columns = segments[0, 3]
    size = panel_parts(kind, columns)[5]
    for i in range(len(added)):
        if first <= slots[i] < last:
            start = slots[i] // PANEL * size
            panel = data[start : start + size]
            place_row(kind, blocks[added[i]], columns, panel, slots[i] % PANEL)
    multiply_segments(data, segments, states, out, first, last, 0)


@njit(parallel=True, cache=CACHE)
def _place_and_multiply_parallel(kind, blocks, added, slots, data, segments, states, out, threads):
    """``_place_and_multiply`` of all slots, in equal ranges for the threads."""
    for thread in prange(threads):
        first, last = split_rows(out.shape[1], thread, threads)
        _place_and_multiply(kind, blocks, added, slots, data, segments, states, out, first, last)


@njit(cache=CACHE)
def _multiply_in_order(
    kind, blocks, added, added_slots, data, segments, slots, states, out, threads
):
    """Logits out (T, K) of a shortlist whose rows are in ``slots`` (K,) once the rows ``added`` are
    copied to ``added_slots``."""
    inputs, by_slot = round_states(states), allocate_buffer(len(states), len(slots))
    if threads == 1:  # calling the thread pool would cost a fifth of a shortlist's product
        _place_and_multiply(
            kind, blocks, added, added_slots, data, segments, inputs, by_slot, 0, len(slots)
        )
    else:
        _place_and_multiply_parallel(
            kind, blocks, added, added_slots, data, segments, inputs, by_slot, threads
        )
    for state in range(len(states)):
        for i in range(len(slots)):
            out[state, i] = by_slot[state, slots[i]]


@njit(cache=CACHE)
def _update_and_multiply(
    kind, blocks, order, old_ids, old_slots, ids, slots, data, segments, states, out, threads
):
    """Updates the panels from the shortlist ``old_ids`` in ``old_slots`` to ``ids`` (K,) in
    ``slots`` (K,), and computes its logits: states (T, D) -> out (T, K)."""
    added, added_slots, _ = plan_slots(old_ids, old_slots, ids, slots, 1.0)
    _multiply_in_order(
        kind, blocks, order[added], added_slots, data, segments, slots, states, out, threads
    )


class PackedPanels:
    """The rows of the current shortlist of a quantised head, kept up to date; see
    ``packed.PackedRows``."""

    def __init__(self, matrix: QuantizedMatrix) -> None:
        self._matrix, self._kind = matrix, CODES[matrix.name]
        self._threads = get_num_threads()
        self._ids, self._slots = np.empty(0, np.int64), np.empty(0, np.int32)
        self._next_slots = np.empty(0, np.int32)
        self._data = np.empty(0, np.uint8)
        self._segments = np.array([[self._kind, 0, 0, matrix.shape[1]]])

    def update(
        self, ids: np.ndarray, states: np.ndarray, out: np.ndarray, churn: float = 1.0
    ) -> bool:
        """Makes ids (K,), sorted and unique, the packed shortlist, and computes its logits:
        states (T, D) -> out (T, K). Always done, whatever the ``churn``: returns True."""
        if len(ids) > len(self._next_slots):
            self._grow(len(ids))
        self._segments[0, 2] = len(ids)
        _update_and_multiply(
            self._kind, self._matrix.blocks, self._matrix.order, self._ids, self._slots, ids,
            self._next_slots[: len(ids)], self._data, self._segments, states, out, self._threads,
        )  # fmt: skip
        self._ids, self._slots, self._next_slots = ids, self._next_slots, self._slots
        return True

    def multiply(self, states: np.ndarray, out: np.ndarray) -> None:
        """Logits of the packed shortlist, in the order of its ids: states (T, D) -> out (T, K)."""
        _multiply_in_order(
            self._kind, self._matrix.blocks, self._ids[:0], self._slots[:0], self._data,
            self._segments, self._slots[: len(self._ids)], states, out, self._threads,
        )  # fmt: skip

    def _grow(self, capacity: int) -> None:
        panels = (capacity + PANEL - 1) // PANEL
        size = panel_parts(self._kind, self._matrix.shape[1])[5]
        data = allocate_rows((panels * size,), torch.uint8).numpy()
        data[:] = 0  # rows of the last panel that nothing was copied to are multiplied too
        data[: len(self._data)] = self._data
        slots, self._next_slots = np.empty(capacity, np.int32), np.empty(capacity, np.int32)
        slots[: len(self._slots)] = self._slots
        self._data, self._slots = data, slots
