"""Proof by enumeration: run a program once for every outcome of its random decisions.

A program that draws all its randomness from a ``RandomSource`` is a decision tree: each decision
has branches of known probability. ``enumerate_branches`` runs the *production* code once per
leaf, replaying the decisions that lead to it, and yields each result with its probability. Their
sum is the exact distribution of the output, free of sampling error. Knows nothing of models.
"""

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from minispec.errors import ArgumentError
from minispec.types import Distribution


class BranchingSource:
    """A random source that follows a script of decisions, then takes the first possible branch.

    ``probability``: the product of the probabilities of all decisions made. ``alternatives``: the
    branches that were possible at each decision, from which the next script is built. Raises
    ArgumentError if a scripted branch has probability 0: the program then differs from the run
    that the script was recorded on.
    """

    def __init__(self, script: Sequence[int]) -> None:
        self._script = list(script)
        self.decisions: list[int] = []
        self.alternatives: list[list[int]] = []
        self.probability: Any = 1

    def bernoulli(self, probability: Any) -> bool:
        return bool(self._decide([1 - probability, probability]))

    def choose(self, probs: Any) -> int:
        return self._decide(probs.tolist() if hasattr(probs, "tolist") else list(probs))

    def _decide(self, probs: list[Any]) -> int:
        """The branch (index into ``probs``) that the script names, else the first possible."""
        exact = [p if isinstance(p, Fraction | int) else float(p) for p in probs]
        possible = [branch for branch, p in enumerate(exact) if p > 0]
        depth = len(self.decisions)
        branch = self._script[depth] if depth < len(self._script) else possible[0]
        if branch not in possible:
            raise ArgumentError(
                "a replayed decision has become impossible: the program keeps state between runs; "
                "start every run from the same state"
            )
        self.decisions.append(branch)
        self.alternatives.append(possible)
        self.probability = self.probability * exact[branch]
        return branch


def enumerate_branches(program: Callable[[BranchingSource], Any]) -> Iterator[tuple[Any, Any]]:
    """Run ``program`` once for each sequence of random decisions; yield (result, probability).

    The program must not keep state between runs; ArgumentError is raised where that shows.
    """
    script: list[int] | None = []
    while script is not None:
        source = BranchingSource(script)
        yield program(source), source.probability
        script = _next_script(source)


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
