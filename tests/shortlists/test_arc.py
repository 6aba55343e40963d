import random

import pytest

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
