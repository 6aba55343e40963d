"""Products of weight rows with a few hidden states, at memory bandwidth (Numba, CPU).

A matrix larger than the caches takes the time of reading it, whether it is multiplied with one
hidden state or with five. That is why a verify pass over gamma + 1 positions costs hardly more
than a step of plain decoding, provided that each row is read once, as one sequential stream,
and is multiplied with all states while it is in the registers (``fastpath.cpu.dots``).

Rows are float32, bfloat16 (passed as uint16, its bits; as int16 where the states stay float32)
or int8 with a scale for each row. States, sums and results are float32; for bfloat16 rows the
states are rounded to bfloat16 (``cast_states``). A quantised matrix is multiplied by
``fastpath.cpu.blocks``: it is passed as the bytes of its panels in place of rows, and its segments
in place of scales. Knows nothing of models.
"""

import numpy as np
from numba import njit, prange, types
from numba.extending import overload

from fastpath.cpu.block_formats import PANEL
from fastpath.cpu.blocks import multiply_segments, round_states
from fastpath.cpu.dots import BF16_PAIRS, MAX_STATES, NUM_STREAMS, dots
from fastpath.cpu.process import CACHE
from fastpath.cpu.vectors import LANES

# With so many states the out-of-order window no longer reaches the next rows: prefetch them.
_PREFETCH_STATES = 3 if LANES == 16 else 4
_PREFETCH_STATES_CONVERTED = 1 if LANES == 16 else 4  # where numbers are converted first
_BLOCK_BYTES = 2**18  # rows that several groups of states are multiplied with before the next ones


