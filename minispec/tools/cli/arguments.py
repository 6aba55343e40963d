"""What can be asked for on the command line: commands, options, and their explanation.

Defaults stand in brackets behind each explanation. Knows nothing of how a command is carried
out, and imports nothing slow, so that `--help` and a mistyped option are answered at once.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from minispec.errors import ArgumentError

_DTYPES = ("float32", "bfloat16", "int8")
_BACKENDS = ("auto", "reference", "cpu", "compiled", "cuda")
_DOMAINS = ("general", "code", "law", "medicine")


_EPILOG = """\
a model is a name (pocket, which is here already, smollm2 or gemma3-270m, after
`minispec fetch NAME`), a GGUF file, or a folder of safetensors in Hugging Face layout, of the
Llama or Gemma 3 architecture

a method is NAME[@BUDGET][:RANKING][+adapt]
  autoregressive       plain decoding, one token a pass
  full                 speculation, the draft scores the whole vocabulary
  frspec@0.25          speculation, the draft scores the most frequent quarter of it (FR-Spec)
  frspec@4096:mix      the 4096 most frequent ids of another ranking: general, mix, without-code,
                       ..., without-own (all but the prompts' own domain), or a file
  evospec@1536         speculation, the draft scores 1536 ids that follow the text (EvoSpec)
  in_context@1536      ... the ids of the text so far, then frequent ones (MicroSpec)
  routed@1536          ... the clusters that a trained router names (DynaSpec)
  evospec@1536+adapt   ... and the draft learns from what verification reveals
"""


class _Parser(argparse.ArgumentParser):
    """With the notes at the end as they stand, and errors that are ours to report."""

    def __init__(self, **options: Any) -> None:
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(**options)

    def error(self, message: str) -> NoReturn:
        raise ArgumentError(f"{message} (see `{self.prog} --help`)")


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options of one command, its name among them as ``command``. Raises ArgumentError."""
    return _parser().parse_args(arguments)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="minispec",
        description="Exact speculative decoding with a pruned draft vocabulary.",
        epilog="begin with: minispec fetch smollm2; minispec generate 'Why is the sky blue?'",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_Parser)

    fetch = commands.add_parser("fetch", help="get a model; prints where it is")
    fetch.add_argument("model", help="smollm2, gemma3-270m or pocket")
    fetch.add_argument(
        "--accept-licence", action="store_true", help="accept the terms of a model that has its own"
    )
    fetch.set_defaults(command="fetch")

    generate = commands.add_parser("generate", help="answer one prompt", epilog=_EPILOG)
    generate.add_argument("prompt", help="what to answer; with --raw, text to continue")
    generate.add_argument(
        "--method", help="how to decode (frspec, if the model has a draft and a ranking)"
    )
    generate.add_argument("--budget", help="ids the draft scores: a number or a share (0.25)")
    generate.add_argument("--ranking", help="ranking that the budget is cut from (general)")
    generate.add_argument("--adapt", action="store_true", help="let the draft learn meanwhile")
    generate.add_argument("--gamma", type=int, default=4, help="tokens drafted a round (4)")
    _add_decoding(generate, max_new_tokens=256)
    generate.add_argument(
        "--stop", action="append", default=[], help="text that ends the answer; may be repeated"
    )
    shown = generate.add_mutually_exclusive_group()
    shown.add_argument("--trace", action="store_true", help="colour tokens by their fate")
    shown.add_argument("--json", action="store_true", help="text and figures as a JSON object")
    generate.set_defaults(command="generate")

    compare = commands.add_parser(
        "compare", help="methods side by side on the same prompts", epilog=_EPILOG
    )
    compare.add_argument(
        "--prompts", nargs="+", default=list(_DOMAINS),
        help=f"text files with one prompt a line, or our own: {', '.join(_DOMAINS)} (those four)",
    )  # fmt: skip
    compare.add_argument(
        "--methods", default="autoregressive,full,frspec@0.25", metavar="METHOD[,METHOD...]",
        help="what to compare (%(default)s)",
    )  # fmt: skip
    compare.add_argument(
        "--gamma", default="4", metavar="N[,N...]", help="tokens drafted a round (4)"
    )
    compare.add_argument(
        "--switch", action="store_true", help="also conversations whose domain changes each turn"
    )
    compare.add_argument(
        "--study", action="store_true",
        help="also acceptance over the budget and without parts of a list, by replay",
    )  # fmt: skip
    _add_decoding(compare, max_new_tokens=96)
    compare.add_argument("--limit", type=int, help="only so many prompts of each stream (all)")
    compare.add_argument(
        "--out",
        default=Path("build/report"),
        type=Path,
        help="folder for report.json, report.png and report.html (%(default)s)",
    )
    compare.set_defaults(command="compare")

    explore = commands.add_parser(
        "explore", help="one prompt as a page on which each round is seen", epilog=_EPILOG
    )
    explore.add_argument("prompt", help="what to answer; with --raw, text to continue")
    explore.add_argument(
        "--methods", default="full,frspec@0.25,evospec@1536", metavar="METHOD[,METHOD...]",
        help="what to show side by side (%(default)s)",
    )  # fmt: skip
    explore.add_argument("--gamma", type=int, default=4, help="tokens drafted a round (4)")
    _add_decoding(explore, max_new_tokens=64, temperature=0.8)
    explore.add_argument(
        "--out", default=Path("build/explore.html"), type=Path, help="FILE.html (%(default)s)"
    )
    explore.set_defaults(command="explore")

    doctor = commands.add_parser("doctor", help="what this machine has to decode with")
    _add_model(doctor)
    doctor.add_argument("--draft", type=Path, help="draft made by `minispec train draft` (ours)")
    doctor.add_argument("--warm", action="store_true", help="compile now what decoding will need")
    _add_machine(doctor)
    doctor.set_defaults(command="doctor")

    rank = commands.add_parser("rank", help="count text into a ranking of the vocabulary")
    _add_model(rank)
    rank.add_argument("--text", nargs="+", default=[], type=Path, help="UTF-8 files to count")
    rank.add_argument(
        "--domains", nargs="+", default=[], help=f"installed text to count: {', '.join(_DOMAINS)}"
    )
    rank.add_argument("--written", type=Path, help="folder of text that the model wrote on these")
    rank.add_argument("--ranking", help="a ranking to cut or convert instead: a name or a file")
    rank.add_argument("--budget", type=int, help="how many ids to keep (all)")
    rank.add_argument(
        "--out", required=True, type=Path, help="FILE.safetensors, or FILE.pt for SGLang"
    )
    rank.set_defaults(command="rank")

    index = commands.add_parser("index", help="cluster the rows of a model's head")
    build = index.add_subparsers(required=True, metavar="ACTION", parser_class=_Parser).add_parser(
        "build", help="make the index that an evolving list searches"
    )
    _add_model(build)
    build.add_argument("--clusters", type=int, default=2048, help="how many (2048)")
    build.add_argument("--seed", type=int, default=0, help="of the first centroids (0)")
    build.add_argument("--threads", type=int, help="processor threads (all)")
    build.add_argument("--out", required=True, type=Path, help="FILE.safetensors")
    build.set_defaults(command="index build")

    train = commands.add_parser("train", help="train a part").add_subparsers(
        required=True, metavar="PART", parser_class=_Parser
    )
    router = train.add_parser("router", help="add a router to an index, for the method routed")
    _add_model(router)
    router.add_argument("--draft", type=Path, help="draft made by `minispec train draft` (ours)")
    router.add_argument("--index", type=Path, help="index made by `minispec index build` (ours)")
    router.add_argument(
        "--written", required=True, type=Path, help="folder of text that the model wrote"
    )
    router.add_argument("--tokens", type=int, default=600_000, help="to learn from (600000)")
    router.add_argument("--seed", type=int, default=0, help="of first weights and order (0)")
    router.add_argument("--threads", type=int, help="processor threads (all)")
    router.add_argument("--out", required=True, type=Path, help="FILE.safetensors")
    router.set_defaults(command="train router")

    draft = train.add_parser("draft", help="have the target write text, and train a draft on it")
    _add_model(draft)
    draft.add_argument("--tokens", type=int, default=700_000, help="tokens to write (700000)")
    draft.add_argument("--epochs", type=float, default=2.5, help="how often to see them (2.5)")
    draft.add_argument(
        "--domains", nargs="+", default=list(_DOMAINS), help="what to write about (all four)"
    )
    draft.add_argument("--start", type=Path, help="a draft of this model, to go on from")
    draft.add_argument("--rate", type=float, default=2e-3, help="highest learning rate (0.002)")
    draft.add_argument("--seed", type=int, default=0, help="of what is written and drawn (0)")
    draft.add_argument("--threads", type=int, help="processor threads (all)")
    draft.add_argument(
        "--out", default=Path("build/draft"), type=Path,
        help="folder; goes on with what is there (%(default)s)",
    )  # fmt: skip
    draft.add_argument(
        "--raw", action="store_true", help="the model continues texts, use no chat template"
    )
    draft.set_defaults(command="train draft")

    pocket = train.add_parser("pocket", help="train the pocket pair, from installed text alone")
    pocket.add_argument(
        "--tokens", type=int, default=5_000_000, help="the target learns from (%(default)s)"
    )
    pocket.add_argument(
        "--draft-tokens", type=int, default=300_000, help="it writes for its draft (%(default)s)"
    )
    pocket.add_argument(
        "--epochs", type=float, default=2.0, help="how often the draft sees them (2.0)"
    )
    pocket.add_argument("--seed", type=int, default=0, help="of first weights and order (0)")
    pocket.add_argument("--threads", type=int, help="processor threads (all)")
    pocket.add_argument(
        "--out", default=Path("build/pocket"), type=Path,
        help="folder; goes on with what is there (%(default)s)",
    )  # fmt: skip
    pocket.set_defaults(command="train pocket")
    return parser


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", default="smollm2", help="smollm2, gemma3-270m, pocket, FILE.gguf or a folder"
    )


