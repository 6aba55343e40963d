"""Files are written completely or not at all, and checked when read."""

import builtins
import errno
import json
import os
import stat
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from torch import Tensor

from minispec.errors import FileError
from minispec.io import files
from minispec.io.files import (
    INTEGERS,
    Fingerprints,
    TensorSpec,
    check_tensors,
    read_metadata,
    read_tensors,
    write_aside,
    write_json,
    write_tensors,
    write_text,
)

TENSORS = {
    "a": torch.arange(6.0).reshape(2, 3),
    "b": torch.ones(4, dtype=torch.bfloat16),
    "ids": torch.arange(5),
}
LAYOUT = {
    "a": TensorSpec((2, 3)),
    "b": TensorSpec((4,)),
    "ids": TensorSpec((5,), INTEGERS),
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "x.safetensors"
    write_tensors(path, TENSORS, {"model": "m"})
    return path


def assert_refused(action: Callable[[], object], *words: object) -> None:
    """The action raises FileError, in one line that has all of the words."""
    with pytest.raises(FileError) as caught:
        action()
    message = str(caught.value)
    assert "\n" not in message
    assert all(str(word) in message for word in words), message


def tensors_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return found.keys() == expected.keys() and all(
        found[name].dtype == value.dtype and torch.equal(found[name], value)
        for name, value in expected.items()
    )


# ------------------------------------------------------------------ writing


def test_write_tensors_and_read_tensors_are_inverse(file):
    assert tensors_equal(read_tensors(file), TENSORS)
    assert tensors_equal(read_tensors(file, LAYOUT), TENSORS)
    assert read_metadata(file, dict[str, str]) == {"model": "m"}
    part = TENSORS["a"].T  # not contiguous
    write_tensors(file, {"part": part}, {})
    assert tensors_equal(read_tensors(file, {"part": TensorSpec((3, 2))}), {"part": part})
    assert read_metadata(file, dict[str, str]) == {}


def test_write_tensors_gives_the_same_bytes_each_time(tmp_path):
    metadata = {f"key {number}": 'naïve "text"\n\x00\x7f\u2028' for number in range(9)}
    written = set()
    for number in range(8):
        path = tmp_path / str(number)
        write_tensors(path, TENSORS, dict(sorted(metadata.items(), reverse=number % 2 == 1)))
        assert read_metadata(path, dict[str, str]) == metadata
        assert tensors_equal(read_tensors(path), TENSORS)
        written.add(path.read_bytes())
    assert len(written) == 1


def test_write_json_and_write_text_are_read_back(tmp_path):
    value = {"name": "naïve", "numbers": [1, 2.5, None], "deep": {"er": True}}
    write_json(tmp_path / "new" / "folder" / "x.json", value)
    assert json.loads((tmp_path / "new" / "folder" / "x.json").read_bytes()) == value
    write_text(tmp_path / "x.txt", "naïve\n")
    assert (tmp_path / "x.txt").read_bytes() == "naïve\n".encode()
    with pytest.raises(ValueError):
        write_json(tmp_path / "nan.json", float("nan"))
    assert not (tmp_path / "nan.json").exists()


def test_write_text_gives_the_usual_permissions(tmp_path):
    write_text(tmp_path / "ours", "")
    (tmp_path / "other").touch()
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("ours", "other")]
    assert modes[0] == modes[1]


@pytest.mark.parametrize("old", [b"the old content", None])
@pytest.mark.parametrize("interruption", [KeyboardInterrupt, RuntimeError, FileError, SystemExit])
def test_write_aside_keeps_the_old_file_when_interrupted(tmp_path, old, interruption):
    path = tmp_path / "x"
    if old is not None:
        path.write_bytes(old)
    with pytest.raises(interruption), write_aside(path) as aside:
        assert aside.parent.parent == path.parent  # a rename in one file system is atomic
        aside.write_bytes(b"half of the n")
        raise interruption
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == ({"x": old} if old else {})


def test_write_aside_keeps_the_old_file_until_the_new_one_is_complete(tmp_path):
    path = tmp_path / "x"
    path.write_text("old")
    with write_aside(path) as aside:
        aside.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_write_aside_separates_two_writers(tmp_path):
    path = tmp_path / "x"
    with write_aside(path) as first, write_aside(path) as second:
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first"  # it was renamed last
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


WRITERS = [
    lambda path: write_text(path, "text" * 10_000),
    lambda path: write_json(path, list(range(10_000))),
    lambda path: write_tensors(path, {"a": torch.zeros(10_000)}, {}),
]


