"""The lossless audit: greedy output compared with plain decoding's, id by id.

In exact arithmetic the two are equal. In floating point, a pass over several positions and a
pass over one differ in the last bits, so where two ids are almost equally likely the argmax may
flip. Only plain decoding's own logits at that position excuse such a difference: their top two
must lie within a stated gap, and the other output must have chosen the second.

Knows nothing of methods.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from minispec.decode import prefill
from minispec.logits_processor import History
from minispec.sampling import Sampling
from minispec.types import Target

# The largest gap that rounding explains, by dtype, relative to max(1, |largest logit|).
NEAR_TIE = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 2e-2}


def first_difference(plain: Sequence[int], other: Sequence[int]) -> int | None:
    """The first position at which two outputs differ, or None if they are equal."""
    for position, (left, right) in enumerate(zip(plain, other, strict=False)):
        if left != right:
            return position
    return None if len(plain) == len(other) else min(len(plain), len(other))


def audit(
    target: Target,
    prompt: Sequence[int],
    plain: Sequence[int],
    other: Sequence[int],
    gap: float,
    sampling: Sampling | None = None,
) -> str:
    """Classify two greedy outputs of one prompt: "identical", "near_tie" or "violation".
    ``sampling``: with which both were decoded, if it changes logits.

    The gap is that of the very logits that plain decoding used.
    """
    position = first_difference(plain, other)
    if position is None:
        return "identical"
    if position == min(len(plain), len(other)):
        return "violation"  # one output is a prefix of the other: a near tie cannot explain that
    values, ids = rank_next(target, prompt, plain[:position], sampling)
    near = values[0] - values[1] <= gap * max(1.0, abs(float(values[0])))
    first_two = [plain[position], other[position]]
    return "near_tie" if near and ids[:2].tolist() == first_two else "violation"


def rank_next(
    target: Target,
    prompt: Sequence[int],
    plain: Sequence[int],
    sampling: Sampling | None = None,
) -> tuple[Tensor, Tensor]:
    """The logits (V,) after a prompt and the first tokens of its plain decoding, the largest first,
    in float32 or better, and their ids (V,). ``sampling``: as of ``audit``.

    Repeats plain decoding, one token per pass, so that the last bits are the same.
    """
    cache = target.new_cache(len(prompt) + len(plain))
    for _ in prefill(target, prompt[:-1], cache):
        pass
    for token in (prompt[-1], *plain):
        features = target.step(torch.tensor([token]), cache)
    logits = target.head.logits(features.hidden)[-1]  # (V,)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    if sampling:
        history = History((*prompt, *plain), len(prompt))
        logits = sampling.process(logits, torch.arange(len(logits)), history)
    # A stable sort puts the lower id first where logits are equal, as argmax does.
    values, ids = logits.sort(descending=True, stable=True)  # (V,) each
    return values, ids
