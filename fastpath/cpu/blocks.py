"""Products of quantised matrices with a few states, at memory bandwidth (Numba, CPU).

States are rounded to int8 in blocks of 32 columns, each with a scale of its own, as in
``minispec.models.quantized_matrix``, the reference. A matrix is a list of segments, one after the
other: rows of one format, in panels (``fastpath.cpu.block_formats``). Knows nothing of models.
"""

import numpy as np
from numba import njit

from fastpath.cpu.block_dots import multiply_panel
from fastpath.cpu.block_formats import BLOCK, PANEL, panel_parts
from fastpath.cpu.process import CACHE
from minispec.models.quantized_matrix import SMALLEST

_GROUP = 32  # states


@njit(cache=CACHE, error_model="numpy")
def round_states(states):
    """States (T, D) float32 -> the nearest whole numbers (T, D), int8, in units of a scale for each
    block; the scales (T, D / 32), float32; -128 times the sums of the numbers of each block and of
    its halves (T, D / 32, 3), int32; and the sums of blocks times their scales (T, D / 32),
    float32."""
    count, columns = states.shape
    blocks = columns // BLOCK
    numbers = np.empty((count, columns), np.int8)
    sizes, weighted = np.empty((count, blocks), np.float32), np.empty((count, blocks), np.float32)
    sums = np.empty((count, blocks, 3), np.int32)
    by_block, bits = states.reshape(count, blocks, BLOCK), states.view(np.uint32)
    bits, whole_numbers = bits.reshape(count, blocks, BLOCK), numbers.reshape(count, blocks, BLOCK)
    for t in range(count):
        for block in range(blocks):
            # Without their signs, numbers are ordered as their bits are, and NaN is the largest.
            highest = np.uint32(0)
            for i in range(BLOCK):
                highest = max(highest, np.uint32(bits[t, block, i] & np.uint32(0x7FFFFFFF)))
            highest_bits = np.uint32(highest)
            largest = highest_bits.view(np.float32)
            size = largest / np.float32(127)
            inverse = np.float32(0) if largest < SMALLEST else np.float32(1) / size
            for i in range(BLOCK):
                whole_numbers[t, block, i] = np.int32(np.rint(by_block[t, block, i] * inverse))
            first, second = np.int32(0), np.int32(0)
            for i in range(BLOCK // 2):
                first += whole_numbers[t, block, i]
                second += whole_numbers[t, block, BLOCK // 2 + i]
            sums[t, block, 0] = -128 * (first + second)
            sums[t, block, 1], sums[t, block, 2] = -128 * first, -128 * second
            sizes[t, block], weighted[t, block] = size, size * np.float32(first + second)
    return numbers, sizes, sums, weighted


@njit(cache=CACHE)
def multiply_segments(data, segments, states, out, first, last, shift):
    """out[:, first - shift : last - shift] = states @ matrix[first:last].T on one thread.

    ``data`` (bytes,); ``segments`` (S, 4): the format, where the panels start in ``data``, rows
    and columns; ``states`` from ``round_states``; ``out`` (T, N) float32, contiguous. More states
    than stay in the first-level cache with their sums are multiplied in groups.
    """
    total = len(out)
    part = np.empty((total, PANEL), np.float32)
    begin = 0  # the segment's first row
    for segment in range(len(segments)):
        kind, origin, rows, columns = segments[segment]
        parts, blocks = panel_parts(kind, columns), columns // BLOCK
        low, high = max(first - begin, 0), min(last - begin, rows)
        for panel in range(low // PANEL, (high + PANEL - 1) // PANEL if high > low else 0):
            own, row = origin + panel * parts[5], panel * PANEL
            column = begin + row - shift
            whole = row >= low and row + PANEL <= high
            for t in range(0, total, _GROUP):
                count = min(_GROUP, total - t)
                if whole:
                    multiply_panel(kind, data, own, parts, blocks, states, t, count, out, column)
                    continue
                multiply_panel(kind, data, own, parts, blocks, states, t, count, part, 0)
                for state in range(t, t + count):
                    for r in range(max(low - row, 0), min(high - row, PANEL)):
                        out[state, column + r] = part[state, r]
        begin += rows
