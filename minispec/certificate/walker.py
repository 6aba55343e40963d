"""Proof by enumeration: run a program once for every outcome of its random decisions.

A program that draws all its randomness from a ``RandomSource`` is a decision tree: each decision
has branches of known probability. ``enumerate_branches`` runs the *production* code once per
leaf, replaying the decisions that lead to it, and yields each result with its probability. Their
sum is the exact distribution of the output, free of sampling error. Knows nothing of models.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from minispec.errors import ArgumentError
from minispec.types import Distribution

_ROUNDING = 1e-4  # of probabilities that are floats; a softmax in float32 is 1e-6 off at most


class BranchingSource:
    """A random source that follows a script of decisions, then takes the first possible branch.

    ``probability``: the product of the probabilities of all decisions made. ``alternatives``: the
    branches that were possible at each decision, from which the next script is built, and
    ``probabilities`` of all branches there. Raises ArgumentError for probabilities that are
    negative or do not sum to one, and if a decision of the script differs from ``recorded``, its
    probabilities in the run that the script comes from.
    """

    def __init__(self, script: Sequence[int], recorded: Sequence[Sequence[Any]] = ()) -> None:
        self._script, self._recorded = list(script), recorded
        self.decisions: list[int] = []
        self.alternatives: list[list[int]] = []
        self.probabilities: list[list[Any]] = []
        self.probability: Any = 1

    def bernoulli(self, probability: Any) -> bool:
        exact = isinstance(probability, Fraction | int)
        rounding = 0 if exact else _ROUNDING
        if not -rounding <= probability <= 1 + rounding:
            raise ArgumentError(
                f"rng.bernoulli was given probability {probability}: it must lie in [0, 1]"
            )
        if not exact:
            probability = min(1.0, max(0.0, float(probability)))
        return bool(self._decide([1 - probability, probability]))

    def choose(self, probs: Any) -> int:
        numbers = probs.tolist() if hasattr(probs, "tolist") else list(probs)
        exact = [p if isinstance(p, Fraction | int) else float(p) for p in numbers]
        floats = [float(p) for p in exact]  # sums of fractions are slow
        if not abs(sum(floats) - 1) < _ROUNDING or min(floats) < 0:
            raise ArgumentError(
                f"rng.choose was given probabilities that sum to {sum(exact)}, the smallest of "
                f"them {min(exact)}: clip them at 0 and normalise them"
            )
        return self._decide(exact)

    def _decide(self, probs: list[Any]) -> int:
        """The branch (index into ``probs``) that the script names, else the first possible."""
        possible = [branch for branch, p in enumerate(probs) if p > 0]
        depth = len(self.decisions)
        branch = self._script[depth] if depth < len(self._script) else possible[0]
        if branch not in possible or not self._matches_recorded(depth, probs):
            raise ArgumentError(
                "a replayed decision has changed: the program keeps state between runs, or uses "
                "random numbers of its own; start every run from the same state, and draw from rng"
            )
        self.decisions.append(branch)
        self.alternatives.append(possible)
        self.probabilities.append(probs)
        self.probability = self.probability * probs[branch]
        return branch

    def _matches_recorded(self, depth: int, probs: list[Any]) -> bool:
        """Whether a decision has the probabilities of the run that the script comes from."""
        if depth >= len(self._recorded) or probs == self._recorded[depth]:
            return True
        recorded = self._recorded[depth]
        return len(probs) == len(recorded) and all(map(math.isclose, probs, recorded))


def enumerate_branches(program: Callable[[BranchingSource], Any]) -> Iterator[tuple[Any, Any]]:
    """Run ``program`` once for each sequence of random decisions; yield (result, probability).

    The program must not keep state between runs; ArgumentError is raised where that shows.
    """
    script: list[int] | None = []
    recorded: list[list[Any]] = []
    while script is not None:
        source = BranchingSource(script, recorded)
        yield program(source), source.probability
        if len(source.decisions) < len(script):
            raise ArgumentError(
                "a replayed run made fewer decisions: the program keeps state between runs; "
                "start every run from the same state"
            )
        script = _next_script(source)
        recorded = source.probabilities[: len(script or ())]


def _next_script(source: BranchingSource) -> list[int] | None:
    """The decisions of the next leaf in depth-first order, None after the last."""
    for depth in reversed(range(len(source.decisions))):
        possible = source.alternatives[depth]
        following = possible.index(source.decisions[depth]) + 1
        if following < len(possible):
            return [*source.decisions[:depth], possible[following]]
    return None


def distribution_of(program: Callable[[BranchingSource], Hashable]) -> dict[Hashable, Any]:
    """The distribution of a program's result: each possible result with its probability."""
    distribution: defaultdict[Hashable, Any] = defaultdict(int)
    for result, probability in enumerate_branches(program):
        distribution[result] += probability
    return dict(distribution)


def total_variation(left: dict[Hashable, Any], right: dict[Hashable, Any]) -> Any:
    """TV = 1/2 sum |left - right|: the largest difference in the probability of any event."""
    results = left.keys() | right.keys()
    return sum(abs(left.get(r, 0) - right.get(r, 0)) for r in results) / 2


def fraction_distribution(weights: Sequence[int], ids: Sequence[int] | None = None) -> Distribution:
    """The distribution proportional to whole-number weights, in exact fractions."""
    total = sum(weights)
    probs = np.array([Fraction(w, total) for w in weights], dtype=object)  # (K,)
    return Distribution(np.array(range(len(weights)) if ids is None else ids), probs)
