"""The command line: how each command is carried out, and how bad input is answered.

Whatever the input's fault, it is said in one line on stderr, with exit code 2; Ctrl-C exits
with 130. No command leaves half a file behind. Models and plots are imported by the command
that needs them, so that what is wrong with the options is said at once.
"""

import argparse
import io
import math
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from minispec import arguments as command_line
from minispec.errors import ArgumentError, FileError, MinispecError


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code."""
    started = time.perf_counter()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # rather a question mark than no answer
    try:
        options = command_line.parsed(arguments)
        options.started = started
        if not 0 <= getattr(options, "seed", 0) < 2**31:
            raise ArgumentError(f"seed {options.seed} must lie in 0..{2**31 - 1}")
        _COMMANDS[options.command](options)
        sys.stdout.flush()
    except MinispecError as error:
        return _refuse(str(error))
    except KeyboardInterrupt:
        if sys.stderr.isatty():
            print(file=sys.stderr)  # behind the text so far, and the terminal's own ^C
        print("minispec: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        _give_up_stdout()  # whoever read our output has seen enough
        return 0
    except OSError as error:
        _give_up_stdout()
        return _refuse(f"{error.filename or 'the system'}: {error.strerror or error}")
    return 0


def _give_up_stdout() -> None:
    """What stdout does not take, Python would try to write once more, and complain, at its end."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _refuse(message: str) -> int:
    print(f"minispec: {' '.join(message.split())}", file=sys.stderr)
    return 2


def _fetch(options: argparse.Namespace) -> None:
    from minispec import pretrained

    print(pretrained.fetch(options.model))


