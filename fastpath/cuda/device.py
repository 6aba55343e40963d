"""The door to the GPU: tensors as kernel arguments, launches, sixteen-byte loads.

Rows of the LM head are read sixteen bytes at a time, the widest load there is; neighbouring
threads read neighbouring sixteen bytes. Numba has no such load, so it is written here in LLVM's
own terms. Where ``NUMBA_ENABLE_CUDASIM=1``, Numba's simulator runs the same kernels in Python,
on tensors of the CPU, and the load is NumPy.

Knows nothing of heads and laws.
"""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import config, cuda, types
from torch import Tensor

# Some kernels have one block by design; Numba would say at each launch that it could be more.
warnings.filterwarnings("ignore", message="Grid size .* under-utilization")

SIMULATED = bool(config.ENABLE_CUDASIM)
_BYTES = 16


def available() -> bool:
    """Whether kernels can run here: on a GPU that PyTorch sees too, or simulated."""
    return SIMULATED or (torch.cuda.is_available() and cuda.is_available())


def home() -> torch.device:
    """Where the tensors of kernels live."""
    return torch.device("cpu" if SIMULATED else "cuda")


def sent(host: Tensor) -> Tensor:
    """A host's tensor on the device, without waiting: from pinned memory, which the allocator
    keeps until the copy is done."""
    return host.clone() if SIMULATED else host.pin_memory().to(home(), non_blocking=True)


def fetched(tensor: Tensor) -> Tensor:
    """A tensor of the device on the host: here the host waits for all that was queued."""
    return tensor.cpu()


def launch(kernel: Any, blocks: int, threads: int, *arguments: Any) -> None:
    """Runs a kernel in PyTorch's current stream, so that it is in order with tensor code."""
    arrays = [_array(a) if isinstance(a, Tensor) else a for a in arguments]
    if SIMULATED:
        kernel[blocks, threads](*arrays)
    else:
        stream = cuda.external_stream(torch.cuda.current_stream().cuda_stream)
        kernel[blocks, threads, stream](*arrays)


def _array(tensor: Tensor) -> Any:
    """The tensor's own memory as Numba sees it: nothing is copied."""
    if not SIMULATED:
        return cuda.as_cuda_array(tensor.detach(), sync=False)
    from numba.cuda.simulator.cudadrv.devicearray import FakeCUDAArray

    return FakeCUDAArray(tensor.detach().numpy())


def words(weight: Tensor) -> Tensor:
    """Rows (V, D) as 32-bit words (V, W), each row a multiple of sixteen bytes: the tensor's own
    memory where it fits that, else a copy with zeros behind each row."""
    per_load = _BYTES // weight.element_size()
    missing = -weight.shape[1] % per_load
    if missing or not weight.is_contiguous() or weight.data_ptr() % _BYTES:
        weight = torch.nn.functional.pad(weight, (0, missing))
    return weight.contiguous().view(torch.int32)


def _loader(dtype: torch.dtype) -> Callable[[Any, int, int], Any]:
    """``load(words, row, column)``: the sixteen bytes at a column that is a multiple of four, as
    4 or 8 float32 numbers. Every value of the three dtypes is one of float32: nothing is lost.
    """
    if SIMULATED:

        def simulated(array: Any, row: int, column: int) -> Any:
            load = np.array([array[row, column + i] for i in range(4)], dtype=np.int32)
            return torch.from_numpy(load).view(dtype).float().numpy()

        return simulated

    from numba.cuda.extending import intrinsic

    count = _BYTES // dtype.itemsize

    def load(typing: Any, array: Any, row: Any, column: Any) -> Any:
        signature = types.UniTuple(types.float32, count)(array, types.intp, types.intp)
        return signature, generate

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        stride = builder.extract_value(array.shape, 1)
        place = builder.add(builder.mul(arguments[1], stride), arguments[2])
        vector = ir.VectorType(ir.IntType(32), 4)
        pointer = builder.bitcast(builder.gep(array.data, [place]), vector.as_pointer())
        loaded = builder.load(pointer)
        loaded.align = _BYTES
        each = [builder.extract_element(loaded, _number(i)) for i in range(4)]
        floats = [value for word in each for value in _floats(builder, word, dtype)]
        return context.make_tuple(builder, signature.return_type, floats)

    return intrinsic(load)


def _number(value: int) -> Any:
    return ir.Constant(ir.IntType(32), value)


def _floats(builder: Any, word: Any, dtype: torch.dtype) -> list[Any]:
    """The one or two numbers in a 32-bit word, the lower half first."""
    single = ir.FloatType()
    if dtype == torch.float32:
        return [builder.bitcast(word, single)]
    if dtype == torch.bfloat16:  # the upper half of a float32
        low, high = builder.shl(word, _number(16)), builder.and_(word, _number(0xFFFF0000))
        return [builder.bitcast(low, single), builder.bitcast(high, single)]
    halves = builder.bitcast(word, ir.VectorType(ir.HalfType(), 2))
    return [builder.fpext(builder.extract_element(halves, _number(i)), single) for i in range(2)]


LOADS = {dtype: _loader(dtype) for dtype in (torch.float32, torch.bfloat16, torch.float16)}
