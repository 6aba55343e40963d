"""The plots of a report: bars, lines over budgets, and what happens around a switch of topic.

Their background is that of the page, and their text has a grey that can be read on white and on
black; they become narrower with the page, and stand below each other where it is narrow.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import cycle
from typing import Any

from bokeh.layouts import row
from bokeh.models import FactorRange, TabPanel, Tabs
from bokeh.models.annotations import Legend, LegendItem, Span
from bokeh.palettes import Category10_10
from bokeh.plotting import figure

from minispec.tools.reporting.colours import PARTS, PHASE_COLOURS, PHASES
from minispec.tools.reporting.table import format_label, ratio_windows

Row = Mapping[str, Any]
GREY = "#7a828c"  # readable on white and on black
_GRID = "#88888840"
_SIZE: dict[str, Any] = {
    "width": 340, "min_width": 300, "max_width": 430, "sizing_mode": "stretch_width",
    "tools": "pan,wheel_zoom,box_zoom,reset,save",
}  # fmt: skip


def stand_together(*plots: Any) -> Any:
    """Plots side by side, or below each other where the page is too narrow."""
    return row(*plots, styles={"flex-wrap": "wrap"}, sizing_mode="stretch_width")


def _finish(plot: Any) -> Any:
    """A plot in colours for white and black, with a toolbar that is shown only while the pointer is
    over it."""
    plot.toolbar.autohide, plot.toolbar.logo = True, None
    plot.background_fill_color = plot.border_fill_color = None
    plot.outline_line_color = _GRID
    plot.title.text_color = GREY
    for axis in plot.axis:
        axis.axis_label_text_color = axis.major_label_text_color = GREY
        axis.axis_line_color = axis.major_tick_line_color = axis.minor_tick_line_color = GREY
    plot.grid.grid_line_color = _GRID
    for legend in plot.legend:
        legend.background_fill_color, legend.border_line_color = None, None
        legend.label_text_color = GREY
    return plot


def group_by_stream(rows: Sequence[Row], plot: Callable[[Sequence[Row]], Any]) -> Tabs | None:
    """A tab with a plot for each stream, "all" first."""
    names = sorted(dict.fromkeys(r["stream"] for r in rows), key=lambda name: name != "all")
    parts = {name: [r for r in rows if r["stream"] == name] for name in names}
    panels = [TabPanel(child=plot(part), title=name) for name, part in parts.items()]
    return Tabs(tabs=panels, sizing_mode="stretch_width") if panels else None


def _bar_figure(names: Sequence[str], title: str, **options: Any) -> Any:
    """A figure of horizontal bars, one for each name."""
    factors = FactorRange(factors=list(reversed(names)))
    height = 110 + 44 * len(names)
    return figure(y_range=factors, title=title, height=height, **_SIZE, **options)


def plot_bars(rows: Sequence[Row], key: str, title: str) -> Any:
    """A bar for each row: one of its figures."""
    source = {"name": [format_label(r) for r in rows], "value": [r[key] for r in rows]}
    plot = _bar_figure(source["name"], title, tooltips=[("", "@name"), (title, "@value{0.000}")])
    plot.hbar(y="name", right="value", height=0.7, source=source)
    plot.x_range.start = 0
    return _finish(plot)


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
    return _finish(plot)


def plot_phases(rows: Sequence[Row]) -> Any:
    """A bar for each row: milliseconds per token by phase, in the phases' colours."""
    shares = [
        {name: 1000 * r["seconds"].get(phase, 0.0) / r["tokens"] for phase, name in PHASES.items()}
        for r in rows
    ]
    colours = {name: PHASE_COLOURS[phase] for phase, name in PHASES.items()}
    return _plot_stacks(rows, shares, "milliseconds per token, by phase", colours)


def plot_origins(rows: Sequence[Row]) -> Tabs | None:
    """For each stream a bar a row: which part of the shortlist had the accepted tokens."""
    known = [r for r in rows if r["origin"]]
    colours = {name: light for name, (light, _) in PARTS.items()}
    names = {name for r in known for name in r["origin"]}
    fitting = colours if names <= colours.keys() else None
    return group_by_stream(
        known, lambda part: _plot_stacks(part, [r["origin"] for r in part], "share", fitting)
    )


def plot_switches(rows: Sequence[Row]) -> Any:
    """tau relative to full around a switch of topic; None if nothing was compared."""
    compared = [r for r in rows if ratio_windows(r)]
    if not compared:
        return None
    interval = "@y{0.000}, @low{0.000} to @high{0.000}"
    plot = figure(
        height=420, title="tau relative to full",
        x_axis_label="first token of the window, counted from the switch",
        tooltips=[("", "@name"), ("from", "@x"), ("ratio", interval)], **_SIZE | {"max_width": 900},
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
    return _finish(plot)


def plot_budgets(points: Sequence[Row], key: str, title: str) -> Any:
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
    return _finish(plot)


def plot_ablation(points: Sequence[Row], key: str, title: str) -> Any:
    """A bar for each shortlist, whole and with a part left out."""
    names = [f"{p['curve']}@{p['budget']}: {p['altered'] or 'all parts'}" for p in points]
    source = {"name": names, "value": [p[key] for p in points]}
    plot = _bar_figure(names, title, tooltips=[("", "@name"), (title, "@value{0.000}")])
    plot.hbar(y="name", right="value", height=0.7, source=source)
    plot.x_range.start = 0
    return _finish(plot)


def _add_legend(plot: Any, items: Iterable[tuple[str, Any]]) -> None:
    """A legend below the plot; a click on an entry hides or shows it."""
    entries = [
        LegendItem(
            label={"value": label}, renderers=glyphs if isinstance(glyphs, list) else [glyphs]
        )
        for label, glyphs in items
    ]
    plot.add_layout(Legend(items=entries, click_policy="hide", ncols=2), "below")