@pytest.mark.parametrize("write", WRITERS, ids=["text", "json", "tensors"])
def test_writers_name_a_path_that_cannot_be_written(tmp_path, write):
    (tmp_path / "file").touch()
    path = tmp_path / "file" / "x"  # not even root can write below a file
    assert_refused(lambda: write(path), "cannot write", path)
    (tmp_path / "folder").mkdir()
    assert_refused(lambda: write(tmp_path / "folder"), "cannot write", "folder")
    assert_refused(lambda: write(tmp_path / ("x" * 300)), "cannot write", "too long")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]
    assert list((tmp_path / "folder").iterdir()) == []


@pytest.mark.parametrize("write", WRITERS, ids=["text", "json", "tensors"])
def test_writers_keep_the_old_file_when_the_disk_is_full(tmp_path, monkeypatch, write):
    path = tmp_path / "x"
    path.write_text("old")
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def write_text_partly(self: Path, text: str, **_: Any) -> int:
        with builtins.open(self, "w") as file:
            file.write(text[:100])
        raise full

    def save_partly(_tensors: Any, name: Path, _metadata: Any) -> None:
        Path(name).write_bytes(b"half")
        raise SafetensorError(f"Error while serializing: I/O error: {full}")

    monkeypatch.setattr(Path, "write_text", write_text_partly)
    monkeypatch.setattr(files, "save_file", save_partly)
    assert_refused(lambda: write(path), "cannot write", path, "No space left on device")
    monkeypatch.undo()
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"x": "old"}


@pytest.mark.parametrize("write", WRITERS, ids=["text", "json", "tensors"])
def test_writers_keep_the_old_file_when_the_system_refuses(tmp_path, write):
    resource = pytest.importorskip("resource")  # not on Windows
    path = tmp_path / "x"
    path.write_text("old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))  # no file may grow beyond it
    try:
        assert_refused(lambda: write(path), "cannot write", path, "File too large")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"x": "old"}


# ------------------------------------------------------------------ reading


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_read_tensors_refuses_truncated_files(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "truncated.safetensors"
    write_tensors(path, TENSORS, {"model": "m"})
    content = path.read_bytes()
    path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    assert_refused(lambda: read_tensors(path, LAYOUT), path)
    assert_refused(lambda: read_metadata(path, dict[str, str]), path)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 255))
def test_read_tensors_refuses_a_damaged_byte_or_reads_one_changed_number(
    tmp_path_factory, position, change
):
    path = tmp_path_factory.getbasetemp() / "damaged.safetensors"
    write_tensors(path, TENSORS, {"model": "m"})
    content = bytearray(path.read_bytes())
    content[position % len(content)] ^= change
    path.write_bytes(content)
    try:
        tensors = read_tensors(path, LAYOUT)
    except FileError as error:
        assert str(path) in str(error) and "\n" not in str(error)
    else:
        assert {name: tuple(value.shape) for name, value in tensors.items()} == {
            name: spec.shape for name, spec in LAYOUT.items()
        }
        assert all(torch.isfinite(value).all() for value in tensors.values())


@pytest.mark.parametrize(
    "content",
    [
        b"",
        struct.pack("<Q", 2**60) + b"{}",
        struct.pack("<Q", 2) + b"{]",
    ],
)
def test_read_tensors_refuses_other_formats(tmp_path, content):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    assert_refused(lambda: read_tensors(path), path, "not a safetensors file")


@pytest.mark.parametrize(
    "content, kind",
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "Git LFS"),
        (b"GGUF\x03\x00\x00\x00" + bytes(100), "a GGUF file"),
        (b"PK\x03\x04" + bytes(100), "a PyTorch checkpoint"),
    ],
)
def test_read_tensors_names_known_formats(tmp_path, content, kind):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    assert_refused(lambda: read_tensors(path), path, "not a safetensors file but", kind)


def test_readers_name_missing_files(tmp_path):
    path = tmp_path / "x.safetensors"
    for read in (read_tensors, lambda file: read_metadata(file, dict[str, str])):
        assert_refused(lambda read=read: read(path), path, "No such file")
        assert_refused(lambda read=read: read(tmp_path), tmp_path, "a folder, expected a file")


