"""Claims of the pages that no block prints, against the data that they were made from."""

import json
import re
from typing import Any

import pytest

from helpers.pages import DOCS, README, ROOT

BOOK = DOCS / "book"


def read(*parts: str) -> Any:
    return json.loads(ROOT.joinpath(*parts).read_text("utf-8"))


def read_plain(page: str) -> str:
    """The text of a chapter, with single spaces."""
    return " ".join((BOOK / page).read_text("utf-8").split())


def test_chapter_5_names_the_stages_of_the_shipped_draft() -> None:
    log = read("minispec", "artifacts", "smollm2", "draft.json")["log"]
    last = {row["stage"]: row for row in log}
    assert sorted(last) == [1, 2, 3, 4]
    page = read_plain("05-draft.md")
    assert "trained in four stages" in page
    assert f"held-out answers is {last[4]['tau']:.2f}." in page
    assert f"{last[4]['tokens'] / 1e6:.0f} million tokens seen" in page
    assert "four and a half hours" in page and round(last[4]["seconds"] / 1800) == 9
    assert f"ends at a tau of about {last[1]['tau']:.1f}" in page


def test_chapter_5_quotes_the_updates_of_measurements() -> None:
    """More updates on as much text helped more than more text at as many updates."""
    page, measured = read_plain("05-draft.md"), (DOCS / "measurements.md").read_text("utf-8")
    [(text, times, tau), (more_text, fewer_times, other_tau)] = re.findall(
        r"([\d,]{7,9})(?: tokens of text)? seen ([\d.]+) times reached ([\d.]+\d)", page
    )
    for figure in (text, times, tau, more_text, fewer_times, other_tau):
        assert figure in measured, figure
    assert "tau rises with the number of updates more than with the amount of text" in page


def test_chapter_6_says_where_the_points_of_the_budget_figure_lie() -> None:
    points = read("docs", "figures", "budget.json")["points"]
    full = next(point["tau"] for point in points if point["curve"] == "full")
    assert len(points) > 10 and all(point["tau"] <= full for point in points)
    assert "No point of either lies above the full vocabulary." in read_plain("06-frspec.md")


@pytest.mark.parametrize(
    "page", [README, BOOK / "01-memory.md", DOCS / "measurements.md"], ids=lambda path: path.name
)
def test_pages_say_which_weights_of_smollm2_are_measured(page: Any) -> None:
    text = page.read_text("utf-8")
    assert "Q4_1" in text and "dequantised" in text


def test_pages_say_what_of_the_draft_is_not_eagle_3s() -> None:
    page = read_plain("05-draft.md")
    assert "EAGLE-3 dropped the loss on predicted features" in page
    assert "draft vocabulary of 32,000 ids" in page
    row = next(
        line
        for line in (DOCS / "paper.md").read_text("utf-8").splitlines()
        if line.startswith("| EAGLE-3 |")
    )
    assert "the target's head" in row and "which EAGLE-3 dropped" in row
