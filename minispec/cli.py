"""The command line: what can be asked for, and how bad input is answered.

Whatever the input's fault, it is said in one line on stderr, with exit code 2; Ctrl-C exits
with 130. No command leaves half a file behind. Models and plots are imported by the command
that needs them, so that `minispec --help` is quick.
"""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from minispec.errors import ArgumentError, FileError, MinispecError

_DTYPES = ("float32", "bfloat16")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ArgumentError(f"{message} (see `{self.prog} --help`)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code."""
    started = time.perf_counter()
    try:
        options = _parser().parse_args(arguments)
        options.started = started
        options.run(options)
        sys.stdout.flush()
    except MinispecError as error:
        return _refuse(str(error))
    except KeyboardInterrupt:
        print("minispec: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Whoever read our output has seen enough; what is left has nowhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        return _refuse(f"{error.filename or 'the system'}: {error.strerror or error}")
    return 0


def _refuse(message: str) -> int:
    print(f"minispec: {' '.join(message.split())}", file=sys.stderr)
    return 2


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="minispec", description="Speculative decoding with an evolving draft vocabulary."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_Parser)

    fetch = commands.add_parser("fetch", help="get a model; prints where it is")
    fetch.add_argument("model", help="smollm2")
    fetch.set_defaults(run=_fetch)

    generate = commands.add_parser("generate", help="answer one prompt")
    generate.add_argument("prompt")
    generate.add_argument(
        "--method", default="frspec", help="NAME[@BUDGET][:RANKING], as in compare (frspec)"
    )
    generate.add_argument("--budget", help="ids that may be proposed: a number or a share")
    generate.add_argument("--ranking", help="ranking that the budget is cut from (general)")
    generate.add_argument("--gamma", type=int, default=4, help="tokens proposed a round (4)")
    generate.add_argument("--stop", nargs="+", default=[], help="strings that end the answer")
    generate.add_argument("--trace", action="store_true", help="colour tokens by their fate")
    generate.add_argument("--json", action="store_true", help="one JSON object on stdout")
    _add_decoding(generate, max_new_tokens=256)
    generate.set_defaults(run=_generate)

    compare = commands.add_parser("compare", help="methods side by side on the same prompts")
    compare.add_argument(
        "--prompts", nargs="+", default=["general", "code", "law", "medicine"],
        help="files with a prompt a line, or domains of the project's own prompts",
    )  # fmt: skip
    compare.add_argument("--methods", default="autoregressive,full,frspec@0.25")
    compare.add_argument("--gamma", default="4", help="tokens proposed a round: N[,N...] (4)")
    compare.add_argument("--limit", type=int, help="only so many prompts of each stream")
    compare.add_argument("--out", required=True, type=Path, help="folder for the report")
    _add_decoding(compare, max_new_tokens=96)
    compare.set_defaults(run=_compare)

    rank = commands.add_parser("rank", help="count text into a ranking of the vocabulary")
    _add_model(rank)
    rank.add_argument("--text", nargs="+", default=[], type=Path, help="UTF-8 files to count")
    rank.add_argument("--domains", nargs="+", default=[], help="installed text to count")
    rank.add_argument("--written", type=Path, help="folder of text that the model wrote")
    rank.add_argument("--budget", type=int, help="how many ids to keep (all)")
    rank.add_argument("--out", required=True, type=Path, help="FILE.safetensors, or FILE.pt")
    rank.set_defaults(run=_rank)

    train = commands.add_parser("train", help="train a part").add_subparsers(
        required=True, metavar="PART", parser_class=_Parser
    )
    draft = train.add_parser("draft", help="write text with the target, train a draft on it")
    _add_model(draft)
    draft.add_argument("--tokens", type=int, default=700_000, help="tokens to write (700000)")
    draft.add_argument("--epochs", type=float, default=2.0, help="how often to see them (2)")
    draft.add_argument("--domains", nargs="+", default=["general", "code", "law", "medicine"])
    draft.add_argument("--seed", type=int, default=0)
    draft.add_argument("--threads", type=int, help="processor threads (all)")
    draft.add_argument("--out", required=True, type=Path, help="folder; resumes what it holds")
    draft.set_defaults(run=_train_draft)
    return parser


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="smollm2", help="smollm2, a folder or FILE.gguf")


