"""Methods side by side on the same prompts, from Python.

Knows nothing of how figures are measured; that is ``minispec.tools.evaluation``.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from minispec.api.model import Model
from minispec.api.request import (
    BadWords,
    ShortlistLike,
    TreeLike,
    build_sampling,
    check_seed,
    split_auto,
    to_tree,
)
from minispec.api.results import Comparison
from minispec.auto_shape import Shape
from minispec.checks import describe, to_flag, to_int, to_sequence, to_text
from minispec.errors import ArgumentError
from minispec.sampling import Sampling
from minispec.tools.data.corpus import DOMAINS
from minispec.tools.data.streams import Stream, load_streams
from minispec.tools.evaluation import compare as measuring
from minispec.tools.evaluation.compare import Settings
from minispec.tools.evaluation.methods import Method
from minispec.tools.evaluation.plugins import find_verifier
from minispec.verify import Verifier

Prompts = Sequence[str] | Mapping[str, Sequence[str]]


def compare(
    model: Model,
    methods: Sequence[ShortlistLike],
    *,
    prompts: Prompts | None = None,
    gamma: int | str | Sequence[int | str] = 4,
    max_new_tokens: int = 96,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    presence_penalty: float = 0.0,
    frequency_penalty: float = 0.0,
    logit_bias: Mapping[int, float] | None = None,
    bad_words: BadWords = (),
    seed: int = 0,
    ignore_eos: bool = False,
    verifier: str | Verifier = "token",
    raw: bool | None = None,
    tree: TreeLike | Sequence[TreeLike] = None,
) -> Comparison:
    """Decodes the same prompts with each method, in turn and after a warm-up, and compares tau,
    speed and, if greedy, the ids.

    ``methods``: spelled as for ``Model.generate``, or shortlists of one's own. ``prompts``: texts,
    or texts by the name of their stream; None for the project's own of four domains. ``gamma``:
    drafted tokens per round (``num_speculative_tokens`` of vLLM), one or several. ``tree``: one or
    several, as of ``Model.generate``; "chain" for chains of each gamma. The other
    options are those of ``Model.generate``. Speeds are wall time on this machine: run nothing else.

    Raises ArgumentError, TextError, ContextError, FileError and FingerprintError, all before
    anything is decoded.
    """
    if not isinstance(model, Model):
        raise ArgumentError(f"model must be what minispec.load returns, not {describe(model)}")
    several = methods if isinstance(methods, list | tuple) else [methods]
    sampling = build_sampling(
        temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p,
        repetition_penalty=repetition_penalty, presence_penalty=presence_penalty,
        frequency_penalty=frequency_penalty, logit_bias=logit_bias, bad_words=bad_words,
    )  # fmt: skip
    gammas, trees = split_auto(
        [*gamma] if isinstance(gamma, list | tuple) else [gamma],
        [*map(to_tree, tree if isinstance(tree, list | tuple) else [tree])],
    )
    settings = build_settings(
        [Method.of(method) for method in several],
        gammas=tuple(gammas),
        sampling=sampling.resolve(model.tokenizer),
        max_new_tokens=max_new_tokens,
        seed=seed,
        ignore_eos=to_flag(ignore_eos, "ignore_eos"),
        verifier=verifier,
        raw=model.is_base if raw is None else to_flag(raw, "raw"),
        trees=tuple(trees),
    )
    return run_comparison(model, build_streams(prompts, model.is_base), settings)


def build_streams(prompts: Prompts | None, base: bool) -> list[Stream]:
    """Texts as streams of prompts; None stands for the project's own, for ``base`` or chat models.
    Raises ArgumentError where there are none."""
    if prompts is None:
        return load_streams(DOMAINS, base=base)
    if isinstance(prompts, str):
        raise ArgumentError("prompts must be a list of texts, not a single text")
    named = prompts if isinstance(prompts, Mapping) else {"prompts": prompts}
    streams = [
        Stream(to_text(name, "a stream's name"), _to_prompts(texts))
        for name, texts in named.items()
    ]
    if not streams or not all(stream.prompts for stream in streams):
        raise ArgumentError("no prompts to compare on: give one or more texts")
    return streams


def _to_prompts(texts: Any) -> tuple[str, ...]:
    return tuple(to_text(text, "each of the prompts") for text in to_sequence(texts, "prompts"))


def build_settings(
    methods: Sequence[Method],
    *,
    gammas: tuple[int, ...],
    sampling: Sampling,
    max_new_tokens: int,
    seed: int,
    ignore_eos: bool,
    verifier: str | Verifier,
    raw: bool,
    switch: bool = False,
    study: bool = False,
    trees: tuple[Shape | None, ...] = (None,),
) -> Settings:
    """Checked settings of a comparison; ``switch`` and ``study`` as in ``Settings``. Raises
    ArgumentError."""
    seed, max_new_tokens = check_seed(seed), to_int(max_new_tokens, "max-new-tokens")
    find_verifier(verifier)
    return Settings(
        methods=tuple(methods), gammas=gammas, sampling=sampling, max_new_tokens=max_new_tokens,
        seed=seed, ignore_eos=ignore_eos, raw=raw, switch=switch, study=study, verifier=verifier,
        trees=trees,
    )  # fmt: skip


def run_comparison(model: Model, streams: Sequence[Stream], settings: Settings) -> Comparison:
    """Runs a comparison on streams of prompts. Raises as ``compare``."""
    for method in settings.methods:
        for stream in streams:
            method.ranking_for(stream.name)
    report = measuring.compare(model.pretrained, model.draft, streams, settings)
    return Comparison.of(report)
