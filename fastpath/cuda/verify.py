"""Laws, choices and verification on a GPU, the uniforms handed in: the reference's decisions.

A choice is the reference's: the first place whose cumulative sum exceeds u times the whole, sums
in float64, never a place of probability zero. The reference adds one by one; here each thread
adds up a stretch, so sums differ in their last bits, and a choice could differ where u times the
whole lies within n * 2^-52 of a border: of the whole, and for n places.

Barriers do not diverge: see ``cuda_kernels``. ``chosen`` holds barriers and is called by all
threads of a block at the same place.
"""

import math
from dataclasses import dataclass

import torch
from numba import cuda, float32, float64, int64
from torch import Tensor

from fastpath.cuda.device import launch
from fastpath.cuda.head import PLAN
from fastpath.cuda.kernels import smaller
from fastpath.scores import Scores

_THREADS = PLAN.threads
_PASSED, _TOKEN, _FAULT = 0, 1, 2  # what an outcome holds, in this order


@cuda.jit
def _distributions(logits, best, places, totals, temperature, probs):  # type: ignore[no-untyped-def]
    """One block row a law: softmax of logits / temperature, or at 0 all of it on the best."""
    heat = float32(temperature)
    for s in range(cuda.blockIdx.x, logits.shape[0], cuda.gridDim.x):
        for i in range(cuda.threadIdx.x, logits.shape[1], cuda.blockDim.x):
            if temperature > 0:
                probs[s, i] = math.exp((logits[s, i] - best[s, 0]) / heat) / totals[s]
            else:
                probs[s, i] = 1 if i == places[s, 0] else 0


@cuda.jit(device=True)
def chosen(probs, uniform, sums, found):  # type: ignore[no-untyped-def]
    """The place in ``probs`` (n,) that ``uniform`` falls on; every thread learns it. ``sums``
    (threads,) float64 and ``found`` (2,) int64 are shared memory that nobody else uses now."""
    thread, threads = cuda.threadIdx.x, cuda.blockDim.x
    count = probs.shape[0]
    stretch = (count + threads - 1) // threads
    start = smaller(thread * stretch, count)
    end = smaller(start + stretch, count)
    mine = float64(0)
    for i in range(start, end):
        mine += probs[i]
    sums[thread] = mine
    if thread == 0:
        found[0], found[1] = count, -1
    cuda.syncthreads()
    reached, whole = float64(0), float64(0)
    for other in range(threads):
        if other == thread:
            reached = whole
        whole += sums[other]
    goal = uniform * whole
    first, last = int64(count), int64(-1)
    for i in range(start, end):
        reached += probs[i]
        if probs[i] > 0:
            last = i
            if reached > goal and first == count:
                first = i
    cuda.atomic.min(found, 0, first)
    cuda.atomic.max(found, 1, last)
    cuda.syncthreads()
    return found[0] if found[0] < count else found[1]


@cuda.jit
def _choose(probs, uniforms, spent, ids, place, token):  # type: ignore[no-untyped-def]
    """One block: a place of probs (1, K) by ``uniforms[spent]``, and its id, into one-element
    arrays."""
    sums = cuda.shared.array(_THREADS, float64)
    found = cuda.shared.array(2, int64)
    index = chosen(probs[0], uniforms[spent], sums, found)
    if cuda.threadIdx.x == 0:
        place[0] = index
        token[0] = ids[index] if index >= 0 else 0


