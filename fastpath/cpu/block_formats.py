"""Panels: where the numbers of GGUF's quantised rows lie so that vectors can multiply them (Numba,
CPU).

GGUF stores a row as blocks of 32 or 256 numbers: a small unsigned code for each number, and scales.
A number is d * (code - offset) or d * code + m, where d and m are half-precision numbers of the
block, in the K formats times a small integer of a part of it. Nothing of that is changed here, only
moved: a panel holds sixteen rows, four adjacent codes of each side by side, so that one vector
holds codes of all its rows and no sum has to be taken across a vector. Knows nothing of products.

A panel of D columns has these parts, one after the other:

- codes: for 32 columns either 4 x 64 bytes, whose low halves hold columns 0-15 and whose high
  halves columns 16-31, or 8 x 64 bytes; byte 4 r + i of a vector belongs to row r, column 4 v + i;
- fifth and sixth bits of the codes: for 32 columns and each bit 8 x 8 bytes, a bit for each byte;
- d, then m: sixteen half-precision numbers for 32 columns, in the K formats for 256;
- in the K formats the integers for d, then for m: sixteen bytes for 32 columns, or for 16.
"""

from typing import NamedTuple

import numpy as np
from numba import njit, prange

from fastpath.cpu.process import CACHE
from fastpath.cpu.vectors import half_to_float

PANEL = 16  # rows
BLOCK = 32  # columns


class Format(NamedTuple):
    """A quantisation of GGUF. ``bits`` of a code, at most 8; ``offset``: what is subtracted from
    it; ``minimum``: whether m is added; ``parts``: numbers that share an integer scale of a K
    format, 0 in the others."""

    bits: int
    offset: int
    minimum: bool
    parts: int


# Their order is the code by which compiled functions know them.
FORMATS = {
    "Q4_0": Format(4, 8, False, 0),
    "Q4_1": Format(4, 0, True, 0),
    "Q5_0": Format(5, 16, False, 0),
    "Q5_1": Format(5, 0, True, 0),
    "Q8_0": Format(8, 128, False, 0),
    "Q4_K": Format(4, 0, True, 32),
    "Q5_K": Format(5, 0, True, 32),
    "Q6_K": Format(6, 32, False, 16),
}
CODES = {name: code for code, name in enumerate(FORMATS)}
_Q4_K, _Q5_K, _Q6_K = (CODES[name] for name in ("Q4_K", "Q5_K", "Q6_K"))
_BITS, _OFFSETS, _MINIMA, _PARTS = (
    np.array(column) for column in zip(*FORMATS.values(), strict=True)
)


