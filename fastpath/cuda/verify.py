"""Distributions, sampling and verification on a GPU, with the uniforms as arguments.

For the same uniforms the kernels make the reference's decisions. A draw is the first index whose
cumulative sum exceeds u times the total, with sums in float64, and never an index of
probability zero. The reference adds sequentially; here each thread sums a contiguous chunk, so sums
differ in their last bits. A draw from n probabilities could therefore differ where u * total is
within n * 2^-52 * total of a boundary.

No barrier diverges (see ``kernels``): ``choose_index`` contains barriers and is called by all
threads of a block at the same point.
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
_ACCEPTED, _TOKEN, _FAULT = 0, 1, 2  # indices into ``Outcome.decision``


@cuda.jit
def _distributions(logits, top_logits, top_indices, exp_sums, temperature, probs):  # type: ignore[no-untyped-def]
    """Softmax of logits / temperature, or one-hot at temperature 0; each block takes whole rows."""
    t = float32(temperature)
    for s in range(cuda.blockIdx.x, logits.shape[0], cuda.gridDim.x):
        for i in range(cuda.threadIdx.x, logits.shape[1], cuda.blockDim.x):
            if temperature > 0:
                probs[s, i] = math.exp((logits[s, i] - top_logits[s, 0]) / t) / exp_sums[s]
            else:
                probs[s, i] = 1 if i == top_indices[s, 0] else 0


@cuda.jit(device=True)
def choose_index(probs, uniform, sums, found):  # type: ignore[no-untyped-def]
    """The index that ``uniform`` draws from ``probs`` (n,), returned to every thread. ``sums``
    (threads,) float64 and ``found`` (2,) int64 are shared memory that is free for this call."""
    thread, threads = cuda.threadIdx.x, cuda.blockDim.x
    count = probs.shape[0]
    chunk = (count + threads - 1) // threads
    start = smaller(thread * chunk, count)
    end = smaller(start + chunk, count)
    partial = float64(0)
    for i in range(start, end):
        partial += probs[i]
    sums[thread] = partial
    if thread == 0:
        found[0], found[1] = count, -1
    cuda.syncthreads()
    cumulative, total = float64(0), float64(0)
    for other in range(threads):
        if other == thread:
            cumulative = total
        total += sums[other]
    threshold = uniform * total
    first, last = int64(count), int64(-1)
    for i in range(start, end):
        cumulative += probs[i]
        if probs[i] > 0:
            last = i
            if cumulative > threshold and first == count:
                first = i
    cuda.atomic.min(found, 0, first)
    cuda.atomic.max(found, 1, last)
    cuda.syncthreads()
    return found[0] if found[0] < count else found[1]


@cuda.jit
def _choose(probs, uniforms, number, ids, index, token):  # type: ignore[no-untyped-def]
    """One block: writes the index that ``uniforms[number]`` draws from probs (1, K), and its id,
    into the one-element arrays ``index`` and ``token``."""
    sums = cuda.shared.array(_THREADS, float64)
    found = cuda.shared.array(2, int64)
    drawn = choose_index(probs[0], uniforms[number], sums, found)
    if cuda.threadIdx.x == 0:
        index[0] = drawn
        token[0] = ids[drawn] if drawn >= 0 else 0


@cuda.jit
def _verify(  # type: ignore[no-untyped-def]
    length, tokens, indices, ids, sizes, q, p, uniforms, decision, acceptance, distribution
):
    """One block: walks the chain, then computes the distribution of the next token and draws it.

    length n; tokens, indices, sizes (n,) int64; ids (n or 1, K) int64; q (n, K), p (n + 1, V);
    uniforms (n + 1,) float64. Outputs: decision (3,) int64; acceptance (n,) float64, -1 where a
    token was not examined; distribution (V,) in the dtype of p.
    """
    sums = cuda.shared.array(_THREADS, float64)
    found = cuda.shared.array(2, int64)
    thread, threads = cuda.threadIdx.x, cuda.blockDim.x
    size = p.shape[1]
    # Every thread walks the whole chain and reads the same values, so all agree on its end.
    accepted, fault = length, 0
    for node in range(length):
        proposed = q[node, indices[node]]
        if not proposed > 0:
            accepted, fault = node, 1
            break
        ratio = float64(p[node, tokens[node]] / proposed)  # in the dtype of p, as the reference
        if ratio > 1:
            ratio = float64(1)
        if thread == 0:
            acceptance[node] = ratio
        if not uniforms[node] < ratio:  # strict: a ratio of 0 is never accepted
            accepted = node
            break
    rejected = accepted < length
    for i in range(thread, size, threads):
        distribution[i] = p[accepted, i]
    cuda.syncthreads()
    if rejected:
        row = accepted if ids.shape[0] > 1 else 0
        for i in range(thread, sizes[accepted], threads):
            distribution[ids[row, i]] -= q[accepted, i]
    cuda.syncthreads()
    partial = float64(0)
    for i in range(thread, size, threads):
        if not distribution[i] > 0:
            distribution[i] = 0
        partial += distribution[i]
    sums[thread] = partial
    cuda.syncthreads()
    mass = float64(0)
    for other in range(threads):
        mass += sums[other]
    if rejected:
        for i in range(thread, size, threads):
            # An empty residual: rounding alone rejected the token, and p is the distribution.
            distribution[i] = distribution[i] / mass if mass > 0 else p[accepted, i]
    cuda.syncthreads()
    index = choose_index(distribution, uniforms[smaller(accepted + 1, length)], sums, found)
    if thread == 0:
        decision[_ACCEPTED], decision[_TOKEN], decision[_FAULT] = accepted, index, fault


def compute_distributions(scores: Scores, temperature: float) -> Tensor:
    """Probabilities (H, K) float32, in a new tensor, of logits that were scored *at the same
    temperature* (at 1 for temperature 0). Where the top logit is not finite they are NaN, or
    one-hot at temperature 0."""
    probs = torch.empty_like(scores.logits)
    ranked = scores.top_logits, scores.top_indices, scores.exp_sums
    launch(_distributions, len(probs), _THREADS, scores.logits, *ranked, float(temperature), probs)
    return probs


def choose(probs: Tensor, uniforms: Tensor, number: int, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Draws from probs (1, K) over ids (K,) by ``uniforms[number]``: index (1,), token (1,)."""
    index, token = ids.new_empty(1), ids.new_empty(1)
    launch(_choose, 1, _THREADS, probs, uniforms, number, ids, index, token)
    return index, token


