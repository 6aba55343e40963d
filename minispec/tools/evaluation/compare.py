"""Methods side by side on the same prompts, in one process.

Each method decodes each prompt once, after a warm-up. Which method goes first rotates from prompt
to prompt, so that a machine that slows down slows all of them alike. All state that a method
could carry over is reset between prompts. Ratios are paired: prompt by prompt, within this run.

Knows nothing of how figures are computed (``measure``) or shown (``minispec.tools.reporting``).
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from tqdm import tqdm

from minispec.auto_shape import Shape
from minispec.commit import StopRule
from minispec.errors import ArgumentError
from minispec.preconditions import check_gamma
from minispec.sampling import Sampling, SeededRandom
from minispec.tools.data.streams import Plan, Stream, build_prompt, plan_streams
from minispec.tools.evaluation import audit
from minispec.tools.evaluation.assembly import Decoder, build_decoder
from minispec.tools.evaluation.measure import (
    Figures,
    describe_machine,
    measure,
    peak_mb,
    reset_peak,
)
from minispec.tools.evaluation.methods import Method
from minispec.tools.evaluation.plugins import verifier_name
from minispec.tools.evaluation.results import (
    Conversations,
    Variant,
    build_rows,
    flatten,
    flatten_at,
    list_variants,
)
from minispec.tools.evaluation.study import Study, Text
from minispec.tools.evaluation.warm_up import warm_up_decoders
from minispec.tools.models.pretrained import Pretrained
from minispec.types import Draft
from minispec.verify import Verifier


@dataclass(frozen=True)
class Settings:
    """What a comparison runs, the model apart. Raises ArgumentError on construction."""

    methods: tuple[Method, ...]
    gammas: tuple[int, ...]
    sampling: Sampling
    max_new_tokens: int
    seed: int
    ignore_eos: bool = False
    raw: bool = False  # no chat template
    threads: int = field(default_factory=torch.get_num_threads)
    switch: bool = False  # add a stream of conversations that switch between the others
    study: bool = False  # add the sweep of budgets and the ablations, by replay
    verifier: str | Verifier = "token"
    trees: tuple[Shape | None, ...] = (None,)  # None: chains, of each gamma

    def __post_init__(self) -> None:
        for name in ("method", "gamma", "tree"):
            values = getattr(self, f"{name}s")
            if not values:
                raise ArgumentError("at least one method and one gamma are needed")
            if len(set(values)) != len(values):
                raise ArgumentError(f"a {name} is named twice")
        for gamma in self.gammas:
            check_gamma(gamma)
        if self.study and self.sampling.changes_logits:
            raise ArgumentError(
                f"{self.sampling}: a study replays text of the unchanged logits, so it takes no "
                "penalties, biases or bad words"
            )
        if self.max_new_tokens < 1:
            raise ArgumentError(f"max-new-tokens {self.max_new_tokens} must be 1 or above")


def compare(
    model: Pretrained, draft: Draft | None, streams: Sequence[Stream], settings: Settings
) -> dict[str, Any]:
    """Run the comparison and return its report (see ``data/report.schema.json``).

    All prompts and methods are checked before anything is decoded. Raises ArgumentError,
    TextError, ContextError, FileError, FingerprintError.
    """
    if settings.study and draft is None:
        raise ArgumentError(f"a study needs a draft, and model {model.name} has none")
    plan = plan_streams(
        model,
        streams,
        switching=settings.switch,
        max_new_tokens=settings.max_new_tokens,
        seed=settings.seed,
        raw=settings.raw,
    )
    eos_ids = model.tokenizer.eos_ids
    stop = StopRule(settings.max_new_tokens, () if settings.ignore_eos else eos_ids)
    decoders = _build_decoders(model, draft, streams, settings, stop)
    conversations, peaks = _decode_all(decoders, plan, settings, eos_ids)
    plain = _PlainDecoding(model, conversations, stop, settings.sampling)
    lossless = _audit_all(model, conversations, plain, settings.sampling) if plain.greedy else None
    origin: dict[Variant, dict[str, dict[str, float]]] = {}
    study_report = None
    if draft is not None:
        study = Study(model, draft, stop)
        # Origins are of replays, which draft and answer with unchanged logits.
        replayed = plain.greedy and not settings.sampling.changes_logits
        for variant in conversations if replayed else ():
            if variant.gamma and variant.method.name != "full":
                texts = _collect_texts(plan, conversations[variant])
                origin[variant] = study.compute_origin(variant.method, texts, variant.gamma)
        if settings.study:
            texts = plain.answer_all(plan, eos_ids)
            gamma = settings.gammas[0]
            timed = flatten_at(conversations, gamma)
            study_report = study.report(settings.methods, texts, gamma, timed)
    size = model.target.head.vocab_size
    return {
        "version": 2,
        "model": model.name,
        "dtype": model.dtype,
        "backend": model.backend,
        "gamma": list(settings.gammas),
        "sampling": settings.sampling.to_json(),
        "verifier": verifier_name(settings.verifier),
        "max_new_tokens": settings.max_new_tokens,
        "seed": settings.seed,
        "threads": settings.threads,
        "machine": describe_machine(),
        "results": build_rows(conversations, peaks, lossless, origin, size),
        "samples": [_sample(stream, conversations) for stream in streams],
        "study": study_report,
    }


def _build_decoders(
    model: Pretrained,
    draft: Draft | None,
    streams: Sequence[Stream],
    settings: Settings,
    stop: StopRule,
) -> dict[Variant, dict[str, Decoder]]:
    """A decoder for every variant and stream. Streams for which a method has the same shortlist
    share one decoder, and so one packed copy of its head rows."""
    variants = list_variants(settings.methods, settings.gammas, settings.trees)
    decoders: dict[Variant, dict[str, Decoder]] = {variant: {} for variant in variants}
    shared: dict[tuple[Variant, str | None], Decoder] = {}
    for variant, stream in itertools.product(decoders, streams):
        key = variant, variant.method.ranking_for(stream.name)
        if key not in shared:
            shared[key] = build_decoder(
                variant.method,
                model,
                draft,
                stream.name,
                gamma=variant.gamma or 1,
                sampling=settings.sampling,
                stop=stop,
                trace=True,
                verifier=settings.verifier,
                tree=variant.tree,
            )
        decoders[variant][stream.name] = shared[key]
    return decoders


def _sample(stream: Stream, conversations: Mapping[Variant, Conversations]) -> dict[str, Any]:
    """The first prompt of a stream and each method's answer at its first gamma."""
    answers: dict[str, str] = {}
    for variant in conversations:
        answer = conversations[variant][stream.name][0][0].text
        answers.setdefault(str(variant.method), answer)
    return {"stream": stream.name, "prompt": stream.prompts[0], "answers": answers}