@cuda.jit
def _verify(  # type: ignore[no-untyped-def]
    length, tokens, places, ids, sizes, q, p, uniforms, outcome, acceptance, distribution
):
    """One block, which walks the chain and then makes the law of the next token and draws it.

    length n; tokens, places, sizes (n,) int64; ids (n or 1, K) int64; q (n, K), p (n + 1, V);
    uniforms (n + 1,) float64. Outputs: outcome (3,) int64, acceptance (n,) float64, -1 where a
    token was not examined, law (V,) of p's dtype.
    """
    sums = cuda.shared.array(_THREADS, float64)
    found = cuda.shared.array(2, int64)
    thread, threads = cuda.threadIdx.x, cuda.blockDim.x
    size = p.shape[1]
    # Every thread walks the whole chain and reads the same, so all know where it ends.
    passed, fault = length, 0
    for node in range(length):
        proposed = q[node, places[node]]
        if not proposed > 0:
            passed, fault = node, 1
            break
        ratio = float64(p[node, tokens[node]] / proposed)  # divided in p's dtype, as there
        if ratio > 1:
            ratio = float64(1)
        if thread == 0:
            acceptance[node] = ratio
        if not uniforms[node] < ratio:  # strict: a ratio of 0 is never accepted
            passed = node
            break
    rejected = passed < length
    for i in range(thread, size, threads):
        distribution[i] = p[passed, i]
    cuda.syncthreads()
    if rejected:
        where = passed if ids.shape[0] > 1 else 0
        for i in range(thread, sizes[passed], threads):
            distribution[ids[where, i]] -= q[passed, i]
    cuda.syncthreads()
    mine = float64(0)
    for i in range(thread, size, threads):
        if not distribution[i] > 0:
            distribution[i] = 0
        mine += distribution[i]
    sums[thread] = mine
    cuda.syncthreads()
    mass = float64(0)
    for other in range(threads):
        mass += sums[other]
    if rejected:
        for i in range(thread, size, threads):
            # Without an excess the rejection was rounding's, which p itself answers.
            distribution[i] = distribution[i] / mass if mass > 0 else p[passed, i]
    cuda.syncthreads()
    index = chosen(distribution, uniforms[smaller(passed + 1, length)], sums, found)
    if thread == 0:
        outcome[_PASSED], outcome[_TOKEN], outcome[_FAULT] = passed, index, fault


def distributions(scores: Scores, temperature: float) -> Tensor:
    """probs (H, K) float32 of what was scored *at that temperature* (at 1 for temperature 0), in
    a fresh tensor. A law whose best logit is not finite is NaN, or one-hot at temperature 0."""
    probs = torch.empty_like(scores.logits)
    found = scores.best, scores.places, scores.totals
    launch(_distributions, len(probs), _THREADS, scores.logits, *found, float(temperature), probs)
    return probs


def choose(probs: Tensor, uniforms: Tensor, spent: int, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Draws from probs (1, K) over ids (K,) by ``uniforms[spent]``: place (1,), token (1,)."""
    place, token = ids.new_empty(1), ids.new_empty(1)
    launch(_choose, 1, _THREADS, probs, uniforms, spent, ids, place, token)
    return place, token


@dataclass(frozen=True, eq=False)
class Outcome:
    """A verdict on the device. ``found`` (3,) int64: how many tokens were accepted, the next
    token, and 1 where a recorded law excludes its token, else 0. ``acceptance`` (n,) float64 as
    in ``Verdict``, -1 behind its end; ``distribution`` (V,) what the next token was drawn from."""

    found: Tensor
    acceptance: Tensor
    distribution: Tensor


def verify(
    tokens: Tensor, places: Tensor, ids: Tensor, sizes: Tensor, q: Tensor, p: Tensor,
    uniforms: Tensor,
) -> Outcome:  # fmt: skip
    """``minispec.verify`` on the device, for a chain of n >= 0 tokens.

    tokens (n,) int64 stand at ``places`` (n,) of their lists ids (n, K) int64, or (1, K) where
    all share one, of which ``sizes`` (n,) count; q (n, K) the laws they were drawn from, p
    (n + 1, V) the target's, float32 or float64; uniforms (n + 1,) float64: one coin for each
    token examined, then one choice.
    """
    length, found, distribution = len(tokens), tokens.new_zeros(3), p.new_empty(p.shape[1])
    acceptance = p.new_full((max(length, 1),), -1, dtype=torch.float64)
    if length == 0:  # an empty tensor has no memory to point a kernel at
        tokens = places = sizes = found
        ids, q = tokens[None], p
    inputs = length, tokens, places, ids, sizes, q, p, uniforms
    launch(_verify, 1, _THREADS, *inputs, found, acceptance, distribution)
    return Outcome(found, acceptance[:length], distribution)
