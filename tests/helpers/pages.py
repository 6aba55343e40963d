"""The pages of the documentation and their fenced blocks."""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
DOCS = ROOT / "docs"
README = ROOT / "README.md"
PAGES = sorted(DOCS.rglob("*.md"))

BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page: its language, the line of its first line, and its text."""

    language: str
    line: int
    text: str


def find_blocks(text: str) -> list[Block]:
    """All fenced blocks; a ``text`` block that follows a Python block at once is an "output"."""
    found: list[Block] = []
    end = 0
    for match in BLOCK.finditer(text):
        language = match[1]
        follows = found and found[-1].language == "python" and not text[end : match.start()].strip()
        if language == "text" and follows:
            language = "output"
        line = text.count("\n", 0, match.start(2)) + 1
        found.append(Block(language, line, match[2]))
        end = match.end()
    return found


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()
