"""The notebooks are those of the chapters, and run from top to bottom.

What runs a chapter's blocks, runs its notebook: their code is the same, but where the notebook uses
the pocket pair in place of SmolLM2. These are run here.
"""

import contextlib
import io
import json
import runpy
from pathlib import Path
from typing import Any

import pytest

from helpers.pages import DOCS, find_blocks

pytest.importorskip("jupytext")
notebooks = runpy.run_path(str(DOCS / "notebooks.py"))
CHAPTERS: list[Path] = notebooks["CHAPTERS"]
OTHER_MODEL = [page for page in CHAPTERS if '"smollm2"' in page.read_text("utf-8")]


def read_code(name: str) -> list[str]:
    """The cells of code of a notebook."""
    notebook = json.loads((DOCS / "notebooks" / name).read_text("utf-8"))
    return ["".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "code"]


def test_notebooks_are_current() -> None:
    made = notebooks["make_all"]()
    written = {p.name: p.read_text("utf-8") for p in (DOCS / "notebooks").glob("*.ipynb")}
    assert written.keys() == made.keys() and len(made) == 14
    stale = [name for name, text in made.items() if json.loads(text) != json.loads(written[name])]
    assert stale == [], "run `python docs/notebooks.py`"


@pytest.mark.parametrize("page", CHAPTERS, ids=lambda page: page.stem)
def test_notebook_has_the_code_of_its_chapter(page: Path) -> None:
    """``test_blocks.py`` runs it."""
    blocks = [b.text for b in find_blocks(page.read_text("utf-8")) if b.language == "python"]
    install, *cells = read_code(f"{page.stem}.ipynb")
    assert "pip" in install and len(cells) == len(blocks) > 0
    same = [cell.strip() == block.strip() for cell, block in zip(cells, blocks, strict=True)]
    assert all(same) or page in OTHER_MODEL
    assert not any("fetch(" in cell or "smollm2" in cell for cell in cells)  # nothing is downloaded


def test_walkthrough_notebook_has_its_code() -> None:
    """``test_walkthrough.py`` runs it."""
    source = (DOCS / "walkthrough.py").read_text("utf-8")
    for cell in read_code("walkthrough.ipynb")[1:]:
        assert cell.strip() in source


@pytest.mark.slow
@pytest.mark.parametrize("page", OTHER_MODEL, ids=lambda page: page.stem)
def test_notebook_on_the_pocket_pair_runs(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "__main__"}
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        for number, cell in enumerate(read_code(f"{page.stem}.ipynb")):
            exec(compile(cell, f"cell {number}", "exec"), names)
    assert printed.getvalue()