def _generate(options: argparse.Namespace) -> None:
    from minispec.commit import StopRule
    from minispec.decode import check_gamma
    from minispec.generate import generate
    from minispec.methods import Method, decoder
    from minispec.sampling import SeededRandom
    from minispec.tokenizer import prompt_ids

    if not options.prompt.strip():
        raise ArgumentError("the prompt is empty: give some text")
    method, sampling = Method.parse(_spelled(options)), _sampling(options)
    method.ranking_for(None)  # refuses one that needs to know a domain
    check_gamma(options.gamma)
    rule = StopRule(options.max_new_tokens, (), tuple(options.stop))
    model, draft = _loaded(options, [method])
    if not options.ignore_eos:
        rule = replace(rule, eos_ids=model.tokenizer.eos_ids)
    ids = prompt_ids(model.tokenizer, options.prompt, options.raw)
    run = decoder(method, model, draft, None, gamma=options.gamma, sampling=sampling, stop=rule)
    rounds = run(ids, SeededRandom(options.seed))
    plain = method.name == "autoregressive"
    if plain and options.method is None:
        note = f"minispec: no draft is known for {model.name}, so this is plain decoding"
        print(note, file=sys.stderr)
    details = {
        "model": model.name,
        "method": str(method),
        "gamma": None if plain else options.gamma,
        "budget": method.ids(model.target.head.vocabulary_size),
        "sampling": asdict(sampling),
        "seed": options.seed,
        "dtype": str(model.target.embedding.weight.dtype).removeprefix("torch."),
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
    from minispec import methods

    spelled = options.method and options.method.removesuffix("+adapt")
    adapt = options.adapt or spelled != options.method
    if spelled is None and (options.budget is not None or options.ranking is not None):
        spelled = "frspec"
    if spelled is None:
        spelled = methods.default(options.model, _draft_path(options) is not None)
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


def _compare(options: argparse.Namespace) -> None:
    from minispec import compare, report
    from minispec.methods import Method

    methods = tuple(Method.parse(text.strip()) for text in options.methods.split(","))
    gammas = tuple(_whole(text, "gamma") for text in options.gamma.split(","))
    settings = compare.Settings(
        methods=methods,
        gammas=gammas,
        sampling=_sampling(options),
        max_new_tokens=options.max_new_tokens,
        seed=options.seed,
        ignore_eos=options.ignore_eos,
        raw=options.raw,
    )
    streams = compare.streams_of(options.prompts, options.limit)
    for method in methods:
        for stream in streams:
            method.ranking_for(stream.name)
    _writable(options.out)
    model, draft = _loaded(options, methods)
    figures = compare.compare(model, draft, streams, settings)
    print(report.samples(figures), report.table(figures), sep="\n\n")
    report.write(figures, options.out)
    print(f"wrote {options.out / 'report.json'} and {options.out / 'report.png'}")


def _rank(options: argparse.Namespace) -> None:
    from minispec import pretrained, ranking, recipe

    if bool(options.text or options.domains) == (options.ranking is not None):
        raise ArgumentError(
            "give either text to count, --text FILE... or --domains NAME..., or a --ranking to "
            "cut or convert"
        )
    if options.written and not options.domains:
        raise ArgumentError("--written counts what was written on some --domains: name them")
    if options.out.suffix not in (".safetensors", ".pt"):
        raise ArgumentError(f"--out {options.out} must end in .safetensors or .pt")
    if options.out.is_dir():
        raise FileError(f"--out {options.out} is a folder: give a file")
    _writable(options.out.parent)
    model = pretrained.load(options.model)
    size = model.target.head.vocabulary_size
    if options.ranking is None:
        _check_budget(options.budget, size)
        ids, details = recipe.count(model, options.text, options.domains, options.written)
    else:
        file, details = ranking.find(model.name, options.ranking), {"cut_from": options.ranking}
        ids = ranking.read_ranking(file, model.tokenizer.fingerprint, size)
        _check_budget(options.budget, len(ids))
    recipe.keep_ranking(model, ids, options.budget, details, options.out)
    print(f"wrote {options.out}")


def _check_budget(budget: int | None, most: int) -> None:
    if budget is not None and not 1 <= budget <= most:
        raise ArgumentError(f"budget {budget} must lie in 1..{most}")


def _train_draft(options: argparse.Namespace) -> None:
    from minispec import recipe

    if options.tokens < 1:
        raise ArgumentError(f"tokens {options.tokens} must be 1 or above")
    if not 0 < options.epochs < math.inf:
        raise ArgumentError(f"epochs {options.epochs} must be a number above 0")
    _threads(options.threads)
    _writable(options.out)
    domains = list(dict.fromkeys(options.domains))  # named twice, it would be written twice
    path = recipe.make_draft(
        options.model, domains, options.tokens, options.epochs, options.seed, options.out
    )
    print(f"wrote {path}")


def _loaded(options: argparse.Namespace, methods: Sequence[Any]) -> tuple[Any, Any]:
    """The model, and its draft if a method needs one."""
    import torch
    from tqdm import tqdm

    from minispec import draft, pretrained

    _threads(options.threads)
    path = _draft_path(options)
    if path and not path.is_file():
        raise FileError(f"{path} does not exist: a draft's weights were expected")
    plain = all(method.name == "autoregressive" for method in methods)
    with tqdm(total=1, desc="loading", unit="model", leave=False, disable=None):
        model = pretrained.load(options.model, getattr(torch, options.dtype))
        if plain or path is None:
            return model, None
        return model, draft.load(path, model.target, model.fingerprint)


def _draft_path(options: argparse.Namespace) -> Path | None:
    """Where the draft is: the one given, or the model's own, if it has one."""
    from minispec import draft, pretrained

    own = draft.shipped(options.model) if options.model in pretrained.SOURCES else None
    return options.draft or own


def _sampling(options: argparse.Namespace) -> Any:
    from minispec.sampling import Sampling

    return Sampling(options.temperature, options.top_k, options.top_p)


def _threads(threads: int | None) -> None:
    import torch

    if threads is None:
        return
    if not 1 <= threads <= 1024:
        raise ArgumentError(f"threads {threads} must lie in 1..1024")
    torch.set_num_threads(threads)


def _whole(text: str, name: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ArgumentError(f"{name} {text!r} is no whole number") from None


def _writable(folder: Path) -> None:
    """Found out before hours of work, not after. Leaves nothing behind, no empty folder either."""
    missing = []
    try:
        missing = [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        reason = error.strerror or error
        raise FileError(f"cannot write into {folder}: {reason}; give another folder") from None
    finally:
        for path in missing:
            with suppress(OSError):
                path.rmdir()


_COMMANDS = {
    "fetch": _fetch,
    "generate": _generate,
    "compare": _compare,
    "rank": _rank,
    "train draft": _train_draft,
}

if __name__ == "__main__":
    sys.exit(main())
