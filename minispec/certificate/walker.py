"""Walking every branch of randomness: proofs by enumeration, for our parts and for yours.

A program whose only door to randomness is a ``RandomSource`` is a tree: each decision has
branches with known probabilities. ``every_branch`` runs the *production* code once for each
leaf, replaying the decisions on the way to it, and yields each result with its probability.
Summed up, they are the law of the output, without statistics and without error bars.

"""

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from minispec.errors import ArgumentError
from minispec.types import Distribution


class Branching:
    """A random source that follows a script and then takes the first possible branch.

    ``probability`` is that of all decisions so far; ``alternatives`` are the branches that
    were possible at each decision, so that the next script can be made. Raises ArgumentError
    where the script cannot be followed, since the program is not the one it was made from.
    """

    def __init__(self, script: Sequence[int]) -> None:
        self._script = list(script)
        self.taken: list[int] = []
        self.alternatives: list[list[int]] = []
        self.probability: Any = 1

    def bernoulli(self, probability: Any) -> bool:
        return bool(self._decide([1 - probability, probability]))

    def choose(self, probs: Any) -> int:
        return self._decide(probs.tolist() if hasattr(probs, "tolist") else list(probs))

    def _decide(self, probs: list[Any]) -> int:
        exact = [p if isinstance(p, Fraction | int) else float(p) for p in probs]
        possible = [branch for branch, p in enumerate(exact) if p > 0]
        depth = len(self.taken)
        branch = self._script[depth] if depth < len(self._script) else possible[0]
        if branch not in possible:
            raise ArgumentError(
                "a decision is no longer possible that was so before: the program remembers "
                "something between runs; it must begin anew each time"
            )
        self.taken.append(branch)
        self.alternatives.append(possible)
        self.probability = self.probability * exact[branch]
        return branch


def every_branch(program: Callable[[Branching], Any]) -> Iterator[tuple[Any, Any]]:
    """Runs ``program`` once for each way that its random decisions can fall; yields
    (result, probability). The program must not remember anything between runs: ArgumentError is
    raised where it is seen to."""
    script: list[int] | None = []
    while script is not None:
        source = Branching(script)
        yield program(source), source.probability
        script = _next_script(source)


def _next_script(source: Branching) -> list[int] | None:
    """The decisions of the next leaf in depth-first order, None after the last."""
    for depth in reversed(range(len(source.taken))):
        possible = source.alternatives[depth]
        place = possible.index(source.taken[depth]) + 1
        if place < len(possible):
            return [*source.taken[:depth], possible[place]]
    return None


def distribution_of(program: Callable[[Branching], Hashable]) -> dict[Hashable, Any]:
    """The law of a program's result: each possible result with its probability."""
    distribution: defaultdict[Hashable, Any] = defaultdict(int)
    for result, probability in every_branch(program):
        distribution[result] += probability
    return dict(distribution)


def total_variation(left: dict[Hashable, Any], right: dict[Hashable, Any]) -> Any:
    """Half the sum of absolute differences: the largest error in any event's probability."""
    results = left.keys() | right.keys()
    return sum(abs(left.get(r, 0) - right.get(r, 0)) for r in results) / 2


def fraction_distribution(weights: Sequence[int], ids: Sequence[int] | None = None) -> Distribution:
    """The law proportional to whole weights, in exact fractions."""
    total = sum(weights)
    probs = np.array([Fraction(w, total) for w in weights], dtype=object)  # (K,)
    return Distribution(np.array(range(len(weights)) if ids is None else ids), probs)
