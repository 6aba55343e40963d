"""The production source of randomness in its place: how much it is asked for, for what and in
which order, and that nothing is decided twice by the same number.

What it answers at the borders (u = 0, the last number below 1, every border of the cumulative
sum, ids of probability 0 first and last) is tested in ``test_sampling.py``.
"""

from typing import Any

import hypothesis.strategies as st
import torch
from hypothesis import given

from drawn import drawn
from minispec.certificate.toys import ToyDraft, ToyTarget, random_table
from minispec.commit import StopRule
from minispec.decode import autoregressive, speculative
from minispec.sampling import Sampling, SeededRandom
from minispec.shortlists.full import FullShortlist
from minispec.verify import VERIFIERS

V = 4
TARGET, DRAFT = ToyTarget(V, random_table(V, 1)), ToyDraft(V, random_table(V, 2))


class Spied(SeededRandom):
    """Notes what each uniform was spent on."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.spent: list[tuple[str, float]] = []
        self._purpose = ""

    def bernoulli(self, probability: float) -> bool:
        self._purpose = "coin"
        return super().bernoulli(probability)

    def choose(self, probs: torch.Tensor) -> int:
        self._purpose = "choice"
        return super().choose(probs)

    def uniform(self) -> float:
        value = super().uniform()
        self.spent.append((self._purpose, value))
        return value


class Stuck(Spied):
    """The defect: a coin that is tossed with the number that has just chosen the token."""

    def uniform(self) -> float:
        if self._purpose == "coin" and self.spent:
            self.spent.append(("coin", self.spent[-1][1]))
            return self.spent[-1][1]
        return super().uniform()


def rounds_of(source: SeededRandom, verifier: str, gamma: int, limit: int = 12) -> list[Any]:
    return list(speculative(
        TARGET, DRAFT, FullShortlist(V), [0, 1], gamma=gamma, sampling=Sampling(1.0), rng=source,
        stop=StopRule(limit), verifier=VERIFIERS[verifier],
    ))  # fmt: skip


@drawn
@given(seed=st.integers(0, 10**6), gamma=st.integers(1, 4), name=st.sampled_from(list(VERIFIERS)))
def test_one_uniform_a_decision_in_a_fixed_order(seed: int, gamma: int, name: str) -> None:
    """A choice for each drafted token, a coin for each examined one (token by token: up to the
    first rejected; in a block: from the last down to the first kept), and one more choice."""
    source = Spied(seed)
    expected: list[str] = []
    for finished in rounds_of(source, name, gamma):
        drafted, kept = len(finished.proposed), len(finished.path)
        examined = min(drafted, kept + 1) if name == "token" else drafted - max(kept, 1) + 1
        coins = examined if drafted else 0
        expected += ["choice"] * drafted + ["coin"] * coins + ["choice"]
    assert [purpose for purpose, _ in source.spent] == expected


@drawn
@given(seed=st.integers(0, 10**6))
def test_plain_decoding_spends_one_uniform_a_token(seed: int) -> None:
    source = Spied(seed)
    rounds = list(autoregressive(
        TARGET, [0, 1], sampling=Sampling(1.0), rng=source, stop=StopRule(9)
    ))  # fmt: skip
    assert [purpose for purpose, _ in source.spent] == ["choice"] * len(rounds)


@drawn
@given(seed=st.integers(0, 10**6))
def test_greedy_decoding_spends_as_much(seed: int) -> None:
    """One law, one code path: what is certain still takes its number, so that the numbers
    of later decisions do not hang on the temperature."""
    source = Spied(seed)
    list(autoregressive(TARGET, [0, 1], sampling=Sampling(), rng=source, stop=StopRule(5)))
    assert len(source.spent) == 5


def correlations(source: type[Spied], runs: int) -> dict[tuple[str, str], float]:
    """Of the uniforms of a round's one drafted token, its coin and the target's own choice,
    two by two, times the root of their number: standard normal if they are independent."""
    columns: dict[str, list[float]] = {"proposal": [], "acceptance": [], "residual": []}
    for seed in range(runs):
        spied = source(seed)
        rounds_of(spied, "token", 1, limit=20)
        values = [value for _, value in spied.spent]
        for start in range(0, len(values) - 2, 3):
            for column, value in zip(columns.values(), values[start:], strict=False):
                column.append(value)
    stacked = torch.corrcoef(torch.tensor(list(columns.values()), dtype=torch.float64))
    names, count = list(columns), len(columns["proposal"])
    return {
        (names[i], names[j]): float(stacked[i, j]) * count**0.5
        for i in range(3)
        for j in range(i)
    }  # fmt: skip


def test_the_three_decisions_of_a_round_are_independent() -> None:
    """|r| sqrt(n) beyond 5.2 in one of three: once in 1,600,000 if all is well. The planted
    defect, one number for two decisions, gives sqrt(n) = 50."""
    assert max(map(abs, correlations(Spied, 250).values())) < 5.2
    stuck = correlations(Stuck, 250)
    assert stuck["acceptance", "proposal"] > 40


def test_uniforms_lie_in_the_half_open_interval() -> None:
    """In steps of 2^-53, so that 0 can come and 1 cannot."""
    source = SeededRandom(5)
    values = [source.uniform() for _ in range(2000)]
    assert all(0 <= value < 1 and (value * 2**53).is_integer() for value in values)
    mean = sum(values) / len(values)
    assert abs(mean - 0.5) < 5.5 * (1 / 12 / len(values)) ** 0.5  # once in 26 million
