"""Kernels of the LM head: logits with their top-k and sum of exponentials, and copies of rows.

``make_scorer`` makes the pass over the rows. A block's threads form groups; the lanes of a group
share a row's columns, sixteen bytes each, and the partial sums of a tile of rows are added up
in shared memory. The block's top-k and sum are updated tile by tile while other blocks wait
for memory; ``make_merger`` makes the kernel that merges the blocks.

Lanes communicate through shared memory and ``syncthreads`` only: warp shuffles would be faster,
but the simulator lacks them, and the tested code should be the code that runs. **No barrier
diverges, by construction**: each stands at the top level of the kernel, or of a loop whose bounds
depend on the grid, the block and the arguments alone, never under a condition on a thread's
index or data, and no thread returns early.
"""

import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from numba import cuda, float32, float64, int64

from fastpath.cuda.device import LOADS

EMPTY = np.int64(1) << 62  # index of an empty candidate: it ranks after every other


@dataclass(frozen=True)
class Plan:
    """The layout of a block: ``groups`` of ``lanes`` threads. Each group multiplies
    ``rows_per_group`` rows at once, so that one load of a hidden state serves several rows."""

    lanes: int = 32
    groups: int = 8
    rows_per_group: int = 4

    @property
    def threads(self) -> int:
        return self.lanes * self.groups

    @property
    def tile(self) -> int:
        """Rows that a block multiplies before it ranks their logits."""
        return self.groups * self.rows_per_group


@cuda.jit(device=True)
def smaller(i: int, j: int) -> int:
    """min(i, j), which some versions of Numba do not compile for a GPU."""
    return i if i < j else j


@cuda.jit(device=True)
def beats(a: float, i: int, b: float, j: int) -> bool:
    """Whether value ``a`` at index ``i`` ranks before ``b`` at ``j``: the larger value, ties to the
    lower index, and NaN first, as in PyTorch, so that it is not overlooked."""
    if a != a:
        return b == b or i < j
    return b == b and (a > b or (a == b and i < j))


