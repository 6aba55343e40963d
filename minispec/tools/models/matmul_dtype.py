"""The dtype in which training and the text for it multiply matrices: bfloat16 or float32.

Processors with bfloat16 instructions multiply it up to twice as fast as float32; the others emulate
it and take ten times as long. The choice follows from what the processor is, not from timing, and a
run keeps it: so a seed reproduces a run, however busy the machine is.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import msgspec
import torch

from minispec.io.files import write_json
from minispec.io.schema import read_json

MatmulDtype = Literal["bfloat16", "float32"]
_FLAG = "avx512_bf16"  # of processors with such instructions


class _Run(msgspec.Struct):
    dtype: MatmulDtype


def choose_dtype() -> MatmulDtype:
    """bfloat16 if this processor has instructions for it; else, or if it cannot be asked,
    float32."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return "float32"
    flags = {flag for line in lines if line.startswith("flags") for flag in line.split()}
    return "bfloat16" if _FLAG in flags else "float32"


def keep_dtype(folder: Path) -> MatmulDtype:
    """The dtype of the run in a folder: that of its start, also where it continues on another
    machine. Writes ``run.json`` at the start. Raises FileError."""
    path = folder / "run.json"
    if path.exists():
        return read_json(path, _Run).dtype
    dtype = choose_dtype()
    write_json(path, {"dtype": dtype})
    return dtype


@contextmanager
def autocast(dtype: MatmulDtype) -> Iterator[None]:
    """Within it, matrices are multiplied in ``dtype``, whatever dtype the weights have."""
    half = dtype == "bfloat16"
    with torch.autocast("cpu", torch.bfloat16, half), warnings.catch_warnings():
        # PyTorch warns that norms with float32 weights cannot use its fused kernel.
        warnings.filterwarnings("ignore", "Mismatch dtype")
        yield
