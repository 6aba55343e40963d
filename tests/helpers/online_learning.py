"""A toy target, a toy draft, learner settings under which a few tokens change a lot, and a
shorthand for decoding with a learner."""

from typing import Any

from helpers.drafts import toy_draft
from helpers.toys import toy_transformer
from minispec.commit import StopRule
from minispec.decode import speculative
from minispec.learning import lora
from minispec.learning.config import LearnerConfig
from minispec.sampling import Sampling, SeededRandom
from minispec.shortlists.full import FullShortlist
from minispec.types import Learner, Round

TARGET = toy_transformer(context_limit=512)
DRAFT = toy_draft(TARGET)
# An update every four tokens, at a high rate, on all matrices.
EXTREME = LearnerConfig(
    update_interval=4, window_size=4, num_windows=4, learning_rate=0.05, num_random_ids=8,
    targets=lora.TARGETS,
)  # fmt: skip


def run(
    learner: Learner | None, *, prompt: tuple[int, ...] = (1, 2, 3), limit: int = 40, seed: int = 0,
    temperature: float = 1.0, gamma: int = 3, target: Any = TARGET,
) -> list[Round]:  # fmt: skip
    """Decode with a learner's draft, or without a learner with the frozen one."""
    return list(speculative(
        target, learner.draft if learner else DRAFT, FullShortlist(50), prompt, gamma=gamma,
        sampling=Sampling(temperature), rng=SeededRandom(seed), stop=StopRule(limit),
        learner=learner, trace=True,
    ))  # fmt: skip


def tokens_of(rounds: list[Round]) -> tuple[int, ...]:
    """All tokens that the rounds emitted."""
    return tuple(token for finished in rounds for token in finished.tokens)
