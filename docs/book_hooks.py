"""What `make docs` adds to mkdocs: formulas become MathML, and figures become part of the page.

A formula is a ``math`` block with LaTeX, which GitHub shows as one too. A figure that stands in the
page, not beside it, follows the page's scheme, light or dark.
"""

import re
from html import escape
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert

FIGURES = Path(__file__).parent / "figures"
_FORMULA = re.compile(r"^```math\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_FIGURE = re.compile(r'<img alt="([^"]+)" src="[./]*figures/([\w-]+)\.svg" ?/?>')


def convert_formulas(text: str) -> str:
    """A page of Markdown with its ``math`` blocks as MathML."""

    def write(match: re.Match[str]) -> str:
        formula = convert(" ".join(match[1].split()), display="block")
        return f'<div class="formula" tabindex="0">{formula}</div>'

    return _FORMULA.sub(write, text)


def embed_figures(html: str) -> str:
    """A page of HTML with its figures in place of the links to them."""

    def write(match: re.Match[str]) -> str:
        drawing = (FIGURES / f"{match[2]}.svg").read_text("utf-8")
        caption = escape(match[1].replace("&amp;", "&"), quote=False)
        return f"<figure>{drawing}<figcaption>{caption}</figcaption></figure>"

    return _FIGURE.sub(write, html)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by mkdocs for each page, before it is converted."""
    return convert_formulas(markdown)


def on_page_content(html: str, **_: Any) -> str:
    """Called by mkdocs for each page, after it was converted."""
    return embed_figures(html)
