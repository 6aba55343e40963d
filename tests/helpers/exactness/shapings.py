"""Walks of what shapes distributions: each shaping alone and together, at every row of a pass.

A pass over a chain of n tokens has n + 1 rows: one for each drafted token, where the row also
gives the residual after a rejection, and one for the bonus token. ``ChainCase`` has chains of up
to 8 tokens and few branches: its models are certain at all positions but three. Weights are
squares, so that a repetition penalty of 2, a root, is exact in fractions.
"""

import math
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from minispec.certificate.cases import Case
from minispec.certificate.decodings import FRACTIONS, Backend, Decoding, ToyModels, decode_with
from minispec.certificate.enumeration import (
    certify_decoding,
    output_distribution,
    plain_distribution,
)
from minispec.certificate.toys import ChangingShortlist
from minispec.certificate.walker import total_variation
from minispec.commit import StopRule
from minispec.sampling import Sampling
from minispec.shortlists.full import FullShortlist
from minispec.verify import VERIFIERS

_LN4, _LN9 = math.log(4), math.log(9)
_CHANGES: dict[str, Any] = {
    "logit_bias": ((0, _LN9), (3, -_LN4)),
    "repetition_penalty": 2.0,
    "frequency_penalty": math.log(3),
    "presence_penalty": _LN4,
    "bad_words": ((2,), (1, 1), (0, 3, 1)),  # none ends with an id that a model is certain of
}
# Each shaping alone.
ALONE = {
    "temperature": Sampling(0.5),
    "top_k": Sampling(1.0, top_k=2),
    "top_p": Sampling(1.0, top_p=0.7),
    "min_p": Sampling(1.0, min_p=0.3),
} | {name: Sampling(1.0, **{name: value}) for name, value in _CHANGES.items()}
_ALL_CHANGES = Sampling(0.5, **_CHANGES)
# Together. Of several truncations the tightest hides the others, so each has its turn.
TOGETHER = {
    "all changes": _ALL_CHANGES,
    "all changes, greedy": replace(_ALL_CHANGES, temperature=0.0),
    "all changes, top-k": replace(_ALL_CHANGES, top_k=2),
    "all changes, top-p": replace(_ALL_CHANGES, top_p=0.8),
    "all changes, min-p": replace(_ALL_CHANGES, min_p=0.1),
    "all truncations": Sampling(1.0, top_k=3, top_p=0.85, min_p=0.15),
    "top-p, min-p": Sampling(1.0, top_p=0.85, min_p=0.15),
    "repetition is encouraged": Sampling(
        1.0, repetition_penalty=0.5, frequency_penalty=-_LN4, presence_penalty=-math.log(2)
    ),
}
SHAPINGS = ALONE | TOGETHER


class SquareCase(Case):
    """A ``Case`` whose weights are the squares of those of its like."""

    def weights(self, tokens: Sequence[int]) -> tuple[list[int], list[int]]:
        target, draft = super().weights(tokens)
        return [w * w for w in target], [w * w for w in draft]


@dataclass(frozen=True)
class ChainCase(Case):
    """One round of ``gamma`` drafted tokens and a bonus token, if nothing is rejected. Both models
    are certain, and agree, except at the ``open`` positions of the output."""

    open: tuple[int, ...] = ()

    @property
    def stop(self) -> StopRule:
        """The limit, and in every other case an EOS id, which can only come at open positions."""
        return StopRule(self.max_new_tokens, (2,) if self.seed % 2 else ())

    def weights(self, tokens: Sequence[int]) -> tuple[list[int], list[int]]:
        rng = random.Random(f"{self.seed} {tuple(tokens)}")
        size = self.vocab_size
        if len(tokens) - len(self.prompt) not in self.open:
            weights = [0] * size
            weights[rng.choice((0, size - 1))] = 1
            return weights, weights
        target = rng.sample((1, 4, 9, 16), size)
        draft = rng.sample((0, 1, 4, 4), size)
        return target, draft


def chain_cases(gamma: int) -> list[ChainCase]:
    """Cases of one gamma, in which every row of the first pass is open in one."""
    rows = range(gamma + 1)
    return [
        ChainCase(2 * gamma + row // 2, 4, gamma, gamma + 1, open=(row, row + 1, gamma))
        for row in rows[: max(1, gamma) : 2]
    ]


CHAIN_CASES = [case for gamma in range(1, 9) for case in chain_cases(gamma)]
# Vocabulary size, gamma, limit.
_SQUARE_SHAPES = ((4, 1, 3), (4, 2, 3), (5, 1, 2), (4, 3, 4))
SQUARE_CASES = [SquareCase(40 + i, *shape) for i, shape in enumerate(_SQUARE_SHAPES)]


def shaping_distance(decode: Decoding, sampling: Sampling, case: Case, arithmetic: str) -> float:
    """Total variation over whole outputs, from plain decoding in fractions."""
    models = ToyModels.build(case, sampling, Backend(arithmetic))
    expected = plain_distribution(case, sampling, FRACTIONS)
    return float(total_variation(output_distribution(decode, models), expected))


SHAPING_KEYS = [(verifier, shaping) for verifier in VERIFIERS for shaping in SHAPINGS]


def compute_shaping_row(key: tuple[str, str]) -> dict[str, Any]:
    """A row of the certificate as JSON: chains in float64 with the production ``Sampling`` against
    plain decoding in fractions, and shorter outputs in fractions alone. All chains are walked token
    by token; as a block only those of several shapings that exclude ids: they have few branches."""
    verifier, shaping = key
    sampling, started, worst = SHAPINGS[shaping], time.perf_counter(), 0.0
    excludes = sampling.temperature == 0 or sampling.min_p > 0 or sampling.top_p < 1
    few_branches = shaping in TOGETHER and excludes
    cases = CHAIN_CASES if verifier == "token" or few_branches else CHAIN_CASES[:4]
    for case in cases:
        decode = decode_with(FullShortlist, VERIFIERS[verifier])
        worst = max(worst, shaping_distance(decode, sampling, case, "float64"))
    decode = decode_with(ChangingShortlist, VERIFIERS[verifier])
    exact = certify_decoding(decode, sampling, SQUARE_CASES[: 4 if few_branches else 3])
    return {
        "verifier": verifier,
        "shaping": shaping,
        "sampling": str(sampling),
        "chains": len(cases),
        "worst_tv_float64": worst,
        "cases": exact.cases,
        "branches": exact.branches,
        "worst_tv_fraction": float(exact.worst_tv),
        "seconds": round(time.perf_counter() - started, 2),
    }


def find_shaping_faults(row: dict[str, Any]) -> list[str]:
    """What is wrong with a row, one line each."""
    limits = {"worst_tv_float64": 1e-12, "worst_tv_fraction": 0.0}
    return [
        f"{row['verifier']}, {row['shaping']}: {name} is {row[name]:.2e}"
        for name, limit in limits.items()
        if row[name] > limit
    ]
