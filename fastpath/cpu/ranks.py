"""The largest logits and the sum of their exponentials, found on the way (Numba, CPU).

The products of some rows are looked at while they lie in the first cache, so that a choice, or
a law, needs no second pass over as many numbers as the vocabulary has. NaN is larger than all
numbers, so that it shows; of equal logits the first is the larger. Knows nothing of laws.
"""

import math

import numpy as np
from numba import njit, prange

from fastpath.cpu.exponential import exponential
from fastpath.cpu.kernels import fitting, room, span

_BLOCK = 1024  # rows whose products are looked at before the next are computed


@njit(cache=True)
def _take(value, place, best, places):
    """Puts a logit among the ``best`` (top,), at ``places`` (top,), -1 where none is yet."""
    at = len(best)
    while at > 0:
        other = best[at - 1]
        if places[at - 1] >= 0 and not (value > other or (value != value and other == other)):
            break
        at -= 1
    for later in range(len(best) - 1, at, -1):
        best[later], places[later] = best[later - 1], places[later - 1]
    if at < len(best):
        best[at], places[at] = value, place


@njit(cache=True)
def _rescaled(total, before, largest, heat):
    """A sum of exp((logit - before) / heat) as one of exp((logit - largest) / heat)."""
    return total * math.exp((before - largest) / heat) if total > 0 else 0.0


@njit(cache=True, fastmath={"reassoc", "contract"})
def _exponentials(logits, largest, heat):
    total, scale = np.float32(0), np.float32(1 / heat)
    for i in range(len(logits)):
        total += exponential((logits[i] - largest) * scale)
    return total


@njit(cache=True)
def _look(logits, first, best, places, total, heat):
    """Takes logits (N,) at places from ``first`` on in. Returns the sum ``total`` of
    exp((logit - best[0]) / heat) with theirs; there is none at a heat of 0."""
    before = best[0]
    for i in range(len(logits)):
        value = logits[i]
        # Most are no match for the last of the best: one comparison, if that is a number.
        if not value <= best[-1] or places[-1] < 0:
            _take(value, first + i, best, places)
    if heat > 0 and math.isfinite(best[0]):
        total = _rescaled(total, before, best[0], heat) + _exponentials(logits, best[0], heat)
    return total


@njit(cache=True)
def _joined(best, places, totals, heat):
    """What the shares found, best (S, T, top), places and totals (S, T), as one: (T, top),
    (T, top), (T,), a total that means nothing being NaN."""
    shares, states, top = best.shape
    found, where = np.full((states, top), -np.inf, np.float32), np.full((states, top), -1)
    sums = np.zeros(states)
    for t in range(states):
        for share in range(shares):
            for rank in range(top):
                if places[share, t, rank] >= 0:
                    _take(best[share, t, rank], places[share, t, rank], found[t], where[t])
        for share in range(shares):
            if math.isfinite(found[t, 0]):
                sums[t] += _rescaled(totals[share, t], best[share, t, 0], found[t, 0], heat)
            else:
                sums[t] = np.nan
    return found, where, sums


@njit(parallel=True, cache=True)
def scored(rows, scales, states, out, top, heat, threads):
    """rows (N, D), scales (N,), states (T, D) -> of the products states @ (rows * scales).T the
    best (T, top), top <= N, at which rows (T, top), and the sums (T,) of
    exp((product - best) / heat), for which there must be a heat. The products themselves are
    kept where ``out`` (T, N) has room for them, and not where it is (T, 0)."""
    new, read, kept = len(states), fitting(rows, states), out.shape[1] > 0
    best = np.full((threads, new, top), -np.inf, np.float32)
    places, totals = np.full((threads, new, top), -1), np.zeros((threads, new))
    for thread in prange(threads):
        first, last = thread * len(rows) // threads, (thread + 1) * len(rows) // threads
        some = room(new, _BLOCK)
        for begin in range(first, last, _BLOCK):
            count = min(_BLOCK, last - begin)
            span(rows[begin:last], scales[begin:last], read, some, 0, count)
            for t in range(new):
                logits = some[t, :count]
                if kept:
                    out[t, begin : begin + count] = logits
                totals[thread, t] = _look(
                    logits, begin, best[thread, t], places[thread, t], totals[thread, t], heat
                )
    return _joined(best, places, totals, heat)


@njit(cache=True)
def ranked(logits, top, heat):
    """As ``scored``, of logits (T, K) that are there."""
    new = len(logits)
    best = np.full((1, new, top), -np.inf, np.float32)
    places, totals = np.full((1, new, top), -1), np.zeros((1, new))
    for t in range(new):
        totals[0, t] = _look(logits[t], 0, best[0, t], places[0, t], 0.0, heat)
    return _joined(best, places, totals, heat)
