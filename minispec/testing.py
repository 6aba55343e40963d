"""Walking every branch of randomness: proofs by enumeration, for our parts and for yours.

A program whose only door to randomness is a ``RandomSource`` is a tree: each decision has
branches with known probabilities. ``every_branch`` runs the *production* code once for each
leaf, replaying the decisions on the way to it, and yields each result with its probability.
Summed up, they are the law of the output, without statistics and without error bars.

The toy models have laws that are a function of the tokens read, so they are known; their
hidden states are their logits, and their head is the identity.
"""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor

from minispec.errors import ArgumentError, ContextError
from minispec.head import LinearHead
from minispec.types import Features, Head, Law


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


def law_of(program: Callable[[Branching], Hashable]) -> dict[Hashable, Any]:
    """The law of a program's result: each possible result with its probability."""
    law: defaultdict[Hashable, Any] = defaultdict(int)
    for result, probability in every_branch(program):
        law[result] += probability
    return dict(law)


def total_variation(left: dict[Hashable, Any], right: dict[Hashable, Any]) -> Any:
    """Half the sum of absolute differences: the largest error in any event's probability."""
    results = left.keys() | right.keys()
    return sum(abs(left.get(r, 0) - right.get(r, 0)) for r in results) / 2


def fraction_law(weights: Sequence[int], ids: Sequence[int] | None = None) -> Law:
    """The law proportional to whole weights, in exact fractions."""
    total = sum(weights)
    probs = np.array([Fraction(w, total) for w in weights], dtype=object)  # (K,)
    return Law(np.array(range(len(weights)) if ids is None else ids), probs)


class ToyCache:
    """A cache that remembers the inputs themselves."""

    def __init__(self, capacity: int) -> None:
        self.capacity, self.read = capacity, list[Any]()

    @property
    def length(self) -> int:
        """How many inputs it holds."""
        return len(self.read)

    def truncate(self, length: int) -> None:
        """Forgets all inputs from ``length`` on."""
        del self.read[length:]

    def extend(self, inputs: Sequence[Any]) -> None:
        """Remembers more inputs. Raises ContextError where there is no room."""
        if len(self.read) + len(inputs) > self.capacity:
            raise ContextError(f"{len(inputs)} more do not fit a cache of {self.capacity}")
        self.read += inputs


class ToyTarget:
    """A target whose logits after tokens x are ``table(x)`` (V,), float64.

    The taps of a position are the tokens read up to there, so that a draft can check them.
    """

    def __init__(
        self,
        vocabulary_size: int,
        table: Callable[[tuple[int, ...]], Tensor],
        context: int = 64,
        head: Head | None = None,
    ) -> None:
        self.head = head or LinearHead(torch.eye(vocabulary_size, dtype=torch.float64))
        self.context_limit = context
        self.after = table

    def new_cache(self, capacity: int) -> ToyCache:
        """An empty cache."""
        return ToyCache(capacity)

    def step(self, ids: Tensor, cache: ToyCache) -> Features:
        start = cache.length
        cache.extend(ids.tolist())
        read = [tuple(cache.read[: start + i + 1]) for i in range(len(ids))]
        hidden = torch.stack([self.after(tokens) for tokens in read])  # (T, V)
        rest = [0] * self.context_limit
        rows = [[token + 1 for token in tokens] + rest[len(tokens) :] for tokens in read]
        return Features(hidden, torch.tensor(rows, dtype=hidden.dtype))


class ToyDraft:
    """A draft whose logits after tokens x are ``table(x)``, if it was led as contracts say.

    Its state is the tokens that it believes to have been read; it refuses (AssertionError) a
    cache that disagrees with the tokens and taps it is given, so a wrong rollback is caught.
    """

    def __init__(
        self,
        vocabulary_size: int,
        table: Callable[[tuple[int, ...]], Tensor],
        head: Head | None = None,
    ) -> None:
        self.head = head or LinearHead(torch.eye(vocabulary_size, dtype=torch.float64))
        self.after = table

    def new_cache(self, capacity: int) -> ToyCache:
        return ToyCache(capacity)

    def with_own_head(self) -> "ToyDraft":
        return self  # its head packs nothing

    def fuse(self, taps: Tensor) -> Tensor:
        return taps

    def step(self, ids: Tensor, states: Tensor, cache: ToyCache) -> Tensor:
        outputs = states.clone()
        for row, token in enumerate(ids.tolist()):
            tokens = _tokens_of(states[row])
            # Input t carries the tokens up to t and the one after: the cache must hold t inputs.
            if len(tokens) != cache.length + 1 or any(
                tokens[: i + 2] != seen for i, seen in enumerate(cache.read)
            ):
                raise AssertionError(f"a draft at {tokens} over a cache of {cache.read}")
            cache.extend([(*tokens, token)])
            outputs[row, len(tokens)] = token + 1.0
        return outputs

    def hidden(self, states: Tensor) -> Tensor:
        if states.dim() > 1:
            return torch.stack([self.hidden(state) for state in states])
        return self.after(_tokens_of(states))


def _tokens_of(state: Tensor) -> tuple[int, ...]:
    return tuple(int(value) - 1 for value in state.tolist() if value > 0)


def random_table(
    vocabulary_size: int, seed: int, spread: float = 1.0
) -> Callable[[tuple[int, ...]], Tensor]:
    """Logits (V,) float64 that are an arbitrary but fixed function of the tokens read."""

    def table(tokens: tuple[int, ...]) -> Tensor:
        key = hashlib.sha256(f"{seed} {tokens}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(key[:7]))
        return spread * torch.randn(vocabulary_size, generator=generator, dtype=torch.float64)

    return table