@pytest.mark.parametrize(
    "layout, words",
    [
        ({**LAYOUT, "c": TensorSpec((1,))}, ["lacks 1", "c"]),
        ({"a": TensorSpec((2, 3))}, ["2 unexpected tensors", "b"]),
        ({**LAYOUT, "a": TensorSpec((3, 2))}, ["a has shape (2, 3)", "expected (3, 2)"]),
        ({**LAYOUT, "a": TensorSpec((6,))}, ["a has shape (2, 3)", "expected (6,)"]),
        ({**LAYOUT, "a": TensorSpec((None, 4))}, ["a has shape (2, 3)", "expected (any, 4)"]),
        ({**LAYOUT, "a": TensorSpec((2, 3), INTEGERS)}, ["a has dtype F32", "I64 or I32"]),
        ({**LAYOUT, "ids": TensorSpec((5,))}, ["ids has dtype I64", "F64 or F32"]),
        ({}, ["3 unexpected tensors", "a"]),
    ],
)
def test_read_tensors_refuses_other_names_shapes_and_dtypes(file, layout, words):
    assert_refused(lambda: read_tensors(file, layout), file, *words)
    assert_refused(lambda: check_tensors(TENSORS, layout, "it"), "it", *words)


def write_header(path: Path, header: dict[str, Any], content: bytes) -> Path:
    """A safetensors file with any header."""
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content)
    return path


@pytest.mark.parametrize(
    "dtype, shape, size, words",
    [
        ("C64", [1], 8, "has dtype C64, expected F64"),
        ("U64", [1], 8, "has dtype U64"),
        ("F6_E2M3", [4], 3, "has dtype F6_E2M3"),
        ("F32", [2**62, 0], 0, "beyond all limits"),
        ("F32", [2**63, 0], 0, "beyond all limits"),
        ("F32", [1] * 9, 4, "beyond all limits"),
        ("F32", [2**62], 4, "is damaged"),
        ("F32", [-1], 4, "is damaged"),
        ("F32", ["1"], 4, "is damaged"),
        ("F32", True, 4, "is damaged"),
    ],
)
def test_read_tensors_refuses_sizes_and_dtypes_beyond_all_limits(
    tmp_path, dtype, shape, size, words
):
    entry = {"dtype": dtype, "shape": shape, "data_offsets": [0, size]}
    path = write_header(tmp_path / "x.safetensors", {"a": entry}, bytes(size))
    assert_refused(lambda: read_tensors(path), path, words)


def test_read_tensors_refuses_a_pipe_and_a_long_header_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert_refused(lambda: read_tensors(tmp_path / "pipe"), "a pipe or a device")
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", 2**23) + b"{" + b" " * 2**23)
    assert_refused(lambda: read_tensors(path), path, "header would have 8,388,608 bytes")


@pytest.mark.parametrize("value", [float("nan"), "x" * 5000, "\n", "9" * 5000, "[" * 10_000])
def test_read_metadata_refuses_what_does_not_fit_its_schema(tmp_path, value):
    path = tmp_path / "x.safetensors"
    write_tensors(path, TENSORS, {"model": str(value)})
    assert_refused(lambda: read_metadata(path, Fingerprints), path, "model: ")


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("position", [0, 777, 4999])
def test_check_tensors_finds_nan_and_infinity_anywhere(bad, dtype, position):
    values, layout = torch.randn(5000, dtype=torch.float64).to(dtype), {"x": TensorSpec((5000,))}
    check_tensors({"x": values}, layout, "it")
    values[position] = bad
    assert_refused(lambda: check_tensors({"x": values}, layout, "it"), "it: x", "NaN or infinity")


def test_check_tensors_accepts_the_largest_numbers_and_empty_tensors():
    largest = torch.finfo(torch.float32).max
    values = {"x": torch.full((9,), largest), "y": torch.full((9,), -largest), "z": torch.ones(0)}
    layout = {"x": TensorSpec((9,)), "y": TensorSpec((9,)), "z": TensorSpec((0,))}
    check_tensors(values, layout, "it")


def test_check_tensors_refuses_numbers_that_float32_has_not():
    values = {"x": torch.tensor([1.0, 1e39], dtype=torch.float64)}
    assert_refused(lambda: check_tensors(values, {"x": TensorSpec((2,))}, "it"), "it: x")


def test_check_tensors_checks_eight_bit_numbers(tmp_path):
    path = tmp_path / "x.safetensors"
    write_tensors(path, {"x": torch.ones(3).to(torch.float8_e4m3fn)}, {})
    assert read_tensors(path, {"x": TensorSpec((3,))})["x"].float().tolist() == [1, 1, 1]
    write_tensors(path, {"x": torch.tensor([1, float("nan")]).to(torch.float8_e4m3fn)}, {})
    assert_refused(lambda: read_tensors(path, {"x": TensorSpec((2,))}), path, "NaN")


def test_write_json_indents(tmp_path):
    write_json(tmp_path / "x.json", {"a": [1, 2]})
    text = (tmp_path / "x.json").read_text()
    assert text.count("\n") > 3 and text.endswith("}\n") and json.loads(text) == {"a": [1, 2]}
