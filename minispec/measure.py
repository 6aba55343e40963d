"""One decoded prompt as figures.

Speeds are of decoding alone: the pass over the prompt is booked apart. tau is the number of
tokens emitted per target pass, that pass over the prompt excluded.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from minispec.types import Round


@dataclass(frozen=True)
class Figures:
    """What one prompt's decoding did and cost. ``seconds`` by phase, "prefill" among them;
    ``accepted_at`` counts rounds in which the draft's i-th token was accepted, and
    ``proposed_at`` those in which there was one; ``latencies`` are seconds per token, those
    of a round spread evenly over its tokens."""

    tokens: tuple[int, ...]
    text: str
    stop: str | None
    passes: int
    seconds: dict[str, float]
    accepted_at: tuple[int, ...]
    proposed_at: tuple[int, ...]
    latencies: tuple[float, ...]
    shortlist_sizes: tuple[int, ...]

    @property
    def decode_seconds(self) -> float:
        return sum(seconds for phase, seconds in self.seconds.items() if phase != "prefill")

    @property
    def tokens_per_second(self) -> float:
        return len(self.tokens) / self.decode_seconds if self.tokens else 0.0

    @property
    def tau(self) -> float:
        return len(self.tokens) / self.passes if self.passes else 0.0


def measured(rounds: Iterable[Round]) -> Figures:
    """Decodes to the end and adds up."""
    tokens: list[int] = []
    text: list[str] = []
    seconds: Counter[str] = Counter()
    accepted: Counter[int] = Counter()
    proposed: Counter[int] = Counter()
    latencies: list[float] = []
    sizes: list[int] = []
    stop, passes = None, 0
    for round in rounds:
        tokens += round.tokens
        text.append(round.text)
        seconds.update(round.seconds)
        accepted.update(round.path)
        proposed.update(range(len(round.proposed)))
        spent = sum(s for phase, s in round.seconds.items() if phase != "prefill")
        latencies += [spent / len(round.tokens)] * len(round.tokens)
        sizes += round.shortlist_sizes
        stop, passes = round.stop, passes + 1
    depth = max(proposed, default=-1) + 1
    return Figures(
        tokens=tuple(tokens),
        text="".join(text),
        stop=stop,
        passes=passes,
        seconds=dict(seconds),
        accepted_at=tuple(accepted[i] for i in range(depth)),
        proposed_at=tuple(proposed[i] for i in range(depth)),
        latencies=tuple(latencies),
        shortlist_sizes=tuple(sizes),
    )


def repeated_4gram_share(tokens: Sequence[int]) -> float:
    """The share of 4-grams that stood in the same output before: a model that turns in
    circles is easy to guess, and its tau says little."""
    grams = [tuple(tokens[i : i + 4]) for i in range(len(tokens) - 3)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0
