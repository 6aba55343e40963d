"""Products of quantised rows with several states, against a read of a buffer of the same size.

Every side takes its turn in each repetition, on as many threads as there are, over matrices that
are larger than the second-level caches; the figures are medians. A ratio below 1 in the column
"read" means that a product takes longer than torch's sum over a buffer of the same size.

    python -m benchmarks blocks --json build/blocks.json
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numba
import numpy as np
import torch

from fastpath.cpu.block_formats import FORMATS, panel_parts
from fastpath.cpu.byte_dots import INSTRUCTIONS
from fastpath.cpu.kernels import multiply
from fastpath.cpu.rows import allocate_rows
from minispec.io.files import write_json

ROWS, COLUMNS = 65_536, 1024
STATES = (1, 2, 3, 4, 5, 8, 12, 16)
REPEATS = 15


def build_sides() -> dict[str, tuple[tuple[np.ndarray, np.ndarray], int]]:
    """Matrices by format, with random codes, and their bytes."""
    rng, sides = np.random.default_rng(0), {}
    for kind, name in enumerate(FORMATS):
        parts = panel_parts(kind, COLUMNS)
        size = ROWS // 16 * parts[5]
        data = allocate_rows((size,), torch.uint8).numpy()
        panels = data.reshape(-1, parts[5])
        panels[:] = rng.integers(0, 256, (1, parts[5]), np.uint8)
        panels[:, parts[1] : parts[3]] = 0x3C  # two such bytes are 1.06 in half precision
        sides[name] = (data, np.array([[kind, 0, ROWS, COLUMNS]])), size
    rows = allocate_rows((ROWS, COLUMNS), torch.int8).numpy()
    rows[:] = rng.integers(-127, 128, (1, COLUMNS), np.int8)
    sides["int8"] = (rows, np.ones(ROWS, np.float32)), rows.nbytes
    return sides


def time_call(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    threads = numba.get_num_threads()
    print(f"{threads} threads, {INSTRUCTIONS}, {ROWS:,} rows of {COLUMNS:,} numbers")
    heading = "".join(f"{count:>7}" for count in STATES)
    print(f"{'rows':<8}{'MB':>7}{'read':>7}  milliseconds for states:{heading}")
    figures = {}
    for name, (matrix, size) in build_sides().items():
        buffer = torch.ones(size // 4)
        sides: dict[object, Callable[[], object]] = {"read": buffer.sum}
        for count in STATES:
            states = np.random.default_rng(count).standard_normal((count, COLUMNS), np.float32)
            out = np.empty((count, ROWS), np.float32)
            sides[count] = partial(multiply, *matrix, states, out, threads)
        times: dict[object, list[float]] = {side: [] for side in sides}
        for repeat in range(REPEATS + 1):
            for side, function in sides.items():
                found = time_call(function)
                if repeat:  # the first one warms up
                    times[side].append(1000 * found)
        medians = {str(side): statistics.median(found) for side, found in times.items()}
        figures[name] = {"bytes": size, "milliseconds": medians}
        cells = "".join(f"{medians[str(count)]:7.2f}" for count in STATES)
        share = medians["read"] / medians["1"]
        print(f"{name:<8}{size / 1e6:7.1f}{share:7.2f}{'':26}{cells}", flush=True)
    if options.json:
        write_json(options.json, {"threads": threads, "instructions": INSTRUCTIONS, **figures})


if __name__ == "__main__":
    main()
