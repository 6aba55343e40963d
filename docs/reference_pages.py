"""Writes ``docs/api/``: the reference, one page a room, each module in reading order.

python docs/reference_pages.py
"""

import runpy
from pathlib import Path

DOCS = Path(__file__).parent
FOLDER = DOCS / "api"
reading_order = runpy.run_path(str(DOCS / "reading_order.py"))

# Pages by the beginning of their modules' names; the first that fits is taken.
PAGES = {
    "front-door": ("minispec.api", "What `import minispec` offers."),
    "models": ("minispec.models", "The target and the draft."),
    "shortlists": ("minispec.shortlists", "Which ids the draft may propose."),
    "learning": ("minispec.learning", "How a draft learns while it serves."),
    "proofs": ("minispec.certificate", "Proofs by enumeration."),
    "text": ("minispec.text", "Text and token ids."),
    "files": ("minispec.io", "What is read from files and written to them."),
    "tools-models": ("minispec.tools.models", "Getting models, and choosing a backend."),
    "tools-data": (
        "minispec.tools.data",
        "Text, prompts, rankings, and text that a target writes.",
    ),
    "tools-training": ("minispec.tools.training", "Training drafts, routers and the pocket pair."),
    "tools-evaluation": ("minispec.tools.evaluation", "Methods by name, measured side by side."),
    "tools-reporting": ("minispec.tools.reporting", "Tables, pictures and pages."),
    "exercises": ("minispec.exercises", "Exercises of the book that grade themselves."),
    "command-line": ("minispec.tools.cli", "The command `minispec`."),
    "transformers": ("minispec.tools.custom_generate", "In `generate` of transformers."),
    "story": ("minispec", "A round of speculative decoding."),
}
_INDEX = """\
# Reference

Every public name of `minispec`, from its docstring, in [reading order](../reading-order.md).
Shapes stand in parentheses: `T` positions, `V` vocabulary, `K` shortlist, `D` hidden size, `B`
batch. Ids are `int64`. A method without a docstring does what its protocol in
[`minispec.types`](story.md) says.

| page | |
| --- | --- |
"""


def title(page: str) -> str:
    """A page's heading."""
    name = page.removeprefix("tools-").replace("-", " ").capitalize()
    return f"Tools: {name.lower()}" if page.startswith("tools-") else name


def find_page(module: str) -> str:
    """The page that a module stands on."""
    if module in ("minispec.__main__", "minispec.tools.extras"):
        return "command-line"
    return next(page for page, (start, _) in PAGES.items() if is_in(module, start))


def is_in(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def write_pages() -> dict[str, str]:
    """The text of each page, by file name."""
    modules: dict[str, list[str]] = {page: [] for page in PAGES}
    for names in reading_order["read_rooms"]().values():
        for name in names:
            path = reading_order["path_of"](name)
            if is_in(name, "minispec") and path.name != "__init__.py":
                modules[find_page(name)].append(name)
    pages = {}
    for page, (_, purpose) in PAGES.items():
        references = "".join(f"\n::: {name}\n" for name in modules[page])
        pages[f"{page}.md"] = f"# {title(page)}\n\n{purpose}\n{references}"
    order = ["story", *(page for page in PAGES if page != "story")]
    rows = "".join(f"| [{title(page)}]({page}.md) | {PAGES[page][1]} |\n" for page in order)
    return pages | {"index.md": _INDEX + rows}


if __name__ == "__main__":
    for old in FOLDER.glob("*.md"):
        old.unlink()
    for name, text in write_pages().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
