"""Attention of a few new positions over all cached positions (Numba, CPU).

Query heads that share a key-value head (grouped-query attention) read it together, up to three
heads at a time, so that each key and value is loaded once for all of them.

A node of a tree attends to a run of cached positions and to its path, whose keys and values lie
apart. They are read in the order of the path, so a node's result has the bits that a pass over
its path alone would give it.
"""

import numpy as np
from numba import njit, prange

from fastpath.cpu.blend import blend
from fastpath.cpu.exponential import exponential
from fastpath.cpu.kernels import multiply_rows
from fastpath.cpu.process import CACHE

_MAX_HEADS = 3  # query heads that read four keys at once: their sums must fit the registers


@njit(cache=CACHE, fastmath={"reassoc", "contract"})
def _softmax(scores, scale):
    """scores (S,) -> softmax(scores * scale), in place."""
    largest, total = np.float32(-np.inf), np.float32(0)
    for s in range(len(scores)):
        scores[s] *= scale
        largest = max(largest, scores[s])
    for s in range(len(scores)):
        scores[s] = exponential(scores[s] - largest)
        total += scores[s]
    for s in range(len(scores)):
        scores[s] /= total


@njit(cache=CACHE)
def _blend(weights, values, ids, size, out, start, count):
    """``blend`` for a ``count`` that is not a literal."""
    if count == 1:
        blend(weights, values, ids, size, out, start, 1)
    elif count == 2:
        blend(weights, values, ids, size, out, start, 2)
    else:
        blend(weights, values, ids, size, out, start, 3)


@njit(cache=CACHE)
def _list_rows(first, size, root, path, num_key_value_heads, shared):
    """The rows (``size``,) of a key-value head at the positions from ``first`` on: those before
    ``root`` are stored in order, those from there on where ``path`` says."""
    rows = np.empty(size, np.int64)
    for s in range(size):
        position = first + s
        stored = position if position < root else path[position - root]
        rows[s] = stored * num_key_value_heads + shared
    return rows


@njit(parallel=True, cache=CACHE)
def attend(queries, keys, values, place, window, scale, out, threads):
    """Attention of queries (T, >= heads, head_dim), keys and values (S, num_key_value_heads,
    head_dim) -> out (T, heads, head_dim), all float32.

    ``place``: where the queries are, see ``positions.place_tokens``. Each attends to the last
    ``window`` positions up to and including its own; in a tree those from its root on are the nodes
    of its path.
    """
    _, positions, root, paths = place
    branches, longest = len(paths) > 0, 0
    for position in positions:
        longest = max(longest, position + 1)
    new, heads, head_dim = out.shape
    num_key_value_heads, group = keys.shape[1], heads // keys.shape[1]
    all_keys, all_values = keys.reshape(-1, head_dim), values.reshape(-1, head_dim)
    all_out = out.reshape(-1, head_dim)  # (T * heads, head_dim)
    tasks = new * heads  # a thread's tasks are consecutive, so that its heads share keys
    for thread in prange(threads):
        task, last = thread * tasks // threads, (thread + 1) * tasks // threads
        memory = np.empty(_MAX_HEADS * longest, np.float32)
        while task < last:
            t, head = task // heads, task % heads
            count = min(_MAX_HEADS, group - head % group, last - task)
            end = positions[t] + 1
            first = max(0, end - window)
            size, shared = end - first, head // group
            scores = memory[: _MAX_HEADS * size].reshape(_MAX_HEADS, size)
            begin = first * num_key_value_heads + shared
            # Rows of this key-value head in all_keys and all_values.
            if branches:
                rows = _list_rows(first, size, root, paths[t], num_key_value_heads, shared)
            else:
                rows = np.arange(begin, end * num_key_value_heads, num_key_value_heads)
            multiply_rows(all_keys, rows, queries[t][head : head + count], scores, 0, size)
            for j in range(count):
                _softmax(scores[j], scale)
            if branches:
                _blend(scores, all_values, rows, size, all_out, task, count)
            else:
                _blend(scores, all_values, (begin, num_key_value_heads), size, all_out, task, count)
            task += count