def _add_decoding(parser: argparse.ArgumentParser, max_new_tokens: int) -> None:
    _add_model(parser)
    parser.add_argument("--draft", type=Path, help="a draft's weights (the model's own)")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 is greedy (0)")
    parser.add_argument("--top-k", type=int, default=0, help="keep the likeliest k, 0: all")
    parser.add_argument("--top-p", type=float, default=1.0, help="keep the likeliest mass")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-new-tokens", type=int, default=max_new_tokens)
    parser.add_argument("--ignore-eos", action="store_true", help="go on past the end")
    parser.add_argument("--dtype", choices=_DTYPES, default="float32")
    parser.add_argument("--threads", type=int, help="processor threads (all)")
    parser.add_argument("--raw", action="store_true", help="use no chat template")


def _fetch(options: argparse.Namespace) -> None:
    from minispec import pretrained

    print(pretrained.fetch(options.model))


def _generate(options: argparse.Namespace) -> None:
    from minispec.commit import StopRule
    from minispec.generate import generate
    from minispec.methods import Method, decoder
    from minispec.sampling import SeededRandom
    from minispec.tokenizer import prompt_ids

    if not options.prompt.strip():
        raise ArgumentError("the prompt is empty: give some text")
    spelled = options.method
    if options.budget is not None:
        if "@" in spelled:
            raise ArgumentError(f"--budget and a budget in {spelled!r}: give one of them")
        name, colon, ranking = spelled.partition(":")
        spelled = f"{name}@{options.budget}{colon}{ranking}"
    if options.ranking is not None:
        if ":" in spelled:
            raise ArgumentError(f"--ranking and a ranking in {spelled!r}: give one of them")
        spelled = f"{spelled}:{options.ranking}"
    method, sampling = Method.parse(spelled), _sampling(options)
    rule = StopRule(options.max_new_tokens, (), tuple(options.stop))
    model, draft = _loaded(options, [method])
    if not options.ignore_eos:
        rule = StopRule(rule.max_new_tokens, model.tokenizer.eos_ids, rule.stop_strings)
    ids = prompt_ids(model.tokenizer, options.prompt, options.raw)
    run = decoder(method, model, draft, None, gamma=options.gamma, sampling=sampling, stop=rule)
    generate(
        run(ids, SeededRandom(options.seed)),
        model.tokenizer,
        trace=options.trace,
        as_json=options.json,
        details={"model": model.name, "method": str(method), "gamma": options.gamma},
        started=options.started,
    )


def _compare(options: argparse.Namespace) -> None:
    from minispec import compare
    from minispec.methods import Method

    methods = tuple(Method.parse(text) for text in options.methods.split(","))
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
    if options.limit is not None and options.limit < 1:
        raise ArgumentError(f"limit {options.limit} must be 1 or above")
    streams = compare.streams_of(options.prompts, options.limit)
    for method in methods:
        for stream in streams:
            method.ranking_for(stream.name)
    _writable(options.out)
    model, draft = _loaded(options, methods)
    report = compare.compare(model, draft, streams, settings)
    from minispec import report as reports

    print(reports.table(report))
    reports.write(report, options.out)
    print(f"wrote {options.out / 'report.json'} and {options.out / 'report.png'}")


def _rank(options: argparse.Namespace) -> None:
    from minispec import pretrained, recipe

    if not options.text and not options.domains:
        raise ArgumentError("nothing to count: give --text FILE... or --domains NAME...")
    if options.out.suffix not in (".safetensors", ".pt"):
        raise ArgumentError(f"--out {options.out} must end in .safetensors or .pt")
    _writable(options.out.parent)
    model = pretrained.load(options.model)
    recipe.rank(model, options.text, options.domains, options.written, options.budget, options.out)
    print(f"wrote {options.out}")


def _train_draft(options: argparse.Namespace) -> None:
    from minispec import recipe

    if options.tokens < 1 or not options.epochs > 0:
        raise ArgumentError("tokens and epochs must be above 0")
    _threads(options.threads)
    _writable(options.out)
    path = recipe.make_draft(
        options.model, options.domains, options.tokens, options.epochs, options.seed, options.out
    )
    print(f"wrote {path}")


def _loaded(options: argparse.Namespace, methods: Sequence[Any]) -> tuple[Any, Any]:
    """The model, and its draft if a method needs one."""
    import torch

    from minispec import draft, pretrained

    _threads(options.threads)
    if options.draft is not None and not options.draft.is_file():
        raise FileError(f"{options.draft} does not exist: a draft's weights were expected")
    model = pretrained.load(options.model, getattr(torch, options.dtype))
    if all(method.name == "autoregressive" for method in methods):
        return model, None
    path = options.draft or draft.shipped(model.name)
    return model, draft.load(path, model.target, model.fingerprint) if path else None


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
    """Found out before hours of work, not after."""
    from minispec.checkpoint import written_aside

    with written_aside(folder / ".writable"):
        pass
    (folder / ".writable").unlink()


if __name__ == "__main__":
    sys.exit(main())
