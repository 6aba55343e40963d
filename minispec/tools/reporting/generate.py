"""One prompt, shown as it is decoded: plain text, coloured by fate, or one JSON object."""

import json
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TextIO

from tqdm import tqdm

from minispec.tools.evaluation.measure import Figures, measure
from minispec.types import Round, Tokenizer

# ANSI colours; what they mean is said at the end of a trace.
_ACCEPTED, _REJECTED, _OWN, _PLAIN = "\x1b[32m", "\x1b[9;31m", "\x1b[1;34m", "\x1b[0m"


def generate(
    rounds: Iterable[Round],
    tokenizer: Tokenizer,
    *,
    trace: bool,
    as_json: bool,
    details: dict[str, Any],
    started: float,
    out: TextIO | None = None,
    err: TextIO | None = None,
) -> None:
    """Decodes to the end, writing text to ``out`` (stdout) as soon as it is decided, figures to
    ``err`` (stderr); with ``as_json`` nothing but one object to ``out``, ``details`` in it.
    ``started``: when the command began, by ``time.perf_counter``; the first token's delay
    counts from there, loading included."""
    out, err = out or sys.stdout, err or sys.stderr
    first: list[float] = []

    def shown() -> Iterator[Round]:
        bar = tqdm(total=1, desc="reading", unit="prompt", leave=False, disable=None, file=err)
        with bar:
            for finished in rounds:
                bar.close()  # with the first round the prompt has been read
                first.append(time.perf_counter() - started)
                if not as_json:
                    out.write(coloured(finished, tokenizer) if trace else finished.text)
                    out.flush()
                yield finished

    figures = measure(shown())
    if as_json:
        out.write(json.dumps(summary(figures, first[0] if first else None) | details) + "\n")
        return
    out.write("\n")
    out.flush()
    if trace:
        err.write(
            f"{_ACCEPTED}accepted{_PLAIN} {_REJECTED}rejected{_PLAIN} "
            f"{_OWN}the target's own{_PLAIN}\n"
        )
    delay = f"first token after {first[0]:.2f} s, " if first else ""
    err.write(
        f"{len(figures.tokens)} tokens, {figures.tokens_per_second:.1f} tokens/s, {delay}"
        f"tau {figures.tau:.2f}, stopped by {figures.stop or 'length'}\n"
    )


def summary(figures: Figures, first_token: float | None) -> dict[str, Any]:
    """A decoded prompt as a JSON object; speeds are of decoding, without loading or prompt."""
    return {
        "text": figures.text,
        "ids": list(figures.tokens),
        "tokens": len(figures.tokens),
        "stop": figures.stop or "length",
        "target_passes": figures.passes,
        "tau": figures.tau,
        "tokens_per_second": figures.tokens_per_second,
        "seconds_to_first_token": first_token,
        "seconds": figures.seconds,
        "accepted_by_position": figures.acceptance,
        "repeated_4gram_share": figures.repeated_4gram_share,
        "learning": figures.events,
    }


def coloured(finished: Round, tokenizer: Tokenizer) -> str:
    """A round by fate: accepted drafts, then those rejected, then the target's own token.

    Each fate is decoded apart, so a character that is cut by their border shows as U+FFFD.
    """
    accepted = len(finished.path)
    parts = (
        (_ACCEPTED, _text(finished.tokens[:accepted], tokenizer)),
        (_REJECTED, _text(finished.proposed[accepted:], tokenizer).replace("\n", "\\n")),
        (_OWN, _text(finished.tokens[accepted:], tokenizer)),
    )
    return "".join(colour + text + _PLAIN for colour, text in parts if text)


def _text(tokens: Sequence[int], tokenizer: Tokenizer) -> str:
    # By bytes, since ``decode`` may take a space away that only a text's first token has.
    return b"".join(map(tokenizer.token_bytes, tokens)).decode(errors="replace")
