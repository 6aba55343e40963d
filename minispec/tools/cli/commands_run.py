"""The commands that decode, or say what there is to decode with: fetch, generate, compare,
explore, doctor. What is wrong with their options is raised as an error of ours; the command line
answers it."""

import argparse
import sys
from dataclasses import asdict, replace

from minispec.errors import ArgumentError
from minispec.tools.cli.prepare import (
    check_out,
    check_writable,
    draft_path,
    loaded,
    sampling_of,
    use_threads,
    whole_number,
)


def fetch(options: argparse.Namespace) -> None:
    """Gets a model, and prints where it is."""
    from minispec.tools.models import pretrained

    path = pretrained.fetch(options.model, options.accept_licence)
    source = pretrained.SOURCES.get(options.model)
    if source and (terms := source.terms):
        print(f"minispec: {terms.notice}; they are in {path.parent}", file=sys.stderr)
    print(path)


def generate_one(options: argparse.Namespace) -> None:
    """Answers one prompt. Raises ArgumentError, and what loading raises."""
    from minispec.commit import StopRule
    from minispec.decode import check_gamma
    from minispec.sampling import SeededRandom
    from minispec.text.tokenizer import prompt_ids
    from minispec.tools.evaluation.methods import Method, decoder
    from minispec.tools.models import pretrained
    from minispec.tools.reporting.generate import generate

    if not options.prompt.strip():
        raise ArgumentError("the prompt is empty: give some text")
    method, sampling = Method.parse(_spelled(options)), sampling_of(options)
    method.ranking_for(None)  # refuses one that needs to know a domain
    check_gamma(options.gamma)
    rule = StopRule(options.max_new_tokens, (), tuple(options.stop))
    model, draft = loaded(options, [method])
    if not options.ignore_eos:
        rule = replace(rule, eos_ids=model.tokenizer.eos_ids)
    raw = options.raw or pretrained.is_base(model.name)
    ids = prompt_ids(model.tokenizer, options.prompt, raw)
    run = decoder(
        method, model, draft, None, gamma=options.gamma, sampling=sampling, stop=rule,
        verifier=options.verifier,
    )  # fmt: skip
    rounds = run(ids, SeededRandom(options.seed))
    plain = method.name == "autoregressive"
    if plain and options.method is None:
        note = f"minispec: no draft is known for {model.name}, so this is plain decoding"
        print(note, file=sys.stderr)
    details = {
        "model": model.name,
        "method": str(method),
        "gamma": None if plain else options.gamma,
        "budget": method.ids(model.target.head.vocab_size),
        "sampling": asdict(sampling),
        "verifier": None if plain else options.verifier,
        "seed": options.seed,
        "dtype": model.dtype,
        "backend": model.backend,
        "prompt_tokens": len(ids),
    }
    generate(
        rounds,
        model.tokenizer,
        trace=options.trace,
        as_json=options.json,
        details=details,
        started=options.started,
    )


def _spelled(options: argparse.Namespace) -> str:
    """The method that was asked for, in one word, or the best that the model has all for."""
    from minispec.tools.evaluation import methods

    spelled = options.method and options.method.removesuffix("+adapt")
    adapt = options.adapt or spelled != options.method
    if spelled is None and (options.budget is not None or options.ranking is not None):
        spelled = "frspec"
    if spelled is None:
        spelled = methods.default(options.model, draft_path(options) is not None)
    if options.budget is not None:
        if "@" in spelled:
            raise ArgumentError(f"--budget and a budget in {spelled!r}: give one of them")
        name, colon, ranking = spelled.partition(":")
        spelled = f"{name}@{options.budget}{colon}{ranking}"
    if options.ranking is not None:
        if ":" in spelled:
            raise ArgumentError(f"--ranking and a ranking in {spelled!r}: give one of them")
        spelled = f"{spelled}:{options.ranking}"
    return f"{spelled}+adapt" if adapt else str(spelled)


