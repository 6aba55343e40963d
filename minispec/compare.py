"""Methods side by side on the same prompts, in one process.

Each method decodes each prompt once, after a warm-up; which goes first rotates from prompt to
prompt, so that a machine that gets slower slows all of them. Everything that a method could
remember is reset between prompts. Ratios are paired: prompt by prompt, within this run.

Knows what is compared; ``minispec.report`` knows how it is shown.
"""

import itertools
import math
import os
import platform
import random
import resource
import statistics
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from minispec import audit, corpus
from minispec.commit import StopRule
from minispec.errors import ArgumentError, ContextError
from minispec.measure import Figures, measured, repeated_4gram_share
from minispec.methods import Decoder, Method, decoder
from minispec.pretrained import Pretrained
from minispec.sampling import Sampling, SeededRandom
from minispec.tokenizer import prompt_ids
from minispec.types import Draft

_WARM_UP_TOKENS = 16
_RESAMPLES = 2000


@dataclass(frozen=True)
class Stream:
    """Prompts of one kind; the name of one of the project's domains says which."""

    name: str
    prompts: tuple[str, ...]


@dataclass(frozen=True)
class Settings:
    """What a comparison runs: everything but the model."""

    methods: tuple[Method, ...]
    gammas: tuple[int, ...]
    sampling: Sampling
    max_new_tokens: int
    seed: int
    ignore_eos: bool = False
    raw: bool = False

    def __post_init__(self) -> None:
        if not self.methods or not self.gammas:
            raise ArgumentError("at least one method and one gamma are needed")
        for name, values in (("method", self.methods), ("gamma", self.gammas)):
            if len(set(values)) != len(values):
                raise ArgumentError(f"a {name} is named twice")
        if self.max_new_tokens < 1:
            raise ArgumentError(f"max-new-tokens {self.max_new_tokens} must be 1 or above")


@dataclass(frozen=True)
class Variant:
    """A method at one gamma; plain decoding has none."""

    method: Method
    gamma: int | None

    def __str__(self) -> str:
        return f"{self.method} gamma {self.gamma}" if self.gamma else str(self.method)


# By variant, by stream, by prompt.
Measurements = dict[Variant, dict[str, list[Figures]]]


def streams_of(names: Sequence[str], limit: int | None = None) -> list[Stream]:
    """Streams by the names of domains or of files; the stem of a file names its stream.

    Raises ArgumentError for a name that is neither or twice, FileError for a bad file.
    """
    streams = []
    for name in names:
        if name in corpus.DOMAINS:
            streams.append(Stream(name, tuple(corpus.prompts(name)[:limit])))
        elif Path(name).suffix or Path(name).exists():
            streams.append(Stream(Path(name).stem, tuple(corpus.read_prompts(name)[:limit])))
        else:
            raise ArgumentError(
                f"prompts {name!r} are neither a file nor one of {', '.join(corpus.DOMAINS)}"
            )
    stems = [stream.name for stream in streams]
    if len(set(stems)) != len(stems) or "all" in stems:
        raise ArgumentError(f"streams {', '.join(stems)}: names must differ, and none be 'all'")
    return streams


def compare(
    model: Pretrained, draft: Draft | None, streams: Sequence[Stream], settings: Settings
) -> dict[str, Any]:
    """Runs the comparison; returns the report (see ``data/report.schema.json``).

    All prompts and methods are checked before anything is decoded. Raises ArgumentError,
    TextError, ContextError, FileError, FingerprintError.
    """
    prompts = {
        stream.name: [prompt_ids(model.tokenizer, text, settings.raw) for text in stream.prompts]
        for stream in streams
    }
    for name, stream in prompts.items():
        for number, ids in enumerate(stream, 1):
            if len(ids) >= model.target.context_limit:
                raise ContextError(
                    f"prompt {number} of {name} has {len(ids)} tokens, "
                    f"the context holds {model.target.context_limit}"
                )
    variants = [
        Variant(method, gamma)
        for method in settings.methods
        for gamma in (settings.gammas if method.name != "autoregressive" else (None,))
    ]
    eos_ids = () if settings.ignore_eos else model.tokenizer.eos_ids
    decoders = {
        variant: {
            name: decoder(
                variant.method,
                model,
                draft,
                name,
                gamma=variant.gamma or 1,
                sampling=settings.sampling,
                stop=StopRule(settings.max_new_tokens, eos_ids),
            )
            for name in prompts
        }
        for variant in variants
    }
    figures, peaks = _decoded(decoders, prompts, settings)
    lossless = None
    if settings.sampling.temperature == 0:
        lossless = _audited(model, figures, prompts, settings, eos_ids)
    return {
        "model": model.name,
        "dtype": str(model.target.embedding.weight.dtype).removeprefix("torch."),
        "backend": "reference",
        "gamma": list(settings.gammas),
        "sampling": {
            "temperature": settings.sampling.temperature,
            "top_k": settings.sampling.top_k,
            "top_p": settings.sampling.top_p,
        },
        "max_new_tokens": settings.max_new_tokens,
        "seed": settings.seed,
        "threads": torch.get_num_threads(),
        "machine": machine(),
        "results": _results(model, figures, peaks, lossless, list(prompts), settings),
    }


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown"


