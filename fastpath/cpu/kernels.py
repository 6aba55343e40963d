"""Products of weight rows with a few hidden states, at the speed of memory (Numba, CPU).

A matrix that does not fit the cache costs the time of reading it, whether it is multiplied
with one hidden state or with five; that is what makes a verify pass over gamma + 1 positions
nearly as cheap as a step of plain decoding. For this to come true each row must be read once,
as one long stream, and meet all states while it passes through the registers
(``fastpath.cpu.dots``).

Rows are float32, bfloat16 (passed as uint16, its bits; as int16 where states are to stay
float32) or int8 with a scale for each row; states, sums and results are float32, but that states
are rounded to bfloat16 for rows in bfloat16 (``fitting``). Knows nothing of models.
"""

import numpy as np
from numba import njit, prange, types
from numba.extending import overload

from fastpath.cpu.dots import LANES, MOST, PAIRED, SIDE_BY_SIDE, dots

# So many states keep a processor too busy with a row to see the next ones coming.
_BUSY = 3 if LANES == 16 else 4


@njit(cache=True)
def room(rows, width):
    """An uninitialised float32 array (rows, width) that begins at a cache line: a vector of
    states that lies across two lines costs two reads, for each row that it meets."""
    size = rows * width
    numbers = np.empty(size + 16, np.float32)
    first = (-numbers.ctypes.data // 4) % 16
    return numbers[first : first + size].reshape(rows, width)


@njit(cache=True)
def _rounded(states):
    """float32 -> the upper halves of their bits (uint32) when rounded to bfloat16, to the even
    one of two that are equally near; what is no number stays none."""
    bits = states.view(np.uint32)
    out = np.empty_like(bits)
    for i in range(len(bits)):
        number = bits[i]
        half = np.uint32(np.uint32(0x7FFF) + np.uint32(np.uint32(number >> 16) & 1))
        if np.uint32(number & 0x7FFFFFFF) > np.uint32(0x7F800000):
            out[i] = np.uint32(np.uint32(number >> 16) | 64)
        else:
            out[i] = np.uint32(np.uint32(number + half) >> 16)
    return out


def _fitting(rows, states):
    """States (T, D) float32 as these rows meet them: rounded to bfloat16 where the rows are,
    as bits if their products are made in pairs, else as the same numbers in float32.

    Once for each product, so that one state and several see the same arithmetic.
    """
    raise NotImplementedError("compiled code only")


@overload(_fitting)
def _fitting_compiled(rows, states):
    if rows.dtype != types.uint16:

        def lined(rows, states):
            if states.ctypes.data % 64 == 0:
                return states
            out = room(len(states), states.shape[1])
            out[:] = states
            return out

        return lined

    def paired(rows, states):
        new, width = states.shape
        halves = room(1, (new * width + 1) // 2).reshape(-1).view(np.uint16)[: new * width]
        halves[:] = _rounded(states.reshape(-1))
        return halves.reshape(new, width)

    def widened(rows, states):
        out = room(len(states), states.shape[1])
        out.reshape(-1).view(np.uint32)[:] = _rounded(states.reshape(-1)) << np.uint32(16)
        return out

    return paired if PAIRED else widened


@njit(cache=True)
def fitting(rows, states):
    return _fitting(rows, states)


@njit(cache=True)
def _rows_at(ids, places, ahead, end):
    """The rows so many places further on than each of four, but none behind the ``end``: those of
    a list, or the places themselves where there are no ids."""
    first, second = min(places[0] + ahead, end), min(places[1] + ahead, end)
    third, fourth = min(places[2] + ahead, end), min(places[3] + ahead, end)
    if len(ids):
        return ids[first], ids[second], ids[third], ids[fourth]
    return first, second, third, fourth


@njit(cache=True)
def met(rows, ids, states, out, first, last):
    """out[:, first:last] = states @ rows[ids[first:last]].T, or rows[first:last] where there are no
    ids, on one thread, of states that are ``fitting``.

    A processor follows one stream of memory no faster than memory answers, and several side by
    side. So the rows are dealt into equal streams, as many as meet the states at once. Where
    they cannot be equal the last one begins a little earlier, and does some rows of the one
    before again.

    Rows of a list it cannot see coming, nor any when many states keep it busy: it is told of them.
    It forgets what it hears when much is on its way already, so it is told three times.
    """
    end = last - 1
    for start in range(0, len(states), MOST):
        count = len(states) - start
        early = len(ids) > 0 or count >= _BUSY
        many = SIDE_BY_SIDE[min(count, MOST)]
        length = (last - first + many - 1) // many
        for a in range(first, first + length):
            final = last - length + a - first
            places = a, min(a + length, final), min(a + 2 * length, final), final
            these = _rows_at(ids, places, 0, end)
            later = (
                _rows_at(ids, places, 3, end)
                + _rows_at(ids, places, 2, end)
                + _rows_at(ids, places, 1, end)
            )
            if count == 1:
                dots(rows, these, later, early, states, start, out, places, 1)
            elif count == 2:
                dots(rows, these, later, early, states, start, out, places, 2)
            elif count == 3:
                dots(rows, these, later, early, states, start, out, places, 3)
            elif count == 4:
                dots(rows, these, later, early, states, start, out, places, 4)
            elif count == 5:
                dots(rows, these, later, early, states, start, out, places, 5)
            elif count == 6:
                dots(rows, these, later, early, states, start, out, places, 6)
            elif count == 7:
                dots(rows, these, later, early, states, start, out, places, 7)
            else:
                dots(rows, these, later, early, states, start, out, places, MOST)


@njit(cache=True)
def scaled(rows, scales, ids, out, first, last):
    """out[:, first:last] times the scales of rows ``ids``, or first to last where there are no
    ids; only rows in int8 have scales."""
    if rows.itemsize == 1:
        for state in range(len(out)):
            for place in range(first, last):
                out[state, place] *= scales[ids[place] if len(ids) else place]


@njit(cache=True)
def span(rows, scales, states, out, first, last):
    """out[:, first:last] = states @ (rows * scales)[first:last].T, on one thread, of states that
    are ``fitting``."""
    everything = np.empty(0, np.int64)
    met(rows, everything, states, out, first, last)
    scaled(rows, scales, everything, out, first, last)


@njit(parallel=True, cache=True)
def product(rows, scales, states, out, threads):
    """rows (N, D), scales (N,), states (T, D) -> out (T, N) = states @ (rows * scales).T."""
    read = fitting(rows, states)
    for thread in prange(threads):
        first, last = thread * len(rows) // threads, (thread + 1) * len(rows) // threads
        span(rows, scales, read, out, first, last)
