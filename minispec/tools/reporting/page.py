"""The report as one HTML page: tables, and plots to be pointed at, zoomed and switched off.

The page holds all that it needs, the plotting library (Bokeh) included, so that it opens
anywhere and asks nothing of a network.
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
from minispec.tools.reporting.report import PHASES, interval, lossless_counts, switches, windows

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
    """Writes ``report.html``. Raises FileError."""
    plots = {title: (note, plot) for title, note, plot in _sections(report) if plot is not None}
    script, divs = components({title: plot for title, (_, plot) in plots.items()})
    library = Resources(mode="inline", components=["bokeh"]).render_js()
    sampling, machine = report["sampling"], report["machine"]
    title = f"minispec: {report['model']}"
    settings = (
        f"{report['dtype']}, backend {report['backend']}, temperature {sampling['temperature']}, "
        f"{report['max_new_tokens']} new tokens, seed {report['seed']}, {report['threads']} "
        f"threads; {machine['processor']}, {machine['cores']} cores, torch {machine['torch']}"
    )
    body = [f"<h1>{html.escape(title)}</h1><p class=note>{html.escape(settings)}</p>"]
    body.append(f"<h2>Results</h2><div class=scroll>{_table(report['results'])}</div>")
    for heading, (note, _) in plots.items():
        note = html.escape(note)
        body.append(f"<h2>{heading}</h2><p class=note>{note}</p>{divs[heading]}")
    body.append("<h2>Samples</h2>" + "".join(map(_sample, report["samples"])))
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style>{library}</head>"
        f"<body>{''.join(body)}{script}</body></html>\n"
    )
    with write_aside(folder / "report.html") as aside:
        aside.write_text(page, encoding="utf-8")


def _table(rows: Sequence[Row]) -> str:
    lines = ["<tr>" + "".join(f"<th>{name}</th>" for name in _COLUMNS) + "</tr>"]
    for r in sorted(rows, key=lambda r: r["stream"] != "all"):
        cells = (
            r["method"] + (" (best)" if r["best"] else ""),
            r["stream"],
            r["gamma"] or "-",
            r["budget"] or "-",
            f"{r['tau']:.3f}",
            "-" if r["coverage"] is None else f"{r['coverage']:.1%}",
            f"{r['tokens_per_second']:.2f}",
            interval(r["ratio_to_autoregressive"]),
            interval(r["ratio_to_frspec"]),
            f"{r['latency_ms']['p50']:.1f}",
            f"{r['latency_ms']['p95']:.1f}",
            f"{r['peak_rss_mb']:.0f}",
            lossless_counts(r.get("lossless")),
        )
        kind = ' class="all"' if r["stream"] == "all" else ""
        lines.append(f"<tr{kind}>{''.join(f'<td>{html.escape(str(c))}</td>' for c in cells)}</tr>")
    return f'<table id="results">{"".join(lines)}</table>'


def _sample(sample: Row) -> str:
    head = html.escape(f"[{sample['stream']}] {sample['prompt']}")
    said = (
        f"<p>{html.escape(method)}</p><pre>{html.escape(answer)}</pre>"
        for method, answer in sample["answers"].items()
    )
    return f"<details><summary>{head}</summary>{''.join(said)}</details>"


def _sections(report: Mapping[str, Any]) -> Iterable[tuple[str, str, Any]]:
    """Heading, note and plot; None where the report has nothing to plot."""
    rows = [r for r in report["results"] if not r["best"]]
    yield (
        "Methods", "Point at a bar for its figures; click on a legend to switch a part off.",
        _tabs(rows, lambda part: row(_bars(part, "tau", "tokens per target pass (tau)"),
                                     _bars(part, "tokens_per_second", "tokens per second"),
                                     _phases(part))),
    )  # fmt: skip
    yield (
        "Where accepted tokens came from", "The part of the list that brought each accepted "
        "token, by replay of the method's own answers.", _origins(rows),
    )  # fmt: skip
    curves = [r for r in rows if r.get("switch_curve")]
    yield (
        "Around a switch of topic", "tau over that of full-vocabulary speculation, by window of "
        f"tokens, with 95% intervals. {'; '.join(switches(report))}.", _switches(curves),
    )  # fmt: skip
    study = report["study"] or {"points": [], "gamma": 0, "temperature": 0}
    swept = [p for p in study["points"] if p["altered"] is None]
    yield (
        "Acceptance over the budget", f"By replay of the target's greedy answers, gamma "
        f"{study['gamma']}; overlap: sum min(p, q) at temperature {study['temperature']}.",
        _tabs(swept, lambda part: row(_lines(part, "tau_to_full", "tau over full"),
                                      _lines(part, "coverage", "coverage"),
                                      _lines(part, "overlap_to_full", "overlap over full"))),
    )  # fmt: skip
    altered = {(p["curve"], p["budget"]) for p in study["points"] if p["altered"]}
    ablated = [p for p in study["points"] if (p["curve"], p["budget"]) in altered]
    yield (
        "What each part is worth", "A part that is left out leaves its places to the next ids "
        "of the ranking.",
        _tabs(ablated, lambda part: row(_ablation(part, "tau_to_full", "tau over full"),
                                        _ablation(part, "coverage", "coverage"))),
    )  # fmt: skip


def _tabs(rows: Sequence[Row], plot: Callable[[Sequence[Row]], Any]) -> Tabs | None:
    """A plot for each stream, all pooled first."""
    names = sorted(dict.fromkeys(r["stream"] for r in rows), key=lambda name: name != "all")
    parts = {name: [r for r in rows if r["stream"] == name] for name in names}
    panels = [TabPanel(child=plot(part), title=name) for name, part in parts.items()]
    return Tabs(tabs=panels) if panels else None


def _figure(names: Sequence[str], title: str, **options: Any) -> Any:
    """A figure of horizontal bars, one for each name."""
    factors = FactorRange(factors=list(reversed(names)))
    height = 110 + 44 * len(names)
    return _quiet(figure(y_range=factors, title=title, height=height, **_SIZE, **options))


def _quiet(plot: Any) -> Any:
    """Tools where they are wanted and not before."""
    plot.toolbar.autohide, plot.toolbar.logo = True, None
    return plot


def _named(r: Row) -> str:
    """A method and its gamma."""
    return r["method"] + (f", gamma {r['gamma']}" if r["gamma"] else "")


def _bars(rows: Sequence[Row], key: str, title: str) -> Any:
    source = {"name": [_named(r) for r in rows], "value": [r[key] for r in rows]}
    plot = _figure(source["name"], title, tooltips=[("", "@name"), (title, "@value{0.000}")])
    plot.hbar(y="name", right="value", height=0.7, source=source)
    plot.x_range.start = 0
    return plot


def _stacked(rows: Sequence[Row], shares: Sequence[Mapping[str, float]], title: str) -> Any:
    """Bars of parts side by side; a part that no bar has is left out."""
    parts = list(dict.fromkeys(part for share in shares for part in share if share[part]))
    source: dict[str, Any] = {"name": [_named(r) for r in rows]}
    source |= {part: [share.get(part, 0.0) for share in shares] for part in parts}
    tips = [("", "@name"), ("$name", "@$name{0.000}")]
    plot = _figure(source["name"], title, tooltips=tips)
    colours = Category10_10[: len(parts)]
    bars = plot.hbar_stack(parts, y="name", height=0.7, color=colours, source=source)
    _legend(plot, zip(parts, bars, strict=True))
    return plot


def _phases(rows: Sequence[Row]) -> Any:
    shares = [
        {label: 1000 * r["seconds"].get(phase, 0.0) / r["tokens"] for phase, label in PHASES}
        for r in rows
    ]
    return _stacked(rows, shares, "milliseconds per token, by phase")


def _origins(rows: Sequence[Row]) -> Tabs | None:
    told = [r for r in rows if r["origin"]]
    return _tabs(told, lambda part: _stacked(part, [r["origin"] for r in part], "share"))


def _switches(rows: Sequence[Row]) -> Any:
    told = [r for r in rows if windows(r)]
    if not told:
        return None
    interval = "@y{0.000}, @low{0.000} to @high{0.000}"
    plot = figure(
        height=420, title="tau relative to full",
        x_axis_label="first token of the window, counted from the switch",
        tooltips=[("", "@name"), ("from", "@x"), ("ratio", interval)], **_SIZE | {"width": 900},
    )  # fmt: skip
    plot.add_layout(Span(location=0, dimension="height", line_dash="dashed", line_color="gray"))
    items = []
    for colour, r in zip(cycle(Category10_10), told, strict=False):
        drawn = []
        for side in (False, True):  # no line across the switch: what lies between is neither
            part = [w for w in windows(r) if (w["start"] >= 0) == side]
            source = {key: [w["ratio_to_full"][key] for w in part] for key in ("low", "high")}
            source |= {"x": [w["start"] for w in part], "name": [_named(r)] * len(part)}
            source |= {"y": [w["ratio_to_full"]["value"] for w in part]}
            drawn += [
                plot.line("x", "y", source=source, color=colour, line_width=2),
                plot.scatter("x", "y", source=source, color=colour, size=6),
                plot.varea("x", "low", "high", source=source, color=colour, alpha=0.12),
            ]
        items.append((_named(r), drawn))
    _legend(plot, items)
    return _quiet(plot)


def _lines(points: Sequence[Row], key: str, title: str) -> Any:
    """A line over the budget for each curve."""
    plot = figure(
        height=380, title=title, x_axis_type="log", x_axis_label="budget (ids)",
        tooltips=[("", "@name"), ("budget", "@x{0}"), (title, "@y{0.000}")], **_SIZE,
    )  # fmt: skip
    items = []
    curves = dict.fromkeys(p["curve"] for p in points)
    for colour, name in zip(cycle(Category10_10), curves, strict=False):
        part = [p for p in points if p["curve"] == name]
        source = {"x": [p["budget"] for p in part], "y": [p[key] for p in part]}
        source |= {"name": [name] * len(part)}
        drawn = [
            plot.line("x", "y", source=source, color=colour, line_width=2),
            plot.scatter("x", "y", source=source, color=colour, size=6),
        ]
        items.append((name, drawn))
    _legend(plot, items)
    return _quiet(plot)


def _ablation(points: Sequence[Row], key: str, title: str) -> Any:
    names = [f"{p['curve']}@{p['budget']}: {p['altered'] or 'all parts'}" for p in points]
    source = {"name": names, "value": [p[key] for p in points]}
    plot = _figure(names, title, tooltips=[("", "@name"), (title, "@value{0.000}")])
    plot.width = 640
    plot.hbar(y="name", right="value", height=0.7, source=source)
    plot.x_range.start = 0
    return plot


def _legend(plot: Any, items: Iterable[tuple[str, Any]]) -> None:
    """Below the plot, so that it hides nothing; a click switches an entry off."""
    entries = [
        LegendItem(label={"value": label}, renderers=drawn if isinstance(drawn, list) else [drawn])
        for label, drawn in items
    ]
    plot.add_layout(Legend(items=entries, click_policy="hide", ncols=2), "below")
