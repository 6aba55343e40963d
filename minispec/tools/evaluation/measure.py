"""Figures of one decoded prompt, of many, and of the machine that they were measured on.

Speeds are of decoding alone: the prefill of the prompt is timed separately. tau is the number of
tokens emitted per target pass (EAGLE and vLLM: the mean acceptance length), prefill excluded. Two
methods are compared prompt by prompt, since prompts differ more than methods do.

Knows nothing of methods and streams.
"""

import itertools
import math
import os
import platform
import random
import resource
import statistics
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

from minispec.tree import find_depths, follow, select
from minispec.types import Round

_RESAMPLES = 2000


@dataclass(frozen=True)
class Figures:
    """What decoding one prompt produced and cost.

    ``passes``: target passes. ``seconds``: by phase, "prefill" among them. ``accepted_at``: rounds
    in which a draft at depth i was accepted; ``proposed_at``: rounds in which there was one.
    ``drafted``: drafted tokens in all.
    ``latencies``: seconds per token, those of a round spread evenly over its tokens. ``emitted``:
    tokens by round. ``coverage``: the mass of the target's distribution on the shortlist, for each
    draft step whose past the target accepted; empty unless rounds carry evidence. ``events``: what
    a learning draft did, counted by name.
    """

    tokens: tuple[int, ...]
    text: str
    stop: str | None
    passes: int
    seconds: dict[str, float]
    accepted_at: tuple[int, ...]
    proposed_at: tuple[int, ...]
    latencies: tuple[float, ...]
    shortlist_sizes: tuple[int, ...]
    rows_probed: int
    emitted: tuple[int, ...] = ()
    coverage: tuple[float, ...] = ()
    prompt: tuple[int, ...] = ()
    events: dict[str, int] = field(default_factory=dict)
    drafted: int = 0

    @property
    def decode_seconds(self) -> float:
        """Seconds of all phases but prefill."""
        return sum(seconds for phase, seconds in self.seconds.items() if phase != "prefill")

    @property
    def tokens_per_second(self) -> float:
        """Tokens over seconds of decoding; 0 without tokens."""
        return len(self.tokens) / self.decode_seconds if self.tokens else 0.0

    @property
    def tau(self) -> float:
        """Tokens emitted per target pass; 0 without passes."""
        return len(self.tokens) / self.passes if self.passes else 0.0

    @property
    def drafted_per_pass(self) -> float:
        """Drafted tokens verified per target pass; 0 without passes."""
        return self.drafted / self.passes if self.passes else 0.0

    @property
    def acceptance(self) -> list[float]:
        """The share of the proposals accepted, by depth."""
        return [a / p for a, p in zip(self.accepted_at, self.proposed_at, strict=True)]

    @property
    def repeated_4gram_share(self) -> float:
        """The share of 4-grams that repeat an earlier one: a model that repeats itself is easy to
        draft for, and its tau means little."""
        grams = [self.tokens[i : i + 4] for i in range(len(self.tokens) - 3)]
        return 1 - len(set(grams)) / len(grams) if grams else 0.0


def measure(rounds: Iterable[Round], prompt: Sequence[int] = ()) -> Figures:
    """Decode to the end and sum up. The counting itself is outside every timed phase."""
    tokens: list[int] = []
    text: list[str] = []
    seconds: Counter[str] = Counter()
    accepted: Counter[int] = Counter()
    proposed: Counter[int] = Counter()
    latencies: list[float] = []
    sizes: list[int] = []
    probed = 0
    emitted: list[int] = []
    coverage: list[float] = []
    events: Counter[str] = Counter()
    stop, passes, drafted = None, 0, 0
    for finished in rounds:
        tokens += finished.tokens
        text.append(finished.text)
        seconds.update(finished.seconds)
        accepted.update(range(len(finished.path)))
        parents = finished.parents or range(-1, len(finished.proposed) - 1)
        proposed.update(range(max(find_depths(parents), default=-1) + 1))
        spent = sum(s for phase, s in finished.seconds.items() if phase != "prefill")
        latencies += [spent / len(finished.tokens)] * len(finished.tokens)
        sizes += finished.shortlist_sizes
        probed += finished.rows_probed
        events.update(finished.events)
        emitted.append(len(finished.tokens))
        if finished.evidence:
            own = range(len(finished.shortlist_sizes))  # nodes without continuations of the text
            verified = follow(
                select(finished.evidence.proposal, own),
                [node for node in finished.path if node in own],
            )
            pairs = zip(
                finished.evidence.target_distributions, verified.draft_distributions, strict=False
            )
            coverage += [min(1.0, float(p.probs[p.common_indices(q)[0]].sum())) for p, q in pairs]
        stop, passes = finished.stop, passes + 1
        drafted += len(finished.proposed)
    depth = max(proposed, default=-1) + 1
    return Figures(
        tokens=tuple(tokens),
        text="".join(text),
        stop=stop,
        passes=passes,
        seconds=dict(seconds),
        accepted_at=tuple(accepted[i] for i in range(depth)),
        proposed_at=tuple(proposed[i] for i in range(depth)),
        latencies=tuple(latencies),
        shortlist_sizes=tuple(sizes),
        rows_probed=probed,
        emitted=tuple(emitted),
        coverage=tuple(coverage),
        prompt=tuple(prompt),
        events=dict(events),
        drafted=drafted,
    )


