"""What a verifier may return: a Verdict of Python ints, whose path begins the chain."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from minispec.certificate.toys import ToyDraft, ToyTarget, random_table
from minispec.certificate.walker import fraction_distribution
from minispec.commit import StopRule
from minispec.decode import speculative
from minispec.errors import ArgumentError
from minispec.sampling import Sampling, SeededRandom
from minispec.shortlists.full import FullShortlist
from minispec.types import Distribution, Proposal, RandomSource
from minispec.verify import Verdict, check_verdict

V = 3
P = fraction_distribution([1, 1, 1])
CHAIN = Proposal((0, 2), (P, P))


@pytest.mark.parametrize("number", [torch.tensor(1), np.int64(1), 1.0, True, "1", None])
def test_verdict_refuses_tokens_and_indices_that_are_not_ints(number: Any) -> None:
    kind = type(number).__name__
    with pytest.raises(ArgumentError, match=f"a Verdict has a {kind} in next_token, expected an "):
        Verdict((), number, P, ())
    for path in ((0, number), (number,), (number, 1)):
        with pytest.raises(ArgumentError, match=f"a Verdict has a {kind} in path, expected an int"):
            Verdict(path, 1, P, ())


@pytest.mark.parametrize("path", [(), (0,), (0, 1)])
@pytest.mark.parametrize("token", range(V))
def test_check_verdict_takes_every_beginning_of_the_chain(
    path: tuple[int, ...], token: int
) -> None:
    for kind in (tuple, list):
        verdict = Verdict(kind(path), token, P, ())  # type: ignore[arg-type]
        assert check_verdict(verdict, CHAIN, V) is verdict


@pytest.mark.parametrize(
    ("verdict", "message"),
    [
        (None, "a verifier returned a NoneType, expected a Verdict"),
        (((), 1), "a verifier returned a tuple, expected a Verdict"),
        (Verdict((1,), 1, P, ()), r"the indices \[1\], expected 0, 1, ... without a gap, below 2"),
        (Verdict((9,), 1, P, ()), r"the indices \[9\], expected 0, 1, .* below 2"),
        (Verdict((-1,), 1, P, ()), r"the indices \[-1\], expected 0, 1, .* below 2"),
        (Verdict((0, 1, 2), 1, P, ()), r"the indices \[0, 1, 2\], expected 0, 1, .* below 2"),
        (Verdict((), -1, P, ()), r"emitted token -1, outside 0\.\.2"),
        (Verdict((), 3, P, ()), r"emitted token 3, outside 0\.\.2"),
    ],
)
def test_check_verdict_refuses_what_cannot_be_committed(verdict: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        check_verdict(verdict, CHAIN, V)


def test_speculative_checks_what_a_verifier_returns() -> None:
    def skip_a_token(
        proposal: Proposal, target_distributions: Sequence[Distribution], rng: RandomSource
    ) -> Verdict:
        return Verdict((1,), 0, target_distributions[-1], ())

    rounds = speculative(
        ToyTarget(V, random_table(V, 1)), ToyDraft(V, random_table(V, 2)), FullShortlist(V), [0, 1],
        gamma=2, sampling=Sampling(1.0), rng=SeededRandom(0), stop=StopRule(9),
        verifier=skip_a_token,
    )  # fmt: skip
    with pytest.raises(ArgumentError, match="without a gap"):
        next(rounds)
