"""All exercises, by chapter, and the stubs that a student fills in."""

import runpy
from importlib import import_module, resources
from pathlib import Path
from typing import Any

from minispec.errors import ArgumentError, FileError
from minispec.exercises.grading import Exercise, describe_error

CHAPTERS = tuple(range(1, 14))


def list_exercises(chapter: int) -> tuple[Exercise, ...]:
    """The exercises of a chapter, in the order of its stub."""
    module = import_module(f"minispec.exercises.chapter_{chapter:02}")
    exercises: tuple[Exercise, ...] = module.EXERCISES
    return exercises


def parse_chapter(text: str) -> int:
    """The number of a chapter. Raises ArgumentError."""
    if not text.isascii() or not text.isdigit() or int(text) not in CHAPTERS:
        raise ArgumentError(f"chapter {text!r} is not known: choose from 01 to {CHAPTERS[-1]}")
    return int(text)


def read_stub(chapter: int) -> str:
    """The stub of a chapter: a file of Python to be completed."""
    path = resources.files("minispec").joinpath(f"data/exercises/{chapter:02}.txt")
    return path.read_text("utf-8")


def load_answers(path: Path) -> dict[str, Any]:
    """What a student's file defines. Raises FileError for a file that is missing or cannot be
    run."""
    if not path.is_file():
        raise FileError(f"{path} is not a file: write a stub with `start NN {path}` first")
    try:
        return runpy.run_path(str(path))
    except SyntaxError as error:
        raise FileError(f"{path}, line {error.lineno}: {error.msg}") from None
    except (Exception, SystemExit) as error:  # the file is the student's: it may raise anything
        raise FileError(f"{path}: {describe_error(error)}") from None
