import random

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from minispec.shortlists.arc import ArcBuffer


def _fill(buffer: ArcBuffer, ids, age: int = 0) -> None:
    for token in ids:
        buffer.admit(token)
    for _ in range(age):
        buffer.count_step()


def test_admit_evicts_the_least_recently_used_of_the_longer_list():
    buffer = ArcBuffer(4, residence=0)
    _fill(buffer, [1, 2, 3, 4])
    buffer.touch(1)  # T1 has 2, 3, 4, above p = 2
    assert buffer.admit(5)
    assert sorted(buffer.ids()) == [1, 3, 4, 5]
    buffer.touch(3)
    buffer.touch(4)  # T1 has 5 alone: T2's least recently used leaves
    assert buffer.admit(6)
    assert sorted(buffer.ids()) == [3, 4, 5, 6]


def test_admit_keeps_young_ids_and_refuses_when_all_are_young():
    buffer = ArcBuffer(2, residence=8)
    _fill(buffer, [1], age=7)
    _fill(buffer, [2])
    assert not buffer.admit(3)
    assert sorted(buffer.ids()) == [1, 2]
    buffer.count_step()  # 1 is eight steps old now
    assert buffer.admit(3)
    assert sorted(buffer.ids()) == [2, 3]


@pytest.mark.parametrize(("warm_up", "moved"), [(0, True), (1, False)])
def test_admit_moves_the_target_size_after_the_warm_up_alone(warm_up, moved):
    buffer = ArcBuffer(4, residence=0, warm_up=warm_up)
    _fill(buffer, [1, 2, 3, 4, 5])  # 1 is a ghost of T1
    buffer.count_event()
    assert buffer.recent_target == 2
    assert buffer.admit(1)
    assert buffer.recent_target == (3 if moved else 2)
    buffer.touch(4)
    buffer.touch(5)
    assert buffer.admit(6)


def test_admit_puts_a_returning_ghost_among_the_frequent():
    buffer = ArcBuffer(4, residence=0)
    _fill(buffer, [1, 2, 3, 4, 5])  # 1 is a ghost
    _fill(buffer, [1, 6, 7, 8, 9])  # ids seen once replace each other
    assert sorted(buffer.ids()) == [1, 7, 8, 9]


def test_admit_bounds_the_buffer_its_ghosts_and_its_target_size():
    buffer = ArcBuffer(16, residence=2, warm_up=5)
    rng = random.Random(0)
    for _ in range(5000):
        token = min(int(rng.expovariate(1 / 20)), 200)
        if token in buffer:
            buffer.touch(token)
        else:
            buffer.admit(token)
        buffer.count_event()
        buffer.count_step()
        assert len(buffer) <= 16
        assert 0 <= buffer.recent_target <= 16
        assert len(set(buffer.ids())) == len(buffer)
    assert max(len(buffer._recent_ghosts), len(buffer._frequent_ghosts)) <= 16
    buffer.clear()
    assert not buffer.ids()
    assert buffer.recent_target == 8


class Model:
    """The definition once more, with plain lists: each least recently used first."""

    def __init__(self, capacity: int, residence: int, warm_up: int) -> None:
        self.capacity, self.residence, self.warm_up = capacity, residence, warm_up
        self.parts: list[list[int]] = [[], []]  # T1, T2
        self.ghosts: list[list[int]] = [[], []]  # B1, B2
        self.admitted: dict[int, int] = {}
        self.target, self.step, self.events = capacity / 2, 0, 0

    def touch(self, token: int) -> None:
        next(part for part in self.parts if token in part).remove(token)
        self.parts[1].append(token)

    def admit(self, token: int) -> bool:
        first, second = map(len, self.ghosts)
        if token in self.ghosts[0] + self.ghosts[1] and self.events > self.warm_up:
            up = token in self.ghosts[0]
            by = max(1, second / first) if up else -max(1, first / second)
            self.target = min(max(self.target + by, 0), self.capacity)
        if sum(map(len, self.parts)) == self.capacity and not self.evict():
            return False
        seen = [ghosts for ghosts in self.ghosts if token in ghosts]
        for ghosts in seen:
            ghosts.remove(token)
        self.parts[bool(seen)].append(token)
        self.admitted[token] = self.step
        return True

    def evict(self) -> bool:
        for index in (0, 1) if len(self.parts[0]) > self.target else (1, 0):
            for token in list(self.parts[index]):
                if self.step - self.admitted[token] >= self.residence:
                    self.parts[index].remove(token)
                    self.ghosts[index].append(token)
                    del self.ghosts[index][: -self.capacity]
                    return True
        return False


@settings(max_examples=60)
@given(
    st.integers(1, 5), st.integers(0, 4), st.integers(0, 3),
    st.lists(st.integers(0, 14), min_size=30, max_size=150),
)  # fmt: skip
def test_buffer_follows_the_definition(
    capacity: int, residence: int, warm_up: int, tokens: list[int]
) -> None:
    """Ids 0 to 11 are used, 12 counts an event, 13 and 14 a step."""
    buffer = ArcBuffer(capacity, residence=residence, warm_up=warm_up)
    for _ in range(2):
        model = Model(capacity, residence, warm_up)
        for token in tokens:
            if token == 12:
                buffer.count_event()
                model.events += 1
            elif token > 12:
                buffer.count_step()
                model.step += 1
            elif token in buffer:
                buffer.touch(token)
                model.touch(token)
            else:
                assert buffer.admit(token) is model.admit(token)
            assert buffer.recent_target == model.target
            assert buffer.ids() == model.parts[0] + model.parts[1]
            assert len(buffer) == len(buffer.ids())
            assert [each in buffer for each in range(12)] == [
                each in buffer.ids() for each in range(12)
            ]
            assert list(buffer._recent_ghosts) == model.ghosts[0]
            assert list(buffer._frequent_ghosts) == model.ghosts[1]
        buffer.clear()  # the second time as the first
