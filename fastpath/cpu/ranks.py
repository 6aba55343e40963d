"""Top-k and sum of exponentials of logits, computed together with them (Numba, CPU).

The products of a block of rows are ranked while they are in the first-level cache, so that an
argmax or a distribution needs no second pass over a whole vocabulary of logits. NaN ranks above
all numbers, so that it is not overlooked; of equal logits the lower index ranks first. Knows
nothing of distributions.
"""

import math

import numpy as np
from numba import njit, prange

from fastpath.cpu.exponential import exponential
from fastpath.cpu.kernels import allocate_buffer, cast_states, multiply_block, split_rows
from fastpath.cpu.process import CACHE

_BLOCK = 1024  # rows whose logits are ranked before the next ones are computed


@njit(cache=CACHE)
def _insert(value, index, top_logits, top_indices):
    """Inserts a logit into ``top_logits`` (top,) and its index into ``top_indices`` (top,), in
    which -1 marks an empty entry."""
    at = len(top_logits)
    while at > 0:
        other = top_logits[at - 1]
        if top_indices[at - 1] >= 0 and not (value > other or (value != value and other == other)):
            break
        at -= 1
    for later in range(len(top_logits) - 1, at, -1):
        top_logits[later], top_indices[later] = top_logits[later - 1], top_indices[later - 1]
    if at < len(top_logits):
        top_logits[at], top_indices[at] = value, index


@njit(cache=CACHE)
def _rescale(total, old_max, new_max, temperature):
    """A sum of exp((logit - old_max) / T) as the sum of exp((logit - new_max) / T)."""
    return total * math.exp((old_max - new_max) / temperature) if total > 0 else 0.0


@njit(cache=CACHE, fastmath={"reassoc", "contract"})
def _sum_exponentials(logits, largest, temperature):
    total, scale = np.float32(0), np.float32(1 / temperature)
    for i in range(len(logits)):
        total += exponential((logits[i] - largest) * scale)
    return total


@njit(cache=CACHE)
def _rank(logits, first, top_logits, top_indices, total, temperature):
    """Adds logits (N,), whose indices start at ``first``, to the top-k. Returns ``total``, the
    sum of exp((logit - top_logits[0]) / T), with theirs added; it is not computed at T = 0."""
    old_max = top_logits[0]
    for i in range(len(logits)):
        value = logits[i]
        # Most are below the last of the top-k: one comparison, unless that is NaN or empty.
        if not value <= top_logits[-1] or top_indices[-1] < 0:
            _insert(value, first + i, top_logits, top_indices)
    if temperature > 0 and math.isfinite(top_logits[0]):
        total = _rescale(total, old_max, top_logits[0], temperature) + _sum_exponentials(
            logits, top_logits[0], temperature
        )
    return total


@njit(cache=CACHE)
def _merge(top_logits, top_indices, totals, temperature):
    """Merges the threads' results, top_logits and top_indices (S, T, top) and totals (S, T), into
    (T, top), (T, top) and (T,). A total is NaN where the largest logit is not finite."""
    shares, states, top = top_logits.shape
    merged = np.full((states, top), -np.inf, np.float32)
    indices = np.full((states, top), -1)
    sums = np.zeros(states)
    for t in range(states):
        for share in range(shares):
            for rank in range(top):
                if top_indices[share, t, rank] >= 0:
                    _insert(
                        top_logits[share, t, rank],
                        top_indices[share, t, rank],
                        merged[t],
                        indices[t],
                    )
        for share in range(shares):
            if math.isfinite(merged[t, 0]):
                sums[t] += _rescale(
                    totals[share, t], top_logits[share, t, 0], merged[t, 0], temperature
                )
            else:
                sums[t] = np.nan
    return merged, indices, sums


@njit(parallel=True, cache=CACHE)
def multiply_and_rank(rows, scales, count, states, out, top, temperature, threads):
    """Top-k and sum of exponentials of the logits states @ (rows * scales).T.

    rows (N, D), scales (N,), states (T, D), ``count`` N -> the largest logits (T, top), top <= N,
    their row indices (T, top), and the sums (T,) of exp((logit - largest) / temperature), which
    need a temperature above 0. The logits themselves are written to ``out`` (T, N), and dropped
    where it is (T, 0).
    """
    new, inputs, keep = len(states), cast_states(rows, states), out.shape[1] > 0
    top_logits = np.full((threads, new, top), -np.inf, np.float32)
    top_indices, totals = np.full((threads, new, top), -1), np.zeros((threads, new))
    for thread in prange(threads):
        first, last = split_rows(count, thread, threads)
        block = allocate_buffer(new, _BLOCK)  # (T, _BLOCK)
        for begin in range(first, last, _BLOCK):
            end = min(begin + _BLOCK, last)
            multiply_block(rows, scales, inputs, block, begin, end, begin)
            for t in range(new):
                logits = block[t, : end - begin]
                if keep:
                    out[t, begin:end] = logits
                totals[thread, t] = _rank(
                    logits,
                    begin,
                    top_logits[thread, t],
                    top_indices[thread, t],
                    totals[thread, t],
                    temperature,
                )
    return _merge(top_logits, top_indices, totals, temperature)


@njit(cache=CACHE)
def rank_logits(logits, top, temperature):
    """As ``multiply_and_rank``, of logits (T, K) that are computed already."""
    new = len(logits)
    top_logits = np.full((1, new, top), -np.inf, np.float32)
    top_indices, totals = np.full((1, new, top), -1), np.zeros((1, new))
    for t in range(new):
        totals[0, t] = _rank(logits[t], 0, top_logits[0, t], top_indices[0, t], 0.0, temperature)
    return _merge(top_logits, top_indices, totals, temperature)
