"""Products of weight rows with a few hidden states, at the speed of memory (Numba, CPU).

A matrix that does not fit the cache costs the time of reading it, whether it is multiplied
with one hidden state or with five; that is what makes a verify pass over gamma + 1 positions
nearly as cheap as a step of plain decoding. For this to come true each row must be read once,
as one long stream, and meet all states while it passes through the registers
(``fastpath.dots``).

Rows are float32, bfloat16 (passed as uint16, its bits; as int16 where states are to stay
float32) or int8 with a scale for each row; states, sums and results are float32, but that states
are rounded to bfloat16 for rows in bfloat16 (``fitting``). Knows nothing of models.
"""

import numpy as np
from numba import njit, prange, types
from numba.extending import overload

from fastpath.dots import LANES, PAIRED, asked, dots

MOST = 8  # states that meet a row at once: their sums must fit the registers
AHEAD = 4  # rows: memory answers after some hundred cycles, so it is asked that much earlier
_SOON = 10 * 1024  # bytes, the same where rows follow each other in memory
_L1 = 20 * 1024  # bytes of states that leave the first cache room for the rows passing by
_PANEL = 64  # rows that meet one part of the states before the next part is taken up


@njit(cache=True)
def ask(rows, row):
    """Asks memory for a whole row that will be read soon."""
    for column in range(0, rows.shape[1], 64 // rows.itemsize):
        asked(rows, row, column)


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
def met(rows, ids, states, out, panel, part, ahead, then):
    """out[:, place] = states @ rows[ids[place]], or rows[place] where there are no ids, for the
    places of a panel and the columns of a part; added to what is there where these are not the
    first. Memory is asked for rows ``ahead`` places early, behind the panel for those from
    ``then`` (place, column) on; but for rows that follow each other and meet one state, where
    the processor sees by itself what comes, and asking for it as well slows it down."""
    (top, below), (begin, end), many = panel, part, len(ids)
    for first in range(0, len(states), MOST):
        count = len(states) - first
        for place in range(top, below):
            soon, coming = place + ahead, begin
            if soon >= below:
                soon, coming = then[0] + soon - below, then[1]
            row = place
            if many:
                row, soon = ids[place], ids[min(soon, many - 1)]
            if count == 1 and not many:
                dots(rows, row, soon, coming, states, first, out, place, begin, end, 1, 0)
            elif count == 1:
                dots(rows, row, soon, coming, states, first, out, place, begin, end, 1, 1)
            elif count == 2:
                dots(rows, row, soon, coming, states, first, out, place, begin, end, 2, 1)
            elif count == 3:
                dots(rows, row, soon, coming, states, first, out, place, begin, end, 3, 1)
            elif count == 4:
                dots(rows, row, soon, coming, states, first, out, place, begin, end, 4, 1)
            elif count == 5:
                dots(rows, row, soon, coming, states, first, out, place, begin, end, 5, 1)
            elif count == 6:
                dots(rows, row, soon, coming, states, first, out, place, begin, end, 6, 1)
            elif count == 7:
                dots(rows, row, soon, coming, states, first, out, place, begin, end, 7, 1)
            else:
                dots(rows, row, soon, coming, states, first, out, place, begin, end, MOST, 1)


@njit(cache=True)
def spanned(rows, states, out, first, last):
    """out[:, first:last] = states @ rows[first:last].T, on one thread, of states that are
    ``fitting``."""
    width, ids = rows.shape[1], np.empty(0, np.int64)
    # States that do not fit the first cache meet the rows in parts: else each row would wait
    # for them anew. What is asked for is what comes then: the part's next rows, and before its
    # last ones, the first rows of the next part.
    most = max(LANES, _L1 // (states.itemsize * min(len(states), MOST)))
    part = width if width <= most else (most // 3 // 64 + 1) * 64
    ahead = max(1, _SOON // (part * rows.itemsize))
    high = _PANEL if part < width else max(1, last - first)
    for panel in range(first, last, high):
        below = min(panel + high, last)
        for begin in range(0, width, part):
            end = min(begin + part, width)
            then = (panel, end) if end < width else (below, 0)
            met(rows, ids, states, out, (panel, below), (begin, end), ahead, then)


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
    spanned(rows, states, out, first, last)
    scaled(rows, scales, np.empty(0, np.int64), out, first, last)


@njit(parallel=True, cache=True)
def product(rows, scales, states, out, threads):
    """rows (N, D), scales (N,), states (T, D) -> out (T, N) = states @ (rows * scales).T."""
    read = fitting(rows, states)
    for thread in prange(threads):
        first, last = thread * len(rows) // threads, (thread + 1) * len(rows) // threads
        span(rows, scales, read, out, first, last)
