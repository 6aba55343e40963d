"""In which dtype this machine multiplies matrices sooner, as training and writing text do all day.

Processors that multiply bfloat16 do so up to twice as fast as float32; the others go about it in
a roundabout way that takes ten times as long. Which of the two this one is, is measured once.
"""

import timeit
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
import torch.nn.functional as F


@cache
def faster() -> torch.dtype:
    """bfloat16 or float32, whose products take less time here."""
    return min((torch.bfloat16, torch.float32), key=_seconds)


@contextmanager
def autocast() -> Iterator[None]:
    """Within it products run in the dtype that is faster, whatever the weights are kept in."""
    half = faster() == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16, half), warnings.catch_warnings():
        # The norms' weights stay in float32, which costs PyTorch a fused kernel it regrets.
        warnings.filterwarnings("ignore", "Mismatch dtype")
        yield


def _seconds(dtype: torch.dtype) -> float:
    """Of a product as a layer has them, the quickest of three after one that is not counted."""
    states, weight = torch.ones(256, 512, dtype=dtype), torch.ones(512, 512, dtype=dtype)
    return min(timeit.repeat(lambda: F.linear(states, weight), number=1, repeat=4)[1:])
