import os

import msgspec
import pytest

from minispec.errors import FileError
from minispec.io.schema import Real, Size, convert, convert_metadata, decode_json, read_json


class _Settings(msgspec.Struct, kw_only=True):
    size: Size
    theta: Real = 1.0
    names: list[str] = []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"size":0}', "size: expected int >= 1, got 0"),
        (b'{"size":true}', "size: expected int, got bool, True"),
        (b'{"size":"4"}', "size: expected int, got str, '4'"),
        (b'{"size":1.5}', "size: expected int, got float, 1.5"),
        (b'{"size":1,"theta":1e400}', "theta: number out of range"),
        (b'{"size":1,"theta":NaN}', "not a JSON file, or is damaged"),
        (b'{"size":' + b"9" * 5000 + b"}", "size: integer value out of range"),
        (b'{"size":1,"other":' + b"[" * 100_000, "recursion"),
        (b'{"size":1,"names":["a",1]}', r"names\[1\]: expected str, got int, 1"),
        (b"[]", "expected object, got array"),
        (b"{}", "lacks the field size"),
        (b'{"size":1,"names":["\xff"]}', "Invalid UTF-8"),
        (b"", "not a JSON file, or is damaged"),
    ],
)
def test_decode_json_names_the_field_and_what_was_found(content, message):
    with pytest.raises(FileError, match=message) as caught:
        decode_json(content, _Settings, "settings.json")
    assert str(caught.value).startswith("settings.json")
    assert "\n" not in str(caught.value)


def test_decode_json_reads_a_byte_order_mark_and_ignores_other_fields():
    content = b'\xef\xbb\xbf{"size": 4, "other": [1], "names": ["a"]}'
    assert decode_json(content, _Settings, "x") == _Settings(size=4, names=["a"])


@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "x", ""])
def test_convert_metadata_refuses_what_is_no_finite_number(text):
    with pytest.raises(FileError, match="theta"):
        convert_metadata({"size": "4", "theta": text}, _Settings, "draft.safetensors")


def test_convert_metadata_reads_numbers_from_text():
    assert convert_metadata({"size": "4", "theta": "2.5"}, _Settings, "x").theta == 2.5


@pytest.mark.parametrize("value", [{"size": 2**70}, {"size": 4, "theta": float("nan")}, [], None])
def test_convert_refuses_what_does_not_fit(value):
    with pytest.raises(FileError):
        convert(value, _Settings, "model.gguf")


def test_read_json_refuses_what_is_not_a_regular_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FileError, match="a pipe or a device"):
        read_json(tmp_path / "pipe", _Settings)
    with pytest.raises(FileError, match="a folder"):
        read_json(tmp_path, _Settings)
    (tmp_path / "large.json").write_text('{"size": 1}' + " " * 100)
    with pytest.raises(FileError, match="expected at most 50"):
        read_json(tmp_path / "large.json", _Settings, largest=50)
    with pytest.raises(FileError, match="No such file"):
        read_json(tmp_path / "missing.json", _Settings)
