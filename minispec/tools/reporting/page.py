"""The report as one HTML page: tables, and plots with tooltips, zoom and clickable legends.

The page contains everything that it needs, the plotting library (Bokeh) included, so it opens
anywhere and loads nothing from a network.
"""

import html
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

from bokeh.embed import components
from bokeh.layouts import row
from bokeh.models import FactorRange, TabPanel, Tabs
from bokeh.models.annotations import Legend, LegendItem, Span
from bokeh.palettes import Category10_10
from bokeh.plotting import figure
from bokeh.resources import Resources

from minispec.io.files import write_aside
from minispec.sampling import Sampling
from minispec.tools.reporting.colours import PHASE_COLOURS, PHASES
from minispec.tools.reporting.table import (
    format_label,
    format_lossless,
    format_ratio,
    format_setting,
    format_switches,
    ratio_windows,
)

Row = Mapping[str, Any]
_COLUMNS = (
    "method", "stream", "gamma", "budget", "tau", "coverage", "tokens/s", "vs plain",
    "vs FR-Spec", "ms p50", "ms p95", "peak MB", "lossless",
)  # fmt: skip
_SIZE: dict[str, Any] = {"width": 430, "tools": "pan,wheel_zoom,box_zoom,reset,save"}
_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #222; margin: 2rem auto; padding: 0 1rem;
       max-width: 1340px; }