def _decode_all(
    decoders: Mapping[Variant, Mapping[str, Decoder]],
    plan: Plan,
    settings: Settings,
    eos_ids: Sequence[int],
) -> tuple[dict[Variant, dict[str, list[list[Figures]]]], dict[Variant, float]]:
    """The figures of every variant on every prompt, and each variant's peak memory (MB)."""
    variants = list(decoders)
    distinct = dict.fromkeys(each for streams in decoders.values() for each in streams.values())
    warm_up_decoders([*distinct], next(iter(plan.values()))[0][0].ids)
    conversations: dict[Variant, dict[str, list[list[Figures]]]] = {v: {} for v in variants}
    peaks = dict.fromkeys(variants, 0.0)
    planned = [(name, turns) for name in plan for turns in plan[name]]
    total = sum(len(turns) for _, turns in planned) * len(variants)
    number = 0  # of the prompt
    with tqdm(total=total, desc="decoding", unit="prompt", disable=None) as bar:
        for name, turns in planned:
            for variant in variants:
                conversations[variant].setdefault(name, []).append([])
            for position, turn in enumerate(turns):
                first = number % len(variants)
                for variant in variants[first:] + variants[:first]:
                    answered = conversations[variant][name][-1]
                    decode = decoders[variant][turn.domain]
                    # Each method continues its own answers, with the shortlist that observed
                    # them; a decoder for another ranking observed none, so it starts afresh.
                    ids = build_prompt(answered, turn, eos_ids)
                    continued = (
                        position > 0 and decode is decoders[variant][turns[position - 1].domain]
                    )
                    # The same seed for all methods, so that none of them is luckier.
                    rng = SeededRandom(settings.seed * 1_000_003 + number)
                    reset_peak()
                    answered.append(measure(decode(ids, rng, continued=continued), ids))
                    peaks[variant] = max(peaks[variant], peak_mb())
                    bar.update()
                number += 1
    return conversations, peaks


