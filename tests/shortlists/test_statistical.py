"""The statistical index: the order of successors, the cost of learning, and its state."""

import statistics
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.shortlists import make_round
from minispec.shortlists.statistical import StatisticalIndex
from minispec.types import Round


def test_successors_are_ordered_latest_first() -> None:
    index = StatisticalIndex(12)
    for successor in (2, 3, 4, 5, 6):
        index.observe(make_round((1, successor)))
    assert index.successors(1).tolist() == [6, 5, 4, 3]  # four, the oldest pushed out
    index.observe(make_round((1, 4)))
    assert index.successors(1).tolist() == [4, 6, 5, 3]
    index.observe(make_round((7,)))  # the first token of a round follows the round before
    assert index.successors(4).tolist() == [7, 1]
    index.observe(make_round((8, 9), (8, 10), 1))  # the target's 9 before the draft's 10
    assert index.successors(8).tolist() == [9, 10]


@pytest.mark.parametrize(
    ("tokens", "limit"), [(20_000, 1.5), pytest.param(1_000_000, 1.1, marks=pytest.mark.slow)]
)
def test_observe_costs_the_same_however_much_was_learnt(tokens: int, limit: float) -> None:
    """Memory to the byte. Time per update relative to a fresh index, measured alternately, so that
    other load on the machine slows both."""
    trained, fresh = (StatisticalIndex(49_152) for _ in range(2))
    before, draws = trained.bytes, np.random.default_rng(0)

    def draw_rounds() -> list[Round]:
        pairs = draws.zipf(1.3, (tokens // 100 // 2, 2)) % 49_152
        return [make_round((int(a), int(b)), (int(a), 5), 1) for a, b in pairs]

    def observe_all(index: StatisticalIndex, rounds: list[Round]) -> float:
        started = time.process_time()
        for finished in rounds:
            index.observe(finished)
        return time.process_time() - started

    for _ in range(80):
        observe_all(trained, draw_rounds())
    ratios = []
    for turn in range(20):
        rounds, order = draw_rounds(), [trained, fresh]
        seconds = {i: observe_all(i, rounds) for i in (order if turn % 2 else order[::-1])}
        ratios.append(seconds[trained] / seconds[fresh])
    state = trained.state()
    assert trained.bytes == before == state["after"].nbytes == 4 * 4 * 49_152
    assert statistics.median(ratios) < limit


@given(st.lists(st.lists(st.integers(0, 11), min_size=1, max_size=4), max_size=8))
def test_restore_gives_the_index_of_the_state(rounds: list[list[int]]) -> None:
    first, second = StatisticalIndex(12), StatisticalIndex(12)
    for tokens in rounds:
        first.observe(make_round(tuple(tokens), (3,)))
    second.restore(first.state())
    for index in (first, second):
        index.observe(make_round((5, 6)))
    for token in range(12):
        assert first.successors(token).tolist() == second.successors(token).tolist()
