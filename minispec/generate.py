"""One prompt, shown as it is decoded: plain text, coloured by fate, or one JSON object."""

import json
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any, TextIO

from minispec.measure import Figures, measured, repeated_4gram_share
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
    out: TextIO = sys.stdout,
    err: TextIO = sys.stderr,
) -> None:
    """Decodes to the end, writing text to ``out`` as soon as it is decided, figures to ``err``;
    with ``as_json`` nothing but one object to ``out``. ``started``: when the command began, by
    ``time.perf_counter``; the first token's delay counts from there, loading included."""
    first: list[float] = []

    def shown() -> Iterator[Round]:
        for round in rounds:
            first.append(time.perf_counter() - started)
            if trace and not as_json:
                out.write(coloured(round, tokenizer))
            elif not as_json:
                out.write(round.text)
            out.flush()
            yield round

    figures = measured(shown())
    report = summary(figures, first[0] if first else None) | details
    if as_json:
        out.write(json.dumps(report) + "\n")
        return
    out.write("\n")
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
        "accepted_by_position": [
            a / p for a, p in zip(figures.accepted_at, figures.proposed_at, strict=True)
        ],
        "repeated_4gram_share": repeated_4gram_share(figures.tokens),
    }


def coloured(round: Round, tokenizer: Tokenizer) -> str:
    """A round by fate: accepted drafts, then those rejected, then the target's own token.

    Token by token, so a character cut by a token border shows as U+FFFD.
    """
    accepted = round.tokens[: len(round.path)]
    parts = [_ACCEPTED + tokenizer.decode([token]) for token in accepted]
    rejected = tokenizer.decode(round.proposed[len(round.path) :])
    if rejected:
        parts.append(_REJECTED + rejected.replace("\n", "\\n"))
    parts += [_PLAIN + _OWN + tokenizer.decode(round.tokens[len(round.path) :])]
    return "".join(parts) + _PLAIN
