"""The registry of planted defects: each breaks one property, and its check must fail.

A defect replaces one part (a verifier, a shortlist, a rule, a source). The check then gives a
total variation above 0, or raises if no distribution comes out at all. A defect that public
implementations have had names one of them.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from helpers.exactness.strategies import UNSHAPED
from minispec.certificate.cases import GRID
from minispec.certificate.decodings import Decoding
from minispec.certificate.enumeration import certify_decoding
from minispec.sampling import Sampling
from minispec.types import Distribution, Proposal
from minispec.verify import positive_part

Measure = Callable[[], Any]


@dataclass(frozen=True)
class PlantedDefect:
    """``measure`` runs the property's check with the defect in place: it returns a total
    variation, or raises. ``known_from``: a public implementation."""

    property: int
    defect: str
    known_from: str | None
    measure: Measure

    def detect(self) -> tuple[bool, float | None]:
        """Whether the check fails, and the total variation, None if the check raised."""
        try:
            distance = self.measure()
        except (AssertionError, ValueError, IndexError, RuntimeError, pytest.fail.Exception):
            return True, None
        return distance > 1e-6, float(distance)


PLANTED: list[PlantedDefect] = []


def plant(number: int, defect: str, known_from: str | None = None) -> Callable[[Measure], None]:
    """A decorator that registers a defect of a property."""

    def register(measure: Measure) -> None:
        PLANTED.append(PlantedDefect(number, defect, known_from, measure))

    return register


@contextmanager
def patch_attribute(target: Any, name: str, value: Any) -> Iterator[None]:
    """Replace an attribute for the duration of a ``with`` block."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(target, name, value)
        yield


SOME_CASES = [GRID[i] for i in (2, 5, 9, 13, 18, 22)]
# Few tokens and short chains, for defects with many branches.
SMALL_CASES = [case for case in GRID if case.gamma == 1 and case.vocab_size < 5]


def worst_tv(decode: Decoding, sampling: Sampling = UNSHAPED, cases: Any = SOME_CASES) -> Any:
    """The largest total variation over some cases, in fractions."""
    return certify_decoding(decode, sampling, cases).worst_tv


def keep_possible(proposal: Proposal, distributions: list[Distribution]) -> Proposal:
    """A chain with other distributions, up to the first token that these exclude."""
    length = 0
    for token, q in zip(proposal.tokens, distributions, strict=True):
        if not q.probability(token) > 0:
            break
        length += 1
    return Proposal(proposal.tokens[:length], tuple(distributions[:length]))


def restrict_residual(p: Distribution, q: Distribution, weight: Any = 1) -> Distribution:
    """A residual over the ids of q only: tokens outside the shortlist are never sampled."""
    remaining = positive_part(p, q, weight)
    in_p, _ = p.common_indices(q)
    restricted = remaining * 0
    restricted[in_p] = remaining[in_p]
    mass = restricted.sum()
    return Distribution(p.ids, restricted / mass) if mass > 0 else p
