"""The commands that fetch a model, compare methods, show rounds on a page, and describe the
machine: fetch, compare, explore, doctor. Bad options raise errors of ``minispec.errors``."""

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from minispec.tools.cli.arguments import EXPLORE_OUT
from minispec.tools.cli.prepare import (
    check_folder,
    check_out,
    check_prompt,
    check_writable,
    list_shaping,
    load_decoding_model,
    parse_integer,
    parse_methods,
    read_prompt,
    report_implementation,
)
from minispec.tools.cli.process import print_kept
from minispec.tools.extras import check_extra

if TYPE_CHECKING:
    from minispec.api.model import Model
    from minispec.tools.evaluation.methods import Method


def fetch(options: argparse.Namespace) -> None:
    """Gets a model, and prints where it is."""
    from minispec.tools.models import known_models

    path = known_models.fetch(options.model, options.accept_licence)
    source = known_models.SOURCES.get(options.model)
    if source and (terms := source.terms):
        print(f"minispec: {terms.notice}; they are in {path.parent}", file=sys.stderr)
    print(path)


def compare(options: argparse.Namespace) -> None:
    """Compares methods, and writes the report's files."""
    from minispec.api.comparison import build_settings, run_comparison
    from minispec.api.request import AUTO, build_sampling, split_auto, to_tree
    from minispec.tools.data import streams
    from minispec.tools.models import known_models
    from minispec.tools.reporting import table

    check_extra("report", "matplotlib", "bokeh")
    methods = parse_methods(options.methods)
    gammas, trees = split_auto(
        [text if text == AUTO else parse_integer(text, "gamma") for text in _split(options.gamma)],
        [*map(to_tree, options.tree.split(","))],
    )
    sampling = build_sampling(**list_shaping(options))
    base = known_models.is_base(options.model)
    settings = build_settings(
        methods,
        gammas=tuple(gammas),
        sampling=sampling.sampling,
        max_new_tokens=options.max_new_tokens,
        seed=options.seed,
        ignore_eos=options.ignore_eos,
        verifier=options.verifier,
        raw=options.raw or base,
        switch=options.switch,
        study=options.study,
        trees=tuple(trees),
    )
    prompts = streams.load_streams(options.prompts, options.limit, base)
    for method in methods:
        for stream in prompts:
            method.ranking_for(stream.name)
    if options.switch:
        streams.build_conversations(prompts, options.seed)  # refuses a single stream
    check_writable(options.out)
    model = load_decoding_model(
        options,
        plain=not any(method.needs_draft for method in methods) and not options.study,
        learns=any(method.adapt for method in methods),
        measure_backends=True,
    )
    resolved = sampling.resolve(model.tokenizer)
    settings = replace(settings, threads=_threads(), sampling=resolved)
    comparison = run_comparison(model, prompts, settings)
    texts = table.format_samples(comparison.report)
    switches = "\n".join(table.format_switches(comparison.report))
    study = table.format_study(comparison.report)
    print_kept("\n\n".join(filter(None, (texts, str(comparison), switches, study))))
    comparison.save(options.out)
    print(f"wrote report.json, report.png and report.html into {options.out}")


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",")]


def explore(options: argparse.Namespace) -> None:
    """Writes a page that shows every round of a prompt. Raises ArgumentError, FileError."""
    from minispec.api.comparison import build_settings
    from minispec.api.request import build_sampling, to_tree
    from minispec.tools.evaluation.methods import Method
    from minispec.tools.models import known_models
    from minispec.tools.reporting import explore as page

    prompt = read_prompt(options.prompt)
    check_prompt(prompt)
    check_out(options.out, ".html")
    methods = parse_methods(options.methods) if options.methods else []
    sampling, tree = build_sampling(**list_shaping(options)), to_tree(options.tree)
    settings = build_settings(
        methods or [Method("full")],  # until the model is there to choose for
        gammas=(options.gamma,),
        sampling=sampling.sampling,
        max_new_tokens=options.max_new_tokens,
        seed=options.seed,
        ignore_eos=options.ignore_eos,
        verifier=options.verifier,
        raw=options.raw or known_models.is_base(options.model),
        trees=(tree,),
    )
    for method in methods:
        method.ranking_for(None)  # a single prompt has no domain that could be left out
    check_folder(options.out, EXPLORE_OUT)
    model = load_decoding_model(
        options,
        plain=bool(methods) and not any(method.needs_draft for method in methods),
        learns=any(method.adapt for method in methods),
    )
    chosen = tuple(methods or _choose_methods(model))
    resolved = sampling.resolve(model.tokenizer)
    settings = replace(settings, methods=chosen, threads=_threads(), sampling=resolved)
    found = page.explore(model.pretrained, model.draft, prompt, settings)
    if not options.out.parent.exists():
        print(f"minispec: creating folder {options.out.parent}", file=sys.stderr)
    page.write(found, options.out)
    print(f"wrote {options.out}")


def _choose_methods(model: "Model") -> list["Method"]:
    """The methods that a page shows by default: those that the model has all parts of, up to its
    best."""
    from minispec.tools.evaluation.assembly import default_method
    from minispec.tools.evaluation.methods import Method

    best = default_method(model.pretrained, model.draft is not None)
    speculative = [Method.parse(name) for name in ("full", "frspec@0.25", "evospec")]
    if best.name == "autoregressive":
        return [best]
    return speculative[: 1 + [method.name for method in speculative].index(best.name)]


def _threads() -> int:
    import torch

    return torch.get_num_threads()


def doctor(options: argparse.Namespace) -> None:
    """Reports what this machine has for decoding, and which backend "auto" takes: everything is
    measured now, and kept for the other commands."""
    from minispec.tools.evaluation.drafts import find_draft
    from minispec.tools.evaluation.warm_up import warm_up
    from minispec.tools.models import backend, pretrained
    from minispec.tools.models.threads import set_threads

    set_threads(options.threads)
    path = find_draft(options.model, options.draft)
    bandwidth = backend.measure_bandwidth()
    print(f"threads: {_threads()}, memory reads at {bandwidth / 1e9:.1f} GB/s")
    model = pretrained.load(options.model, options.dtype, options.device)
    report_implementation(model)
    if model.device != "cpu":
        print(
            f"device {model.device}: the reference runs there; backends are for the CPU's weights"
        )
        return
    choice = backend.choose_backend(model, again=True)
    for name in backend.NAMES:
        if name in choice.milliseconds:
            one, five = choice.milliseconds[name]
            print(f"{name}: {one:.1f} ms a pass over 1 position, {five:.1f} ms over 5")
        else:
            print(f"{name}: {backend.why_unavailable(model, name)}")
    print(f"auto takes {choice.backend}, the fastest for {model.name} in {model.dtype}")
    print("all of it was measured now")
    if options.warm and isinstance(path, Path):
        # Decoding once compiles everything; the compilers cache it on disk.
        draft = pretrained.load_draft(path, model)
        warm_up(*backend.place_on_backend(model, draft, "auto"))
        print("warmed up: nothing is left to compile")
