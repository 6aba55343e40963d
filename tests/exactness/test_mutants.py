"""The generator of mutants: what it changes, and what it leaves alone."""

import ast

import pytest

from helpers.exactness.mutant_selection import ROOT, SELECTION, select_tests, source_path
from helpers.exactness.mutations import generate_mutants

SOURCE = '''
"""Words: 1 + 1."""
def f(x: int | None = 1, *, y: list[int]) -> int:
    """More words."""
    if x < 2 and not y:
        y.append(x)
        raise ValueError(f"no {x + 1}")
    return y[1:] + [min(x, True)]
'''


def test_generate_mutants_makes_every_small_change_once() -> None:
    changes = {mutant.change for mutant in generate_mutants("x", SOURCE)}
    expected = {
        "1 -> 2", "x < 2 -> x <= 2", "x < 2 -> x >= 2", "2 -> 3", "not y -> not not y",
        "x < 2 and (not y) -> x < 2 or not y", "y.append(x) -> nothing", "1: -> :",
        "y[1:] + [min(x, True)] -> y[1:] - [min(x, True)]", "min(x, True) -> max(x, True)",
        "True -> False", "return y[1:] + [min(x, True)] -> return None",
    }  # fmt: skip
    assert changes == expected


@pytest.mark.parametrize("file", SELECTION)
def test_generate_mutants_of_a_selected_file(file: str) -> None:
    """Each mutant differs from the original and is valid Python."""
    source = source_path(file).read_text("utf-8")
    original = ast.unparse(ast.parse(source))
    mutated = [mutant.source for mutant in generate_mutants(file, source)]
    assert mutated and original not in mutated and len(set(mutated)) == len(mutated)
    for text in mutated:
        compile(text, file, "exec")


def test_selected_test_files_exist() -> None:
    assert all((ROOT / test).is_file() for file in SELECTION for test in select_tests(file))
