"""The commands that make files: a ranking, an index, a router, a draft, the pocket pair."""

import argparse
import math

from minispec.errors import ArgumentError
from minispec.tools.cli.prepare import (
    check_out,
    check_writable,
    load_model,
    report_implementation,
)
from minispec.tools.extras import check_extra


def rank(options: argparse.Namespace) -> None:
    """Counts, cuts or converts a ranking. Raises ArgumentError for options that contradict."""
    from minispec.tools.data import ranking
    from minispec.tools.models import pretrained
    from minispec.tools.training import recipe

    if bool(options.text or options.domains) == (options.ranking is not None):
        raise ArgumentError(
            "give either text to count (--text FILE... or --domains NAME...) or a --ranking to cut "
            "or convert"
        )
    if options.written and not options.domains:
        raise ArgumentError("--written counts text that the model wrote on --domains: name them")
    check_out(options.out, ".safetensors", ".pt")
    model = pretrained.load(options.model)
    size = model.target.head.vocab_size
    if options.ranking is None:
        _check_budget(options.budget, size)
        ids, details = recipe.count_texts(model, options.text, options.domains, options.written)
    else:
        file = ranking.find_ranking(model.name, options.ranking)
        details = {"cut_from": options.ranking}
        ids = ranking.read_ranking(file, model.tokenizer.fingerprint, size)
        _check_budget(options.budget, len(ids))
        ranking.check_order(ids, options.budget or len(ids), file)
    recipe.save_ranking(model, ids, options.budget, details, options.out)
    print(f"wrote {options.out}")


def _check_budget(budget: int | None, limit: int) -> None:
    if budget is not None and not 1 <= budget <= limit:
        raise ArgumentError(f"budget {budget} must lie in 1..{limit}")


def build_index(options: argparse.Namespace) -> None:
    """Clusters the rows of a model's LM head, counts bigrams, or fits a low-rank head, and writes
    the result. Raises ArgumentError for options out of range."""
    from minispec.models.eagle_draft import EagleDraft
    from minispec.tools.models.threads import set_threads
    from minispec.tools.training import indices

    set_threads(options.threads)
    check_out(options.out, ".safetensors")
    if options.bigrams:
        indices.make_bigrams(options.model, options.domains, options.out)
    elif options.lowrank is not None:
        model = load_model(
            options.model, draft=options.draft, backend="reference", threads=options.threads
        )
        if not isinstance(model.draft, EagleDraft):
            raise ArgumentError(f"model {model.name} has no EAGLE draft: give one with --draft")
        indices.make_lowrank(
            model.pretrained, model.draft, options.lowrank, options.domains, options.out
        )
    else:
        indices.make_clusters(options.model, options.clusters, options.seed, options.out)
    print(f"wrote {options.out}")


def train_router(options: argparse.Namespace) -> None:
    """Trains a router for an index. Raises ArgumentError for options out of range."""
    from minispec.models.eagle_draft import EagleDraft
    from minispec.tools.training import recipe

    if options.tokens < 1:
        raise ArgumentError(f"tokens {options.tokens} must be 1 or above")
    check_out(options.out, ".safetensors")
    model = load_model(
        options.model, draft=options.draft, index=options.index, backend="reference",
        threads=options.threads,
    )  # fmt: skip
    if not isinstance(model.draft, EagleDraft):
        raise ArgumentError(f"model {model.name} has no EAGLE draft: give one with --draft")
    recipe.make_router(
        model.pretrained, model.draft, options.written, options.tokens, options.seed, options.out
    )
    print(f"wrote {options.out}")


def train_draft(options: argparse.Namespace) -> None:
    """Trains a draft, or continues an interrupted training. Raises ArgumentError for options out of
    range, FileError for a missing draft to start from."""
    from minispec.io.schema import check_file
    from minispec.tools.models.threads import set_threads
    from minispec.tools.training import recipe

    if options.tokens < 1:
        raise ArgumentError(f"tokens {options.tokens} must be 1 or above")
    _check_epochs(options.epochs)
    if not 0 < options.rate < math.inf:
        raise ArgumentError(f"rate {options.rate} must be a number above 0")
    if not 0 <= options.feature_weight < math.inf:
        raise ArgumentError(
            f"feature-weight {options.feature_weight} must be a number from 0 (no such loss)"
        )
    if options.start:
        check_file(options.start)
    set_threads(options.threads)
    check_writable(options.out)
    domains = list(dict.fromkeys(options.domains))  # a domain named twice would be written twice
    path = recipe.make_draft(
        options.model, domains, options.tokens, options.epochs, options.seed, options.out,
        options.raw, options.start, options.rate, on_loaded=report_implementation,
        feature_weight=options.feature_weight, norms=options.norms,
    )  # fmt: skip
    print(f"wrote {path}")


def train_pocket(options: argparse.Namespace) -> None:
    """Trains the pocket pair from scratch. Raises ArgumentError, FileError."""
    check_extra("train", "matplotlib")
    from minispec.tools.models.threads import set_threads
    from minispec.tools.training import pocket

    for name in ("tokens", "draft_tokens"):
        if getattr(options, name) < 1:
            raise ArgumentError(f"{name.replace('_', '-')} must be 1 or above")
    _check_epochs(options.epochs)
    set_threads(options.threads)
    check_writable(options.out)
    path = pocket.make(
        options.out, options.tokens, options.draft_tokens, options.epochs, options.seed
    )
    print(f"wrote {path}")


def _check_epochs(epochs: float) -> None:
    if not 0 < epochs < math.inf:
        raise ArgumentError(f"epochs {epochs} must be a number above 0")