h1 { font-size: 1.5rem; margin-bottom: .2rem; }  h2 { font-size: 1.15rem; margin-top: 2.2rem; }
p.note { color: #555; max-width: 60rem; }
div.scroll { max-height: 34rem; overflow: auto; border: 1px solid #ddd; }
table { border-collapse: collapse; width: 100%; font-size: .88rem; }
th { position: sticky; top: 0; background: #f3f4f6; text-align: left; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid #eee; white-space: nowrap; }
tr.all td { background: #f8fafc; font-weight: 600; }
pre { white-space: pre-wrap; background: #f8f8f8; padding: .6rem; }
"""


def write(report: Mapping[str, Any], folder: Path) -> None:
    """Write ``report.html``. Raises FileError."""
    plots = {title: (note, plot) for title, note, plot in _sections(report) if plot is not None}
    script, divs = components({title: plot for title, (_, plot) in plots.items()})
    library = Resources(mode="inline", components=["bokeh"]).render_js()
    sampling, machine = Sampling(**report["sampling"]), report["machine"]
    title = f"minispec: {report['model']}"
    settings = (
        f"{report['dtype']}, backend {report['backend']}, {sampling}, "
        f"{report['max_new_tokens']} new tokens, seed {report['seed']}, {report['threads']} "
        f"threads; {machine['processor']}, {machine['cores']} cores, torch {machine['torch']}"
    )
    body = [f"<h1>{html.escape(title)}</h1><p class=note>{html.escape(settings)}</p>"]
    body.append(f"<h2>Results</h2><div class=scroll>{_format_table(report['results'])}</div>")
    for heading, (note, _) in plots.items():
        note = html.escape(note)
        body.append(f"<h2>{heading}</h2><p class=note>{note}</p>{divs[heading]}")
    body.append("<h2>Samples</h2>" + "".join(map(_format_sample, report["samples"])))
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style>{library}</head>"
        f"<body>{''.join(body)}{script}</body></html>\n"
    )
    with write_aside(folder / "report.html") as aside:
        aside.write_text(page, encoding="utf-8")


def _format_table(rows: Sequence[Row]) -> str:
    lines = ["<tr>" + "".join(f"<th>{name}</th>" for name in _COLUMNS) + "</tr>"]
    for r in sorted(rows, key=lambda r: r["stream"] != "all"):
        cells = (
            r["method"] + (" (best)" if r["best"] else ""),
            r["stream"],
            format_setting(r, ""),
            r["budget"] or "-",
            f"{r['tau']:.3f}",
            "-" if r["coverage"] is None else f"{r['coverage']:.1%}",
            f"{r['tokens_per_second']:.2f}",
            format_ratio(r["ratio_to_autoregressive"]),
            format_ratio(r["ratio_to_frspec"]),
            f"{r['latency_ms']['p50']:.1f}",
            f"{r['latency_ms']['p95']:.1f}",
            f"{r['peak_rss_mb']:.0f}",
            format_lossless(r.get("lossless")),
        )
        kind = ' class="all"' if r["stream"] == "all" else ""
        lines.append(f"<tr{kind}>{''.join(f'<td>{html.escape(str(c))}</td>' for c in cells)}</tr>")
    return f'<table id="results">{"".join(lines)}</table>'


def _format_sample(sample: Row) -> str:
    head = html.escape(f"[{sample['stream']}] {sample['prompt']}")
    answers = (
        f"<p>{html.escape(method)}</p><pre>{html.escape(answer)}</pre>"
        for method, answer in sample["answers"].items()
    )
    return f"<details><summary>{head}</summary>{''.join(answers)}</details>"


def _sections(report: Mapping[str, Any]) -> Iterable[tuple[str, str, Any]]:
    """Heading, note and plot; None if the report has nothing to plot."""
    rows = [r for r in report["results"] if not r["best"]]
    yield (
        "Methods", "Point at a bar to read its value; click on a legend entry to hide a phase.",
        _tabs(rows, lambda part: row(_plot_bars(part, "tau", "tau (tokens per target pass)"),
                                     _plot_bars(part, "tokens_per_second", "tokens per second"),
                                     _plot_phases(part))),
    )  # fmt: skip
    yield (
        "Accepted tokens by part of the shortlist", "The part of the shortlist that contained "
        "each accepted token, by replay of the method's own answers.", _plot_origins(rows),
    )  # fmt: skip
    curves = [r for r in rows if r.get("switch_curve")]
    yield (
        "Around a switch of topic", "tau relative to full-vocabulary speculation, by window of "
        f"tokens, with 95% intervals. {'; '.join(format_switches(report))}.",
        _plot_switches(curves),
    )  # fmt: skip
    study = report["study"] or {"points": [], "gamma": 0, "temperature": 0}
    swept = [p for p in study["points"] if p["altered"] is None]
    yield (
        "Acceptance by budget", f"By replay of the target's greedy answers, gamma "
        f"{study['gamma']}. Ceiling: the target's probability mass on the shortlist, overlap: "
        f"sum min(p, q), which it bounds, both at temperature {study['temperature']}.",
        _tabs(swept, lambda part: row(_plot_budgets(part, "tau_to_full", "tau relative to full"),
                                      _plot_budgets(part, "ceiling", "ceiling"),
                                      _plot_budgets(part, "overlap_to_full",
                                                    "overlap relative to full"))),
    )  # fmt: skip
    yield (
        "What a shortlist pays", "The speed relative to full that follows from tau and from the "
        "rows read (the gate): above 1 a shortlist pays. Only where full was timed.",
        _tabs([p for p in swept if p["gate"]], lambda part: row(
            _plot_budgets(part, "gate", "speed relative to full, by the gate"))),
    )  # fmt: skip
    altered = {(p["curve"], p["budget"]) for p in study["points"] if p["altered"]}
    ablated = [p for p in study["points"] if (p["curve"], p["budget"]) in altered]
    yield (
        "Ablation of the shortlist", "The budget of a removed part goes to the next ids of the "
        "ranking.",
        _tabs(ablated, lambda part: row(
            _plot_ablation(part, "tau_to_full", "tau relative to full"),
            _plot_ablation(part, "coverage", "coverage"))),
    )  # fmt: skip


def _tabs(rows: Sequence[Row], plot: Callable[[Sequence[Row]], Any]) -> Tabs | None:
    """A tab with a plot for each stream, "all" first."""
    names = sorted(dict.fromkeys(r["stream"] for r in rows), key=lambda name: name != "all")
    parts = {name: [r for r in rows if r["stream"] == name] for name in names}
    panels = [TabPanel(child=plot(part), title=name) for name, part in parts.items()]
    return Tabs(tabs=panels) if panels else None


def _bar_figure(names: Sequence[str], title: str, **options: Any) -> Any:
    """A figure of horizontal bars, one for each name."""
    factors = FactorRange(factors=list(reversed(names)))
    height = 110 + 44 * len(names)
    return _hide_toolbar(figure(y_range=factors, title=title, height=height, **_SIZE, **options))


def _hide_toolbar(plot: Any) -> Any:
    """Show the toolbar only while the pointer is over the plot."""
    plot.toolbar.autohide, plot.toolbar.logo = True, None
    return plot


def _plot_bars(rows: Sequence[Row], key: str, title: str) -> Any:
    source = {"name": [format_label(r) for r in rows], "value": [r[key] for r in rows]}
    plot = _bar_figure(source["name"], title, tooltips=[("", "@name"), (title, "@value{0.000}")])
    plot.hbar(y="name", right="value", height=0.7, source=source)
    plot.x_range.start = 0
    return plot


def _plot_stacks(
    rows: Sequence[Row],
    shares: Sequence[Mapping[str, float]],
    title: str,
    colours: Mapping[str, str] | None = None,
) -> Any:
    """Stacked bars; a part that is zero in every bar is left out."""
    parts = list(dict.fromkeys(part for share in shares for part in share if share[part]))
    source: dict[str, Any] = {"name": [format_label(r) for r in rows]}
    source |= {part: [share.get(part, 0.0) for share in shares] for part in parts}
    tips = [("", "@name"), ("$name", "@$name{0.000}")]
    plot = _bar_figure(source["name"], title, tooltips=tips)
    fills = [colours[part] for part in parts] if colours else list(Category10_10[: len(parts)])
    bars = plot.hbar_stack(parts, y="name", height=0.7, color=fills, source=source)
    _add_legend(plot, zip(parts, bars, strict=True))
    return plot


def _plot_phases(rows: Sequence[Row]) -> Any:
    shares = [
        {name: 1000 * r["seconds"].get(phase, 0.0) / r["tokens"] for phase, name in PHASES.items()}
        for r in rows
    ]
    colours = {name: PHASE_COLOURS[phase] for phase, name in PHASES.items()}
    return _plot_stacks(rows, shares, "milliseconds per token, by phase", colours)


def _plot_origins(rows: Sequence[Row]) -> Tabs | None:
    known = [r for r in rows if r["origin"]]
    return _tabs(known, lambda part: _plot_stacks(part, [r["origin"] for r in part], "share"))


def _plot_switches(rows: Sequence[Row]) -> Any:
    compared = [r for r in rows if ratio_windows(r)]
    if not compared:
        return None
    interval = "@y{0.000}, @low{0.000} to @high{0.000}"
    plot = figure(
        height=420, title="tau relative to full",
        x_axis_label="first token of the window, counted from the switch",
        tooltips=[("", "@name"), ("from", "@x"), ("ratio", interval)], **_SIZE | {"width": 900},
    )  # fmt: skip
    plot.add_layout(Span(location=0, dimension="height", line_dash="dashed", line_color="gray"))
    items = []
    for colour, r in zip(cycle(Category10_10), compared, strict=False):
        glyphs = []
        for after in (False, True):  # two lines: no window lies across the switch
            part = [w for w in ratio_windows(r) if (w["start"] >= 0) == after]
            source = {key: [w["ratio_to_full"][key] for w in part] for key in ("low", "high")}
            source |= {"x": [w["start"] for w in part], "name": [format_label(r)] * len(part)}
            source |= {"y": [w["ratio_to_full"]["value"] for w in part]}
            glyphs += [
                plot.line("x", "y", source=source, color=colour, line_width=2),
                plot.scatter("x", "y", source=source, color=colour, size=6),
                plot.varea("x", "low", "high", source=source, color=colour, alpha=0.12),
            ]
        items.append((format_label(r), glyphs))
    _add_legend(plot, items)
    return _hide_toolbar(plot)


def _plot_budgets(points: Sequence[Row], key: str, title: str) -> Any:
    """A line over the budget for each curve."""
    plot = figure(
        height=380, title=title, x_axis_type="log", x_axis_label="budget (ids on the shortlist)",
        tooltips=[("", "@name"), ("budget", "@x{0}"), (title, "@y{0.000}")], **_SIZE,
    )  # fmt: skip
    items = []
    curves = dict.fromkeys(p["curve"] for p in points)
    for colour, name in zip(cycle(Category10_10), curves, strict=False):
        part = [p for p in points if p["curve"] == name]
        source = {"x": [p["budget"] for p in part], "y": [p[key] for p in part]}
        source |= {"name": [name] * len(part)}
        glyphs = [
            plot.line("x", "y", source=source, color=colour, line_width=2),
            plot.scatter("x", "y", source=source, color=colour, size=6),
        ]
        items.append((name, glyphs))
    _add_legend(plot, items)
    return _hide_toolbar(plot)


def _plot_ablation(points: Sequence[Row], key: str, title: str) -> Any:
    names = [f"{p['curve']}@{p['budget']}: {p['altered'] or 'all parts'}" for p in points]
    source = {"name": names, "value": [p[key] for p in points]}
    plot = _bar_figure(names, title, tooltips=[("", "@name"), (title, "@value{0.000}")])
    plot.width = 640
    plot.hbar(y="name", right="value", height=0.7, source=source)
    plot.x_range.start = 0
    return plot


def _add_legend(plot: Any, items: Iterable[tuple[str, Any]]) -> None:
    """A legend below the plot; a click on an entry hides or shows it."""
    entries = [
        LegendItem(
            label={"value": label}, renderers=glyphs if isinstance(glyphs, list) else [glyphs]
        )
        for label, glyphs in items
    ]
    plot.add_layout(Legend(items=entries, click_policy="hide", ncols=2), "below")
