"""Kernels of the LM head: logits of rows, with argmax, top-k and sum of exponentials on the way.

``scorer`` makes the one pass over the rows. A block's threads stand in groups; the lanes of a
group share a row's columns, sixteen bytes each, and the partial sums of a tile of rows are added
up in shared memory. What a tile adds to the block's own top and sum is found while other blocks
wait for memory; ``finish`` then joins the blocks.

No lane speaks to another but through shared memory and ``syncthreads``: warp shuffles would be
faster there, but the simulator has none, and what is tested is to be what runs. **No barrier
diverges, by construction**: each stands at the level of the kernel, or of a loop whose bounds
come from the grid, the block and the arguments alone, never under a condition on a thread's own
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

NOWHERE = np.int64(1) << 62  # the place of a candidate that is none: worse than any other


@dataclass(frozen=True)
class Plan:
    """How a block is laid out: ``groups`` of ``lanes`` threads, each group at ``each`` rows at a
    time, so that a load of the hidden state serves several rows."""

    lanes: int = 32
    groups: int = 8
    each: int = 4

    @property
    def threads(self) -> int:
        return self.lanes * self.groups

    @property
    def tile(self) -> int:
        """Rows that a block scores before it adds up."""
        return self.groups * self.each


@cuda.jit(device=True)
def smaller(i: int, j: int) -> int:
    """min(i, j), which not every version of Numba compiles for a GPU."""
    return i if i < j else j


@cuda.jit(device=True)
def beats(a: float, i: int, b: float, j: int) -> bool:
    """Whether value ``a`` at place ``i`` ranks before ``b`` at ``j``: the larger value, of equals
    the lower place, and NaN first, as in PyTorch, so that it is not overlooked."""
    if a != a:
        return b == b or i < j
    return b == b and (a > b or (a == b and i < j))


@cache
def scorer(dtype: torch.dtype, states: int, top: int, listed: bool, plan: Plan) -> Any:
    """The kernel for rows of ``dtype`` and ``states`` hidden states.

    Arguments: words (R, W) int32; slots (K,) int64, the row of each place of the list, read only
    if ``listed``, else place i is row i; hidden (states, D') int32, float32 numbers padded like
    the rows; the temperature; outputs logits (states, K) float32, and of each block best
    (states, blocks, top) float32, their places in the list int64, and sums (states, blocks)
    float64 of exp((logit - best) / T).

    A logit is off by at most (D / lanes + lanes + 8) * 2^-24 of the sum of its products'
    absolute values.
    """
    load, load_hidden = LOADS[dtype], LOADS[torch.float32]
    lanes, groups, each = plan.lanes, plan.groups, plan.each
    threads, tile = plan.threads, plan.tile
    numbers = 16 // dtype.itemsize  # in a load
    in_hand, dots = each * numbers, states * each
    # One more than the lanes: threads that add up neighbouring rows hit different banks.
    partial_shape, scores_shape = (dots * groups, lanes + 1), (states, tile)
    best_shape = (2, states, top)
    candidates = top + tile

    def score(  # type: ignore[no-untyped-def]
        words, slots, hidden, temperature, logits, block_best, block_places, block_sums
    ):
        partial = cuda.shared.array(partial_shape, float32)
        scores = cuda.shared.array(scores_shape, float32)
        best = cuda.shared.array(best_shape, float32)  # two sides: one is read, one written
        places = cuda.shared.array(best_shape, int64)
        sums = cuda.shared.array(states, float64)
        row_of = cuda.local.array(each, int64)
        values = cuda.local.array(in_hand, float32)
        dot = cuda.local.array(dots, float32)
        thread = cuda.threadIdx.x
        lane, group = thread % lanes, thread // lanes
        count, width = logits.shape[1], words.shape[1]
        heat = float32(temperature)
        for i in range(thread, states * top, threads):
            best[0, i // top, i % top] = -np.inf
            places[0, i // top, i % top] = NOWHERE + i % top
        for i in range(thread, states, threads):
            sums[i] = 0.0
        side = 0
        tiles = (count + tile - 1) // tile
        for number in range(cuda.blockIdx.x, tiles, cuda.gridDim.x):
            first = number * tile
            for r in range(each):
                # Behind the end the last row is read again and not counted: no branch, no harm.
                place = smaller(first + r * groups + group, count - 1)
                row_of[r] = slots[place] if listed else place
            for i in range(dots):
                dot[i] = float32(0)
            for column in range(4 * lane, width, 4 * lanes):
                for r in range(each):
                    loaded = load(words, row_of[r], column)
                    for n in range(numbers):
                        values[r * numbers + n] = loaded[n]
                for s in range(states):
                    for quarter in range(numbers // 4):
                        at = column // 4 * numbers + 4 * quarter
                        state = load_hidden(hidden, s, at)
                        for r in range(each):
                            for n in range(4):
                                product = values[r * numbers + 4 * quarter + n] * state[n]
                                dot[s * each + r] += product
            for s in range(states):
                for r in range(each):
                    partial[(s * each + r) * groups + group, lane] = dot[s * each + r]
            cuda.syncthreads()
            for i in range(thread, states * tile, threads):
                total = float32(0)
                for other in range(lanes):
                    total += partial[i, other]
                scores[i // tile, i % tile] = total
                if first + i % tile < count:
                    logits[i // tile, first + i % tile] = total
            cuda.syncthreads()
            # Each candidate, old or new, counts those that beat it: that is its new rank.
            for i in range(thread, states * candidates, threads):
                s, mine = i // candidates, i % candidates
                value, place = _candidate(best, places, scores, side, s, mine, top, first, count)
                rank = 0
                for other in range(candidates):
                    rival, there = _candidate(
                        best, places, scores, side, s, other, top, first, count
                    )
                    if beats(rival, there, value, place):
                        rank += 1
                if rank < top:
                    best[1 - side, s, rank] = value
                    places[1 - side, s, rank] = place
            cuda.syncthreads()
            for s in range(thread, states, threads):
                largest = best[1 - side, s, 0]
                if abs(largest) < np.inf:
                    total = 0.0
                    if sums[s] > 0.0:
                        total = sums[s] * math.exp((best[side, s, 0] - largest) / heat)
                    for i in range(smaller(tile, count - first)):
                        total += math.exp((scores[s, i] - largest) / heat)
                    sums[s] = total
            side = 1 - side
            cuda.syncthreads()
        for i in range(thread, states * top, threads):
            block_best[i // top, cuda.blockIdx.x, i % top] = best[side, i // top, i % top]
            block_places[i // top, cuda.blockIdx.x, i % top] = places[side, i // top, i % top]
        for i in range(thread, states, threads):
            block_sums[i, cuda.blockIdx.x] = sums[i]

    return cuda.jit(score)


@cuda.jit(device=True)
def _candidate(best, places, scores, side, s, index, top, first, count):  # type: ignore[no-untyped-def]
    """Value and place of a candidate: the block's best so far, then the tile's scores. Empty
    ones have places of their own behind all others, so that no two candidates are equal."""
    if index < top:
        return best[side, s, index], places[side, s, index]
    place = first + index - top
    if place < count:
        return scores[s, index - top], place
    return float32(-np.inf), NOWHERE + index


@cache
def finisher(top: int, threads: int) -> Any:
    """The kernel that joins the blocks' findings, one block a hidden state.

    Arguments: best (states, blocks, top) float32, places int64, sums (states, blocks) float64 of
    a ``scorer``, the temperature; outputs values (states, top) float32, places int64, totals
    (states,) float64: the sum of exp((logit - best) / T) over the list, NaN where the best is
    not finite.
    """

    def finish(  # type: ignore[no-untyped-def]
        block_best, block_places, block_sums, temperature, values, places, totals
    ):
        found = cuda.shared.array(threads, float32)
        where = cuda.shared.array(threads, int64)
        parts = cuda.shared.array(threads, float64)
        thread, s = cuda.threadIdx.x, cuda.blockIdx.x
        blocks = block_best.shape[1]
        heat = float32(temperature)
        last_value, last_place = float32(np.nan), int64(-1)  # beats everything
        for rank in range(top):
            value, place = float32(-np.inf), NOWHERE + top
            for i in range(thread, blocks * top, threads):
                rival, there = block_best[s, i // top, i % top], block_places[s, i // top, i % top]
                if beats(last_value, last_place, rival, there) and beats(
                    rival, there, value, place
                ):
                    value, place = rival, there
            found[thread], where[thread] = value, place
            cuda.syncthreads()
            # Every thread looks through all: no tree of barriers, and all know the winner.
            for other in range(threads):
                if beats(found[other], where[other], value, place):
                    value, place = found[other], where[other]
            last_value, last_place = value, place
            if thread == 0:
                values[s, rank], places[s, rank] = value, place
            if rank == 0:
                total = 0.0
                for block in range(thread, blocks, threads):
                    if block_sums[s, block] > 0.0:
                        total += block_sums[s, block] * math.exp(
                            (block_best[s, block, 0] - value) / heat
                        )
                parts[thread] = total
            cuda.syncthreads()
        if thread == 0:
            total = 0.0
            for other in range(threads):
                total += parts[other]
            totals[s] = total if abs(values[s, 0]) < np.inf else np.nan

    return cuda.jit(finish)


@cuda.jit
def copy_rows(source, rows, target, slots):  # type: ignore[no-untyped-def]
    """Rows ``rows`` (N,) of source (V, W) into ``slots`` (N,) of target (R, W), both int32: one
    block a row, neighbouring threads neighbouring words."""
    for i in range(cuda.blockIdx.x, rows.shape[0], cuda.gridDim.x):
        for column in range(cuda.threadIdx.x, source.shape[1], cuda.blockDim.x):
            target[slots[i], column] = source[rows[i], column]
