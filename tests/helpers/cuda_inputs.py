"""Random inputs on the device, and settings, for the tests of CUDA kernels."""

import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from torch import Tensor

from fastpath.cuda import device

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
LAST_UNIFORM = 1 - 2**-53  # the largest uniform
UNIFORMS = st.sampled_from([0.0, 0.25, 0.5, LAST_UNIFORM]) | st.floats(0, LAST_UNIFORM)
FEW_EXAMPLES = settings(
    max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def draw_numbers(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Normally distributed numbers on the device."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(dtype).to(device.get_device())


def draw_ids(seed: int, size: int, count: int) -> Tensor:
    """``count`` sorted ids (K,) below ``size``, on the host."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(size, generator=generator)[:count].sort().values
