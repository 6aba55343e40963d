"""Writes the table of ``docs/exercises.md``: every exercise that grades itself.

python docs/exercises.py
"""

import re
from pathlib import Path

from minispec.exercises.catalogue import CHAPTERS, list_exercises

PAGE = Path(__file__).parent / "exercises.md"
_MARKS = re.compile(r"(<!-- exercises -->\n).*?(<!-- end -->)", re.DOTALL)


def format_rows() -> str:
    """The table: a row for each exercise."""
    text = "| | write or mend | what it does | |\n| --- | --- | --- | --- |\n"
    for chapter in CHAPTERS:
        for number, exercise in enumerate(list_exercises(chapter), 1):
            kind = "find the defect" if exercise.defect else ""
            text += f"| {chapter}.{number} | `{exercise.name}` | {exercise.task} | {kind} |\n"
    return text


def fill_in(text: str) -> str:
    """The page with its table made anew."""
    return _MARKS.sub(lambda match: match[1] + format_rows() + match[2], text)


if __name__ == "__main__":
    PAGE.write_text(fill_in(PAGE.read_text("utf-8")), encoding="utf-8")
