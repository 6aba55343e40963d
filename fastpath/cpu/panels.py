"""Quantised matrices laid out in panels, as the kernels read them (NumPy, CPU).

A matrix is the bytes of panels and its segments, one for each run of rows of one format: the
format's place in ``FORMATS``, where its panels start, rows, and columns. Matrices of several layers
share one array of bytes.
"""

from collections.abc import Sequence

import numba
import numpy as np
import torch

from fastpath.cpu.block_formats import CODES, PANEL, panel_parts, place_rows
from fastpath.cpu.process import check_fork
from fastpath.cpu.rows import allocate_rows
from minispec.models.quantized_matrix import QuantizedMatrix

Panels = tuple[np.ndarray, np.ndarray]


def build_panels(layers: Sequence[Sequence[QuantizedMatrix]]) -> Panels:
    """The matrices of each layer, which read the same states, one after the other: bytes (n,), in
    panels, and segments (L, S, 4), int64. Raises ArgumentError where no kernel can run."""
    check_fork()
    segments, end = [], 0
    for matrices in layers:
        for matrix in matrices:
            kind, (rows, columns) = CODES[matrix.name], matrix.shape
            segments.append((kind, end, rows, columns))
            end += (rows + PANEL - 1) // PANEL * int(panel_parts(kind, columns)[5])
    data = allocate_rows((end,), torch.uint8).numpy()
    threads = numba.get_num_threads()
    flat = [matrix for matrices in layers for matrix in matrices]
    for matrix, (kind, start, rows, columns) in zip(flat, segments, strict=True):
        if rows % PANEL:  # rows of the last panel that nothing is copied to are multiplied too
            size = int(panel_parts(kind, columns)[5])
            last = start + rows // PANEL * size
            data[last : last + size] = 0
        place_rows(kind, matrix.blocks, matrix.order, columns, data[start:], threads)
    table = np.array(segments, np.int64).reshape(len(layers), -1, 4)
    return data, table