@njit(cache=CACHE)
def allocate_buffer(rows, width):
    """An uninitialised float32 array (rows, width) that starts at a cache line: a vector of a
    state that crosses two lines costs two loads for each row that it is multiplied with."""
    size = rows * width
    numbers = np.empty(size + 16, np.float32)
    first = (-numbers.ctypes.data // 4) % 16
    return numbers[first : first + size].reshape(rows, width)


@njit(cache=CACHE)
def _round_to_bfloat16(states):
    """float32 (N,) -> bfloat16 (N,) as uint32 whose low halves hold the bits: rounded to nearest,
    ties to even; NaN stays NaN."""
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


def _cast_states(rows, states):
    """The implementation of ``cast_states``, chosen by the type of ``rows`` when it compiles."""
    raise NotImplementedError("compiled code only")


@overload(_cast_states)
def _compile_cast_states(rows, states):
    if rows.ndim == 1:
        return lambda rows, states: round_states(states)
    if rows.dtype != types.uint16:

        def align(rows, states):
            if states.ctypes.data % 64 == 0:
                return states
            out = allocate_buffer(len(states), states.shape[1])
            out[:] = states
            return out

        return align

    def round_to_bits(rows, states):
        new, width = states.shape
        halves = allocate_buffer(1, (new * width + 1) // 2).reshape(-1).view(np.uint16)
        halves = halves[: new * width]
        halves[:] = _round_to_bfloat16(states.reshape(-1))
        return halves.reshape(new, width)

    def round_to_float32(rows, states):
        out = allocate_buffer(len(states), states.shape[1])
        bits = _round_to_bfloat16(states.reshape(-1))
        out.reshape(-1).view(np.uint32)[:] = bits << np.uint32(16)
        return out

    return round_to_bits if BF16_PAIRS else round_to_float32


@njit(cache=CACHE)
def cast_states(rows, states):
    """States (T, D) float32 in the form in which these rows are multiplied with them.

    For bfloat16 rows they are rounded to bfloat16: its bits with ``BF16_PAIRS``, else the same
    values in float32; for a quantised matrix to blocks of whole numbers. Done once for each
    product, so that one state and several states get the same arithmetic.
    """
    return _cast_states(rows, states)


@njit(cache=CACHE)
def _row_ids_at(ids, positions, ahead, end):
    """The row ids ``ahead`` positions after each of four, at most ``end``: entries of ``ids``, or
    the positions themselves where ``ids`` is empty."""
    first, second = min(positions[0] + ahead, end), min(positions[1] + ahead, end)
    third, fourth = min(positions[2] + ahead, end), min(positions[3] + ahead, end)
    if len(ids):
        return ids[first], ids[second], ids[third], ids[fourth]
    return first, second, third, fourth


@njit(cache=CACHE)
def _multiply_group(rows, ids, states, start, count, out, first, last):
    """As ``multiply_rows``, for ``count`` states from ``start`` on, at most ``MAX_STATES``.

    A single sequential stream is bound by memory latency, several in parallel by bandwidth. So the
    rows are split into equal streams, as many as fit the registers with these states. Where the
    number of rows is not divisible, the last stream starts earlier and repeats a few rows of the
    one before.

    Indirect accesses defeat the hardware prefetcher, and with many states the processor does not
    run far enough ahead, so rows are prefetched in software. Requests are dropped while the
    queue is full, hence three times per row, 3, 2 and 1 rows ahead; with many states once
    (``dots``).
    """
    end = last - 1
    converted = rows.itemsize == 1 or (rows.itemsize == 2 and not BF16_PAIRS)
    least = _PREFETCH_STATES_CONVERTED if converted else _PREFETCH_STATES
    prefetch = len(ids) > 0 or count >= least
    streams = NUM_STREAMS[count]
    length = (last - first + streams - 1) // streams
    for a in range(first, first + length):
        final = last - length + a - first
        columns = a, min(a + length, final), min(a + 2 * length, final), final
        row_ids = _row_ids_at(ids, columns, 0, end)
        prefetch_ids = (
            _row_ids_at(ids, columns, 3, end)
            + _row_ids_at(ids, columns, 2, end)
            + _row_ids_at(ids, columns, 1, end)
        )
        if count == 1:
            dots(rows, row_ids, prefetch_ids, prefetch, states, start, out, columns, 1)
        elif count == 2:
            dots(rows, row_ids, prefetch_ids, prefetch, states, start, out, columns, 2)
        elif count == 3:
            dots(rows, row_ids, prefetch_ids, prefetch, states, start, out, columns, 3)
        elif count == 4:
            dots(rows, row_ids, prefetch_ids, prefetch, states, start, out, columns, 4)
        elif count == 5:
            dots(rows, row_ids, prefetch_ids, prefetch, states, start, out, columns, 5)
        elif count == 6:
            dots(rows, row_ids, prefetch_ids, prefetch, states, start, out, columns, 6)
        elif count == 7:
            dots(rows, row_ids, prefetch_ids, prefetch, states, start, out, columns, 7)
        elif count == 8:
            dots(rows, row_ids, prefetch_ids, prefetch, states, start, out, columns, 8)
        elif count == 9:
            dots(rows, row_ids, prefetch_ids, prefetch, states, start, out, columns, 9)
        elif count == 10:
            dots(rows, row_ids, prefetch_ids, prefetch, states, start, out, columns, 10)
        elif count == 11:
            dots(rows, row_ids, prefetch_ids, prefetch, states, start, out, columns, 11)
        elif count == 12:
            dots(rows, row_ids, prefetch_ids, prefetch, states, start, out, columns, 12)
        elif count == 13:
            dots(rows, row_ids, prefetch_ids, prefetch, states, start, out, columns, 13)
        else:
            dots(rows, row_ids, prefetch_ids, prefetch, states, start, out, columns, MAX_STATES)


@njit(cache=CACHE)
def multiply_rows(rows, ids, states, out, first, last):
    """out[:, first:last] = states @ rows[ids[first:last]].T, or with rows[first:last] where
    ``ids`` is empty. Runs on one thread; ``states`` come from ``cast_states``.

    More states than the registers hold are multiplied in groups of about the same size, with one
    block of rows after the other: from the second group on it is read from the second-level cache.
    """
    groups = (len(states) + MAX_STATES - 1) // MAX_STATES
    size = (len(states) + groups - 1) // groups
    length = max(1, last - first)
    if groups > 1:
        length = min(length, max(8, _BLOCK_BYTES // (rows.shape[1] * rows.itemsize)))
    for begin in range(first, last, length):
        for start in range(0, len(states), size):
            count = min(size, len(states) - start)
            _multiply_group(rows, ids, states, start, count, out, begin, min(begin + length, last))


@njit(cache=CACHE)
def apply_scales(rows, scales, ids, out, first, last):
    """Multiplies out[:, first:last] by the scales of the rows ``ids[first:last]``, or of rows
    first to last where ``ids`` is empty. Does nothing unless the rows are int8."""
    if rows.itemsize == 1:
        for state in range(len(out)):
            for i in range(first, last):
                out[state, i] *= scales[ids[i] if len(ids) else i]


def _multiply_block(rows, scales, states, out, first, last, shift):
    """The implementation of ``multiply_block``, chosen by the type of ``rows``."""
    raise NotImplementedError("compiled code only")


@overload(_multiply_block)
def _compile_multiply_block(rows, scales, states, out, first, last, shift):
    if rows.ndim == 1:
        return lambda rows, scales, states, out, first, last, shift: multiply_segments(
            rows, scales, states, out, first, last, shift
        )

    def multiply_dense(rows, scales, states, out, first, last, shift):
        all_rows = np.empty(0, np.int64)
        multiply_rows(rows[shift:], all_rows, states, out, first - shift, last - shift)
        apply_scales(rows[shift:], scales[shift:], all_rows, out, first - shift, last - shift)

    return multiply_dense


@njit(cache=CACHE)
def multiply_block(rows, scales, states, out, first, last, shift):
    """out[:, first - shift : last - shift] = states @ (rows * scales)[first:last].T on one thread;
    ``states`` come from ``cast_states``."""
    _multiply_block(rows, scales, states, out, first, last, shift)


@njit(cache=CACHE)
def split_rows(count, thread, threads):
    """The first and last of ``count`` rows that a thread multiplies: whole panels."""
    panels = (count + PANEL - 1) // PANEL
    first, last = thread * panels // threads, (thread + 1) * panels // threads
    return first * PANEL, min(last * PANEL, count)


@njit(parallel=True, cache=CACHE)
def multiply(rows, scales, states, out, threads):
    """rows (N, D), scales (N,), states (T, D) -> out (T, N) = states @ (rows * scales).T."""
    inputs, count = cast_states(rows, states), out.shape[1]
    for thread in prange(threads):
        first, last = split_rows(count, thread, threads)
        multiply_block(rows, scales, inputs, out, first, last, 0)


def _layer_of(stack, scales, index):
    """The implementation of ``layer_of``, chosen by the type of ``stack``."""
    raise NotImplementedError("compiled code only")


@overload(_layer_of)
def _compile_layer_of(stack, scales, index):
    if stack.ndim == 1:
        return lambda stack, scales, index: (stack, scales[index])
    return lambda stack, scales, index: (stack[index], scales[index])


@njit(cache=CACHE)
def layer_of(stack, scales, index):
    """The matrix of a layer, of matrices that are stacked: rows (L, N, D) and scales (L, N); or the
    bytes of all panels and segments (L, S, 4)."""
    return _layer_of(stack, scales, index)
