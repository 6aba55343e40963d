"""Prompts from text, from JSON lines and from stdin; everything else is refused by name."""

import io
import json
import sys
import warnings
from pathlib import Path

import pytest

from minispec.errors import FileError, FileWarning, MinispecError
from minispec.tools.data.prompt_files import read_prompts
from minispec.tools.data.streams import load_streams

TEXTS = ["What is tea?", "Où est la gare ?"]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("suffix", ["", ".txt", ".md"])
def test_read_prompts_takes_one_per_line(tmp_path: Path, suffix: str, mark: str, end: str) -> None:
    path = tmp_path / f"prompts{suffix}"
    path.write_bytes((mark + end.join(["What is tea?", "", "  ", " Où est la gare ? "])).encode())
    assert read_prompts(path) == read_prompts(str(path)) == TEXTS


JSON = {
    "prompt": lambda text: {"prompt": text, "id": 3},
    "turns": lambda text: {"question_id": 81, "category": "writing", "turns": [text]},
    "messages": lambda text: {"messages": [{"role": "user", "content": text}]},
    "conversations": lambda text: {"id": "x", "conversations": [{"from": "human", "value": text}]},
}


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("kind", JSON)
def test_read_prompts_takes_json_lines(tmp_path: Path, kind: str, end: str) -> None:
    path = tmp_path / "question.jsonl"
    path.write_bytes(("\ufeff" + end.join(json.dumps(JSON[kind](t)) for t in TEXTS)).encode())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_prompts(path) == TEXTS


@pytest.mark.parametrize(
    ("line", "left_out"),
    [
        ({"turns": ["a", "b"]}, "later turns of 1 prompts"),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "x"},
                       {"role": "user", "content": "b"}]}, "later turns of 1 prompts"),
        ({"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "a"}]},
         "system messages of 1 prompts"),
        ({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "x"},
                            {"from": "human", "value": "b"}]}, "later turns of 1 prompts"),
    ],
)  # fmt: skip
def test_read_prompts_says_what_it_leaves_out(tmp_path: Path, line: dict, left_out: str) -> None:
    path = tmp_path / "question.jsonl"
    path.write_text(json.dumps(line))
    with pytest.warns(FileWarning, match=left_out):
        assert read_prompts(path) == ["a"]


BAD = {
    "a.txt": (b"", "holds no prompts"),
    "b.txt": (b" \r\n\n", "holds no prompts"),
    "c.txt": (b"first\nsecond\ncaf\xe9\n", "not UTF-8: byte 0xe9 at line 3, character 3"),
    "d.txt": ("text".encode("utf-16"), "not UTF-8: byte 0xff at character 0"),
    "e.txt": (b"PAR1\0\0", "is not text"),
    "f.txt": (b'{"prompt": "hi"}\n', "name it FILE.jsonl"),
    "a.json": (b"[]", "ends in .json, expected one prompt per line"),
    "a.csv": (b"prompt\nhi\n", "ends in .csv"),
    "a.parquet": (b"PAR1", "ends in .parquet"),
    "a.gz": (b"\x1f\x8b", "ends in .gz"),
    "a.jsonl": (b'{"prompt": "a"}\n{"prompt": 3}\n', "line 2: prompt: expected str"),
    "b.jsonl": (b'{"question": "a"}\n', "line 1: expected a field prompt, turns, messages"),
    "c.jsonl": (b'{"turns": []}\n', "line 1: has no text of a user"),
    "d.jsonl": (b'{"turns": [" "]}\n', "line 1: has no text of a user"),
    "e.jsonl": (b'{"messages": [{"role": "system", "content": "x"}]}', "no text of a user"),
    "f.jsonl": (b'{"messages": [{"role": "user"}]}', "line 1.*content"),
    "g.jsonl": (b"Why is the sky blue?\n", "line 1 is not a JSON file"),
    "h.jsonl": (b'["a"]\n', "line 1: expected object"),
    "i.jsonl": (b'{"prompt": ' + b"[" * 10_000, "line 1"),
}


@pytest.mark.parametrize("name", BAD)
def test_read_prompts_refuses_other_files(tmp_path: Path, name: str) -> None:
    content, message = BAD[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(MinispecError, match=message) as caught:
        read_prompts(tmp_path / name)
    assert "\n" not in str(caught.value) and name in str(caught.value)


def test_read_prompts_refuses_a_folder_and_a_missing_file(tmp_path: Path) -> None:
    for path, message in ((tmp_path, "is a folder"), (tmp_path / "x.txt", "No such file")):
        with pytest.raises(FileError, match=message):
            read_prompts(path)


@pytest.mark.parametrize("content", [b"What is tea?\r\n\nx\n", b'{"turns": ["What is tea?"]}\n'])
def test_load_streams_reads_stdin(content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content), encoding="latin-1"))
    (stream,) = load_streams(["-"], limit=1)
    assert (stream.name, stream.prompts) == ("stdin", ("What is tea?",))
