"""The interface to the GPU: tensors as kernel arguments, kernel launches, sixteen-byte loads.

Rows of the LM head are read sixteen bytes at a time, the widest load there is, and neighbouring
threads read neighbouring sixteen bytes. Numba has no such load, so it is written in LLVM here.
With ``NUMBA_ENABLE_CUDASIM=1``, Numba's simulator runs the same kernels in Python on CPU tensors,
and the load is NumPy's.

Knows nothing of heads and distributions.
"""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import config, cuda, types
from torch import Tensor

# Some kernels use one block by design; Numba would warn about it at each launch.
warnings.filterwarnings("ignore", message="Grid size .* under-utilization")

SIMULATED = bool(config.ENABLE_CUDASIM)
_LOAD_BYTES = 16


def is_available() -> bool:
    """Whether kernels can run: in the simulator, or on a GPU that PyTorch and Numba both find."""
    return SIMULATED or (torch.cuda.is_available() and cuda.is_available())


def get_device() -> torch.device:
    """The device of the tensors that kernels read and write."""
    return torch.device("cpu" if SIMULATED else "cuda")


def to_device(host: Tensor) -> Tensor:
    """Copies a tensor from the host to the device without waiting: from pinned memory, which
    PyTorch's allocator keeps until the copy is done."""
    return host.clone() if SIMULATED else host.pin_memory().to(get_device(), non_blocking=True)


def to_host(tensor: Tensor) -> Tensor:
    """Copies a tensor from the device to the host, which waits for all queued work."""
    return tensor.cpu()


def launch(kernel: Any, blocks: int, threads: int, *arguments: Any) -> None:
    """Queues a kernel on PyTorch's current stream, in order with tensor operations."""
    arrays = [_as_array(a) if isinstance(a, Tensor) else a for a in arguments]
    if SIMULATED:
        kernel[blocks, threads](*arrays)
    else:
        stream = cuda.external_stream(torch.cuda.current_stream().cuda_stream)
        kernel[blocks, threads, stream](*arrays)


def _as_array(tensor: Tensor) -> Any:
    """The tensor's memory as a Numba array, without a copy."""
    if not SIMULATED:
        return cuda.as_cuda_array(tensor.detach(), sync=False)
    from numba.cuda.simulator.cudadrv.devicearray import FakeCUDAArray

    return FakeCUDAArray(tensor.detach().numpy())


def view_as_words(weight: Tensor) -> Tensor:
    """Rows (V, D) as 32-bit words (V, W), int32, with each row a multiple of sixteen bytes: a view
    where the tensor allows it, else a copy padded with zeros."""
    per_load = _LOAD_BYTES // weight.element_size()
    missing = -weight.shape[1] % per_load
    if missing or not weight.is_contiguous() or weight.data_ptr() % _LOAD_BYTES:
        weight = torch.nn.functional.pad(weight, (0, missing))
    return weight.contiguous().view(torch.int32)


def _make_load(dtype: torch.dtype) -> Callable[[Any, int, int], Any]:
    """``load(words, row, column)``: the sixteen bytes at a column that is a multiple of four, as 4
    or 8 float32 numbers. The conversion is lossless for all three dtypes."""
    if SIMULATED:

        def load_simulated(array: Any, row: int, column: int) -> Any:
            words = np.array([array[row, column + i] for i in range(4)], dtype=np.int32)
            return torch.from_numpy(words).view(dtype).float().numpy()

        return load_simulated

    from numba.cuda.extending import intrinsic

    count = _LOAD_BYTES // dtype.itemsize

    def load(typing: Any, array: Any, row: Any, column: Any) -> Any:
        signature = types.UniTuple(types.float32, count)(array, types.intp, types.intp)
        return signature, generate

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        stride = builder.extract_value(array.shape, 1)
        offset = builder.add(builder.mul(arguments[1], stride), arguments[2])
        vector = ir.VectorType(ir.IntType(32), 4)
        pointer = builder.bitcast(builder.gep(array.data, [offset]), vector.as_pointer())
        loaded = builder.load(pointer)
        loaded.align = _LOAD_BYTES
        words = [builder.extract_element(loaded, _constant(i)) for i in range(4)]
        floats = [value for word in words for value in _unpack_floats(builder, word, dtype)]
        return context.make_tuple(builder, signature.return_type, floats)

    return intrinsic(load)


def _constant(value: int) -> Any:
    return ir.Constant(ir.IntType(32), value)


def _unpack_floats(builder: Any, word: Any, dtype: torch.dtype) -> list[Any]:
    """The one or two float32 numbers in a 32-bit word, the lower half first."""
    single = ir.FloatType()
    if dtype == torch.float32:
        return [builder.bitcast(word, single)]
    if dtype == torch.bfloat16:  # the upper half of a float32
        low, high = builder.shl(word, _constant(16)), builder.and_(word, _constant(0xFFFF0000))
        return [builder.bitcast(low, single), builder.bitcast(high, single)]
    halves = builder.bitcast(word, ir.VectorType(ir.HalfType(), 2))
    return [builder.fpext(builder.extract_element(halves, _constant(i)), single) for i in range(2)]


LOADS = {dtype: _make_load(dtype) for dtype in (torch.float32, torch.bfloat16, torch.float16)}
