"""Hypothesis strategies: distributions and shortlists as whole numbers, each with its label.

Everything is drawn when it is first needed, so a counterexample shows only the distributions and
shortlists on the way to it, shrunk to small numbers: "weights of p and q after (0, 1)".
"""

import os
from collections.abc import Callable, Sequence
from typing import Any

import hypothesis.strategies as st
import torch
from hypothesis import HealthCheck, assume, currently_in_test_context, settings

from minispec.certificate.decodings import FRACTIONS, Backend, Decoding, ToyModels, decode_plain
from minispec.certificate.enumeration import output_distribution
from minispec.certificate.walker import total_variation
from minispec.commit import StopRule
from minispec.growth import CANDIDATES, GROWTHS, TreeShape
from minispec.sampling import Sampling
from minispec.types import BaseShortlist, Context, RandomSource, Round

# The number of cases that each property draws: `make exactness` asks for more than `make test`.
EXAMPLES = int(os.environ.get("EXAMPLES", "15"))
MAX_BRANCHES = 500
UNSHAPED = Sampling(1.0)
property_settings = settings(
    max_examples=EXAMPLES,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large,
                           HealthCheck.filter_too_much],
)  # fmt: skip

# Vocabulary size, gamma, limit.
SHAPES = [
    (2, 1, 2), (2, 2, 3), (3, 1, 2), (3, 2, 3), (2, 3, 4), (4, 1, 2), (2, 4, 5), (5, 1, 2),
    (6, 1, 2), (4, 2, 2), (3, 3, 3),
]  # fmt: skip


class DrawnCase:
    """A ``cases.Case`` whose weights are drawn by hypothesis."""

    def __init__(
        self, data: st.DataObject, shape: tuple[int, int, int], eos_count: int = 1
    ) -> None:
        self.vocab_size, self.gamma, self.max_new_tokens = shape
        self.prompt = [0, 1]
        eos_ids = range(self.vocab_size - eos_count, self.vocab_size)
        self.stop = StopRule(self.max_new_tokens, tuple(eos_ids))
        self._data, self._weights = data, dict[tuple[int, ...], Any]()

    def weights(self, tokens: Sequence[int]) -> tuple[list[int], list[int]]:
        tokens = tuple(tokens)
        if tokens not in self._weights:
            size = self.vocab_size
            row = st.lists(st.sampled_from([1, 0, 2, 3, 5]), min_size=size, max_size=size)
            pair = st.one_of(st.tuples(row, row), row.map(lambda p: (p, p)))
            label = f"weights of p and q after {tokens}"
            self._weights[tokens] = self._data.draw(pair, label=label)
        return self._weights[tokens]

    def __repr__(self) -> str:
        return (
            f"V {self.vocab_size}, gamma {self.gamma}, limit {self.max_new_tokens}, {self._weights}"
        )


@st.composite
def draw_case(draw: st.DrawFn, shapes: Sequence[tuple[int, int, int]] = SHAPES) -> DrawnCase:
    """A case of one of the shapes."""
    return DrawnCase(draw(st.data()), draw(st.sampled_from(shapes)))


@st.composite
def draw_sampling(draw: st.DrawFn) -> Sampling:
    """Temperatures that are exact in fractions; top-p away from any sum of a few shares."""
    temperature = draw(st.sampled_from([1.0, 0.5, 0.0]))
    return Sampling(temperature, draw(st.integers(0, 3)), draw(st.sampled_from([1.0, 0.87, 0.618])))


@st.composite
def draw_shape(draw: st.DrawFn) -> TreeShape:
    """Trees of up to five nodes, of every growth and kind of candidates."""
    depth, beam = draw(st.sampled_from([(1, 2), (2, 2), (2, 1), (3, 2), (1, 3), (2, 3)]))
    nodes = draw(st.integers(depth, min(5, beam + (depth - 1) * beam**2)))
    growth, candidates = draw(st.sampled_from(GROWTHS)), draw(st.sampled_from(CANDIDATES))
    return TreeShape(depth, beam, nodes, growth, candidates)


class DrawnShortlist(BaseShortlist):
    """A shortlist drawn anew for every context and every history of rejected drafts."""

    name = "drawn"

    def __init__(self, data: st.DataObject, vocab_size: int, per_round: bool) -> None:
        self.budget, self.per_round = vocab_size, per_round
        self._data, self._shortlists = data, dict[Any, torch.Tensor]()
        self._vocab_size, self._past = vocab_size, ()

    def select(self, context: Context) -> torch.Tensor:
        key = context.tokens, context.depth, self._past
        if key not in self._shortlists:
            strategy = st.sets(st.integers(0, self._vocab_size - 1), min_size=1)
            label = f"shortlist after {context.tokens}, rejected drafts {self._past}"
            ids = self._data.draw(strategy, label=label)
            self._shortlists[key] = torch.tensor(sorted(ids))
        return self._shortlists[key]

    def observe(self, finished: Round) -> None:
        self._past = (*self._past, finished.proposed[len(finished.path) :])

    def reset(self) -> None:
        self._past = ()


def draw_shortlist(data: st.DataObject) -> Callable[[int], DrawnShortlist]:
    """A shortlist factory for ``decode_with``."""
    per_round = data.draw(st.booleans(), label="shortlist once per round")
    return lambda vocab_size: DrawnShortlist(data, vocab_size, per_round)


class _BoundedDecoding:
    """A decoding that rejects an example with too many branches."""

    def __init__(self, decode: Decoding) -> None:
        self._decode, self._branches = decode, 0

    def __call__(self, models: ToyModels, source: RandomSource) -> Any:
        self._branches += 1
        if currently_in_test_context():
            assume(self._branches <= MAX_BRANCHES)
        return self._decode(models, source)


def output_distance(
    decode: Decoding,
    case: Any,
    sampling: Sampling = UNSHAPED,
    backend: Backend = FRACTIONS,
    reference: Decoding = decode_plain,
) -> Any:
    """Total variation between the distributions of whole outputs, ours and the reference's."""
    models = ToyModels.build(case, sampling, backend)
    expected = output_distribution(reference, models)
    return total_variation(output_distribution(_BoundedDecoding(decode), models), expected)
