"""``python -m minispec.exercises``: what it prints, writes and refuses."""

import runpy
from pathlib import Path

import pytest

from minispec.exercises.__main__ import main

SOLUTIONS = Path(__file__).parent.parent.parent / "docs" / "solutions"


def test_main_prints_all_exercises(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) >= 26 and "(find the defect)" in lines[1]


def test_main_writes_a_stub_and_grades_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "my_03.py"
    assert main(["start", "03", str(file)]) == 0
    assert main(["start", "03", str(file)]) == 2  # never over a student's work
    assert "is there already" in capsys.readouterr().err
    assert main(["check", "3", str(file)]) == 1
    assert "not written yet" in capsys.readouterr().out
    file.write_text((SOLUTIONS / "03.py").read_text("utf-8"), encoding="utf-8")
    assert main(["check", "03", str(file)]) == 0
    assert capsys.readouterr().out.endswith("2 of 2 right\n")


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("def f(:\n", "line 1: invalid syntax"),
        ("x = 1\n1 / 0\n", "ZeroDivisionError in <module>, line 2"),
        ("raise SystemExit(3)\n", "SystemExit"),
        ("import nowhere_to_be_found\n", "No module named"),
    ],
)
def test_main_refuses_a_file_that_does_not_run(
    source: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "answer.py"
    file.write_text(source, encoding="utf-8")
    assert main(["check", "03", str(file)]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


@pytest.mark.parametrize("chapter", ["0", "14", "x", "-1", "٣", ""])
def test_main_refuses_an_unknown_chapter(chapter: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--", chapter, "answer.py"]) == 2
    assert "choose from 01 to 13" in capsys.readouterr().err


def test_main_names_what_a_file_lacks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "answer.py"
    assert main(["check", "03", str(file)]) == 2
    assert "is not a file" in capsys.readouterr().err
    file.write_text("def choose(probs):\n    return 0\n", encoding="utf-8")
    assert main(["check", "03", str(file)]) == 1
    shown = capsys.readouterr().out
    assert "does not define residual" in shown
    assert "TypeError: choose() takes 1 positional argument but 2 were given" in shown


def test_exercises_page_shows_every_exercise() -> None:
    page = runpy.run_path(str(SOLUTIONS.parent / "exercises.py"))
    text = page["PAGE"].read_text("utf-8")
    assert page["fill_in"](text) == text, "run `python docs/exercises.py`"
    assert text.count("| find the defect |") == 13
