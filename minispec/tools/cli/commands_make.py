"""The commands that make parts to decode with: rankings, an index, a router, a draft."""

import argparse
import math

from minispec.errors import ArgumentError, FileError
from minispec.tools.cli.prepare import check_out, check_writable, loaded, use_threads


def rank(options: argparse.Namespace) -> None:
    """Counts, cuts or converts a ranking. Raises ArgumentError for options that do not fit."""
    from minispec.tools.data import ranking
    from minispec.tools.models import pretrained
    from minispec.tools.training import recipe

    if bool(options.text or options.domains) == (options.ranking is not None):
        raise ArgumentError(
            "give either text to count, --text FILE... or --domains NAME..., or a --ranking to "
            "cut or convert"
        )
    if options.written and not options.domains:
        raise ArgumentError("--written counts what was written on some --domains: name them")
    check_out(options.out, ".safetensors", ".pt")
    model = pretrained.load(options.model)
    size = model.target.head.vocab_size
    if options.ranking is None:
        _check_budget(options.budget, size)
        ids, details = recipe.count_texts(model, options.text, options.domains, options.written)
    else:
        file, details = ranking.find_ranking(model.name, options.ranking), {"cut_from": options.ranking}
        ids = ranking.read_ranking(file, model.tokenizer.fingerprint, size)
        _check_budget(options.budget, len(ids))
    recipe.save_ranking(model, ids, options.budget, details, options.out)
    print(f"wrote {options.out}")


def _check_budget(budget: int | None, most: int) -> None:
    if budget is not None and not 1 <= budget <= most:
        raise ArgumentError(f"budget {budget} must lie in 1..{most}")


def build_index(options: argparse.Namespace) -> None:
    """Clusters the rows of a model's head into a file."""
    from minispec.tools.training import recipe

    use_threads(options.threads)
    check_out(options.out, ".safetensors")
    recipe.make_index(options.model, options.clusters, options.seed, options.out)
    print(f"wrote {options.out}")


def train_router(options: argparse.Namespace) -> None:
    """Trains a router for an index. Raises ArgumentError for options out of range."""
    from minispec.tools.evaluation.methods import Method
    from minispec.tools.training import recipe

    if options.tokens < 1:
        raise ArgumentError(f"tokens {options.tokens} must be 1 or above")
    check_out(options.out, ".safetensors")
    options.dtype, options.backend = "float32", "reference"  # to learn from there is no choice
    model, draft = loaded(options, [Method("routed")])
    if draft is None:
        raise ArgumentError(f"no draft is known for model {model.name}: give it with --draft")
    recipe.make_router(model, draft, options.written, options.tokens, options.seed, options.out)
    print(f"wrote {options.out}")


def train_draft(options: argparse.Namespace) -> None:
    """Trains a draft, going on where one began. Raises ArgumentError for options out of range,
    FileError where there is no draft to start from."""
    from minispec.tools.training import recipe

    if options.tokens < 1:
        raise ArgumentError(f"tokens {options.tokens} must be 1 or above")
    _check_epochs(options.epochs)
    if not 0 < options.rate < math.inf:
        raise ArgumentError(f"rate {options.rate} must be a number above 0")
    if options.start and not options.start.is_file():
        raise FileError(f"{options.start} does not exist: a draft's weights were expected")
    use_threads(options.threads)
    check_writable(options.out)
    domains = list(dict.fromkeys(options.domains))  # named twice, it would be written twice
    path = recipe.make_draft(
        options.model, domains, options.tokens, options.epochs, options.seed, options.out,
        options.raw, options.start, options.rate,
    )  # fmt: skip
    print(f"wrote {path}")


def train_pocket(options: argparse.Namespace) -> None:
    """Trains the pocket pair from nothing. Raises ArgumentError, FileError."""
    from minispec.tools.training import pocket

    for name in ("tokens", "draft_tokens"):
        if getattr(options, name) < 1:
            raise ArgumentError(f"{name.replace('_', '-')} must be 1 or above")
    _check_epochs(options.epochs)
    use_threads(options.threads)
    check_writable(options.out)
    path = pocket.make(
        options.out, options.tokens, options.draft_tokens, options.epochs, options.seed
    )
    print(f"wrote {path}")


def _check_epochs(epochs: float) -> None:
    if not 0 < epochs < math.inf:
        raise ArgumentError(f"epochs {epochs} must be a number above 0")