def _decoded(
    decoders: Mapping[Variant, Mapping[str, Decoder]],
    prompts: Mapping[str, Sequence[Sequence[int]]],
    settings: Settings,
) -> tuple[Measurements, dict[Variant, float]]:
    """Every variant on every prompt, and the most memory that each was seen to need (MB)."""
    variants = list(decoders)
    first_stream, first_prompt = next((name, stream[0]) for name, stream in prompts.items())
    for variant in variants:
        rounds = decoders[variant][first_stream](first_prompt, SeededRandom(settings.seed))
        for emitted, _ in enumerate(rounds):
            if emitted >= _WARM_UP_TOKENS:
                break
    figures: Measurements = {v: {name: [] for name in prompts} for v in variants}
    peaks = dict.fromkeys(variants, 0.0)
    total = sum(map(len, prompts.values()))
    with tqdm(total=total * len(variants), desc="decoding", unit="prompt", disable=None) as bar:
        for number, (name, ids) in enumerate((n, ids) for n in prompts for ids in prompts[n]):
            turn = number % len(variants)
            for variant in variants[turn:] + variants[:turn]:
                _reset_peak()
                # The same seed for every method: they differ in what they do, not in luck.
                source = SeededRandom(settings.seed * 1_000_003 + number)
                figures[variant][name].append(measured(decoders[variant][name](ids, source)))
                peaks[variant] = max(peaks[variant], _peak_mb())
                bar.update()
    return figures, peaks


def _reset_peak() -> None:
    with suppress(OSError):  # elsewhere than on Linux the peak is that of the whole process
        Path("/proc/self/clear_refs").write_text("5")  # peak := what is held now


