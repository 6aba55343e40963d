"""Methods side by side on the same prompts, in one process.

Each method decodes each prompt once, after a warm-up; which goes first rotates from prompt to
prompt, so that a machine that gets slower slows all of them. Everything that a method could
remember is reset between prompts. Ratios are paired: prompt by prompt, within this run.

Knows what is compared; ``minispec.tools.evaluation.measure`` knows how it is counted, ``minispec.tools.reporting.report`` how
it is shown.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from tqdm import tqdm

from minispec.commit import StopRule
from minispec.decode import check_gamma
from minispec.errors import ArgumentError
from minispec.sampling import Sampling, SeededRandom
from minispec.tools.data.streams import Plan, Stream, plan_streams, build_prompt
from minispec.tools.evaluation import audit
from minispec.tools.evaluation.measure import Figures, machine, measure, peak_mb, reset_peak
from minispec.tools.evaluation.methods import Decoder, Method, decoder
from minispec.tools.evaluation.results import Conversations, Variant, flatten, rows
from minispec.tools.evaluation.study import Study, Text
from minispec.tools.models.pretrained import Pretrained
from minispec.types import Draft

_WARM_UP_ROUNDS = 16


@dataclass(frozen=True)
class Settings:
    """What a comparison runs: everything but the model. Raises ArgumentError on construction."""

    methods: tuple[Method, ...]
    gammas: tuple[int, ...]
    sampling: Sampling
    max_new_tokens: int
    seed: int
    ignore_eos: bool = False
    raw: bool = False
    threads: int = field(default_factory=torch.get_num_threads)
    switch: bool = False  # also the stream that switches between the others
    study: bool = False  # also the sweep of budgets and of what is left out, by replay
    verifier: str = "token"

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


def compare(
    model: Pretrained, draft: Draft | None, streams: Sequence[Stream], settings: Settings
) -> dict[str, Any]:
    """Runs the comparison; returns the report (see ``data/report.schema.json``).

    All prompts and methods are checked before anything is decoded. Raises ArgumentError,
    TextError, ContextError, FileError, FingerprintError.
    """
    if settings.study and draft is None:
        raise ArgumentError(f"a study needs a draft, and none is known for model {model.name}")
    plan = plan_streams(
        model,
        streams,
        switching=settings.switch,
        max_new_tokens=settings.max_new_tokens,
        seed=settings.seed,
        raw=settings.raw,
    )
    variants = [
        Variant(method, gamma)
        for method in settings.methods
        for gamma in (settings.gammas if method.name != "autoregressive" else (None,))
    ]
    stop = StopRule(settings.max_new_tokens, () if settings.ignore_eos else model.tokenizer.eos_ids)
    made: dict[tuple[Variant, str | None], Decoder] = {}
    decoders: dict[Variant, dict[str, Decoder]] = {variant: {} for variant in variants}
    for variant, stream in itertools.product(variants, streams):
        # Streams whose lists are the same share one, and the copy of its rows.
        key = variant, variant.method.ranking_for(stream.name)
        if key not in made:
            made[key] = decoder(
                variant.method,
                model,
                draft,
                stream.name,
                gamma=variant.gamma or 1,
                sampling=settings.sampling,
                stop=stop,
                trace=True,
                verifier=settings.verifier,
            )
        decoders[variant][stream.name] = made[key]
    talks, peaks = _decoded(decoders, plan, settings, model.tokenizer.eos_ids)
    plain = _Plain(model, talks, stop, settings.sampling)
    lossless = _audited(model, talks, plain) if plain.greedy else None
    origin: dict[Variant, dict[str, dict[str, float]]] = {}
    studied = None
    if draft is not None:
        study = Study(model, draft, stop)
        for variant in talks if plain.greedy else ():
            if variant.gamma and variant.method.budget is not None:
                texts = _texts(plan, talks[variant])
                origin[variant] = study.origin(variant.method, texts, variant.gamma)
        if settings.study:
            texts = plain.texts(plan, model.tokenizer.eos_ids)
            studied = study.report(settings.methods, texts, settings.gammas[0])
    size = model.target.head.vocab_size
    return {
        "model": model.name,
        "dtype": model.dtype,
        "backend": model.backend,
        "gamma": list(settings.gammas),
        "sampling": {
            "temperature": settings.sampling.temperature,
            "top_k": settings.sampling.top_k,
            "top_p": settings.sampling.top_p,
        },
        "verifier": settings.verifier,
        "max_new_tokens": settings.max_new_tokens,
        "seed": settings.seed,
        "threads": settings.threads,
        "machine": machine(),
        "results": rows(talks, peaks, lossless, origin, size),
        "samples": [_sample(stream, talks) for stream in streams],
        "study": studied,
    }


def _sample(stream: Stream, talks: Mapping[Variant, Conversations]) -> dict[str, Any]:
    """The first prompt of a stream, and what each method answered; at several gammas, at the
    first, since at the others a method says the same."""
    answers: dict[str, str] = {}
    for variant in talks:
        answers.setdefault(str(variant.method), talks[variant][stream.name][0][0].text)
    return {"stream": stream.name, "prompt": stream.prompts[0], "answers": answers}


def _decoded(
    decoders: Mapping[Variant, Mapping[str, Decoder]],
    plan: Plan,
    settings: Settings,
    eos_ids: Sequence[int],
) -> tuple[dict[Variant, dict[str, list[list[Figures]]]], dict[Variant, float]]:
    """Every variant on every prompt, and the most memory that each was seen to need (MB)."""
    variants = list(decoders)
    ids = next(iter(plan.values()))[0][0].ids
    distinct = dict.fromkeys(each for streams in decoders.values() for each in streams.values())
    for decode in tqdm(distinct, desc="warming up", unit="method", leave=False, disable=None):
        for _ in itertools.islice(decode(ids, SeededRandom(0)), _WARM_UP_ROUNDS):
            pass
    talks: dict[Variant, dict[str, list[list[Figures]]]] = {v: {} for v in variants}
    peaks = dict.fromkeys(variants, 0.0)
    asked = [(name, turns) for name in plan for turns in plan[name]]
    total = sum(len(turns) for _, turns in asked) * len(variants)
    number = 0
    with tqdm(total=total, desc="decoding", unit="prompt", disable=None) as bar:
        for name, turns in asked:
            for variant in variants:
                talks[variant].setdefault(name, []).append([])
            for place, turn in enumerate(turns):
                first = number % len(variants)
                for variant in variants[first:] + variants[:first]:
                    talk, decode = talks[variant][name][-1], decoders[variant][turn.domain]
                    # Each method goes on from its own answers, and with the list that followed
                    # them; a list for another ranking has not, and begins anew.
                    ids = build_prompt(talk, turn, eos_ids)
                    goes_on = place > 0 and decode is decoders[variant][turns[place - 1].domain]
                    # The same seed for every method: they differ in what they do, not in luck.
                    source = SeededRandom(settings.seed * 1_000_003 + number)
                    reset_peak()
                    talk.append(measure(decode(ids, source, continued=goes_on), ids))
                    peaks[variant] = max(peaks[variant], peak_mb())
                    bar.update()
                number += 1
    return talks, peaks


class _Plain:
    """Greedy plain decoding of any prompt: what it said when it was measured, else it is run
    for this, untimed. ``greedy``: whether that is what the methods do too."""

    def __init__(
        self,
        model: Pretrained,
        talks: Mapping[Variant, Conversations],
        stop: StopRule,
        sampling: Sampling,
    ) -> None:
        self.greedy = sampling.temperature == 0
        self._known = {
            figures.prompt: figures.tokens
            for variant in talks
            if self.greedy and variant.method.name == "autoregressive"
            for stream in talks[variant]
            for figures in flatten(talks[variant], stream)
        }
        self._decode = decoder(
            Method("autoregressive"), model, None, None, gamma=1, sampling=Sampling(), stop=stop
        )

    def __call__(self, prompt: tuple[int, ...]) -> tuple[int, ...]:
        if prompt not in self._known:
            self._known[prompt] = measure(self._decode(prompt, SeededRandom(0))).tokens
        return self._known[prompt]

    def texts(self, plan: Plan, eos_ids: Sequence[int]) -> dict[str, list[list[Text]]]:
        """Its own answers to all prompts, each conversation going on from them."""
        found: dict[str, list[list[Text]]] = {name: [] for name in plan}
        asked = [(name, turns) for name in plan for turns in plan[name]]
        for name, turns in tqdm(asked, desc="recording", unit="conversation", disable=None):
            talk: list[Text] = []
            for turn in turns:
                prompt = build_prompt(talk, turn, eos_ids)
                talk.append(Text(turn.domain, prompt, self(prompt)))
            found[name].append(talk)
        return found


def _texts(plan: Plan, talks: Conversations) -> dict[str, list[list[Text]]]:
    """What a method was asked and answered."""
    return {
        name: [
            [Text(turn.domain, f.prompt, f.tokens) for turn, f in zip(turns, talk, strict=True)]
            for turns, talk in zip(plan[name], talks[name], strict=True)
        ]
        for name in plan
    }


def _audited(
    model: Pretrained, talks: Mapping[Variant, Conversations], plain: _Plain
) -> dict[Variant, dict[str, list[str]]]:
    """A verdict of ``audit`` for every output, against plain decoding's of the same prompt."""
    gap = audit.NEAR_TIE[model.reference.embedding.weight.dtype]
    verdicts: dict[Variant, dict[str, list[str]]] = {v: {n: [] for n in talks[v]} for v in talks}
    places = [(v, name, f) for v in talks for name in talks[v] for f in flatten(talks[v], name)]
    for variant, name, figures in tqdm(places, desc="auditing", unit="answer", disable=None):
        output = plain(figures.prompt)
        verdict = audit.audit(model.target, figures.prompt, output, figures.tokens, gap)
        verdicts[variant][name].append(verdict)
    return verdicts
