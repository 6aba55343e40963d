"""The generators of mutants: what they change, and what they leave alone."""

import ast
import importlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from helpers.exactness.equivalents import REASONS, find_reason
from helpers.exactness.mutant_forks import NotExchangeableError, exchange_functions
from helpers.exactness.mutant_selection import ROOT, SELECTION, select_tests, source_path
from helpers.exactness.mutant_table import describe_score, format_table
from helpers.exactness.mutations import Mutant, generate_mutants
from helpers.exactness.structures import generate_structural_mutants

GENERATORS = [generate_mutants, generate_structural_mutants]

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


STRUCTURE = '''
class Rows:
    def shape(self, rows: list[int], scale: int, limit: int = 3) -> list[int]:
        """Words."""
        if limit > 2:
            self.last = rows
        self.count += 1
        out = [clip(row * scale, limit) for row in rows[:-1]]
        out[0] = rows[limit]
        self.begin(rows)
        self.end(rows)
        if not out:
            raise ValueError("no rows")
        for row in rows:
            self.note(row, first=True)
        out = self.sort(out)
        return out
'''


def test_generate_structural_mutants_makes_each_kind_of_change() -> None:
    mutants = list(generate_structural_mutants("x", STRUCTURE))
    changes = {(mutant.kind, mutant.change) for mutant in mutants}
    for expected in [
        ("step left out", "self.note(row, first=True) -> pass"),
        ("step left out", "clip(row * scale, limit) -> row * scale"),
        ("step left out", "row * scale -> row"),
        ("step left out", "self.count += 1 -> pass"),
        ("branch", "if limit > 2: if limit > 2: -> if True:"),
        ("branch", "if limit > 2: if limit > 2: -> if False:"),
        ("swapped arguments", "clip(row * scale, limit) -> clip(limit, row * scale)"),
        ("dropped argument", "self.note(row, first=True) -> self.note(row)"),
        ("loop", "rows[:-1] -> rows[1:-1]"),
        ("loop", "rows[:-1] -> rows[:-1 - 1]"),
        ("loop", "for for row in rows: -> for row in list(rows)[1:]:"),
        ("stale copy", "self.last = rows -> pass"),
        ("stale copy", "in shape: out = self.sort(out) -> pass"),
        ("earlier variable", "in shape: return out -> return rows"),
    ]:
        assert expected in changes
    kinds = {kind for kind, _ in changes}
    assert kinds >= {"row unlike others", "order"}
    assert any("keeps its first result" in change for _, change in changes)
    # Refusals, docstrings and annotations stay.
    for mutant in mutants:
        assert "ValueError('no rows')" in mutant.source and '"""Words."""' in mutant.source
        assert "rows: list[int], scale: int" in mutant.source


@pytest.mark.parametrize("generate", GENERATORS, ids=["operator", "structure"])
@pytest.mark.parametrize("file", [*SELECTION][::5])
def test_generate_mutants_of_a_selected_file(
    file: str, generate: Callable[[str, str], Iterator[Mutant]]
) -> None:
    """Each mutant differs from the original and is valid Python."""
    source = source_path(file).read_text("utf-8")
    original = ast.unparse(ast.parse(source))
    mutated = [mutant.source for mutant in generate(file, source)]
    assert mutated and original not in mutated and len(set(mutated)) == len(mutated)
    for text in mutated[::7]:
        compile(text, file, "exec")


def test_selected_test_files_exist() -> None:
    assert all((ROOT / test).is_file() for file in SELECTION for test in select_tests(file))


TOY_MODULE = """
import functools

LIMIT = 2


def double(x, times=2):
    return x * times


class Box:
    size = 3

    @property
    def area(self):
        return self.size ** 2

    @staticmethod
    def unit():
        return 1

    @functools.wraps(double)
    def wrapped(self):
        return 5
"""


def test_exchange_functions_changes_functions_that_are_already_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "toy_boxes.py").write_text(TOY_MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("toy_boxes")
    double, box = module.double, module.Box()  # as other modules hold them

    def exchange(old: str, new: str) -> None:
        assert old in TOY_MODULE
        exchange_functions(Mutant("toy_boxes", 1, "", TOY_MODULE.replace(old, new)))

    exchange("return x * times", "return x + times")
    assert double(5) == 7
    exchange("self.size ** 2", "self.size")
    assert double(5) == 10 and box.area == 3
    exchange("return 1", "return 2")
    assert box.unit() == 2
    for old, new in [("LIMIT = 2", "LIMIT = 3"), ("times=2", "times=3"), ("size = 3", "size = 4")]:
        with pytest.raises(NotExchangeableError, match="outside functions"):
            exchange(old, new)


def test_reasons_of_equivalent_mutants_belong_to_mutants() -> None:
    """A reason whose mutant is gone is stale."""
    mutants = {}
    for file, change in REASONS:
        if file not in mutants:
            source = source_path(file).read_text("utf-8")
            mutants[file] = [m for generate in GENERATORS for m in generate(file, source)]
        found = [mutant for mutant in mutants[file] if change in f"{mutant.change}\n"]
        assert found and all(map(find_reason, found)), (file, change)


def test_format_table_counts_both_generators_and_names_survivors() -> None:
    rows = [
        {"file": "a.py", "line": 3, "kind": kind, "change": "x -> y", "verdict": verdict,
         "killer": "tests/core/test_x.py::test_y" if verdict == "killed" else None}
        for kind, verdict in [
            ("operator", "killed"), ("loop", "killed"), ("loop", "survived"), ("loop", "equivalent")
        ]
    ]  # fmt: skip
    table = format_table(rows)
    assert "| a.py | 1 / 0 / 0 | 1 / 1 / 1 |" in table
    assert "| loop | 1 / 1 / 1 | core/test_x.py 1 |" in table
    assert "- a.py:3 loop: x -> y" in table and "1 survived" in table
    assert describe_score({"killed": 1, "survived": 1, "equivalent": 1})[0] == 0.5
