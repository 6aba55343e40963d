"""What a killed process left is removed by the next writer of the same file, and nothing else."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from minispec.io.files import write_aside, write_text
from minispec.io.unfinished import remove_unfinished

pytest.importorskip("fcntl")
WRITER = """
import sys, time
from pathlib import Path
from minispec.io.unfinished import temporary_folder
with temporary_folder(Path(sys.argv[1])) as folder:
    (folder / "x").write_text("half")
    print("begun", flush=True)
    time.sleep(60)
"""


def begin_to_write(path: Path) -> subprocess.Popen:
    """Another process that is in the middle of writing a file."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "begun\n"
    return process


def test_write_aside_removes_what_a_killed_process_left_and_keeps_a_living_ones(
    tmp_path: Path,
) -> None:
    path, others = tmp_path / "x.json", (".x.json.backup", ".x.json.abcdefg1", ".y.json.abcdefgh")
    for name in others:  # two of other names, and a file
        (tmp_path / name).mkdir() if name != ".x.json.abcdefg1" else (tmp_path / name).touch()
    with begin_to_write(path) as killed, begin_to_write(path) as living:
        killed.kill()
        killed.wait()
        assert len([*tmp_path.iterdir()]) == 5
        write_text(path, "whole")
        left = {entry.name for entry in tmp_path.iterdir()} - {path.name, *others}
        assert len(left) == 1  # the living one's
        assert [file.read_text() for file in (tmp_path / left.pop()).iterdir()] == ["half"]
        living.kill()
    remove_unfinished(path)
    assert {entry.name for entry in tmp_path.iterdir()} == {path.name, *others}
    assert path.read_text() == "whole"


def test_write_aside_survives_a_writer_in_the_same_process(tmp_path: Path) -> None:
    path = tmp_path / "x"
    with write_aside(path) as first:
        first.write_text("first")
        write_text(path, "second")
        assert path.read_text() == "second"
    assert path.read_text() == "first"
    assert [entry.name for entry in tmp_path.iterdir()] == ["x"]


def test_write_aside_keeps_one_whole_file_of_many_writers(tmp_path: Path) -> None:
    path = tmp_path / "x"

    def write(letter: str) -> None:
        for _ in range(20):
            write_text(path, letter * 100_000)

    with ThreadPoolExecutor() as pool:
        writers = [pool.submit(write, letter) for letter in "abcd"]
        while not all(writer.done() for writer in writers):
            assert not path.exists() or {*path.read_text()} <= {*"abcd"}
            assert not path.exists() or path.stat().st_size == 100_000
        for writer in writers:
            writer.result()
    assert [entry.name for entry in tmp_path.iterdir()] == ["x"]
