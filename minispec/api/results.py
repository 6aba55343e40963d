"""Results of the Python interface: a finished text, and a comparison of methods.

Knows nothing of how either came about.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minispec.errors import ArgumentError
from minispec.tools.evaluation.measure import Figures
from minispec.tools.extras import check_extra


@dataclass(frozen=True)
class Output:
    """A generated text and what it cost.

    ``token_ids`` include a final end id, which is silent in ``text``; a stop string is part of
    ``token_ids`` and not of ``text``. ``finish_reason``: "eos", "stop_string", "length"
    (``max_new_tokens``) or "context" (the model's limit). ``accepted_by_position[i]``: the share of
    rounds with an (i+1)-th drafted token in which it was accepted. ``seconds``: wall time by phase,
    "prefill" among them. ``seconds_to_first_token``: from the call to the first round, None for no
    tokens at all. ``events``: what a learning draft did, counted by name.
    """

    text: str
    token_ids: tuple[int, ...]
    prompt_token_ids: tuple[int, ...]
    finish_reason: str
    method: str
    target_passes: int
    accepted_by_position: tuple[float, ...]
    seconds: Mapping[str, float]
    seconds_to_first_token: float | None
    events: Mapping[str, int] = field(default_factory=dict)

    @property
    def tau(self) -> float:
        """Tokens per target pass, prefill excluded: the mean acceptance length of EAGLE
        (arXiv 2503.01840) and vLLM. 0 for no tokens."""
        return len(self.token_ids) / self.target_passes if self.target_passes else 0.0

    @property
    def tokens_per_second(self) -> float:
        """Tokens over the seconds of all phases but prefill. 0 for no tokens."""
        spent = sum(seconds for phase, seconds in self.seconds.items() if phase != "prefill")
        return len(self.token_ids) / spent if self.token_ids else 0.0

    @staticmethod
    def of(figures: Figures, method: str, seconds_to_first_token: float | None) -> "Output":
        """The output whose rounds were summed up as ``figures``."""
        return Output(
            text=figures.text,
            token_ids=figures.tokens,
            prompt_token_ids=figures.prompt,
            finish_reason=figures.stop or "length",
            method=method,
            target_passes=figures.passes,
            accepted_by_position=tuple(figures.acceptance),
            seconds=figures.seconds,
            seconds_to_first_token=seconds_to_first_token,
            events=figures.events,
        )


@dataclass(frozen=True)
class Ratio:
    """A ratio of speeds, paired prompt by prompt, with its bootstrapped 95% interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class MethodResult:
    """One method at one gamma, or with one tree, over all prompts.

    ``gamma``, ``tree`` and ``budget`` (ids scored per draft step) are None where there is none.
    ``tau``: tokens per target pass. ``speedup``: speed over plain decoding's, None unless
    "autoregressive" was compared too. ``identical``: whether every output is plain greedy
    decoding's, id for id, None when sampling; near-ties of the two largest logits count as
    different.
    """

    method: str
    gamma: int | None
    budget: int | None
    tau: float
    tokens_per_second: float
    speedup: Ratio | None
    identical: bool | None
    tree: str | None = None


@dataclass(frozen=True)
class Comparison:
    """Methods side by side on the same prompts: ``results`` in the order of the methods, at each
    gamma. ``report`` holds all figures, by stream of prompts and with the texts (its keys are
    those of ``data/report.schema.json``). ``print(comparison)`` shows a table."""

    results: tuple[MethodResult, ...]
    report: Mapping[str, Any] = field(repr=False)

    @staticmethod
    def of(report: Mapping[str, Any]) -> "Comparison":
        """The comparison of a report."""
        rows = [row for row in report["results"] if row["stream"] == "all" and not row["best"]]
        return Comparison(tuple(_result(row) for row in rows), report)

    def __getitem__(self, method: str) -> MethodResult:
        """The result of a method by name, at the first gamma. Raises ArgumentError."""
        for result in self.results:
            if result.method == method:
                return result
        names: Sequence[str] = [result.method for result in self.results]
        raise ArgumentError(f"method {method!r} was not compared: choose from {', '.join(names)}")

    def __str__(self) -> str:
        from minispec.tools.reporting.table import format_table

        return format_table(self.report)

    def save(self, folder: str | Path) -> None:
        """Writes ``report.json``, ``report.png`` and ``report.html`` into a folder, created if it
        is missing. Raises FileError, and ArgumentError without the extra ``report``."""
        check_extra("report", "matplotlib", "bokeh")
        from minispec.tools.reporting import page, report

        report.write(self.report, Path(folder))
        page.write(self.report, Path(folder))


def _result(row: Mapping[str, Any]) -> MethodResult:
    ratio, lossless = row["ratio_to_autoregressive"], row.get("lossless")
    return MethodResult(
        method=row["method"],
        gamma=row["gamma"],
        budget=row["budget"],
        tau=row["tau"],
        tokens_per_second=row["tokens_per_second"],
        speedup=Ratio(**ratio) if ratio else None,
        identical=lossless["identical"] == lossless["checked"] if lossless else None,
        tree=row.get("tree"),
    )
