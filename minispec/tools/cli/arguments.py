"""The commands and options of the command line, with their explanations.

Knows nothing of how a command is carried out, and imports nothing slow, so that `--help` and a
mistyped option are answered at once.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import minispec
from minispec.tools.cli import options
from minispec.tools.cli.arguments_export import add_export
from minispec.tools.cli.process import decode_argument

EXPLORE_OUT = Path("build/explore.html")

_METHODS = """\
a model is a name (pocket, which ships with the package; smollm2 or gemma3-270m, after `minispec
fetch NAME`), a GGUF file, or a folder of safetensors in Hugging Face layout, of the Llama or
Gemma 3 architecture

a method is NAME[@BUDGET][:RANKING][+adapt][+suffix] or MODULE:CLASS[@BUDGET][+adapt][+suffix]
  autoregressive       plain decoding, one token per target pass
  suffix               speculative decoding without a draft: what followed the last words earlier
                       in the text (SuffixDecoding)
  full                 speculative decoding; the draft scores the whole vocabulary
  frspec@0.25          ... the most frequent quarter of the vocabulary (FR-Spec)
  frspec@4096:mix      ... the 4096 most frequent ids of another ranking: general, mix,
                       without-code, ..., without-own (all but the prompts' domain), or a file
  evospec@1536         ... 1536 ids that evolve with the text (ours, after EvoSpec)
  evospec-paper@0.25/256
                       ... a static core and a buffer of retrieved ids (EvoSpec as published);
                       /256/2 retrieves beside a round, and its ids count one round later
  microspec            ... the ids of the prompt, and the target's likeliest (MicroSpec)
  dynaspec@1536        ... the clusters that a trained router scores highest (DynaSpec)
  lowrank@1536         ... the ids of the highest logits under a low-rank head (SpecVocab)
  evospec@1536+adapt   ... and the draft learns from verification while it decodes;
                       +adapt:paper as EvoSpec's paper has it
  evospec@1536+suffix  ... and what suffix proposes, beside the draft's tokens
  my_module:MyShortlist@1536
                       ... the ids of your own class, from the current folder or installed
"""


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options of one command, with its name as ``command``. Raises ArgumentError,
    and TextError for text that is not UTF-8."""
    parsed = _build_parser().parse_args(arguments)
    if getattr(parsed, "prompt", None) is not None:
        parsed.prompt = decode_argument(parsed.prompt, "the prompt")
    for name in ("stop", "bad_words"):
        texts = getattr(parsed, name, [])
        setattr(parsed, name, [decode_argument(text, f"--{name}") for text in texts])
    return parsed


def _build_parser() -> argparse.ArgumentParser:
    parser = options.Parser(
        prog="minispec",
        description="Exact speculative decoding with an evolving draft vocabulary.",
        epilog="start with: minispec fetch smollm2; minispec generate 'Why is the sky blue?'",
    )
    parser.add_argument("--version", action="version", version=f"minispec {minispec.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=options.Parser)
    _add_run_commands(commands)
    _add_make_commands(commands)
    add_export(commands)
    return parser


def _add_run_commands(commands: Any) -> None:
    fetch = commands.add_parser("fetch", help="download a model and print its path")
    fetch.add_argument("model", help="smollm2, gemma3-270m or pocket")
    fetch.add_argument(
        "--accept-licence", action="store_true", help="accept the terms of a model that has its own"
    )
    fetch.set_defaults(command="fetch")

    generate = commands.add_parser(
        "generate", help="answer a prompt, or chat on the terminal", epilog=_METHODS
    )
    generate.add_argument(
        "prompt", nargs="?",
        help="prompt to answer, or with --raw text to continue; without one, or for -, stdin is "
        "read, and on a terminal a chat begins",
    )  # fmt: skip
    generate.add_argument(
        "--method",
        help="method (default: evospec if the model has a draft, a ranking and an index; frspec "
        "without an index; full without a ranking; autoregressive without a draft)",
    )
    generate.add_argument("--budget", help="ids the draft scores: a number, or a share (0.25)")
    generate.add_argument("--ranking", help="ranking to take ids from (default: general)")
    generate.add_argument("--adapt", action="store_true", help="let the draft learn meanwhile")
    options.add_gamma(generate, auto=True)
    options.add_tree(generate)
    options.add_decoding(generate, max_new_tokens=256)
    generate.add_argument(
        "--parse-special", action="store_true",
        help="with --raw: read names of special tokens in the prompt as these tokens",
    )  # fmt: skip
    generate.add_argument(
        "--stop", action="append", default=[], help="text that ends the answer; may be repeated"
    )
    shown = generate.add_mutually_exclusive_group()
    shown.add_argument(
        "--trace", action="store_true", help="show which tokens were accepted and rejected"
    )
    shown.add_argument("--json", action="store_true", help="text and figures as a JSON object")
    generate.set_defaults(command="generate")

    compare = commands.add_parser(
        "compare", help="compare methods on the same prompts", epilog=_METHODS
    )
    compare.add_argument(
        "--prompts", nargs="+", default=list(options.DOMAINS),
        help="domains: general, code, law, medicine (default: these four), text files with one "
        "prompt per line, JSON lines (.jsonl) with a prompt, turns or messages, or - for stdin",
    )  # fmt: skip
    options.add_methods(compare, "autoregressive,full,frspec@0.25", "(default: %(default)s)")
    compare.add_argument(
        "--gamma",
        default="4",
        metavar="N[,N...]",
        help="tokens drafted per round, or auto (default: 4)",
    )
    options.add_tree(compare, several=True)
    compare.add_argument(
        "--switch", action="store_true", help="add conversations whose domain changes each turn"
    )
    compare.add_argument(
        "--study", action="store_true",
        help="add acceptance by budget and without parts of a shortlist, by replay",
    )  # fmt: skip
    options.add_decoding(compare, max_new_tokens=96)
    compare.add_argument("--limit", type=int, help="prompts per stream (default: all)")
    compare.add_argument(
        "--out", default=Path("build/report"), type=Path,
        help="folder for report.json, report.png and report.html (default: %(default)s)",
    )  # fmt: skip
    compare.set_defaults(command="compare")

    explore = commands.add_parser(
        "explore", help="write a page that shows every round of a prompt", epilog=_METHODS
    )
    explore.add_argument(
        "prompt", help="prompt to answer, - for stdin, or with --raw text to continue"
    )
    options.add_methods(explore, None, "(default: full,frspec@0.25,evospec, those the model has)")
    options.add_gamma(explore)
    options.add_tree(explore)
    options.add_decoding(explore, max_new_tokens=64, temperature=0.8)
    explore.add_argument(
        "--out", default=EXPLORE_OUT, type=Path, help="FILE.html (default: %(default)s)"
    )
    explore.set_defaults(command="explore")

    plan = commands.add_parser(
        "plan", help="find the fastest budget, gamma and tree on this machine", epilog=_METHODS
    )
    plan.add_argument(
        "--prompts", nargs="+", default=list(options.DOMAINS),
        help="what is decoded, as for compare (default: general, code, law and medicine)",
    )  # fmt: skip
    options.add_methods(plan, None, "(default: three budgets of the model's best shortlist)")
    options.add_decoding(plan, max_new_tokens=64)
    plan.add_argument(
        "--limit", type=int, default=1, help="prompts per stream (default: %(default)s)"
    )
    plan.add_argument(
        "--out", default=Path("build/plan"), type=Path,
        help="folder for plan.json and plan.png (default: %(default)s)",
    )  # fmt: skip
    plan.set_defaults(command="plan")

    doctor = commands.add_parser("doctor", help="measure what this machine can decode with")
    options.add_model(doctor)
    options.add_draft(doctor)
    doctor.add_argument("--warm", action="store_true", help="compile now what decoding will need")
    options.add_machine(doctor)
    doctor.set_defaults(command="doctor")


def _add_make_commands(commands: Any) -> None:
    rank = commands.add_parser("rank", help="count text into a ranking of the vocabulary")
    options.add_model(rank)
    rank.add_argument("--text", nargs="+", default=[], type=Path, help="UTF-8 files to count")
    rank.add_argument(
        "--domains",
        nargs="+",
        default=[],
        help=f"installed text to count: {', '.join(options.DOMAINS)}",
    )
    rank.add_argument("--written", type=Path, help="folder of text that the model wrote on these")
    rank.add_argument("--ranking", help="a ranking to cut or convert instead: a name or a file")
    rank.add_argument("--budget", type=int, help="number of ids to keep (default: all)")
    rank.add_argument(
        "--out", required=True, type=Path, help="FILE.safetensors, or FILE.pt for SGLang"
    )
    rank.set_defaults(command="rank")

    index = commands.add_parser("index", help="build what shortlists search")
    build = index.add_subparsers(
        required=True, metavar="ACTION", parser_class=options.Parser
    ).add_parser("build", help="build an index that a shortlist searches")
    options.add_model(build)
    what = build.add_mutually_exclusive_group()
    what.add_argument(
        "--clusters", type=int, default=2048, help="number of clusters (default: 2048)"
    )
    what.add_argument(
        "--bigrams", action="store_true",
        help="count which id follows which instead, for the method evospec-paper",
    )  # fmt: skip
    what.add_argument(
        "--lowrank", type=int, metavar="RANK",
        help="fit a head of this rank instead, for the method lowrank",
    )  # fmt: skip
    build.add_argument(
        "--domains", nargs="+", choices=options.DOMAINS, default=list(options.DOMAINS),
        help="installed text to count or fit on (default: all)",
    )  # fmt: skip
    options.add_draft(build)
    build.add_argument("--seed", type=int, default=0, help="seed of the first centroids (0)")
    options.add_threads(build)
    build.add_argument("--out", required=True, type=Path, help="FILE.safetensors")
    build.set_defaults(command="index build")

    train = commands.add_parser("train", help="train a part").add_subparsers(
        required=True, metavar="PART", parser_class=options.Parser
    )
    router = train.add_parser("router", help="add a router to an index, for the method dynaspec")
    options.add_model(router)
    options.add_draft(router)
    options.add_index(router)
    router.add_argument(
        "--written", required=True, type=Path, help="folder of text that the model wrote"
    )
    router.add_argument(
        "--tokens", type=int, default=600_000, help="training tokens (default: 600000)"
    )
    router.add_argument("--seed", type=int, default=0, help="seed of weights and order (0)")
    options.add_threads(router)
    router.add_argument("--out", required=True, type=Path, help="FILE.safetensors")
    router.set_defaults(command="train router")

    draft = train.add_parser("draft", help="train a draft on text that the target writes")
    options.add_model(draft)
    draft.add_argument(
        "--tokens", type=int, default=700_000, help="tokens to write (default: 700000)"
    )
    draft.add_argument("--epochs", type=float, default=2.5, help="passes over them (default: 2.5)")
    draft.add_argument(
        "--domains",
        nargs="+",
        default=list(options.DOMAINS),
        help="what to write about (default: all)",
    )
    draft.add_argument("--start", type=Path, help="a draft of this model to continue from")
    draft.add_argument(
        "--rate", type=float, default=2e-3, help="peak learning rate (default: 0.002)"
    )
    draft.add_argument(
        "--feature-weight", type=float, default=0.5,
        help="weight of the distance to the target's hidden states in the loss, 0 to leave it out "
        "(default: 0.5)",
    )  # fmt: skip
    draft.add_argument(
        "--norms", action="store_true",
        help="with EAGLE-3.1's norms: of hidden states before their fusion, and of its own states",
    )  # fmt: skip
    draft.add_argument("--seed", type=int, default=0, help="seed of text and training (0)")
    options.add_threads(draft)
    draft.add_argument(
        "--out", default=Path("build/draft"), type=Path,
        help="folder; training resumes from what is in it (default: %(default)s)",
    )  # fmt: skip
    draft.add_argument("--raw", action="store_true", help="continue texts, without a chat template")
    draft.set_defaults(command="train draft")

    pocket = train.add_parser("pocket", help="train the pocket pair from installed text")
    pocket.add_argument(
        "--tokens", type=int, default=5_000_000, help="tokens for the target (default: %(default)s)"
    )
    pocket.add_argument(
        "--draft-tokens", type=int, default=300_000,
        help="tokens that it writes for its draft (default: %(default)s)",
    )  # fmt: skip
    pocket.add_argument("--epochs", type=float, default=2.0, help="passes over them (default: 2.0)")
    pocket.add_argument("--seed", type=int, default=0, help="seed of weights and order (0)")
    options.add_threads(pocket)
    pocket.add_argument(
        "--out", default=Path("build/pocket"), type=Path,
        help="folder; training resumes from what is in it (default: %(default)s)",
    )  # fmt: skip
    pocket.set_defaults(command="train pocket")