class _PlainDecoding:
    """The greedy answer of plain decoding to any prompt: from the comparison if it ran there,
    else decoded now, untimed. ``greedy``: whether the compared methods are greedy too."""

    def __init__(
        self,
        model: Pretrained,
        conversations: Mapping[Variant, Conversations],
        stop: StopRule,
        sampling: Sampling,
    ) -> None:
        self.greedy = sampling.temperature == 0
        self._answers = {
            figures.prompt: figures.tokens
            for variant in conversations
            if self.greedy and variant.method.name == "autoregressive"
            for stream in conversations[variant]
            for figures in flatten(conversations[variant], stream)
        }
        self._decode = build_decoder(
            Method("autoregressive"), model, None, None, gamma=1,
            sampling=sampling if self.greedy else Sampling(), stop=stop,
        )  # fmt: skip

    def answer(self, prompt: tuple[int, ...]) -> tuple[int, ...]:
        if prompt not in self._answers:
            self._answers[prompt] = measure(self._decode(prompt, SeededRandom(0))).tokens
        return self._answers[prompt]

    def answer_all(self, plan: Plan, eos_ids: Sequence[int]) -> dict[str, list[list[Text]]]:
        """Its answers to all prompts, in conversations that continue its own answers."""
        found: dict[str, list[list[Text]]] = {name: [] for name in plan}
        planned = [(name, turns) for name in plan for turns in plan[name]]
        for name, turns in tqdm(planned, desc="recording", unit="conversation", disable=None):
            answered: list[Text] = []
            for turn in turns:
                prompt = build_prompt(answered, turn, eos_ids)
                answered.append(Text(turn.domain, prompt, self.answer(prompt)))
            found[name].append(answered)
        return found


def _collect_texts(plan: Plan, conversations: Conversations) -> dict[str, list[list[Text]]]:
    """The prompts and answers of a method."""
    return {
        name: [
            [Text(turn.domain, f.prompt, f.tokens) for turn, f in zip(turns, figures, strict=True)]
            for turns, figures in zip(plan[name], conversations[name], strict=True)
        ]
        for name in plan
    }


def _audit_all(
    model: Pretrained,
    conversations: Mapping[Variant, Conversations],
    plain: _PlainDecoding,
    sampling: Sampling,
) -> dict[Variant, dict[str, list[str]]]:
    """The audit's class of every output, against plain decoding's answer to the same prompt."""
    gap = audit.NEAR_TIE[model.reference.head.weight.dtype]
    classes: dict[Variant, dict[str, list[str]]] = {
        variant: {name: [] for name in streams} for variant, streams in conversations.items()
    }
    outputs = [
        (variant, name, figures)
        for variant, streams in conversations.items()
        for name in streams
        for figures in flatten(streams, name)
    ]
    for variant, name, figures in tqdm(outputs, desc="auditing", unit="answer", disable=None):
        expected = plain.answer(figures.prompt)
        found = audit.audit(model.target, figures.prompt, expected, figures.tokens, gap, sampling)
        classes[variant][name].append(found)
    return classes