def _peak_mb() -> float:
    try:
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 1024
    except (OSError, IndexError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _audited(
    model: Pretrained,
    figures: Measurements,
    prompts: Mapping[str, Sequence[Sequence[int]]],
    settings: Settings,
    eos_ids: tuple[int, ...],
) -> dict[Variant, dict[str, list[str]]]:
    """A verdict of ``audit`` for every output, against plain decoding's, which is run for
    this, untimed, if it is not among the methods."""
    plain = next((v for v in figures if v.method.name == "autoregressive"), None)
    gap = audit.NEAR_TIE[model.target.embedding.weight.dtype]
    verdicts: dict[Variant, dict[str, list[str]]] = {v: {n: [] for n in prompts} for v in figures}
    outputs = [(name, place) for name in prompts for place in range(len(prompts[name]))]
    for name, place in tqdm(outputs, desc="auditing", unit="prompt", disable=None):
        ids = prompts[name][place]
        if plain:
            expected = figures[plain][name][place].tokens
        else:
            run = decoder(
                Method("autoregressive"), model, None, None, gamma=1, sampling=settings.sampling,
                stop=StopRule(settings.max_new_tokens, eos_ids),
            )  # fmt: skip
            expected = measured(run(ids, SeededRandom(0))).tokens
        for variant in figures:
            other = figures[variant][name][place].tokens
            verdicts[variant][name].append(audit.audited(model.target, ids, expected, other, gap))
    return verdicts


def _results(
    model: Pretrained,
    figures: Measurements,
    peaks: Mapping[Variant, float],
    lossless: Mapping[Variant, Mapping[str, Sequence[str]]] | None,
    names: Sequence[str],
    settings: Settings,
) -> list[dict[str, Any]]:
    pooled = {
        v: {**each, "all": [f for n in names for f in each[n]]} for v, each in figures.items()
    }
    best = {
        method: max(
            (v for v in figures if v.method == method),
            key=lambda v: _speed(pooled[v]["all"]),
        )
        for method in settings.methods
    }
    partner = _partner(settings.methods)
    rows = []
    for stream in (*names, "all"):
        for variant in figures:
            row = _row(model, variant, stream, pooled[variant][stream], peaks[variant])
            row["ratio_to_autoregressive"] = row["ratio_to_frspec"] = None
            for key, method in (("autoregressive", Method("autoregressive")), ("frspec", partner)):
                other = next(
                    (v for v in figures if v.method == method and v.gamma in (None, variant.gamma)),
                    None,
                )
                if other:
                    row[f"ratio_to_{key}"] = _ratio(pooled[variant][stream], pooled[other][stream])
            if lossless is not None:
                verdicts = [v for n in names if stream in (n, "all") for v in lossless[variant][n]]
                row["lossless"] = {
                    "checked": len(verdicts),
                    "identical": verdicts.count("identical"),
                    "near_ties": verdicts.count("near_tie"),
                    "violations": verdicts.count("violation"),
                }
            rows.append(row)
            if len(settings.gammas) > 1 and best[variant.method] == variant and variant.gamma:
                rows.append(_at_best(row, pooled, best, partner, stream, variant))
    return rows


def _at_best(
    row: Mapping[str, Any],
    pooled: Measurements,
    best: Mapping[Method, Variant],
    partner: Method | None,
    stream: str,
    variant: Variant,
) -> dict[str, Any]:
    """The row of a method at its own best gamma; its rival is at its own best too."""
    copy = {**row, "best": True}
    if partner:
        copy["ratio_to_frspec"] = _ratio(pooled[variant][stream], pooled[best[partner]][stream])
    return copy


def _partner(methods: Sequence[Method]) -> Method | None:
    """Whom ratios to FR-Spec refer to: frspec@0.25 if it runs, else the first frspec."""
    usual = Method.parse("frspec@0.25")
    others = [method for method in methods if method.name == "frspec"]
    return usual if usual in others else next(iter(others), None)


def _row(
    model: Pretrained, variant: Variant, stream: str, figures: Sequence[Figures], peak: float
) -> dict[str, Any]:
    tokens = sum(len(f.tokens) for f in figures)
    passes = sum(f.passes for f in figures)
    latencies = [1000 * seconds for f in figures for seconds in f.latencies]
    sizes = [size for f in figures for size in f.shortlist_sizes]
    phases = sorted({phase for f in figures for phase in f.seconds})
    accepted = _columns([f.accepted_at for f in figures])
    proposed = _columns([f.proposed_at for f in figures])
    return {
        "method": str(variant.method),
        "stream": stream,
        "gamma": variant.gamma,
        "best": False,
        "budget": variant.method.ids(model.target.head.vocabulary_size),
        "prompts": len(figures),
        "tokens": tokens,
        "target_passes": passes,
        "tau": tokens / passes,
        "accepted_by_position": [a / p for a, p in zip(accepted, proposed, strict=True)],
        "tokens_per_second": _speed(figures),
        "latency_ms": {"p50": _quantile(latencies, 0.5), "p95": _quantile(latencies, 0.95)},
        "peak_rss_mb": peak,
        "shortlist_mean": statistics.fmean(sizes) if sizes else None,
        "seconds": {phase: sum(f.seconds.get(phase, 0.0) for f in figures) for phase in phases},
        "repeated_4gram_share": statistics.fmean(repeated_4gram_share(f.tokens) for f in figures),
    }


def _columns(rows: Sequence[Sequence[int]]) -> list[int]:
    """Sums by position over rows of different lengths."""
    return [sum(column) for column in itertools.zip_longest(*rows, fillvalue=0)]


def _speed(figures: Sequence[Figures]) -> float:
    """Pooled tokens over pooled seconds of decoding."""
    return sum(len(f.tokens) for f in figures) / sum(f.decode_seconds for f in figures)


def _ratio(ours: Sequence[Figures], theirs: Sequence[Figures]) -> dict[str, float]:
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
