"""A side of the comparison: what it computes, and how it answers a prompt.

Knows nothing of engines.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

MINISPEC, LLAMA_CPP = "minispec", "llama.cpp"  # engines that ratios refer to
PLAIN = "plain"  # the mode of plain decoding


@dataclass(frozen=True)
class Work:
    """What all sides do: continue ``prompts`` of token ids, each named after its domain, by
    ``max_new_tokens`` tokens. ``path``: the GGUF file of ``model``."""

    model: str
    path: Path
    prompts: tuple[tuple[str, tuple[int, ...]], ...]
    max_new_tokens: int
    threads: int

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt."""
        return max(len(ids) for _, ids in self.prompts)


@dataclass(frozen=True)
class Answer:
    """The tokens of an answer; how many of them came of the ``passes`` of the target after the
    prefill, which took ``seconds``; and the seconds that the engine's own clock gives these passes,
    None without one."""

    tokens: tuple[int, ...]
    timed: int
    passes: int
    seconds: float
    engine_seconds: float | None = None

    @property
    def tokens_per_second(self) -> float:
        """Timed tokens over seconds."""
        return self.timed / self.seconds


# (ids of the prompt, temperature, seed, number of tokens) -> answer
Run = Callable[[Sequence[int], float, int, int], Answer]


@dataclass(frozen=True)
class Side:
    """An engine that runs a model in one way. ``weights`` and ``activations``: their dtypes;
    ``weight_bytes``: what a target pass reads, None where the engine does not tell."""

    engine: str
    dtype: str  # as the engine is asked for it
    mode: str
    weights: str
    activations: str
    weight_bytes: int | None
    run: Run

    @property
    def name(self) -> str:
        """Engine, dtype and mode."""
        return f"{self.engine} {self.dtype}, {self.mode}"

    @property
    def is_plain(self) -> bool:
        """Whether it decodes one token per pass."""
        return self.mode == PLAIN


@dataclass(frozen=True)
class Skipped:
    """A side that does not run here, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Engine:
    """An engine's sides, those that do not run, and lines that describe its build and settings."""

    sides: tuple[Side, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    notes: tuple[str, ...] = ()
