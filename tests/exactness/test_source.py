"""The production random source inside decoding: how many uniforms are drawn, for which decisions
and in which order, and that no uniform decides twice.

Its results at the borders (u = 0, the last float below 1, every border of the cumulative sum, ids
of probability 0 first and last) are tested in ``test_sampling.py``.
"""

from typing import Any

import hypothesis.strategies as st
import torch
from hypothesis import given

from helpers.exactness.strategies import property_settings
from minispec.certificate.toys import ToyDraft, ToyTarget, random_table
from minispec.commit import StopRule
from minispec.decode import autoregressive, speculative
from minispec.sampling import Sampling, SeededRandom
from minispec.shortlists.full import FullShortlist
from minispec.verify import VERIFIERS

V = 4
TARGET, DRAFT = ToyTarget(V, random_table(V, 1)), ToyDraft(V, random_table(V, 2))


class RecordingSource(SeededRandom):
    """Records what each uniform decided."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.draws: list[tuple[str, float]] = []
        self._purpose = ""

    def bernoulli(self, probability: float) -> bool:
        self._purpose = "coin"
        return super().bernoulli(probability)

    def choose(self, probs: torch.Tensor) -> int:
        self._purpose = "choice"
        return super().choose(probs)

    def uniform(self) -> float:
        value = super().uniform()
        self.draws.append((self._purpose, value))
        return value


class ReusingSource(RecordingSource):
    """The defect: a coin reuses the uniform that has just chosen the token."""

    def uniform(self) -> float:
        if self._purpose == "coin" and self.draws:
            self.draws.append(("coin", self.draws[-1][1]))
            return self.draws[-1][1]
        return super().uniform()


def run_rounds(source: SeededRandom, verifier: str, gamma: int, limit: int = 12) -> list[Any]:
    return list(speculative(
        TARGET, DRAFT, FullShortlist(V), [0, 1], gamma=gamma, sampling=Sampling(1.0), rng=source,
        stop=StopRule(limit), verifier=VERIFIERS[verifier],
    ))  # fmt: skip


@property_settings
@given(seed=st.integers(0, 10**6), gamma=st.integers(1, 4), name=st.sampled_from(list(VERIFIERS)))
def test_speculative_draws_one_uniform_per_decision_in_order(
    seed: int, gamma: int, name: str
) -> None:
    """A choice for each drafted token, a coin for each verified one (token by token: up to the
    first rejection; in a block: from the last prefix down to the first accepted one), and one
    choice for the next token."""
    source = RecordingSource(seed)
    expected: list[str] = []
    for finished in run_rounds(source, name, gamma):
        drafted, kept = len(finished.proposed), len(finished.path)
        verified = min(drafted, kept + 1) if name == "token" else drafted - max(kept, 1) + 1
        coins = verified if drafted else 0
        expected += ["choice"] * drafted + ["coin"] * coins + ["choice"]
    assert [purpose for purpose, _ in source.draws] == expected


@property_settings
@given(seed=st.integers(0, 10**6))
def test_autoregressive_draws_one_uniform_per_token(seed: int) -> None:
    source = RecordingSource(seed)
    rounds = list(autoregressive(
        TARGET, [0, 1], sampling=Sampling(1.0), rng=source, stop=StopRule(9)
    ))  # fmt: skip
    assert [purpose for purpose, _ in source.draws] == ["choice"] * len(rounds)


@property_settings
@given(seed=st.integers(0, 10**6))
def test_greedy_decoding_draws_as_many_uniforms(seed: int) -> None:
    """Temperature 0 uses the same code path: a certain decision draws its uniform too, so that the
    uniforms of later decisions do not depend on the temperature."""
    source = RecordingSource(seed)
    list(autoregressive(TARGET, [0, 1], sampling=Sampling(), rng=source, stop=StopRule(5)))
    assert len(source.draws) == 5


def correlate_decisions(source: type[RecordingSource], runs: int) -> dict[tuple[str, str], float]:
    """Correlations of the three uniforms of a round with one drafted token (its choice, its coin,
    the next token's choice), times the root of their number: standard normal if independent."""
    columns: dict[str, list[float]] = {"proposal": [], "acceptance": [], "residual": []}
    for seed in range(runs):
        recording = source(seed)
        run_rounds(recording, "token", 1, limit=20)
        values = [value for _, value in recording.draws]
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


def test_decisions_of_a_round_are_independent() -> None:
    """|r| sqrt(n) above 5.2 for one of three: a false alarm once in 1,600,000. The planted defect,
    one uniform for two decisions, gives sqrt(n) = 50."""
    assert max(map(abs, correlate_decisions(RecordingSource, 250).values())) < 5.2
    reused = correlate_decisions(ReusingSource, 250)
    assert reused["acceptance", "proposal"] > 40


def test_uniforms_are_in_the_half_open_interval() -> None:
    """Multiples of 2^-53: 0 is possible, 1 is not."""
    source = SeededRandom(5)
    values = [source.uniform() for _ in range(2000)]
    assert all(0 <= value < 1 and (value * 2**53).is_integer() for value in values)
    mean = sum(values) / len(values)
    # A false alarm once in 26 million.
    assert abs(mean - 0.5) < 5.5 * (1 / 12 / len(values)) ** 0.5
