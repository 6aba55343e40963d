"""The blocks of Python in README and the book run and print what the page says.

Those of a page run in their order in one namespace. A ``text`` block right after one is what that
block prints, to the letter; a block without one prints nothing.
"""

import ast
import contextlib
import io
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from helpers.pages import PAGES, README, Block, find_blocks, name_of
from minispec.errors import FetchError

# Their blocks walk the whole grid of the certificate.
SLOW = {"README.md", "docs/exactness.md"}


def run(page: str, text: str) -> None:
    """Runs a page's Python blocks; what they print must stand in a block right below each."""
    found = find_blocks(text)
    names: dict[str, object] = {"__name__": "__main__"}
    for number, block in enumerate(found):
        if block.language != "python":
            continue
        printed = io.StringIO()
        code = compile("\n" * (block.line - 1) + block.text, page, "exec")
        with contextlib.redirect_stdout(printed):
            exec(code, names)
        output = find_output(found, number)
        assert printed.getvalue().strip() == output.text.strip(), f"{page}:{block.line}"


def find_output(found: list[Block], number: int) -> Block:
    """What a page says that a block prints; an empty block if it says nothing."""
    following = found[number + 1] if number + 1 < len(found) else None
    return following if following and following.language == "output" else Block("output", 0, "")


def list_pages_with_code() -> list[Path]:
    return [
        page
        for page in (README, *PAGES)
        if any(block.language == "python" for block in find_blocks(page.read_text("utf-8")))
    ]


def list_pages() -> Iterator[object]:
    for page in list_pages_with_code():
        marks = [pytest.mark.slow] if name_of(page) in SLOW else []
        yield pytest.param(page, id=name_of(page), marks=marks)


@pytest.mark.parametrize("page", list(list_pages()))
def test_blocks_of_a_page_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # nothing that an example writes is left in the checkout
    with torch.random.fork_rng():
        try:
            run(name_of(page), page.read_text("utf-8"))
        except FetchError as error:
            pytest.skip(f"needs the real model: {error}")


def test_run_refuses_a_block_that_prints_something_else() -> None:
    page = "```python\nprint(1 + 1)\n```\n\n```text\n{}\n```\n"
    run("page", page.format(2))
    with pytest.raises(AssertionError):
        run("page", page.format(3))
    with pytest.raises(AssertionError):
        run("page", "```python\nprint(1 + 1)\n```\n")
    with pytest.raises(ZeroDivisionError):
        run("page", "```python\n1 / 0\n```\n")


def calls_print(source: str) -> bool:
    """Whether a block prints when it is run: calls inside functions and classes do not count."""
    nodes: list[ast.AST] = [ast.parse(source)]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.Name) and node.id == "print":
            return True
        if not isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Lambda):
            nodes += ast.iter_child_nodes(node)
    return False


@pytest.mark.parametrize("page", list_pages_with_code(), ids=name_of)
def test_blocks_that_print_have_their_output_below(page: Path) -> None:
    """Without running them, so that pages whose blocks are slow count too."""
    found = find_blocks(page.read_text("utf-8"))
    for number, block in enumerate(found):
        if block.language == "python" and calls_print(block.text):
            assert find_output(found, number).text, f"{name_of(page)}:{block.line}"
    orphans = [block.line for block in found if block.language == "text"]
    assert orphans == [], "a text block that does not follow a Python block is not tested"


def test_calls_print_sees_what_runs() -> None:
    assert calls_print("for i in range(2):\n    print(i)\n")
    assert not calls_print("def show(x):\n    print(x)\n")
