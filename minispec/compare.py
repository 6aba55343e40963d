"""Methods side by side on the same prompts, in one process.

Each method decodes each prompt once, after a warm-up; which goes first rotates from prompt to
prompt, so that a machine that gets slower slows all of them. Everything that a method could
remember is reset between prompts. Ratios are paired: prompt by prompt, within this run.

Knows what is compared; ``minispec.measure`` knows how it is counted, ``minispec.report`` how
it is shown.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from minispec import audit, corpus
from minispec.commit import StopRule
from minispec.decode import check_gamma
from minispec.draft import EagleDraft
from minispec.errors import ArgumentError, ContextError
from minispec.measure import (
    Figures,
    machine,
    measured,
    paired_ratio,
    peak_mb,
    pooled,
    reset_peak,
    speed,
)
from minispec.methods import Decoder, Method, decoder
from minispec.pretrained import Pretrained
from minispec.sampling import Sampling, SeededRandom
from minispec.tokenizer import prompt_ids

_WARM_UP_ROUNDS = 16


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
        for gamma in self.gammas:
            check_gamma(gamma)
        if self.max_new_tokens < 1:
            raise ArgumentError(f"max-new-tokens {self.max_new_tokens} must be 1 or above")


@dataclass(frozen=True)
class Variant:
    """A method at one gamma; plain decoding has none."""

    method: Method
    gamma: int | None


# By variant, by stream, by prompt.
Measurements = dict[Variant, dict[str, list[Figures]]]


def streams_of(names: Sequence[str], limit: int | None = None) -> list[Stream]:
    """Streams by the names of domains or of files; the stem of a file names its stream. With
    ``limit`` only so many prompts of each.

    Raises ArgumentError for a name that is neither or twice, FileError for a bad file.
    """
    if limit is not None and limit < 1:
        raise ArgumentError(f"limit {limit} must be 1 or above")
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
    model: Pretrained, draft: EagleDraft | None, streams: Sequence[Stream], settings: Settings
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
                    f"prompt {number} of {name} has {len(ids)} tokens, the context holds "
                    f"{model.target.context_limit}: shorten it"
                )
    variants = [
        Variant(method, gamma)
        for method in settings.methods
        for gamma in (settings.gammas if method.name != "autoregressive" else (None,))
    ]
    eos_ids = () if settings.ignore_eos else model.tokenizer.eos_ids
    made: dict[tuple[Variant, str | None], Decoder] = {}
    decoders: dict[Variant, dict[str, Decoder]] = {variant: {} for variant in variants}
    for variant, name in itertools.product(variants, prompts):
        # Streams whose lists are the same share one, and the copy of its rows.
        key = variant, variant.method.ranking_for(name)
        if key not in made:
            made[key] = decoder(
                variant.method,
                model,
                draft,
                name,
                gamma=variant.gamma or 1,
                sampling=settings.sampling,
                stop=StopRule(settings.max_new_tokens, eos_ids),
            )
        decoders[variant][name] = made[key]
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
        "samples": [_sample(stream, figures) for stream in streams],
    }


def _sample(stream: Stream, figures: Measurements) -> dict[str, Any]:
    """The first prompt of a stream, and what each method answered; at several gammas, at the
    first, since at the others a method says the same."""
    answers: dict[str, str] = {}
    for variant, measurements in figures.items():
        answers.setdefault(str(variant.method), measurements[stream.name][0].text)
    return {"stream": stream.name, "prompt": stream.prompts[0], "answers": answers}


def _decoded(
    decoders: Mapping[Variant, Mapping[str, Decoder]],
    prompts: Mapping[str, Sequence[Sequence[int]]],
    settings: Settings,
) -> tuple[Measurements, dict[Variant, float]]:
    """Every variant on every prompt, and the most memory that each was seen to need (MB)."""
    variants = list(decoders)
    ids = next(iter(prompts.values()))[0]
    distinct = dict.fromkeys(each for streams in decoders.values() for each in streams.values())
    for decode in tqdm(distinct, desc="warming up", unit="method", leave=False, disable=None):
        for _ in itertools.islice(decode(ids, SeededRandom(0)), _WARM_UP_ROUNDS):
            pass
    figures: Measurements = {v: {name: [] for name in prompts} for v in variants}
    peaks = dict.fromkeys(variants, 0.0)
    total = sum(map(len, prompts.values()))
    with tqdm(total=total * len(variants), desc="decoding", unit="prompt", disable=None) as bar:
        for number, (name, ids) in enumerate((n, ids) for n in prompts for ids in prompts[n]):
            turn = number % len(variants)
            for variant in variants[turn:] + variants[:turn]:
                reset_peak()
                # The same seed for every method: they differ in what they do, not in luck.
                source = SeededRandom(settings.seed * 1_000_003 + number)
                figures[variant][name].append(measured(decoders[variant][name](ids, source)))
                peaks[variant] = max(peaks[variant], peak_mb())
                bar.update()
    return figures, peaks


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
    alone = decoder(
        Method("autoregressive"), model, None, None, gamma=1, sampling=settings.sampling,
        stop=StopRule(settings.max_new_tokens, eos_ids),
    )  # fmt: skip
    gap = audit.NEAR_TIE[model.target.embedding.weight.dtype]
    verdicts: dict[Variant, dict[str, list[str]]] = {v: {n: [] for n in prompts} for v in figures}
    places = [(name, place) for name in prompts for place in range(len(prompts[name]))]
    for name, place in tqdm(places, desc="auditing", unit="prompt", disable=None):
        ids = prompts[name][place]
        output = figures[plain][name][place] if plain else measured(alone(ids, SeededRandom(0)))
        for variant in figures:
            other = figures[variant][name][place].tokens
            verdict = audit.audited(model.target, ids, output.tokens, other, gap)
            verdicts[variant][name].append(verdict)
    return verdicts


def _results(
    model: Pretrained,
    figures: Measurements,
    peaks: Mapping[Variant, float],
    lossless: Mapping[Variant, Mapping[str, Sequence[str]]] | None,
    names: Sequence[str],
    settings: Settings,
) -> list[dict[str, Any]]:
    """A row for each variant and stream, and for each method one more at its best gamma."""
    everything = {v: {**f, "all": [x for n in names for x in f[n]]} for v, f in figures.items()}
    best = {
        method: max(
            (v for v in figures if v.method == method), key=lambda v: speed(everything[v]["all"])
        )
        for method in settings.methods
    }
    rivals = {
        "autoregressive": best.get(Method("autoregressive")),
        "frspec": best.get(_partner(settings.methods)),
    }
    rows = []
    for stream in (*names, "all"):
        for variant in figures:
            ours = everything[variant][stream]
            row = {
                "method": str(variant.method),
                "stream": stream,
                "gamma": variant.gamma,
                "best": False,
                "budget": variant.method.ids(model.target.head.vocabulary_size),
                **pooled(ours),
                "peak_rss_mb": peaks[variant],
            }
            if lossless is not None:
                verdicts = [v for n in names if stream in (n, "all") for v in lossless[variant][n]]
                row["lossless"] = {
                    "checked": len(verdicts),
                    "identical": verdicts.count("identical"),
                    "near_ties": verdicts.count("near_tie"),
                    "violations": verdicts.count("violation"),
                }
            at_best = row | {"best": True}
            for key, rival in rivals.items():
                row[f"ratio_to_{key}"] = at_best[f"ratio_to_{key}"] = None
                if rival:
                    # At the same gamma, or at the rival's best where one of the two has none.
                    same = Variant(rival.method, variant.gamma)
                    theirs = everything[same if same in everything else rival][stream]
                    row[f"ratio_to_{key}"] = paired_ratio(ours, theirs)
                    theirs = everything[rival][stream]
                    at_best[f"ratio_to_{key}"] = paired_ratio(ours, theirs)
            rows.append(row)
            if len(settings.gammas) > 1 and best[variant.method] == variant:
                rows.append(at_best)
    return rows


def _partner(methods: Sequence[Method]) -> Method:
    """Whom ratios to FR-Spec refer to: frspec@0.25 if it runs, else the first frspec."""
    usual = Method.parse("frspec@0.25")
    others = [method for method in methods if method.name == "frspec" and not method.adapt]
    return usual if usual in others else next(iter(others), usual)