@cache
def make_scorer(dtype: torch.dtype, states: int, top: int, gathered: bool, plan: Plan) -> Any:
    """Makes the kernel for rows of ``dtype`` and ``states`` hidden states.

    Arguments: words (R, W) int32; slots (K,) int64, the row of each index if ``gathered``, else
    unused, and row i has index i; hidden (states, D') int32, the bits of float32 numbers, padded
    like the rows; the temperature. Outputs: logits (states, K) float32; for each block the
    top-k (states, blocks, top) float32, their indices int64, and the sums (states, blocks)
    float64 of exp((logit - top logit) / T).

    The error of a logit is at most (D / lanes + lanes + 8) * 2^-24 times the sum of the absolute
    values of its products.
    """
    load, load_hidden = LOADS[dtype], LOADS[torch.float32]
    lanes, groups, per_group = plan.lanes, plan.groups, plan.rows_per_group
    threads, tile = plan.threads, plan.tile
    numbers = 16 // dtype.itemsize  # numbers in one load
    num_values, num_dots = per_group * numbers, states * per_group
    # One column more than lanes, so that threads adding up neighbouring rows use different banks.
    partial_shape, scores_shape = (num_dots * groups, lanes + 1), (states, tile)
    top_shape = (2, states, top)
    candidates = top + tile

    def score(  # type: ignore[no-untyped-def]
        words, slots, hidden, temperature, logits, block_logits, block_indices, block_sums
    ):
        partial = cuda.shared.array(partial_shape, float32)
        scores = cuda.shared.array(scores_shape, float32)
        # Double-buffered: one side is read while the other is written.
        top_logits = cuda.shared.array(top_shape, float32)
        top_indices = cuda.shared.array(top_shape, int64)
        sums = cuda.shared.array(states, float64)
        row_of = cuda.local.array(per_group, int64)
        values = cuda.local.array(num_values, float32)
        dot = cuda.local.array(num_dots, float32)
        thread = cuda.threadIdx.x
        lane, group = thread % lanes, thread // lanes
        count, width = logits.shape[1], words.shape[1]
        t = float32(temperature)
        for i in range(thread, states * top, threads):
            top_logits[0, i // top, i % top] = -np.inf
            top_indices[0, i // top, i % top] = EMPTY + i % top
        for i in range(thread, states, threads):
            sums[i] = 0.0
        side = 0
        tiles = (count + tile - 1) // tile
        for number in range(cuda.blockIdx.x, tiles, cuda.gridDim.x):
            first = number * tile
            for r in range(per_group):
                # Past the end the last row is read again and ignored, which needs no branch.
                index = smaller(first + r * groups + group, count - 1)
                row_of[r] = slots[index] if gathered else index
            for i in range(num_dots):
                dot[i] = float32(0)
            for column in range(4 * lane, width, 4 * lanes):
                for r in range(per_group):
                    loaded = load(words, row_of[r], column)
                    for n in range(numbers):
                        values[r * numbers + n] = loaded[n]
                for s in range(states):
                    for quarter in range(numbers // 4):
                        at = column // 4 * numbers + 4 * quarter
                        state = load_hidden(hidden, s, at)
                        for r in range(per_group):
                            for n in range(4):
                                product = values[r * numbers + 4 * quarter + n] * state[n]
                                dot[s * per_group + r] += product
            for s in range(states):
                for r in range(per_group):
                    partial[(s * per_group + r) * groups + group, lane] = dot[s * per_group + r]
            cuda.syncthreads()
            for i in range(thread, states * tile, threads):
                total = float32(0)
                for other in range(lanes):
                    total += partial[i, other]
                scores[i // tile, i % tile] = total
                if first + i % tile < count:
                    logits[i // tile, first + i % tile] = total
            cuda.syncthreads()
            # The rank of a candidate, old or new, is the number of candidates that beat it.
            for i in range(thread, states * candidates, threads):
                s, mine = i // candidates, i % candidates
                value, index = _candidate(
                    top_logits, top_indices, scores, side, s, mine, top, first, count
                )
                rank = 0
                for other in range(candidates):
                    other_value, other_index = _candidate(
                        top_logits, top_indices, scores, side, s, other, top, first, count
                    )
                    if beats(other_value, other_index, value, index):
                        rank += 1
                if rank < top:
                    top_logits[1 - side, s, rank] = value
                    top_indices[1 - side, s, rank] = index
            cuda.syncthreads()
            for s in range(thread, states, threads):
                largest = top_logits[1 - side, s, 0]
                if abs(largest) < np.inf:
                    total = 0.0
                    if sums[s] > 0.0:
                        total = sums[s] * math.exp((top_logits[side, s, 0] - largest) / t)
                    for i in range(smaller(tile, count - first)):
                        total += math.exp((scores[s, i] - largest) / t)
                    sums[s] = total
            side = 1 - side
            cuda.syncthreads()
        for i in range(thread, states * top, threads):
            block_logits[i // top, cuda.blockIdx.x, i % top] = top_logits[side, i // top, i % top]
            block_indices[i // top, cuda.blockIdx.x, i % top] = top_indices[side, i // top, i % top]
        for i in range(thread, states, threads):
            block_sums[i, cuda.blockIdx.x] = sums[i]

    return cuda.jit(score)


@cuda.jit(device=True)
def _candidate(top_logits, top_indices, scores, side, s, number, top, first, count):  # type: ignore[no-untyped-def]
    """Value and index of a candidate: first the block's top-k so far, then the logits of the tile.
    Empty ones have distinct indices after all others, so that no two candidates are equal."""
    if number < top:
        return top_logits[side, s, number], top_indices[side, s, number]
    index = first + number - top
    if index < count:
        return scores[s, number - top], index
    return float32(-np.inf), EMPTY + number


@cache
def make_merger(top: int, threads: int) -> Any:
    """Makes the kernel that merges the blocks' results, with one block for each hidden state.

    Arguments: top-k (states, blocks, top) float32, indices int64 and sums (states, blocks) float64
    of a ``make_scorer`` kernel, the temperature. Outputs: values (states, top) float32, indices
    int64, totals (states,) float64: the sum of exp((logit - top logit) / T) over all logits, NaN
    where the top logit is not finite.
    """

    def merge(  # type: ignore[no-untyped-def]
        block_logits, block_indices, block_sums, temperature, values, indices, totals
    ):
        thread_values = cuda.shared.array(threads, float32)
        thread_indices = cuda.shared.array(threads, int64)
        parts = cuda.shared.array(threads, float64)
        thread, s = cuda.threadIdx.x, cuda.blockIdx.x
        blocks = block_logits.shape[1]
        t = float32(temperature)
        last_value, last_index = float32(np.nan), int64(-1)  # ranks before everything
        for rank in range(top):
            value, index = float32(-np.inf), EMPTY + top
            for i in range(thread, blocks * top, threads):
                other_value = block_logits[s, i // top, i % top]
                other_index = block_indices[s, i // top, i % top]
                if beats(last_value, last_index, other_value, other_index) and beats(
                    other_value, other_index, value, index
                ):
                    value, index = other_value, other_index
            thread_values[thread], thread_indices[thread] = value, index
            cuda.syncthreads()
            # Every thread scans all of them: no tree of barriers, and all threads have the result.
            for other in range(threads):
                if beats(thread_values[other], thread_indices[other], value, index):
                    value, index = thread_values[other], thread_indices[other]
            last_value, last_index = value, index
            if thread == 0:
                values[s, rank], indices[s, rank] = value, index
            if rank == 0:
                total = 0.0
                for block in range(thread, blocks, threads):
                    if block_sums[s, block] > 0.0:
                        total += block_sums[s, block] * math.exp(
                            (block_logits[s, block, 0] - value) / t
                        )
                parts[thread] = total
            cuda.syncthreads()
        if thread == 0:
            total = 0.0
            for other in range(threads):
                total += parts[other]
            totals[s] = total if abs(values[s, 0]) < np.inf else np.nan

    return cuda.jit(merge)


@cuda.jit
def copy_rows(source, rows, target, slots):  # type: ignore[no-untyped-def]
    """target[slots] = source[rows], for rows and slots (N,), source (V, W) and target (R, W) int32.
    One block copies a row, neighbouring threads neighbouring words."""
    for i in range(cuda.blockIdx.x, rows.shape[0], cuda.gridDim.x):
        for column in range(cuda.threadIdx.x, source.shape[1], cuda.blockDim.x):
            target[slots[i], column] = source[rows[i], column]
