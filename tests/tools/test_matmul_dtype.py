"""The dtype in which matrices are multiplied: the same on every start of a run."""

import timeit
from pathlib import Path

import pytest
import torch

from minispec.errors import FileError
from minispec.tools.models import matmul_dtype


def test_choose_dtype_is_not_much_slower_than_the_other() -> None:
    """If both take about as long, either is right."""
    states, weight = torch.randn(128, 1024), torch.randn(768, 1024)

    def seconds(dtype: torch.dtype) -> float:
        left, right = states.to(dtype), weight.to(dtype)
        return min(timeit.repeat(lambda: left @ right.T, number=1, repeat=9)[1:])

    chosen = getattr(torch, matmul_dtype.choose_dtype())
    (other,) = {torch.float32, torch.bfloat16} - {chosen}
    assert seconds(chosen) < 2.5 * seconds(other)


@pytest.mark.parametrize(
    ("processor", "dtype"),
    [
        ("flags\t\t: fpu avx512f avx512_bf16\nflags\t\t: fpu\n", "bfloat16"),
        ("flags\t\t: fpu avx512f\nmodel name: avx512_bf16\n", "float32"),
        ("", "float32"),
        (None, "float32"),
    ],
)
def test_choose_dtype_asks_the_processor(
    monkeypatch: pytest.MonkeyPatch, processor: str | None, dtype: str
) -> None:
    def read_text(path: Path) -> str:
        assert path == Path("/proc/cpuinfo")
        if processor is None:
            raise FileNotFoundError(path)
        return processor

    monkeypatch.setattr(Path, "read_text", read_text)
    assert matmul_dtype.choose_dtype() == dtype


def test_keep_dtype_keeps_that_of_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for dtype in ("float32", "bfloat16"):
        monkeypatch.setattr(matmul_dtype, "choose_dtype", lambda dtype=dtype: dtype)
        assert matmul_dtype.keep_dtype(tmp_path / "run") == "float32"
    for damaged, reason in (('{"dtype": "float16"}', "dtype: invalid"), ("{", "not a JSON file")):
        (tmp_path / "run" / "run.json").write_text(damaged)
        with pytest.raises(FileError, match=reason):
            matmul_dtype.keep_dtype(tmp_path / "run")


def test_autocast_multiplies_in_the_dtype_that_it_is_given() -> None:
    ones = torch.ones(2, 2)
    for dtype in ("bfloat16", "float32"):
        with matmul_dtype.autocast(dtype):  # type: ignore[arg-type]
            assert (ones @ ones).dtype == getattr(torch, dtype)
