"""The page of a report, opened in a headless browser: its contents, no errors, no requests."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page

from minispec.tools.reporting import page, report

Show = Callable[[Path], Any]
IDLE = "window.Bokeh && Bokeh.documents.every(d => d.is_idle)"


def make_row(method: str, stream: str, gamma: int | None, **changes: Any) -> dict[str, Any]:
    ratio = {"value": 1.25, "low": 1.1, "high": 1.4}
    windows = [
        {"start": start, "tau": 1.5, "ratio_to_full": {"value": 0.97, "low": 0.9, "high": 1.0}}
        for start in (-40, -32, 0, 8)
    ]
    curve = {"switches": 7, "window": 32, "windows": windows, "regained_after": 0}
    return {
        "method": method, "stream": stream, "gamma": gamma, "best": False, "budget": 1536,
        "tau": 1.875, "coverage": 0.9, "tokens": 100, "tokens_per_second": 12.5,
        "ratio_to_autoregressive": ratio, "ratio_to_frspec": None, "peak_rss_mb": 900.0,
        "latency_ms": {"p50": 80.0, "p95": 100.0}, "seconds": {"target": 5.0, "draft_head": 1.0},
        "origin": {"core": 0.5, "semantic": 0.5} if method == "evospec@1536" else None,
        "lossless": {"checked": 9, "identical": 8, "near_ties": 1, "violations": 0},
    } | ({"switch_curve": curve} if stream == "switch" else {}) | changes  # fmt: skip


def make_point(curve: str, altered: str | None, budget: int, stream: str) -> dict[str, Any]:
    figures = dict.fromkeys(("tau", "tau_to_full", "coverage", "overlap", "overlap_to_full",
                             "ceiling", "gate"), 0.75)  # fmt: skip
    return {"curve": curve, "altered": altered, "budget": budget, "stream": stream} | figures


STREAMS = ("law", "switch", "all")
METHODS = (("autoregressive", None), ("full", 4), ("evospec@1536", 4))
REPORT: dict[str, Any] = {
    "model": "smollm2", "dtype": "float32", "backend": "reference", "gamma": [4],
    "sampling": {"temperature": 0.0, "top_k": 0, "top_p": 1.0}, "max_new_tokens": 96,
    "seed": 0, "threads": 1,
    "machine": {"processor": "some", "cores": 2, "system": "", "python": "", "torch": "2"},
    "results": [make_row(m, s, g) for s in STREAMS for m, g in METHODS],
    "samples": [{"stream": "law", "prompt": "Why?", "answers": {"full": "So <b>that</b>."}}],
    "study": {
        "gamma": 4, "temperature": 0.8,
        "points": [make_point("evospec:general", None, b, s) for s in STREAMS for b in (512, 1536)]
        + [make_point("evospec:general", "core", 1536, s) for s in STREAMS],
    },
}  # fmt: skip
HEADINGS = [
    "Results", "Methods", "Accepted tokens by part of the shortlist", "Around a switch of topic",
    "Acceptance by budget", "What a shortlist pays", "Ablation of the shortlist", "Samples",
]  # fmt: skip


def count_pixels(tab: Page) -> list[int]:
    """The number of pixels of each visible canvas that are not blank."""
    found: list[int] = tab.evaluate(
        """() => {
            const canvases = [];
            const walk = (node) => {
                if (node.tagName === 'CANVAS' && node.offsetParent !== null) canvases.push(node);
                if (node.shadowRoot) [...node.shadowRoot.children].forEach(walk);
                [...node.children].forEach(walk);
            };
            walk(document.body);
            return canvases.filter(c => c.width > 100).map(c => {
                const data = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;
                let count = 0;
                for (let i = 0; i < data.length; i += 4)
                    count += data[i + 3] > 0 && data[i] + data[i + 1] + data[i + 2] < 700;
                return count;
            });
        }"""
    )
    return found


def test_write_shows_the_table_and_the_plots(show: Show, tmp_path: Path) -> None:
    page.write(REPORT, tmp_path)
    seen = show(tmp_path / "report.html")
    tab = seen.tab
    assert tab.title() == "minispec: smollm2"
    assert tab.locator("h2").all_inner_texts() == HEADINGS
    lines = tab.locator("#results tr")
    assert lines.count() == 1 + len(STREAMS) * len(METHODS)
    assert lines.nth(3).locator("td").all_inner_texts() == [
        "evospec@1536", "all", "4", "1536", "1.875", "90.0%", "12.50", "1.25 [1.10, 1.40]", "-",
        "80.0", "100.0", "900", "8/9 +1 near ties",
    ]  # fmt: skip
    tab.wait_for_function(IDLE)
    pixels = count_pixels(tab)
    # Three of methods, one of origins, one of switches, four of budgets, two of ablations.
    assert len(pixels) >= 11
    assert sum(count > 1000 for count in pixels) >= 11
    assert seen.errors == []
    assert seen.requests == [(tmp_path / "report.html").as_uri()]
    assert (tmp_path / "report.html").stat().st_size < 4e6


def test_plots_have_tooltips_and_tabs(show: Show, tmp_path: Path) -> None:
    page.write(REPORT, tmp_path)
    seen = show(tmp_path / "report.html")
    tab = seen.tab
    tab.wait_for_function(IDLE)
    plot = tab.locator(".bk-Tabs").first.locator(".bk-Figure").first
    plot.scroll_into_view_if_needed()
    box = plot.bounding_box()
    assert box
    assert tab.locator(".bk-tooltip-row-value").count() == 0
    found = tab.locator(".bk-tooltip-row-value >> text=1.875")
    for step in range(4, 40):  # over the bars, from left to right
        tab.mouse.move(box["x"] + box["width"] * step / 40, box["y"] + box["height"] * 0.6)
        tab.wait_for_timeout(100)
        if found.count():
            break
    tab.wait_for_selector(".bk-tooltip-row-value >> text=1.875")
    # The plots of another stream, in another tab.
    tab.locator(".bk-tab", has_text="law").first.click()
    tab.wait_for_function(IDLE)
    assert "bk-active" in (
        tab.locator(".bk-tab", has_text="law").first.get_attribute("class") or ""
    )
    assert seen.errors == []


def test_write_omits_sections_without_data(show: Show, tmp_path: Path) -> None:
    plain = REPORT | {
        "results": [r | {"origin": None, "coverage": None} for r in REPORT["results"]
                    if r["stream"] not in ("switch",)],
        "study": None,
    }  # fmt: skip
    for result in plain["results"]:
        result.pop("lossless", None)
    page.write(plain, tmp_path)
    seen = show(tmp_path / "report.html")
    assert seen.tab.locator("h2").all_inner_texts() == ["Results", "Methods", "Samples"]
    assert seen.errors == []


@pytest.mark.parametrize("names", [
    ("$$x^2$$", "</script><script>alert(1)</script>", r"\(x\)"),
    (r"\[x\]", "@x", "<img src=x onerror=alert(2)>"),
])  # fmt: skip
def test_write_escapes_names(show: Show, tmp_path: Path, names: tuple[str, str, str]) -> None:
    """Names of streams and rankings come from files, and may look like formulas or code."""
    stream, ranking, model = names
    text = json.dumps(REPORT).replace('"law"', json.dumps(stream))
    text = text.replace('"evospec@1536"', json.dumps(f"evospec:{ranking}"))
    renamed = json.loads(text.replace('"evospec:general"', json.dumps(ranking)))
    renamed |= {"model": model}
    renamed["samples"][0]["answers"] = {ranking: model}
    page.write(renamed, tmp_path)
    seen = show(tmp_path / "report.html")
    seen.tab.wait_for_function(IDLE)
    seen.tab.locator(".bk-tab").nth(1).click()
    seen.tab.wait_for_function(IDLE)
    assert seen.errors == []
    assert seen.requests == [(tmp_path / "report.html").as_uri()]
    assert seen.tab.title() == f"minispec: {model}"
    cells = seen.tab.locator("#results td").all_inner_texts()
    assert stream in cells and f"evospec:{ranking}" in cells


def test_show_reports_errors_and_requests(show: Show, tmp_path: Path) -> None:
    page.write(REPORT, tmp_path)
    path = tmp_path / "report.html"
    planted = (
        "<script>console.error('planted')</script><script>missing()</script>"
        "<script>alert('loud')</script><img src='http://localhost:9/x'></body>"
    )
    path.write_text(path.read_text().replace("</body>", planted))
    seen = show(path)
    assert {"planted", "loud", "missing is not defined"} <= set(seen.errors)
    assert "http://localhost:9/x" in seen.requests


def test_count_pixels_is_empty_without_the_plotting_library(show: Show, tmp_path: Path) -> None:
    page.write(REPORT, tmp_path)
    path = tmp_path / "report.html"
    text = path.read_text()
    begin = text.index("<script", text.index("</style>"))
    path.write_text(text[:begin] + text[text.index("</head>") :])
    seen = show(path)
    assert count_pixels(seen.tab) == []
    assert seen.tab.locator("#results tr").count() == 1 + len(STREAMS) * len(METHODS)


def test_report_write_plots_switch_and_study(tmp_path: Path) -> None:
    """In a second row of plots, only if there is something to show."""
    without_switch = [r for r in REPORT["results"] if r["stream"] != "switch"]
    heights = []
    for change in (
        {},
        {"study": None},
        {"results": without_switch},
        {"study": None, "results": without_switch},
    ):
        report.write(REPORT | change, tmp_path)
        heights.append(int.from_bytes((tmp_path / "report.png").read_bytes()[20:24]))
    assert heights[0] == heights[1] == heights[2] > heights[3]


def test_report_is_readable_on_a_phone_and_in_the_dark(tmp_path: Path, show: Show) -> None:
    page.write(REPORT, tmp_path)
    options = {"viewport": {"width": 390, "height": 844}, "color_scheme": "dark"}
    shown = show(tmp_path / "report.html", **options)
    shown.tab.wait_for_function(IDLE)
    wide = "document.documentElement.scrollWidth <= document.documentElement.clientWidth"
    assert shown.tab.evaluate(wide)
    assert (
        shown.tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(13, 17, 23)"
    )
    shown.tab.click("summary >> text=What the columns mean")
    headings = shown.tab.locator("#results th").all_inner_texts()
    assert shown.tab.locator("#columns dt").all_inner_texts() == headings