@dataclass(frozen=True, eq=False)
class Outcome:
    """A ``Verdict`` on the device.

    ``decision`` (3,) int64: the number of accepted tokens, the next token, and 1 if a recorded
    draft distribution gives its token probability 0, else 0. ``acceptance`` (n,) float64 as in
    ``Verdict``, -1 after its end. ``distribution`` (V,): what the next token was drawn from.
    """

    decision: Tensor
    acceptance: Tensor
    distribution: Tensor


def verify(
    tokens: Tensor, indices: Tensor, ids: Tensor, sizes: Tensor, q: Tensor, p: Tensor,
    uniforms: Tensor,
) -> Outcome:  # fmt: skip
    """``minispec.verify`` on the device, for a chain of n >= 0 tokens (n,) int64.

    tokens[i] = ids[i, indices[i]], with shortlists ids (n, K) int64, or (1, K) if all tokens share
    one, of which the first ``sizes[i]`` count. q (n, K) are the draft distributions that the
    tokens were drawn from, p (n + 1, V) the target's, float32 or float64. uniforms (n + 1,)
    float64: one for each token examined, then one for the next token.
    """
    length, decision, distribution = len(tokens), tokens.new_zeros(3), p.new_empty(p.shape[1])
    acceptance = p.new_full((max(length, 1),), -1, dtype=torch.float64)
    if length == 0:  # an empty tensor has no memory that a kernel argument could point to
        tokens = indices = sizes = decision
        ids, q = tokens[None], p
    inputs = length, tokens, indices, ids, sizes, q, p, uniforms
    launch(_verify, 1, _THREADS, *inputs, decision, acceptance, distribution)
    return Outcome(decision, acceptance[:length], distribution)
