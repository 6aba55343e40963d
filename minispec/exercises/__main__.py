"""The program ``python -m minispec.exercises``: lists exercises, writes stubs, grades answers.

    python -m minispec.exercises                   # all exercises
    python -m minispec.exercises start 02 FILE     # writes the stub of chapter 2
    python -m minispec.exercises check 02 FILE     # grades it

Exit codes: 0 if all answers are right, 1 if one is not, 2 for bad input.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from minispec.errors import FileError, MinispecError
from minispec.exercises.catalogue import (
    CHAPTERS,
    list_exercises,
    load_answers,
    parse_chapter,
    read_stub,
)
from minispec.exercises.grading import grade
from minispec.io.files import write_text


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m minispec.exercises",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command")
    for name, purpose in (
        ("start", "write the stub of a chapter"),
        ("check", "grade the answers of a chapter"),
    ):
        command = commands.add_parser(name, help=purpose, description=purpose)
        command.add_argument("chapter", metavar="NN", help="the chapter, 01 to 13")
        command.add_argument("file", metavar="FILE", type=Path, help="a file, such as my_02.py")
    options = parser.parse_args(arguments)
    try:
        if options.command == "start":
            return start(parse_chapter(options.chapter), options.file)
        if options.command == "check":
            return check(parse_chapter(options.chapter), options.file)
    except MinispecError as error:
        print(f"exercises: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("exercises: interrupted", file=sys.stderr)
        return 130
    for chapter in CHAPTERS:
        for number, exercise in enumerate(list_exercises(chapter), 1):
            kind = " (find the defect)" if exercise.defect else ""
            print(f"{chapter:2}.{number}  {exercise.name:22}{exercise.task}{kind}")
    return 0


def start(chapter: int, path: Path) -> int:
    """Writes the stub of a chapter. Raises FileError if the file is there already."""
    if path.exists():
        raise FileError(f"{path} is there already: choose another name")
    write_text(path, read_stub(chapter))
    print(f"wrote {path}: complete it, then run check {chapter:02} {path}")
    return 0


def check(chapter: int, path: Path) -> int:
    """Prints what is right and what is wrong, and why. Raises FileError."""
    answers, right = load_answers(path), 0
    exercises = list_exercises(chapter)
    for number, exercise in enumerate(exercises, 1):
        if exercise.name in answers:
            error = grade(exercise, answers[exercise.name])
        else:
            error = f"{path} does not define {exercise.name}"
        right += error is None
        print(f"{chapter}.{number} {exercise.name}: {'wrong' if error else 'right'}", flush=True)
        for line in (error or "").splitlines():
            print(f"    {line}")
    print(f"{right} of {len(exercises)} right")
    return 0 if right == len(exercises) else 1


if __name__ == "__main__":
    sys.exit(main())
