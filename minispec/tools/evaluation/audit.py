"""Was it lossless? Greedy output against plain decoding's, id for id.

In exact arithmetic the two are equal. In floating point a pass over several positions and a
pass over one differ in the last bits, so where two ids are almost equally likely the choice
may flip. Such a difference is excused only by plain decoding's own logits at that place: the
two best must be within a stated gap, and the other output must have chosen the runner-up.
"""

from collections.abc import Sequence

import torch

from minispec.decode import read
from minispec.types import Target

# Relative to max(1, |largest logit|): what rounding in each dtype can amount to.
NEAR_TIE = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 2e-2}


def first_difference(plain: Sequence[int], other: Sequence[int]) -> int | None:
    """The first place where two outputs differ, None if they are equal."""
    for place, (left, right) in enumerate(zip(plain, other, strict=False)):
        if left != right:
            return place
    return None if len(plain) == len(other) else min(len(plain), len(other))


def audit(
    target: Target, prompt: Sequence[int], plain: Sequence[int], other: Sequence[int], gap: float
) -> str:
    """ "identical", "near_tie" or "violation" for two greedy outputs of one prompt.

    Repeats plain decoding up to the first difference, token by token as plain decoding does,
    so that the gap is measured on the very logits that it decided by.
    """
    place = first_difference(plain, other)
    if place is None:
        return "identical"
    if place == min(len(plain), len(other)):
        return "violation"  # one stopped where the other went on: no choice of ids explains it
    cache = target.new_cache(len(prompt) + place)
    for _ in read(target, prompt[:-1], cache):
        pass
    for token in (prompt[-1], *plain[:place]):
        features = target.step(torch.tensor([token]), cache)
    logits = target.head.logits(features.hidden)[-1]
    logits = logits if logits.dtype == torch.float64 else logits.float()
    # Stable, so that of two equal logits the lower id counts as the first.
    values, ids = logits.sort(descending=True, stable=True)
    near = values[0] - values[1] <= gap * max(1.0, abs(float(values[0])))
    first_two = [plain[place], other[place]]
    return "near_tie" if near and ids[:2].tolist() == first_two else "violation"
