"""The book can be read: code of 80 columns, figures with text of 9 pixels on a phone, formulas."""

import re
import runpy
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from helpers.pages import DOCS, PAGES, README, find_blocks, name_of

CHAPTERS = sorted((DOCS / "book").glob("*.md"))
FIGURES = sorted((DOCS / "figures").glob("*.svg"))
PHONE = 358  # pixels that a page of the book leaves for a figure where the screen has 390
_IMAGE = re.compile(r"!\[([^\]]*)\]\(([^)]+)\)")


@pytest.mark.parametrize("page", [README, *PAGES], ids=name_of)
def test_code_of_a_page_has_80_columns(page: Path) -> None:
    blocks = [b for b in find_blocks(page.read_text("utf-8")) if b.language == "python"]
    lines = [line for block in blocks for line in block.text.splitlines()]
    assert [line for line in lines if len(line) > 80] == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_pictures_of_a_page_have_alternative_texts(page: Path) -> None:
    assert [path for text, path in _IMAGE.findall(page.read_text("utf-8")) if len(text) < 20] == []


def test_each_chapter_has_a_drawing_and_each_drawing_a_chapter() -> None:
    shown = {chapter: re.findall(r"figures/([\w-]+)\.svg", chapter.read_text("utf-8"))
             for chapter in CHAPTERS}  # fmt: skip
    assert [chapter.name for chapter, names in shown.items() if not names] == []
    assert {name for names in shown.values() for name in names} == {f.stem for f in FIGURES}


@pytest.mark.parametrize("figure", FIGURES, ids=lambda figure: figure.stem)
def test_figure_is_legible_on_a_phone_and_in_the_dark(figure: Path) -> None:
    text = figure.read_text("utf-8")
    root = ET.fromstring(text)
    width = float(root.attrib["viewBox"].split()[2])
    sizes = [float(each.attrib["font-size"]) for each in root.iter() if each.tag.endswith("}text")]
    assert sizes and min(sizes) * PHONE / width >= 9
    names = {each.tag.split("}")[1]: each.text for each in root.iter() if each.text}
    assert names["title"] and len(str(names["desc"])) > 20
    assert "prefers-color-scheme: dark" in text and "md-color-scheme=slate" in text
    # Every colour is one of the style sheet: none stays light in the dark.
    used, known = set(re.findall(r"var\(--([\w-]+)\)", text)), set(re.findall(r"--([\w-]+):", text))
    assert used <= known
    assert not re.search(r'(fill|stroke)="#', text)


def test_drawing_refuses_text_that_does_not_fit() -> None:
    runpy.run_path(str(DOCS / "figures.py"))  # makes ``drawing`` importable
    from drawing.svg import Drawing

    drawing = Drawing("name", 100, "A title", "What it shows.", "data")
    drawing.text(200, 20, "fits")
    with pytest.raises(ValueError, match="does not fit"):
        drawing.text(380, 20, "does not fit there")
    with pytest.raises(ValueError, match="too small"):
        drawing.text(200, 20, "small", size=8)


def test_slides_show_every_figure() -> None:
    slides = runpy.run_path(str(DOCS / "slides.py"))
    assert slides["PAGE"].read_text("utf-8") == slides["make_page"](), "run `python docs/slides.py`"
    assert sorted(figure for figure, *_ in slides["SLIDES"]) == [figure.stem for figure in FIGURES]


def test_hooks_make_formulas_and_figures_part_of_the_page() -> None:
    pytest.importorskip("latex2mathml")
    hooks = runpy.run_path(str(DOCS / "book_hooks.py"))
    page = hooks["on_page_markdown"]("so\n\n```math\n\\frac{a}{b}\n```\n\nthen\n")
    assert "<math" in page and "<mfrac>" in page and "```" not in page
    html = hooks["on_page_content"]('<img alt="A tree &amp; more" src="../figures/tree.svg" />')
    assert "<svg" in html and "<figcaption>A tree &amp; more</figcaption>" in html


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_formulas_of_a_page_convert(page: Path) -> None:
    pytest.importorskip("latex2mathml")
    convert = runpy.run_path(str(DOCS / "book_hooks.py"))["convert_formulas"]
    text = page.read_text("utf-8")
    formulas = text.count("```math\n")
    assert convert(text).count("<math") == formulas
    assert "\\" not in "".join(re.findall(r"<math.*?</math>", convert(text)))  # none left unread
