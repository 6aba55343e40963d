"""Products with scattered rows of a head: by id, or in runs of consecutive rows (Numba, CPU).

Nothing is copied: the rows are read at their addresses in the head. Knows nothing of models, nor
of why an id is in a shortlist.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from numba import njit, prange
from torch import Tensor

from fastpath.cpu.kernels import apply_scales, cast_states, multiply_rows
from fastpath.cpu.process import CACHE


def allocate_rows(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """An uninitialised tensor that starts at a cache line. NumPy requests huge pages for it:
    without them, address translation costs a tenth of the time of reading the rows."""
    size = math.prod(shape) * dtype.itemsize
    memory = np.empty(size + 64, np.uint8)
    first = -memory.ctypes.data % 64
    return torch.from_numpy(memory[first : first + size]).view(dtype).view(*shape)


@njit(parallel=True, cache=CACHE)
def multiply_gathered(rows, scales, ids, states, out, threads):
    """rows (V, D), scales (V,), ids (K,), states (T, D) -> out (T, K), logits of these rows."""
    size, inputs = len(ids), cast_states(rows, states)
    for thread in prange(threads):
        first, last = thread * size // threads, (thread + 1) * size // threads
        multiply_rows(rows, ids, inputs, out, first, last)
        apply_scales(rows, scales, ids, out, first, last)


@njit(cache=CACHE)
def multiply_runs(rows, scales, starts, lengths, states, out, threads):
    """Logits of runs of consecutive rows, such as the clusters of a head stored in cluster order.

    rows (V, D); run r has ``lengths[r]`` rows from ``starts[r]`` on, both (R,); states (T, D)
    -> out (T, sum of lengths), run after run.
    """
    ids, count = np.empty(lengths.sum(), np.int64), 0
    for run in range(len(starts)):
        for row in range(lengths[run]):
            ids[count] = starts[run] + row
            count += 1
    multiply_gathered(rows, scales, ids, states, out, threads)
