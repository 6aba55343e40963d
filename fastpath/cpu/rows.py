"""Rows of a head, read where they lie (Numba, CPU): in a list's order, or in whole runs.

Knows nothing of models, nor of why an id is on a list.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from numba import njit, prange
from torch import Tensor

from fastpath.cpu.kernels import fitting, met, scaled


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
    size, read = len(ids), fitting(rows, states)
    for thread in prange(threads):
        first, last = thread * size // threads, (thread + 1) * size // threads
        met(rows, ids, read, out, first, last)
        scaled(rows, scales, ids, out, first, last)


@njit(cache=True)
def runs(rows, scales, starts, lengths, states, out, threads):
    """Runs of rows, where rows that are asked for together lie together: rows (V, D) from
    ``starts`` (R,), ``lengths`` (R,) of each -> out (T, sum of lengths), one after the other."""
    ids, place = np.empty(lengths.sum(), np.int64), 0
    for run in range(len(starts)):
        for row in range(lengths[run]):
            ids[place] = starts[run] + row
            place += 1
    gathered(rows, scales, ids, states, out, threads)
