"""The test cases of a certificate: pairs of toy distributions with everything that can go wrong.

The weights of a case are whole numbers that depend on all tokens read, so that one case runs
through the production code in exact fractions, in float64 and in float32. They contain zeros and
ties; draft and target are equal, nearly equal, disjoint, one-hot or independent. Knows nothing of
models.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from minispec.commit import StopRule
from minispec.sampling import Sampling

# How the draft's weights relate to the target's: one is drawn for each prefix.
_RELATIONS = ("one-hot", "equal", "near", "disjoint", *["independent"] * 4)

SAMPLINGS = (
    Sampling(0.0), Sampling(0.5), Sampling(1.0), Sampling(1.0, top_k=2), Sampling(1.0, top_p=0.87),
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A pair of toy distributions, and an output of at most ``max_new_tokens`` to enumerate."""

    seed: int
    vocab_size: int
    gamma: int
    max_new_tokens: int

    @property
    def prompt(self) -> list[int]:
        """The ids that every case starts from."""
        return [0, 1]

    @property
    def stop(self) -> StopRule:
        """The limit, and zero, one or two EOS ids: the last ids of the vocabulary."""
        count = self.seed % 3 if self.vocab_size > 3 else self.seed % 2
        eos_ids = range(self.vocab_size - count, self.vocab_size)
        return StopRule(self.max_new_tokens, tuple(eos_ids))

    def weights(self, tokens: Sequence[int]) -> tuple[list[int], list[int]]:
        """Weights (V,) of target and draft after ``tokens``: whole numbers, zeros among them."""
        rng, size = random.Random(f"{self.seed} {tuple(tokens)}"), self.vocab_size
        # Most cases start with independent distributions, so that the first round often rejects.
        first = self.seed % 16 and len(tokens) == len(self.prompt)
        relation = "independent" if first else rng.choice(_RELATIONS)
        if relation == "one-hot":
            weights = [0] * size
            weights[rng.randrange(size)] = 1
            return weights, weights
        drawn = [rng.choice((1, 2, 3, 5) if first else (0, 1, 1, 2, 3, 5)) for _ in range(size)]
        target = drawn if any(drawn) else [1] * size
        if relation == "equal":
            return target, target
        if relation == "near":
            return target, [w + (i == size // 2) for i, w in enumerate(target)]
        if relation == "disjoint" and not all(target):
            return target, [int(w == 0) for w in target]
        return target, [rng.choice((0, 1, 1, 2, 4)) for _ in range(size)]


# Vocabulary size, gamma, limit: long chains over few ids, short ones over more.
SHAPES = (
    (3, 2, 3), (2, 3, 4), (4, 1, 3), (3, 1, 3), (4, 2, 3), (5, 1, 2), (6, 1, 2), (3, 3, 4),
    (2, 4, 5),
)  # fmt: skip
GRID = tuple(Case(seed, *SHAPES[seed % len(SHAPES)]) for seed in range(3 * len(SHAPES)))
