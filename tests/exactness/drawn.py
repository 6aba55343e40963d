"""Cases drawn by hypothesis: laws and lists as whole numbers, each with its label.

What is drawn is drawn when it is first asked for, so a counterexample shows the laws and lists
on the way to it and no others, shrunk to small numbers: "weights of p and q after (0, 1)".
"""

import os
from collections.abc import Callable, Sequence
from typing import Any

import hypothesis.strategies as st
import torch
from hypothesis import HealthCheck, assume, currently_in_test_context, settings

from minispec.certificate.certify import Backend, Decoding, Toys, output_distribution, plain
from minispec.certificate.walker import total_variation
from minispec.commit import StopRule
from minispec.sampling import Sampling
from minispec.types import Context, RandomSource, Round

# How many cases each property draws: `make exactness` asks for more than `make test`.
EXAMPLES = int(os.environ.get("EXAMPLES", "15"))
LEAVES = 500
AS_IT_IS, EXACTLY = Sampling(1.0), Backend()
drawn = settings(
    max_examples=EXAMPLES,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large,
                           HealthCheck.filter_too_much],
)  # fmt: skip

# Vocabulary, gamma, limit.
SHAPES = [
    (2, 1, 2), (2, 2, 3), (3, 1, 2), (3, 2, 3), (2, 3, 4), (4, 1, 2), (2, 4, 5), (5, 1, 2),
    (6, 1, 2), (4, 2, 2), (3, 3, 3),
]  # fmt: skip


class DrawnCase:
    """As ``certify.Case``, its weights drawn."""

    def __init__(self, data: st.DataObject, shape: tuple[int, int, int], ends: int = 1) -> None:
        self.vocabulary, self.gamma, self.limit = shape
        self.prompt = [0, 1]
        self.stop = StopRule(self.limit, tuple(range(self.vocabulary - ends, self.vocabulary)))
        self._data, self._weights = data, dict[tuple[int, ...], Any]()

    def weights(self, tokens: Sequence[int]) -> tuple[list[int], list[int]]:
        tokens = tuple(tokens)
        if tokens not in self._weights:
            row = st.lists(
                st.sampled_from([1, 0, 2, 3, 5]), min_size=self.vocabulary, max_size=self.vocabulary
            )
            pair = st.one_of(st.tuples(row, row), row.map(lambda p: (p, p)))
            label = f"weights of p and q after {tokens}"
            self._weights[tokens] = self._data.draw(pair, label=label)
        return self._weights[tokens]

    def __repr__(self) -> str:
        return f"V {self.vocabulary}, gamma {self.gamma}, limit {self.limit}, {self._weights}"


@st.composite
def cases(draw: st.DrawFn, shapes: Sequence[tuple[int, int, int]] = SHAPES) -> DrawnCase:
    return DrawnCase(draw(st.data()), draw(st.sampled_from(shapes)))


@st.composite
def samplings(draw: st.DrawFn) -> Sampling:
    """Temperatures that are exact powers; top-p away from what sums of few shares can be."""
    temperature = draw(st.sampled_from([1.0, 0.5, 0.0]))
    return Sampling(temperature, draw(st.integers(0, 3)), draw(st.sampled_from([1.0, 0.87, 0.618])))


class DrawnList:
    """A list drawn anew for every context, and for all that it was shown before."""

    name = "drawn"

    def __init__(self, data: st.DataObject, size: int, per_round: bool) -> None:
        self.budget, self.per_round = size, per_round
        self._data, self._lists = data, dict[Any, torch.Tensor]()
        self._size, self._past = size, ()

    def select(self, context: Context) -> torch.Tensor:
        key = context.tokens, context.depth, self._past
        if key not in self._lists:
            ids = st.sets(st.integers(0, self._size - 1), min_size=1)
            drawn = self._data.draw(ids, label=f"list after {context.tokens}, having seen {key[2]}")
            self._lists[key] = torch.tensor(sorted(drawn))
        return self._lists[key]

    def observe(self, finished: Round) -> None:
        self._past = (*self._past, finished.proposed[len(finished.path) :])

    def reset(self) -> None:
        self._past = ()


def lists(data: st.DataObject) -> Callable[[int], DrawnList]:
    """For ``speculation``: one list for a case."""
    per_round = data.draw(st.booleans(), label="list once a round")
    return lambda size: DrawnList(data, size, per_round)


class _Counting:
    """Ends a walk that grows too long for an example."""

    def __init__(self, decode: Decoding) -> None:
        self._decode, self._leaves = decode, 0

    def __call__(self, toys: Toys, source: RandomSource) -> Any:
        self._leaves += 1
        if currently_in_test_context():
            assume(self._leaves <= LEAVES)
        return self._decode(toys, source)


def distance(
    decode: Decoding,
    case: Any,
    sampling: Sampling = AS_IT_IS,
    backend: Backend = EXACTLY,
    against: Decoding = plain,
) -> Any:
    """Total variation between the law of whole outputs and plain decoding's."""
    toys = Toys.of(case, sampling, backend)
    expected = output_distribution(against, toys)
    return total_variation(output_distribution(_Counting(decode), toys), expected)
