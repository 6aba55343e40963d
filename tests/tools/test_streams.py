"""Streams of prompts by the names of domains and files."""

from pathlib import Path

import pytest

from minispec.errors import ArgumentError, FileError
from minispec.tools.data import corpus, streams
from minispec.tools.data.streams import Stream

STREAMS = {"law": ["A party may appeal.", "This licence ends."], "code": ["import this"]}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("prompts")
    for name, prompts in STREAMS.items():
        (folder / f"{name}.txt").write_text("\n\n".join(prompts) + "\n")
    return [str(folder / f"{name}.txt") for name in STREAMS]


def test_load_streams_of_files_and_domains(files: list[str], tmp_path: Path) -> None:
    assert streams.load_streams(files) == [Stream(n, tuple(p)) for n, p in STREAMS.items()]
    (general,) = streams.load_streams(["general"])
    assert general.name == "general" and len(general.prompts) >= 24
    assert streams.load_streams(["general"], 3)[0].prompts == general.prompts[:3]
    bare = tmp_path / "bare"
    bare.write_bytes("\ufeffone\r\n\r\n  two \r\n".encode())
    assert streams.load_streams([str(bare)]) == [Stream("bare", ("one", "two"))]
    assert [s.name for s in streams.load_streams(corpus.DOMAINS)] == list(corpus.DOMAINS)


@pytest.mark.parametrize(
    ("names", "kind", "reason"),
    [
        (["nosuch"], ArgumentError, "neither a file nor one of general, code, law, medicine"),
        (["nosuch.txt"], FileError, "No such file"),
        (["law", "law"], ArgumentError, "must differ"),
    ],
)
def test_load_streams_refuses_bad_names(names: list[str], kind: type, reason: str) -> None:
    with pytest.raises(kind, match=reason):
        streams.load_streams(names)