def _add_machine(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dtype", choices=_DTYPES, default="float32", help="(float32)")
    parser.add_argument("--threads", type=int, help="processor threads (all)")


def _add_decoding(
    parser: argparse.ArgumentParser, max_new_tokens: int, temperature: float = 0.0
) -> None:
    _add_model(parser)
    parser.add_argument("--draft", type=Path, help="draft made by `minispec train draft` (ours)")
    parser.add_argument("--index", type=Path, help="index made by `minispec index build` (ours)")
    parser.add_argument(
        "--temperature", type=float, default=temperature,
        help="0 is greedy, 1 the model's own law (%(default)s)",
    )  # fmt: skip
    parser.add_argument("--top-k", type=int, default=0, help="only the likeliest ids, 0: all (0)")
    parser.add_argument(
        "--top-p", type=float, default=1.0, help="only the likeliest ids of this mass, 1: all (1)"
    )
    parser.add_argument(
        "--verifier", choices=("token", "block"), default="token",
        help="judge drafted tokens one by one, or as a block, which keeps more (token)",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="of all draws (0)")
    parser.add_argument(
        "--max-new-tokens", type=int, default=max_new_tokens, help="(%(default)s)", metavar="N"
    )
    parser.add_argument("--ignore-eos", action="store_true", help="go on where an answer ends")
    parser.add_argument(
        "--backend", choices=_BACKENDS, default="auto", help="whose arithmetic (auto: the fastest)"
    )
    _add_machine(parser)
    parser.add_argument(
        "--raw", action="store_true", help="continue the prompt's text, use no chat template"
    )
