"""The dtype in which this machine multiplies matrices faster: bfloat16 or float32.

Processors with bfloat16 instructions multiply it up to twice as fast as float32; the others emulate
it and take ten times as long. Both are timed once per process. Training and writing training data
use the result.
"""

import timeit
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
import torch.nn.functional as F


@cache
def fastest_dtype() -> torch.dtype:
    """bfloat16 or float32, whichever multiplies faster here."""
    return min((torch.bfloat16, torch.float32), key=_time_matmul)


@contextmanager
def autocast() -> Iterator[None]:
    """Within it, matrices are multiplied in the faster dtype, whatever dtype the weights have."""
    half = fastest_dtype() == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16, half), warnings.catch_warnings():
        # PyTorch warns that norms with float32 weights cannot use its fused kernel.
        warnings.filterwarnings("ignore", "Mismatch dtype")
        yield


def _time_matmul(dtype: torch.dtype) -> float:
    """Seconds for a product of the shape of a layer's: the fastest of three after a warm-up."""
    states, weight = torch.ones(256, 512, dtype=dtype), torch.ones(512, 512, dtype=dtype)
    return min(timeit.repeat(lambda: F.linear(states, weight), number=1, repeat=4)[1:])
