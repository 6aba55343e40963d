"""Options that several commands share, and the parser that they belong to.

Knows nothing of commands, and imports nothing slow.
"""

import argparse
from pathlib import Path
from typing import Any, NoReturn

from minispec.errors import ArgumentError

DOMAINS = ("general", "code", "law", "medicine")
_DTYPES = ("float32", "bfloat16", "int8", "gguf")
_BACKENDS = ("auto", "reference", "cpu", "compiled", "cuda")
_DEVICES = ("cpu", "cuda", "mps")


class Parser(argparse.ArgumentParser):
    """Keeps the layout of the epilog, and raises errors for ``main`` to report."""

    def __init__(self, **options: Any) -> None:
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(**options)

    def error(self, message: str) -> NoReturn:
        """Raises ArgumentError."""
        raise ArgumentError(f"{message} (see `{self.prog} --help`)")


def add_model(parser: argparse.ArgumentParser) -> None:
    """The model."""
    parser.add_argument(
        "--model", default="smollm2",
        help="smollm2, gemma3-270m, pocket, FILE.gguf or a folder (default: smollm2)",
    )  # fmt: skip


def add_draft(parser: argparse.ArgumentParser) -> None:
    """The draft."""
    parser.add_argument(
        "--draft", metavar="FILE",
        help="draft made by `minispec train draft`, folder of an EAGLE-3 draft, or MODULE:CLASS "
        "(default: the model's own)",
    )  # fmt: skip


def add_index(parser: argparse.ArgumentParser) -> None:
    """The index of the LM head."""
    parser.add_argument(
        "--index", type=Path, metavar="FILE",
        help="index made by `minispec index build` (default: the model's own)",
    )  # fmt: skip


def add_threads(parser: argparse.ArgumentParser) -> None:
    """The number of threads."""
    parser.add_argument("--threads", type=int, help="CPU threads (default: all)")


def add_machine(parser: argparse.ArgumentParser) -> None:
    """How and where the model runs."""
    parser.add_argument("--dtype", choices=_DTYPES, default="float32", help="(default: float32)")
    parser.add_argument(
        "--device", choices=_DEVICES, default="cpu", help="where the reference runs (default: cpu)"
    )
    add_threads(parser)


def add_gamma(parser: argparse.ArgumentParser, auto: bool = False) -> None:
    """The length of a proposal; ``auto``: it may be chosen round by round."""
    parser.add_argument(
        "--gamma", type=_parse_gamma if auto else int, default=4,
        help="tokens drafted per round" + (", or auto" if auto else "") + " (default: 4)",
    )  # fmt: skip


def _parse_gamma(text: str) -> int | str:
    try:
        return text if text == "auto" else int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number nor auto") from None


def add_tree(parser: argparse.ArgumentParser, several: bool = False) -> None:
    """The shape of the trees to draft; ``several``: to set side by side."""
    parser.add_argument(
        "--tree", default="chain", metavar="TREE[,TREE...]" if several else "TREE",
        help="chain (of gamma tokens), or DEPTHxBEAMxNODES: trees of the most confident tokens, "
        "such as 4x3x8; with :static always the same places; :drawn or :distinct draw candidates, "
        "with or without replacement, instead of picking the likeliest; auto chooses round by "
        "round, by what passes cost here and what was accepted (default: chain)",
    )  # fmt: skip


def add_methods(parser: argparse.ArgumentParser, default: str | None, note: str) -> None:
    """Methods to set side by side; ``note`` explains the default."""
    parser.add_argument(
        "--methods", default=default, metavar="METHOD[,METHOD...]",
        help=f"methods to run on the same prompts {note}",
    )  # fmt: skip


def add_shaping(parser: argparse.ArgumentParser) -> None:
    """What changes logits and distributions, besides temperature, top-k and top-p."""
    parser.add_argument(
        "--min-p", type=float, default=0.0, metavar="P",
        help="keep ids at least P times as likely as the likeliest (default: 0, all)",
    )  # fmt: skip
    parser.add_argument(
        "--repetition-penalty", type=float, default=1.0, metavar="X",
        help="divide positive logits of ids in prompt and output by X, multiply others (1, none)",
    )  # fmt: skip
    parser.add_argument(
        "--presence-penalty", type=float, default=0.0, metavar="X",
        help="subtract X from the logits of ids in the output (default: 0)",
    )  # fmt: skip
    parser.add_argument(
        "--frequency-penalty", type=float, default=0.0, metavar="X",
        help="subtract X for each time that an id is in the output (default: 0)",
    )  # fmt: skip
    parser.add_argument(
        "--logit-bias", action="append", default=[], metavar="ID=VALUE", type=_parse_bias,
        help="add VALUE, -100 to 100, to the logit of an id; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--bad-words", action="append", default=[], metavar="TEXT",
        help="text that is never generated; may be repeated",
    )  # fmt: skip


def _parse_bias(text: str) -> tuple[int, float]:
    token, equals, bias = text.partition("=")
    try:
        if equals:
            return int(token), float(bias)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is not ID=VALUE, such as 50=-1.5")


def add_decoding(
    parser: argparse.ArgumentParser, max_new_tokens: int, temperature: float = 0.0
) -> None:
    """The model, the way of sampling, and when to stop."""
    add_model(parser)
    add_draft(parser)
    add_index(parser)
    parser.add_argument(
        "--temperature", type=float, default=temperature,
        help="0 is greedy, 1 the model's own distribution (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--top-k", type=int, default=0, help="most probable ids to keep (default: 0, all)"
    )
    parser.add_argument(
        "--top-p", type=float, default=1.0,
        help="probability mass of the most probable ids to keep (default: 1, all)",
    )  # fmt: skip
    add_shaping(parser)
    parser.add_argument(
        "--verifier", default="token",
        help="token, block (accepts more on average) or MODULE:FUNCTION (default: token)",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="seed of all draws (default: 0)")
    parser.add_argument(
        "--max-new-tokens", type=int, default=max_new_tokens, help="(default: %(default)s)",
        metavar="N",
    )  # fmt: skip
    parser.add_argument("--ignore-eos", action="store_true", help="continue past the answer's end")
    parser.add_argument(
        "--backend", choices=_BACKENDS, default="auto",
        help="implementation that runs the model (default: auto, the fastest measured)",
    )  # fmt: skip
    add_machine(parser)
    parser.add_argument(
        "--raw", action="store_true", help="continue the prompt's text, without a chat template"
    )
