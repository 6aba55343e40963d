"""Attention of a few new positions over all that came before (Numba, CPU).

Heads that share keys and values meet each of them together, as states do the rows of a head.
"""

import numpy as np
from numba import njit, prange

from fastpath.cpu.blend import blend
from fastpath.cpu.exponential import exponential
from fastpath.cpu.kernels import met

_TOGETHER = 3  # heads that meet four keys at once: their sums must fit the registers


@njit(cache=True, fastmath={"reassoc", "contract"})
def _weighed(scores, scale):
    """The softmax of scores times a scale, in place."""
    largest, total = np.float32(-np.inf), np.float32(0)
    for s in range(len(scores)):
        scores[s] *= scale
        largest = max(largest, scores[s])
    for s in range(len(scores)):
        scores[s] = exponential(scores[s] - largest)
        total += scores[s]
    for s in range(len(scores)):
        scores[s] /= total


@njit(cache=True)
def _blended(scores, values, first, step, size, out, to, count):
    if count == 1:
        blend(scores, values, first, step, size, out, to, 1)
    elif count == 2:
        blend(scores, values, first, step, size, out, to, 2)
    else:
        blend(scores, values, first, step, size, out, to, 3)


@njit(parallel=True, cache=True)
def attention(queries, keys, values, start, window, scale, out, threads):
    """Queries (T, >= heads, head_width) of positions ``start`` and following, each over the
    last ``window`` keys and values (S, kv_heads, head_width) up to its own place -> out
    (T, heads, head_width)."""
    new, heads, width = out.shape
    step, group = keys.shape[1], heads // keys.shape[1]
    all_keys, all_values = keys.reshape(-1, width), values.reshape(-1, width)
    all_out = out.reshape(-1, width)
    tasks = new * heads  # those of one thread lie side by side, so that keys are shared
    for thread in prange(threads):
        task, last = thread * tasks // threads, (thread + 1) * tasks // threads
        memory = np.empty(_TOGETHER * (start + new), np.float32)
        while task < last:
            t, head = task // heads, task % heads
            count = min(_TOGETHER, group - head % group, last - task)
            end = start + t + 1
            first = max(0, end - window)
            size, shared = end - first, head // group
            scores = memory[: _TOGETHER * size].reshape(_TOGETHER, size)
            begin = first * step + shared
            places = np.arange(begin, end * step, step)  # of the keys and values of these heads
            met(all_keys, places, queries[t][head : head + count], scores, 0, size)
            for j in range(count):
                _weighed(scores[j], scale)
            _blended(scores, all_values, begin, step, size, all_out, task, count)
            task += count