@njit(cache=CACHE)
def panel_parts(kind, columns):
    """Where the parts of a panel start: of the codes' high bits, d, m, the integers for d and for
    m; and the panel's size. All in bytes."""
    blocks = columns // BLOCK
    high = blocks * (512 if _BITS[kind] == 8 else 256)
    scales = high + (blocks * 64 * (_BITS[kind] - 4) if _BITS[kind] < 8 else 0)
    size = (columns // 256 if _PARTS[kind] else blocks) * 2 * PANEL
    minima = scales + size
    integers = minima + (size if _MINIMA[kind] else 0)
    count = columns // _PARTS[kind] * PANEL if _PARTS[kind] else 0
    integer_minima = integers + count
    end = integer_minima + (count if _MINIMA[kind] else 0)
    return high, scales, minima, integers, integer_minima, (end + 63) // 64 * 64


@njit(cache=CACHE)
def _read_half(panel, start, index):
    """The half-precision number ``index`` of a part of a panel, in float32."""
    at = start + 2 * index
    return half_to_float(np.uint16(panel[at] | np.uint16(panel[at + 1]) << 8))


@njit(cache=CACHE)
def read_row(kind, panel, columns, row, out):
    """Dequantises a row of a panel (bytes) -> out (D,) float32."""
    high, scales, minima, integers, integer_minima, _ = panel_parts(kind, columns)
    bits, offset, parts = _BITS[kind], _OFFSETS[kind], _PARTS[kind]
    for block in range(columns // BLOCK):
        number = (block // 8 if parts else block) * PANEL + row
        own_scale = _read_half(panel, scales, number)
        own_minimum = _read_half(panel, minima, number) if _MINIMA[kind] else np.float32(0)
        for i in range(BLOCK):
            byte = row * 4 + i % 4
            if bits == 8:
                code = np.int32(panel[block * 512 + i // 4 * 64 + byte])
            else:
                code = np.int32(panel[block * 256 + i % 16 // 4 * 64 + byte] >> i // 16 * 4 & 15)
                for bit in range(bits - 4):
                    at = high + ((block * (bits - 4) + bit) * 8 + i // 4) * 8 + byte // 8
                    code |= np.int32(panel[at] >> byte % 8 & 1) << (4 + bit)
            scale, minimum = own_scale, own_minimum
            if parts:
                part = (block * BLOCK + i) // parts * PANEL + row
                factor = np.int32(panel[integers + part])
                if _MINIMA[kind]:
                    minimum = -minimum * np.float32(panel[integer_minima + part])
                else:
                    factor = np.int32(np.int8(factor))
                scale = scale * np.float32(factor)
            value = scale * np.float32(code - offset)
            out[block * BLOCK + i] = value + minimum if _MINIMA[kind] else value


@njit(cache=CACHE)
def read_rows(kind, blocks, ids, columns, out):
    """Dequantises rows ``ids`` (n,) of ``blocks`` (N, bytes), as GGUF stores them -> out (n, D)."""
    panel = np.empty(panel_parts(kind, columns)[5], np.uint8)
    for i in range(len(ids)):
        place_row(kind, blocks[ids[i]], columns, panel, 0)
        read_row(kind, panel, columns, 0, out[i])


@njit(cache=CACHE)
def _set_code(panel, high, bits, row, column, code):
    """Stores the code of a number of a K format in the part for codes and that for high bits."""
    block, inside = column // BLOCK, column % BLOCK
    byte = row * 4 + inside % 4
    at = block * 256 + inside % 16 // 4 * 64 + byte
    if inside < 16:
        panel[at] = np.uint8(panel[at] & 0xF0) | np.uint8(code & 15)
    else:
        panel[at] = np.uint8(panel[at] & 0x0F) | np.uint8((code & 15) << 4)
    for bit in range(bits - 4):
        at = high + ((block * (bits - 4) + bit) * 8 + inside // 4) * 8 + byte // 8
        mask = np.uint8(1 << byte % 8)
        panel[at] = panel[at] & ~mask | (mask if code >> (4 + bit) & 1 else np.uint8(0))


@njit(cache=CACHE)
def _copy_half(panel, start, index, row, source, at):
    """Copies a half-precision number from source[at : at + 2] to number ``index`` of the row."""
    for i in range(2):
        panel[start + (index * PANEL + row) * 2 + i] = source[at + i]


@njit(cache=CACHE)
def _unpack_k_scale(packed, part):
    """The integers of d and m of part 0 to 7, six bits each, from the 12 bytes of Q4_K and Q5_K."""
    if part < 4:
        return packed[part] & 63, packed[part + 4] & 63
    low, high = packed[part + 4], packed[part]
    return (low & 15) | (packed[part - 4] >> 6) << 4, low >> 4 | (high >> 6) << 4


@njit(cache=CACHE)
def _place_plain_row(kind, source, columns, panel, row):
    """``place_row`` of the formats with blocks of 32 numbers, whose bytes lie as in a panel."""
    high, scales, minima, _, _, _ = panel_parts(kind, columns)
    bits, header = _BITS[kind], 4 if _MINIMA[kind] else 2
    length, flip = (32, 128) if bits == 8 else (16, 0)  # bytes of codes; signed ones are shifted
    size = header + length + (4 if bits == 5 else 0)
    for block in range(columns // BLOCK):
        begin = block * size
        _copy_half(panel, scales, block, row, source, begin)
        if header == 4:
            _copy_half(panel, minima, block, row, source, begin + 2)
        codes, first = begin + size - length, block * length * PANEL + row * 4
        for four in range(length // 4):
            for i in range(4):
                panel[first + four * 64 + i] = source[codes + four * 4 + i] ^ np.uint8(flip)
        if bits == 5:  # four bits of a row are half of a byte
            first, shift = high + block * 64 + row // 2, row % 2 * 4
            for four in range(8):
                own = source[begin + header + four // 2] >> (four % 2 * 4) & 15
                others = panel[first + four * 8] & np.uint8(15 << (4 - shift))
                panel[first + four * 8] = others | np.uint8(own << shift)


@njit(cache=CACHE)
def place_row(kind, source, columns, panel, row):
    """Copies a row as GGUF stores it, ``source`` (bytes), to row 0 to 15 of a panel (bytes)."""
    high, scales, minima, integers, integer_minima, _ = panel_parts(kind, columns)
    bits = _BITS[kind]
    if kind == _Q6_K:
        for block in range(columns // 256):
            own = source[block * 210 : (block + 1) * 210]
            for i in range(256):
                half, inside = i // 128, i % 128
                low = own[half * 64 + inside % 64] >> inside // 64 * 4 & 15
                two = own[128 + half * 32 + inside % 32] >> inside // 32 * 2 & 3
                _set_code(panel, high, bits, row, block * 256 + i, low | two << 4)
            for part in range(16):
                panel[integers + (block * 16 + part) * PANEL + row] = own[192 + part]
            _copy_half(panel, scales, block, row, own, 208)
        return
    if kind in (_Q4_K, _Q5_K):
        size = 144 if kind == _Q4_K else 176
        for block in range(columns // 256):
            own = source[block * size : (block + 1) * size]
            codes = own[size - 128 :]
            for i in range(256):
                part = i // 32
                code = codes[part // 2 * 32 + i % 32] >> part % 2 * 4 & 15
                if kind == _Q5_K:
                    code |= (own[16 + i % 32] >> part & 1) << 4
                _set_code(panel, high, bits, row, block * 256 + i, code)
            for part in range(8):
                scale, minimum = _unpack_k_scale(own[4:16], part)
                panel[integers + (block * 8 + part) * PANEL + row] = scale
                panel[integer_minima + (block * 8 + part) * PANEL + row] = minimum
            _copy_half(panel, scales, block, row, own, 0)
            _copy_half(panel, minima, block, row, own, 2)
        return
    _place_plain_row(kind, source, columns, panel, row)


@njit(parallel=True, cache=CACHE)
def place_rows(kind, source, order, columns, panels, threads):
    """Copies rows ``order`` (N,) of ``source`` (at least N, bytes), as GGUF stores them, into
    panels (bytes), sixteen after sixteen."""
    size = panel_parts(kind, columns)[5]
    count = (len(order) + PANEL - 1) // PANEL
    for thread in prange(threads):
        for panel in range(thread * count // threads, (thread + 1) * count // threads):
            own = panels[panel * size : (panel + 1) * size]
            for row in range(min(PANEL, len(order) - panel * PANEL)):
                place_row(kind, source[order[panel * PANEL + row]], columns, own, row)
