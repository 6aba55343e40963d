"""Headers of GGUF files: read as the gguf package reads them, refused before they cost anything."""

import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minispec.errors import FileError
from minispec.io.gguf_header import read_header

UINT32, FLOAT32, BOOL, STRING, ARRAY = 4, 6, 7, 8, 9
HUGE = 2**62


def text(value: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(value) if length is None else length) + value


def setting(name: bytes, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


def array(kind: int, count: int, content: bytes = b"") -> bytes:
    return struct.pack("<IQ", kind, count) + content


def tensor(name: bytes, shape: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    """``shape`` has the innermost dimension first, as in the file."""
    sizes = struct.pack(f"<{len(shape)}Q", *shape)
    return text(name) + struct.pack("<I", len(shape)) + sizes + struct.pack("<IQ", kind, offset)


def write(
    path: Path,
    metadata: tuple[bytes, ...] = (),
    tensors: tuple[bytes, ...] = (),
    data: int = 0,
    start: bytes | None = None,
) -> Path:
    """A file of these settings and tensors, and ``data`` bytes after the header."""
    if start is None:
        start = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata))
    content = start + b"".join((*metadata, *tensors))
    path.write_bytes(content + bytes(-len(content) % 32 + data))
    return path


def write_with_the_library(path: Path) -> None:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint32("a.uint", 7)
    writer.add_int8("a.int", -3)
    writer.add_uint64("a.long", 2**40)
    writer.add_float32("a.float", 0.5)
    writer.add_float64("a.double", 0.1)
    writer.add_bool("a.bool", True)
    writer.add_string("a.string", "na\u00efve")
    writer.add_array("a.texts", ["x", "", "\u2603"])
    writer.add_array("a.numbers", [1, -2, 3])
    writer.add_array("a.flags", [True, False])
    writer.add_tensor("one", np.arange(6, dtype=np.float32).reshape(2, 3))
    writer.add_tensor("two", np.ones((4, 32), np.float16))
    rows = gguf.quants.quantize(np.ones((3, 64), np.float32), gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("three", rows, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_read_header_reads_what_the_gguf_package_reads(tmp_path):
    path = tmp_path / "x.gguf"
    write_with_the_library(path)
    header, theirs = read_header(path), gguf.GGUFReader(path)
    fields = {name: field.contents() for name, field in theirs.fields.items()}
    assert header.metadata == {n: v for n, v in fields.items() if not n.startswith("GGUF.")}
    assert header.metadata["a.bool"] is True and header.metadata["a.flags"] == [True, False]
    assert [*header.tensors] == ["one", "two", "three"]
    assert [e.shape for e in header.tensors.values()] == [(2, 3), (4, 32), (3, 64)]
    for other in theirs.tensors:
        assert header.tensors[other.name].kind == other.tensor_type
        assert np.array_equal(header.read_bytes(other.name), other.data.view(np.uint8))


ONE = tensor(b"a", (8,))


@pytest.mark.parametrize(
    "parts, words",
    [
        ({"start": b"GGML" + bytes(40)}, ["GGML"]),
        ({"start": b"GGUF" + struct.pack("<I", 1) + bytes(40)}, ["version 1", "2 or 3"]),
        ({"start": b"GGUF" + struct.pack(">I", 3) + bytes(40)}, ["big-endian", "gguf-convert"]),
        ({"start": b"GGUF" + struct.pack("<IQQ", 3, HUGE, 0)}, ["tensors"]),
        ({"start": b"GGUF" + struct.pack("<IQQ", 3, 0, HUGE)}, ["settings"]),
        ({"start": b"GGUF" + struct.pack("<IQQ", 3, 9, 0)}, ["damaged"]),
        ({"metadata": (text(b"", HUGE),)}, ["a text claims"]),
        ({"metadata": (text(b"", 0),)}, ["a name is empty"]),
        ({"metadata": (setting(b"a", STRING, text(b"", 2**31)),)}, ["a: ", "2,147,483,648"]),
        ({"metadata": (setting(b"a", STRING, text(b"\xff")),)}, ["UTF-8"]),
        ({"metadata": (setting(b"a", ARRAY, array(UINT32, HUGE)),)}, ["a: ", "a list of"]),
        ({"metadata": (setting(b"a", ARRAY, array(UINT32, 2**20)),)}, ["a: ", "within its header"]),
        ({"metadata": (setting(b"a", ARRAY, array(STRING, 2**20)),)}, ["a: ", "within its header"]),
        ({"metadata": (setting(b"a", ARRAY, array(STRING, 2, text(b"x" * 99))),)}, ["a: "]),
        ({"metadata": (setting(b"a", ARRAY, array(ARRAY, 1, array(4, 0))),)}, ["must be flat"]),
        ({"metadata": (setting(b"a", 13, b""),)}, ["type 13"]),
        ({"metadata": (setting(b"a", BOOL, b"\x02"),)}, ["flag 2"]),
        ({"metadata": (setting(b"a", BOOL, b"\x01"),) * 2}, ["'a' is there twice"]),
        ({"metadata": (setting(b"general.alignment", UINT32, bytes(4)),)}, ["alignment 0"]),
        ({"metadata": (setting(b"general.alignment", UINT32, b"\3\0\0\0"),)}, ["alignment 3"]),
        ({"metadata": (setting(b"general.alignment", BOOL, b"\1"),)}, ["alignment True"]),
        ({"metadata": (setting(b"general.alignment", STRING, text(b"x")),)}, ["alignment 'x'"]),
        ({"tensors": (ONE,), "data": 31}, ["'a'", "beyond its end"]),
        ({"tensors": (tensor(b"a", (HUGE, 4)),), "data": 64}, ["'a'", "would have"]),
        ({"tensors": (tensor(b"a", (2**32, 2**32)),), "data": 64}, ["'a'", "would have"]),
        ({"tensors": (tensor(b"a", (0, 4)),), "data": 64}, ["'a'", "(4, 0)"]),
        ({"tensors": (tensor(b"a", (33,), 8),), "data": 640}, ["'a'", "blocks of 32"]),
        ({"tensors": (tensor(b"a", ()),), "data": 64}, ["'a'", "0 dimensions"]),
        ({"tensors": (tensor(b"a", (1,) * 5),), "data": 64}, ["'a'", "5 dimensions"]),
        ({"tensors": (tensor(b"a", (8,), 4),), "data": 64}, ["'a'", "unknown type 4"]),
        ({"tensors": (tensor(b"a", (8,), 0, 2**64 - 64),), "data": 64}, ["'a'", "lies at"]),
        ({"tensors": (tensor(b"a", (8,), 0, 32),), "data": 96}, ["'a'", "lies at 32, expected 0"]),
        ({"tensors": (ONE, tensor(b"b", (8,))), "data": 96}, ["'b'", "lies at 0, expected 32"]),
        ({"tensors": (ONE, tensor(b"a", (8,), 0, 32)), "data": 96}, ["'a' is there twice"]),
    ],
)  # fmt: skip
def test_read_header_refuses_what_does_not_fit_the_file(tmp_path, parts: dict[str, Any], words):
    path = write(tmp_path / "x.gguf", **parts)
    with pytest.raises(FileError) as caught:
        read_header(path)
    message = str(caught.value)
    assert message.startswith(str(path)) and "\n" not in message
    assert all(word in message for word in words), message


def test_read_header_refuses_more_elements_than_any_vocabulary(tmp_path):
    nested = tuple(setting(b"a%d" % i, ARRAY, array(BOOL, 2**21, bytes(2**21))) for i in range(3))
    with pytest.raises(FileError, match="may hold 4,194,304 in all"):
        read_header(write(tmp_path / "x.gguf", nested))
    assert len(read_header(write(tmp_path / "x.gguf", nested[:2])).metadata["a1"]) == 2**21


@pytest.mark.parametrize("target", ["/dev/zero", "."])
def test_read_header_refuses_devices_and_folders(tmp_path, target):
    (tmp_path / "x.gguf").symlink_to(target)
    with pytest.raises(FileError, match="expected a file"):
        read_header(tmp_path / "x.gguf")


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_read_header_gives_a_header_or_a_file_error_for_any_damage(tmp_path, data):
    path = tmp_path / "x.gguf"
    write_with_the_library(path)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(4, len(content) - 9))
        content[at : at + 8] = struct.pack("<Q", data.draw(st.sampled_from([0, 1, 9, 2**31, HUGE])))
    path.write_bytes(content[: data.draw(st.integers(len(content) // 2, len(content)))])
    try:
        header = read_header(path)
    except FileError as error:
        assert "\n" not in str(error)
    else:
        for entry in header.tensors.values():
            assert 24 <= entry.start <= entry.start + entry.size <= path.stat().st_size
