"""Attention of a few new positions over all cached positions (Numba, CPU).

The queries of several positions and heads that read the same keys and values (grouped-query
attention, a pass over several tokens) are multiplied together, so that these are loaded once.

A node of a tree attends to a run of cached positions and to its path, whose keys and values lie
apart. All nodes are multiplied with all keys, and weights of keys that a node does not attend to
are 0: a node's result has the bits that a pass over its path alone would give it.
"""

import numpy as np
from numba import njit, prange

from fastpath.cpu.blend import blend
from fastpath.cpu.exponential import exponential
from fastpath.cpu.kernels import allocate_buffer, multiply_rows
from fastpath.cpu.process import CACHE

_MAX_STATES = 42  # queries that share keys and are multiplied with them at once
_BLOCK = 128  # positions whose values stay in the first-level cache for all of these queries


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
def _blend(weights, first_weights, values, spacing, begin, end, out, start, count):
    """``blend`` for a ``count`` that is not a literal."""
    if count == 1:
        blend(weights, first_weights, values, spacing, begin, end, out, start, 1)
    elif count == 2:
        blend(weights, first_weights, values, spacing, begin, end, out, start, 2)
    else:
        blend(weights, first_weights, values, spacing, begin, end, out, start, 3)


@njit(cache=CACHE)
def _weigh(scores, begin, end, nodes, scale):
    """In place, the scores (S,) of the entries from ``begin`` to ``end``, followed by ``nodes``
    (n,), become their softmax in this order, and all others 0."""
    common = end - begin
    own = np.empty(common + len(nodes), np.float32)
    own[:common] = scores[begin:end]
    for i in range(len(nodes)):
        own[common + i] = scores[nodes[i]]
    _softmax(own, scale)
    scores[:begin] = 0
    scores[begin:end] = own[:common]
    scores[end:] = 0
    for i in range(len(nodes)):
        scores[nodes[i]] = own[common + i]


@njit(cache=CACHE)
def _attend_together(queries, keys, values, place, window, scale, out, shared, first, last):
    """Attention of the queries ``first`` to ``last`` of those that read the key-value head
    ``shared``, counted position by position and head by head."""
    start, positions, root, paths = place
    new, heads, head_dim = out.shape
    num_key_value_heads = keys.shape[1]
    group = heads // num_key_value_heads
    begin, end = positions[first // group] + 1, 0  # of the stored positions that are read
    for state in range(first, last):
        position = positions[state // group]
        begin, end = min(begin, max(0, position + 1 - window)), max(end, position + 1)
    if len(paths):
        begin, end = min(begin, root), start + new

    states = allocate_buffer(last - first, head_dim)
    scores = np.empty((last - first, end - begin), np.float32)
    for state in range(first, last):
        states[state - first] = queries[state // group, shared * group + state % group]
    spacing = begin * num_key_value_heads + shared, num_key_value_heads
    rows = np.arange(spacing[0], end * num_key_value_heads, num_key_value_heads)
    multiply_rows(keys.reshape(-1, head_dim), rows, states, scores, 0, len(rows))

    all_out, all_values = out.reshape(-1, head_dim), values.reshape(-1, head_dim)
    no_nodes = np.empty(0, np.int64)
    for state in range(first, last):
        position, weights = positions[state // group], scores[state - first]
        own_begin, own_end = max(0, position + 1 - window), position + 1
        if len(paths):
            path = paths[state // group, max(0, own_begin - root) : own_end - root]
            _weigh(weights, min(own_begin, root) - begin, root - begin, path - begin, scale)
        else:
            _weigh(weights, own_begin - begin, own_end - begin, no_nodes, scale)
        all_out[state // group * heads + shared * group + state % group] = 0
    for block in range(0, end - begin, _BLOCK):
        block_end = min(block + _BLOCK, end - begin)
        state = first
        while state < last:
            count = min(3, group - state % group, last - state)
            row = state // group * heads + shared * group + state % group
            _blend(
                scores, state - first, all_values, spacing, block, block_end, all_out, row, count
            )
            state += count


@njit(parallel=True, cache=CACHE)
def attend(queries, keys, values, place, window, scale, out, threads):
    """Attention of queries (T, >= heads, head_dim), keys and values (S, num_key_value_heads,
    head_dim) -> out (T, heads, head_dim), all float32.

    ``place``: where the queries are, see ``positions.place_tokens``. Each attends to the last
    ``window`` positions up to and including its own; in a tree those from its root on are the nodes
    of its path.
    """
    new, heads, _ = out.shape
    states = new * (heads // keys.shape[1])  # that read one key-value head
    total = new * heads
    for thread in prange(threads):
        task, last = thread * total // threads, (thread + 1) * total // threads
        while task < last:
            shared, first = task // states, task % states
            count = min(_MAX_STATES, states - first, last - task)
            _attend_together(
                queries, keys, values, place, window, scale, out, shared, first, first + count
            )
            task += count
