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
    check_tensors,
    read_json,
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
SHAPES = {"a": (2, 3), "b": (4,), "ids": (5,)}


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
    assert tensors_equal(read_tensors(file, SHAPES), TENSORS)
    assert read_metadata(file) == {"model": "m"}
    part = TENSORS["a"].T  # not contiguous
    write_tensors(file, {"part": part}, {})
    assert tensors_equal(read_tensors(file, {"part": (3, 2)}), {"part": part})
    assert read_metadata(file) == {}


def test_write_json_and_write_text_are_read_back(tmp_path):
    value = {"name": "naïve", "numbers": [1, 2.5, None], "deep": {"er": True}}
    write_json(tmp_path / "new" / "folder" / "x.json", value)
    assert read_json(tmp_path / "new" / "folder" / "x.json") == value
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
        assert aside.parent == path.parent  # a rename within one file system is atomic
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
    assert_refused(lambda: read_tensors(path, SHAPES), path)
    assert_refused(lambda: read_metadata(path), path)


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
        tensors = read_tensors(path, SHAPES)
    except FileError as error:
        assert str(path) in str(error) and "\n" not in str(error)
    else:
        assert {name: tuple(value.shape) for name, value in tensors.items()} == SHAPES
        assert all(torch.isfinite(value).all() for value in tensors.values())


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n",
        b"GGUF\x03\x00\x00\x00" + bytes(100),
        struct.pack("<Q", 2**60) + b"{}",
        struct.pack("<Q", 2) + b"{]",
    ],
)
def test_read_tensors_refuses_other_formats(tmp_path, content):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    assert_refused(lambda: read_tensors(path), path, "not a safetensors file")


def test_readers_name_missing_files(tmp_path):
    path = tmp_path / "x.safetensors"
    for read in (read_tensors, read_metadata, read_json):
        assert_refused(lambda read=read: read(path), path)
        assert_refused(lambda read=read: read(tmp_path), tmp_path)


@pytest.mark.parametrize(
    "shapes, words",
    [
        ({**SHAPES, "c": (1,)}, ["lacks 1", "c"]),
        ({"a": (2, 3)}, ["2 unexpected tensors", "b"]),
        ({**SHAPES, "a": (3, 2)}, ["a has shape (2, 3)", "expected (3, 2)"]),
        ({**SHAPES, "a": (6,)}, ["a has shape (2, 3)", "expected (6,)"]),
        ({}, ["3 unexpected tensors", "a"]),
    ],
)
def test_read_tensors_refuses_other_names_and_shapes(file, shapes, words):
    assert_refused(lambda: read_tensors(file, shapes), file, *words)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("position", [0, 777, 4999])
def test_check_tensors_finds_nan_and_infinity_anywhere(bad, dtype, position):
    values = torch.randn(5000, dtype=torch.float64).to(dtype)
    check_tensors({"x": values}, {"x": (5000,)}, "it")
    values[position] = bad
    assert_refused(
        lambda: check_tensors({"x": values}, {"x": (5000,)}, "it"), "it: x", "NaN or infinity"
    )


def test_check_tensors_accepts_the_largest_numbers_and_empty_tensors():
    largest = torch.finfo(torch.float32).max
    values = {"x": torch.full((9,), largest), "y": torch.full((9,), -largest), "z": torch.ones(0)}
    check_tensors(values, {"x": (9,), "y": (9,), "z": (0,)}, "it")


def test_check_tensors_checks_eight_bit_numbers(tmp_path):
    path = tmp_path / "x.safetensors"
    write_tensors(path, {"x": torch.ones(3).to(torch.float8_e4m3fn)}, {})
    assert read_tensors(path, {"x": (3,)})["x"].float().tolist() == [1, 1, 1]
    write_tensors(path, {"x": torch.tensor([1, float("nan")]).to(torch.float8_e4m3fn)}, {})
    assert_refused(lambda: read_tensors(path, {"x": (2,)}), path, "NaN")


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff\xfe", b"nonsense", b'{"a": 1}}', b"[" * 100_000]
)
def test_read_json_refuses_other_formats(tmp_path, content):
    path = tmp_path / "x.json"
    path.write_bytes(content)
    assert_refused(lambda: read_json(path), path, "not a JSON file")


def test_write_json_indents(tmp_path):
    write_json(tmp_path / "x.json", {"a": [1, 2]})
    text = (tmp_path / "x.json").read_text()
    assert text.count("\n") > 3 and text.endswith("}\n") and json.loads(text) == {"a": [1, 2]}