def pool(figures: Sequence[Figures]) -> dict[str, Any]:
    """Many prompts as one row of a report; at least one token must have been decoded."""
    tokens = sum(len(f.tokens) for f in figures)
    passes = sum(f.passes for f in figures)
    latencies = [1000 * seconds for f in figures for seconds in f.latencies]
    sizes = [size for f in figures for size in f.shortlist_sizes]
    coverage = [mass for f in figures for mass in f.coverage]
    phases = sorted({phase for f in figures for phase in f.seconds})
    accepted = _sum_columns([f.accepted_at for f in figures])
    proposed = _sum_columns([f.proposed_at for f in figures])
    return {
        "prompts": len(figures),
        "tokens": tokens,
        "target_passes": passes,
        "tau": tokens / passes,
        "drafted_per_pass": sum(f.drafted for f in figures) / passes,
        "accepted_by_position": [a / p for a, p in zip(accepted, proposed, strict=True)],
        "tokens_per_second": speed(figures),
        "latency_ms": {"p50": _quantile(latencies, 0.5), "p95": _quantile(latencies, 0.95)},
        "shortlist_mean": statistics.fmean(sizes) if sizes else None,
        "rows_probed": sum(f.rows_probed for f in figures) / len(sizes) if sizes else None,
        "coverage": statistics.fmean(coverage) if coverage else None,
        "seconds": {phase: sum(f.seconds.get(phase, 0.0) for f in figures) for phase in phases},
        "repeated_4gram_share": statistics.fmean(f.repeated_4gram_share for f in figures),
        "learning": dict(sum((Counter(f.events) for f in figures), Counter())),
    }


def _sum_columns(rows: Sequence[Sequence[int]]) -> list[int]:
    """Sums by position; rows may differ in length."""
    return [sum(column) for column in itertools.zip_longest(*rows, fillvalue=0)]


def speed(figures: Sequence[Figures]) -> float:
    """Pooled tokens over pooled seconds of decoding."""
    return sum(len(f.tokens) for f in figures) / sum(f.decode_seconds for f in figures)


class Timed(Protocol):
    """An answer with a speed."""

    @property
    def tokens_per_second(self) -> float:
        """Tokens over seconds of decoding."""
        ...


def paired_ratio(ours: Sequence[Timed], theirs: Sequence[Timed]) -> dict[str, float]:
    """Geometric mean over prompts of paired speed ratios, with a bootstrapped 95% interval."""
    logs = [
        math.log(a.tokens_per_second / b.tokens_per_second)
        for a, b in zip(ours, theirs, strict=True)
    ]
    draws = random.Random(0)
    means = [statistics.fmean(draws.choices(logs, k=len(logs))) for _ in range(_RESAMPLES)]
    low, high = _quantile(means, 0.025), _quantile(means, 0.975)
    return {"value": math.exp(statistics.fmean(logs)), "low": math.exp(low), "high": math.exp(high)}


def _quantile(values: Sequence[float], share: float) -> float:
    return float(torch.tensor(values, dtype=torch.float64).quantile(share))


def describe_machine() -> dict[str, Any]:
    """The machine that the figures were measured on."""
    return {
        "processor": _read_processor(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def _read_processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown"


def reset_peak() -> None:
    """Reset what ``peak_mb`` returns, on systems that can (Linux)."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the peak becomes the memory in use now


def peak_mb() -> float:
    """Peak resident memory in MB since ``reset_peak``, or since the process started."""
    try:
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 1024
    except (OSError, IndexError):
        unit = 1 if sys.platform == "darwin" else 1024  # getrusage counts bytes there, else KB
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1024**2
