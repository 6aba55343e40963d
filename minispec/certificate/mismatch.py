"""The shortest output whose probability is wrong, and the branches that lead to it.

Knows toy models only.
"""

from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from minispec.certificate.decodings import Decoding, ToyModels
from minispec.certificate.walker import enumerate_branches
from minispec.tree import follow, list_rejected
from minispec.types import Round

# How the last token of an output came about.
ORIGINS = (
    "accepted draft", "rejection, then a token of the shortlist",
    "rejection, then a token outside it", "bonus token", "no draft",
)  # fmt: skip
_TOLERANCE = 1e-9  # of probabilities in floating point


@dataclass(frozen=True)
class Mismatch:
    """A beginning of an output whose probability differs from plain decoding's; with ``stop`` a
    whole output that ends for that reason. ``origins``: its probability by the ``ORIGINS`` of its
    last token; ``token_level``: the same with ``verify`` instead of the verifier, if it has another
    one."""

    tokens: tuple[int, ...]
    stop: str | None
    probability: Any
    plain_probability: Any
    origins: tuple[Any, ...] = ()
    token_level: tuple[Any, ...] = ()

    def __str__(self) -> str:
        event = f"output {list(self.tokens)}, {self.stop}" if self.stop else (
            f"output begins with {list(self.tokens)}"
        )  # fmt: skip
        ours, plain = (
            format_probability(self.probability),
            format_probability(self.plain_probability),
        )
        return f"{event}: probability {ours}, in plain decoding {plain}"

    def list_origins(self) -> Iterator[str]:
        """A line for each origin of the last token that occurs."""
        rows = zip(ORIGINS, self.origins, self.token_level or self.origins, strict=False)
        for origin, ours, expected in rows:
            if ours or expected:
                note = f", by token-level verification {format_probability(expected)}"
                yield f"{origin}: {format_probability(ours)}{note if self.token_level else ''}"


def format_probability(probability: Any) -> str:
    """A probability as a fraction, if that is short, and as a float."""
    short = isinstance(probability, int) or (
        isinstance(probability, Fraction) and probability.denominator < 10_000
    )
    if not short:
        return f"{float(probability):.4g}"
    exact = str(probability)
    return exact if "/" not in exact else f"{exact} = {float(probability):.4g}"


def find_mismatch(ours: dict[Hashable, Any], plain: dict[Hashable, Any]) -> Mismatch | None:
    """The shortest beginning of an output with different probabilities in two distributions over
    (tokens, stop reason); of several the one that differs most. None if all are equal."""
    for our_probs, plain_probs in (
        (_sum_by_prefix(ours), _sum_by_prefix(plain)),
        (Counter(ours), Counter(plain)),  # only stop reasons differ
    ):
        wrong: list[Any] = [
            event
            for event in our_probs.keys() | plain_probs.keys()
            if not is_equal(our_probs[event], plain_probs[event])
        ]
        if wrong:
            tokens, stop = event = min(
                wrong,
                key=lambda e: (len(e[0]), -abs(our_probs[e] - plain_probs[e]), e[0], e[1] or ""),
            )
            return Mismatch(tokens, stop, our_probs[event], plain_probs[event])
    return None


def is_equal(left: Any, right: Any) -> bool:
    """Equal as fractions, or nearly equal as floats."""
    exact = isinstance(left, Fraction | int) and isinstance(right, Fraction | int)
    return bool(left == right) if exact else abs(float(left) - float(right)) < _TOLERANCE


def _sum_by_prefix(distribution: dict[Hashable, Any]) -> Counter[Any]:
    """The probability of (prefix, None) for each beginning of an output."""
    probabilities: Counter[Any] = Counter()
    outputs: Any = distribution.items()
    for (tokens, _), probability in outputs:
        for length in range(1, len(tokens) + 1):
            probabilities[tokens[:length], None] += probability
    return probabilities


def count_origins(decode: Decoding, models: ToyModels, prefix: Sequence[int]) -> tuple[Any, ...]:
    """The probability that an output begins with ``prefix``, by the ``ORIGINS`` of the last token
    of ``prefix``."""
    origins: Counter[str] = Counter()
    for rounds, probability in enumerate_branches(lambda source: list(decode(models, source))):
        tokens = [token for finished in rounds for token in finished.tokens]
        if tokens[: len(prefix)] == list(prefix):
            origins[_find_origin(rounds, len(prefix) - 1)] += probability
    return tuple(origins[origin] for origin in ORIGINS)


def _find_origin(rounds: Iterable[Round], position: int) -> str:
    """How the token at a position of the output came about: one of ``ORIGINS``."""
    for finished in rounds:
        if position < len(finished.tokens):
            break
        position -= len(finished.tokens)
    kept, evidence = len(finished.path), finished.evidence
    assert evidence is not None
    if position < kept:
        return ORIGINS[0]
    if not finished.proposed:
        return ORIGINS[4]
    if not list_rejected(finished):
        return ORIGINS[3]
    q = follow(evidence.proposal, finished.path).draft_distributions[kept]
    return ORIGINS[1 if finished.tokens[position] in q.ids.tolist() else 2]
