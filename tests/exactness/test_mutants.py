"""The maker of mutants: what it changes, and what it leaves alone."""

import ast

import pytest

from changes import mutants
from mutants import ROOT, SELECTION

SOURCE = '''
"""Words: 1 + 1."""
def f(x: int | None = 1, *, y: list[int]) -> int:
    """More words."""
    if x < 2 and not y:
        y.append(x)
        raise ValueError(f"no {x + 1}")
    return y[1:] + [min(x, True)]
'''


def test_every_small_change_is_made_once() -> None:
    found = {mutant.change for mutant in mutants("x", SOURCE)}
    expected = {
        "1 -> 2", "x < 2 -> x <= 2", "x < 2 -> x >= 2", "2 -> 3", "not y -> not not y",
        "x < 2 and (not y) -> x < 2 or not y", "y.append(x) -> nothing", "1: -> :",
        "y[1:] + [min(x, True)] -> y[1:] - [min(x, True)]", "min(x, True) -> max(x, True)",
        "True -> False", "return y[1:] + [min(x, True)] -> return None",
    }  # fmt: skip
    assert found == expected


@pytest.mark.parametrize("file", SELECTION)
def test_mutants_of_our_files(file: str) -> None:
    """Each differs from the right file and is still Python; messages and types are as before."""
    source = (ROOT / "minispec" / f"{file}.py").read_text("utf-8")
    right = ast.unparse(ast.parse(source))
    made = [mutant.source for mutant in mutants(file, source)]
    assert made and right not in made and len(set(made)) == len(made)
    for text in made:
        compile(text, file, "exec")


def test_the_tests_that_a_file_is_tried_by_are_there() -> None:
    assert all((ROOT / "tests" / test).is_file() for tests in SELECTION.values() for test in tests)
