"""A prompt's rounds on the terminal as they are decoded: text, a trace, or one JSON object.

A trace shows each token's fate in the colours of the explore page, or with marks where output has
no colours. Knows nothing of models.
"""

import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TextIO

from tqdm import tqdm

from minispec.tokenizer import Tokenizer
from minispec.tools.evaluation.measure import Figures, measure
from minispec.tools.reporting.colours import ANSI_RESET, FATES
from minispec.tree import list_rejected
from minispec.types import Round

_MARKS = {"rejected": ("[-", "-]"), "recovered": ("[+", "+]"), "bonus": ("[*", "*]")}
_MEANINGS = {
    "accepted": "accepted",
    "rejected": "rejected",
    "recovered": "recovered: sampled after a rejection",
    "bonus": "bonus: sampled after an accepted chain",
}


def use_colours(out: TextIO) -> bool:
    """Whether to write colours: to a terminal only, and not with NO_COLOR set (no-color.org)."""
    return out.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def write_legend(out: TextIO) -> None:
    """Writes the line that explains a trace."""
    colours = use_colours(out)
    fates = (_style(fate, text, colours) for fate, text in _MEANINGS.items())
    out.write(f"{', '.join(fates)}\n\n")


def write_rounds(
    rounds: Iterable[Round],
    tokenizer: Tokenizer,
    *,
    trace: bool,
    as_json: bool,
    details: dict[str, Any],
    started: float,
    out: TextIO | None = None,
    err: TextIO | None = None,
) -> Figures:
    """Decodes to the end. Text goes to ``out`` (stdout) as soon as it is certain, figures go to
    ``err`` (stderr); with ``as_json`` a single object goes to ``out``, ``details`` in it.
    ``started``: ``time.perf_counter`` at the command's start, from which the delay of the first
    token is counted, loading included. Returns the figures."""
    out, err = out or sys.stdout, err or sys.stderr
    delays: list[float] = []
    colours = use_colours(out)

    def write_each() -> Iterator[Round]:
        bar = tqdm(total=1, desc="prefill", unit="prompt", leave=False, disable=None, file=err)
        with bar:
            for finished in rounds:
                bar.close()  # the first round comes after prefill
                delays.append(time.perf_counter() - started)
                if not as_json:
                    out.write(trace_round(finished, tokenizer, colours) if trace else finished.text)
                    out.flush()
                yield finished

    figures = measure(write_each())
    if as_json:
        summary = summarize(figures, delays[0] if delays else None) | details
        out.write(json.dumps(summary) + "\n")
        out.flush()
        return figures
    out.write("\n")
    out.flush()
    delay = f"first token after {delays[0]:.2f} s, " if delays else ""
    err.write(
        f"{len(figures.tokens)} tokens, {figures.tokens_per_second:.1f} tokens/s, {delay}"
        f"tau {figures.tau:.2f}, stopped by {figures.stop or 'length'}\n"
    )
    return figures


def summarize(figures: Figures, first_token: float | None) -> dict[str, Any]:
    """A decoded prompt as a JSON object; speeds are of decoding, without loading and prefill."""
    return {
        "text": figures.text,
        "ids": list(figures.tokens),
        "tokens": len(figures.tokens),
        "stop": figures.stop or "length",
        "target_passes": figures.passes,
        "tau": figures.tau,
        "drafted_per_pass": figures.drafted_per_pass,
        "tokens_per_second": figures.tokens_per_second,
        "seconds_to_first_token": first_token,
        "seconds": figures.seconds,
        "accepted_by_position": figures.acceptance,
        "repeated_4gram_share": figures.repeated_4gram_share,
        "learning": figures.events,
    }


def trace_round(finished: Round, tokenizer: Tokenizer, colours: bool) -> str:
    """A round by fate: accepted tokens, rejected ones, then the target's own token.

    Each part is decoded separately, so a character split between two parts shows as U+FFFD.
    """
    accepted = len(finished.path)
    last = "plain"
    if finished.proposed:
        last = "recovered" if list_rejected(finished) else "bonus"
    rejected = [t for node, t in enumerate(finished.proposed) if node not in finished.path]
    parts = (
        ("accepted", _text(finished.tokens[:accepted], tokenizer)),
        ("rejected", _text(rejected, tokenizer).replace("\n", "\\n")),
        (last, _text(finished.tokens[accepted:], tokenizer)),
    )
    return "".join(_style(fate, text, colours) for fate, text in parts if text)


def _style(fate: str, text: str, colours: bool) -> str:
    """Text in the colour of its fate, or between marks; plain decoding's as it is."""
    if colours:
        return f"{FATES[fate].ansi}{text}{ANSI_RESET}" if fate in FATES else text
    before, after = _MARKS.get(fate, ("", ""))
    return f"{before}{text}{after}"


def _text(tokens: Sequence[int], tokenizer: Tokenizer) -> str:
    # By bytes: ``decode`` may drop the space that only a text's first token has.
    return b"".join(map(tokenizer.token_bytes, tokens)).decode(errors="replace")
