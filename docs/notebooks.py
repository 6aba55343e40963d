"""Writes ``docs/notebooks``: one a chapter, and the walkthrough, for Jupyter or Colab.

    python docs/notebooks.py

A notebook has the chapter's text and its blocks of Python, on the pocket pair in place of SmolLM2,
so that nothing is downloaded but the package. What a block prints is left out, since it prints it.
"""

import base64
import re
from pathlib import Path

import jupytext
import nbformat

DOCS = Path(__file__).parent
FOLDER = DOCS / "notebooks"
CHAPTERS = sorted((DOCS / "book").glob("*.md"))
_FIRST = """\
*Made from `docs/{source}` by `docs/notebooks.py`.*{models} The next cell installs the package
where it is missing, as on Colab."""
_MODELS = (
    " *Where the page uses SmolLM2, it runs on the pocket pair, two small models that come with "
    "the package: its figures differ from those of the page.*"
)
_INSTALL = """\
import importlib.util
import subprocess
import sys

WHEEL = "minispec-decoding"  # or the path of a wheel that `python -m build` made
if importlib.util.find_spec("minispec") is None:
    subprocess.run([sys.executable, "-m", "pip", "install", WHEEL], check=True)"""
_OUTPUT = re.compile(r"(^```python\n.*?^```\n)\n```text\n.*?^```$", re.MULTILINE | re.DOTALL)
_FORMULA = re.compile(r"^```math\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_FIGURE = re.compile(r"!\[([^\]]+)\]\(\.\./figures/([\w-]+)\.svg\)")
_FETCH = re.compile(r"^(from .* import known_models|known_models\.fetch\(.*)\n+", re.MULTILINE)


def convert_page(text: str) -> str:
    """A chapter's Markdown as that of a notebook."""
    text = _OUTPUT.sub(r"\1", text)
    text = _FORMULA.sub(lambda match: f"$$\n{match[1]}$$", text)
    text = text.replace('<details markdown="1"><summary>Answers</summary>', "### Answers")
    text = text.replace("</details>", "")
    return re.sub(r"\]\((\d\d-[\w-]+\.md)", r"](../book/\1", text)


def convert_code(code: str) -> str:
    """A block of Python, on the pocket pair."""
    return _FETCH.sub("", code).replace('"smollm2"', '"pocket"')


def attach_figures(cell: nbformat.NotebookNode) -> None:
    """Put the figures of a cell into it, so that the notebook can stand alone."""
    names = [name for _, name in _FIGURE.findall(cell.source)]
    if names:
        cell.attachments = {
            f"{name}.svg": {"image/svg+xml": base64.b64encode(
                (DOCS / "figures" / f"{name}.svg").read_bytes()).decode()}
            for name in names
        }  # fmt: skip
        cell.source = _FIGURE.sub(r"![\1](attachment:\2.svg)", cell.source)


def make_notebook(source: Path) -> str:
    """The notebook of a chapter, or of the walkthrough, as JSON."""
    text = source.read_text("utf-8")
    page = source.suffix == ".md"
    notebook = jupytext.reads(
        convert_page(text) if page else text, fmt="md" if page else "py:percent"
    )
    models = _MODELS if '"smollm2"' in text else ""
    first = _FIRST.format(source=source.relative_to(DOCS).as_posix(), models=models)
    cells = [nbformat.v4.new_markdown_cell(first), nbformat.v4.new_code_cell(_INSTALL)]
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.source = convert_code(cell.source)
        else:
            attach_figures(cell)
        cell.metadata.clear()
        cells += [cell] if cell.source.strip() else []
    for number, cell in enumerate(cells):
        cell.id = f"cell-{number}"
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    made = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})
    nbformat.validate(made)
    return str(nbformat.writes(made)) + "\n"


def make_all() -> dict[str, str]:
    """All notebooks, by file name."""
    sources = [*CHAPTERS, DOCS / "walkthrough.py"]
    return {f"{source.stem}.ipynb": make_notebook(source) for source in sources}


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, text in make_all().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
