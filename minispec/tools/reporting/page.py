"""The report as one HTML page: tables, and plots with tooltips, zoom and clickable legends.

The page contains everything that it needs, the plotting library (Bokeh) included, so it opens
anywhere and loads nothing from a network.
"""

import html
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bokeh.embed import components
from bokeh.resources import Resources

from minispec.io.files import write_aside
from minispec.sampling import Sampling
from minispec.tools.reporting.plots import (
    group_by_stream,
    plot_ablation,
    plot_bars,
    plot_budgets,
    plot_origins,
    plot_phases,
    plot_switches,
    stand_together,
)
from minispec.tools.reporting.table import (
    format_lossless,
    format_ratio,
    format_setting,
    format_switches,
)

Row = Mapping[str, Any]
_COLUMNS = {
    "method": "how it drafts; best: the gamma or tree that was fastest",
    "stream": "the prompts: of one domain, of a switch of topic, or all",
    "gamma": "tokens drafted in a round, or the tree",
    "budget": "ids on the shortlist at most",
    "tau": "tokens emitted per target pass (the mean acceptance length)",
    "coverage": "the target's probability mass on the shortlist, on average",
    "tokens/s": "tokens emitted in a second",
    "vs plain": "speed relative to plain decoding of the same prompts, with a 95% interval",
    "vs FR-Spec": "speed relative to the first FR-Spec of the table, with a 95% interval",
    "ms p50": "milliseconds per token, the median over tokens",
    "ms p95": "milliseconds per token, which 95% of the tokens do not exceed",
    "peak MB": "resident memory at most, while this method decoded",
    "lossless": "greedy outputs that are plain decoding's, id for id, of those compared",
}
_STYLE = """
:root { --ink: #222; --soft: #57606a; --paper: #fff; --card: #f3f4f6; --all: #f8fafc;
        --line: #ddd; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6edf3; --soft: #9da7b3; --paper: #0d1117; --card: #21262d; --all: #161b22;
          --line: #3a424c; }
}
body { font: 15px/1.45 system-ui, sans-serif; color: var(--ink); background: var(--paper);
       margin: 1rem auto; padding: 0 1rem; max-width: 1340px; }
h1 { font-size: 1.5rem; margin-bottom: .2rem; }  h2 { font-size: 1.15rem; margin-top: 2.2rem; }
p.note { color: var(--soft); max-width: 60rem; overflow-wrap: anywhere; }
div.scroll { max-height: 34rem; overflow: auto; border: 1px solid var(--line); }
table { border-collapse: collapse; width: 100%; font-size: .88rem; }
th { position: sticky; top: 0; background: var(--card); text-align: left; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid var(--line); white-space: nowrap; }
tr.all td { background: var(--all); font-weight: 600; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem .8rem; font-size: .88rem; }
dt { font-weight: 600; }  dd { margin: 0; color: var(--soft); }
pre { white-space: pre-wrap; background: var(--card); padding: .6rem; }
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
    body.append(f"<details><summary>What the columns mean</summary>{_format_legend()}</details>")
    for heading, (note, _) in plots.items():
        note = html.escape(note)
        body.append(f"<h2>{heading}</h2><p class=note>{note}</p>{divs[heading]}")
    body.append("<h2>Samples</h2>" + "".join(map(_format_sample, report["samples"])))
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
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


def _format_legend() -> str:
    """What each column of the table means."""
    rows = (f"<dt>{html.escape(name)}</dt><dd>{html.escape(meaning)}</dd>"
            for name, meaning in _COLUMNS.items())  # fmt: skip
    return f'<dl id="columns">{"".join(rows)}</dl>'


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
        group_by_stream(rows, lambda part: stand_together(
            plot_bars(part, "tau", "tau (tokens per target pass)"),
            plot_bars(part, "tokens_per_second", "tokens per second"), plot_phases(part))),
    )  # fmt: skip
    yield (
        "Accepted tokens by part of the shortlist", "The part of the shortlist that contained "
        "each accepted token, by replay of the method's own answers.", plot_origins(rows),
    )  # fmt: skip
    curves = [r for r in rows if r.get("switch_curve")]
    yield (
        "Around a switch of topic", "tau relative to full-vocabulary speculation, by window of "
        f"tokens, with 95% intervals. {'; '.join(format_switches(report))}.",
        plot_switches(curves),
    )  # fmt: skip
    study = report["study"] or {"points": [], "gamma": 0, "temperature": 0}
    swept = [p for p in study["points"] if p["altered"] is None]
    yield (
        "Acceptance by budget", f"By replay of the target's greedy answers, gamma "
        f"{study['gamma']}. Ceiling: the target's probability mass on the shortlist, overlap: "
        f"sum min(p, q), which it bounds, both at temperature {study['temperature']}.",
        group_by_stream(swept, lambda part: stand_together(
            plot_budgets(part, "tau_to_full", "tau relative to full"),
            plot_budgets(part, "ceiling", "ceiling"),
            plot_budgets(part, "overlap_to_full", "overlap relative to full"))),
    )  # fmt: skip
    yield (
        "What a shortlist pays", "The speed relative to full that follows from tau and from the "
        "rows read (the gate): above 1 a shortlist pays. Only where full was timed.",
        group_by_stream([p for p in swept if p["gate"]], lambda part: stand_together(
            plot_budgets(part, "gate", "speed relative to full, by the gate"))),
    )  # fmt: skip
    altered = {(p["curve"], p["budget"]) for p in study["points"] if p["altered"]}
    ablated = [p for p in study["points"] if (p["curve"], p["budget"]) in altered]
    yield (
        "Ablation of the shortlist", "The budget of a removed part goes to the next ids of the "
        "ranking.",
        group_by_stream(ablated, lambda part: stand_together(
            plot_ablation(part, "tau_to_full", "tau relative to full"),
            plot_ablation(part, "coverage", "coverage"))),
    )  # fmt: skip