def compare_methods(options: argparse.Namespace) -> None:
    """Compares methods, and writes the report's files."""
    from minispec.tools.data import streams
    from minispec.tools.evaluation import compare
    from minispec.tools.evaluation.methods import Method
    from minispec.tools.models import pretrained
    from minispec.tools.reporting import page, report

    use_threads(options.threads)
    methods = tuple(Method.parse(text.strip()) for text in options.methods.split(","))
    base = pretrained.is_base(options.model)
    gammas = tuple(whole_number(text, "gamma") for text in options.gamma.split(","))
    settings = compare.Settings(
        methods=methods,
        gammas=gammas,
        sampling=sampling_of(options),
        max_new_tokens=options.max_new_tokens,
        seed=options.seed,
        ignore_eos=options.ignore_eos,
        raw=options.raw or base,
        switch=options.switch,
        study=options.study,
        verifier=options.verifier,
    )
    found = streams.load_streams(options.prompts, options.limit, base)
    for method in methods:
        for stream in found:
            method.ranking_for(stream.name)
    if options.switch:
        streams.build_conversations(found, options.seed)  # or refuses
    check_writable(options.out)
    needed = (*methods, Method("full")) if options.study else methods
    model, draft = loaded(options, needed)
    figures = compare.compare(model, draft, found, settings)
    shown = [report.samples(figures), report.table(figures), "\n".join(report.switches(figures))]
    print("\n\n".join(filter(None, shown)))
    report.write(figures, options.out)
    page.write(figures, options.out)
    print(f"wrote report.json, report.png and report.html into {options.out}")


def explore_prompt(options: argparse.Namespace) -> None:
    """Writes a page on which a prompt's rounds can be watched. Raises ArgumentError."""
    from minispec.tools.evaluation.compare import Settings
    from minispec.tools.evaluation.methods import Method
    from minispec.tools.models import pretrained
    from minispec.tools.reporting import explore

    if not options.prompt.strip():
        raise ArgumentError("the prompt is empty: give some text")
    check_out(options.out, ".html")
    use_threads(options.threads)
    methods = tuple(Method.parse(text.strip()) for text in options.methods.split(","))
    settings = Settings(
        methods=methods,
        gammas=(options.gamma,),
        sampling=sampling_of(options),
        max_new_tokens=options.max_new_tokens,
        seed=options.seed,
        ignore_eos=options.ignore_eos,
        raw=options.raw or pretrained.is_base(options.model),
        verifier=options.verifier,
    )
    for method in methods:
        method.ranking_for(None)  # refuses one that needs to know a domain
    model, draft = loaded(options, methods)
    explore.write(explore.explore(model, draft, options.prompt, settings), options.out)
    print(f"wrote {options.out}")


def doctor(options: argparse.Namespace) -> None:
    """What this machine has for decoding, and what ``--backend auto`` makes of it."""
    import torch

    from minispec.io import draft_file
    from minispec.tools.evaluation.warm_up import warm_up
    from minispec.tools.models import backend, pretrained

    use_threads(options.threads)
    threads = torch.get_num_threads()
    print(f"threads: {threads}, memory reads at {backend.measure_bandwidth() / 1e9:.1f} GB/s")
    model = pretrained.load(options.model, options.dtype)
    verdict = backend.choose_backend(model)
    for name in backend.NAMES:
        if name in verdict["milliseconds"]:
            one, five = verdict["milliseconds"][name]
            print(f"{name}: {one:.1f} ms a pass over 1 position, {five:.1f} ms over 5")
        else:
            print(f"{name}: {backend.why_unavailable(model, name)}")
    print(f"auto takes {verdict['backend']}, the fastest for {model.name} in {model.dtype}")
    path = draft_path(options)
    if options.warm and path:
        # Decoding once compiles all that is needed; the compilers keep it on disk.
        guesser = draft_file.load_draft(path, model.reference, model.fingerprint)
        warm_up(*backend.place_on_backend(model, guesser, "auto"))
        print("warmed up: nothing is left to compile")
