"""The suffix index against a search through the whole text."""

import random
import tracemalloc

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from minispec.errors import ArgumentError
from minispec.suffix_index import Continuations, SuffixConfig, SuffixIndex


def build_index(*texts, **lengths) -> SuffixIndex:
    """An index of texts, the last of them unfinished."""
    index = SuffixIndex(SuffixConfig(**lengths))
    for text in texts[:-1]:
        index.extend(text)
        index.end_text()
    index.extend(texts[-1])
    return index


def search(texts, config: SuffixConfig, depth: int, nodes: int, siblings: int | None):
    """``SuffixIndex.find`` from its definition: (path, count, share) of each node, and the match
    length."""
    text = [token for part in texts for token in (*part, -1)][:-1]
    text = text[-config.capacity :]

    def match_length(end: int) -> int:
        length = 0
        while (
            length < min(end, config.max_match)
            and text[end - 1 - length] == text[len(text) - 1 - length] >= 0
        ):
            length += 1
        return length

    lengths = {end: match_length(end) for end in range(1, len(text))}
    ends = [end for end in reversed(lengths) if lengths[end] >= config.min_match][: config.places]
    longest = max((lengths[end] for end in ends), default=0)
    ends = [end for end in ends if lengths[end] == longest]
    followed = {end: text[end : end + depth] for end in ends}
    followed = {
        end: tuple(part[: part.index(-1)] if -1 in part else part) for end, part in followed.items()
    }

    def list_places(path) -> list[int]:
        return [end for end, part in followed.items() if part[: len(path)] == path]

    def walk(path, share):
        following = {part[: len(path) + 1] for part in followed.values() if len(part) > len(path)}
        children = [child for child in following if child[:-1] == path]
        total = sum(len(list_places(child)) for child in children)
        children.sort(key=lambda child: (-len(list_places(child)), -list_places(child)[0]))
        for child in children[:siblings]:
            own = share * len(list_places(child)) / total
            yield child, own
            yield from walk(child, own)

    found = sorted(walk((), 1.0), key=lambda n: (-n[1], len(n[0]), -list_places(n[0])[0]))
    return [(path, len(list_places(path)), share) for path, share in found[:nodes]], longest


def list_paths(found: Continuations) -> list[tuple[int, ...]]:
    paths: list[tuple[int, ...]] = []
    for token, parent in zip(found.tokens, found.parents, strict=True):
        paths.append((*(paths[parent] if parent >= 0 else ()), token))
    return paths


@given(
    texts=st.lists(st.lists(st.integers(0, 2), max_size=40), min_size=1, max_size=3),
    matches=st.tuples(st.integers(1, 4), st.integers(0, 4)),
    capacity=st.integers(9, 60),
    places=st.sampled_from([1, 3, 64]),
    limits=st.tuples(st.integers(0, 5), st.integers(0, 12), st.sampled_from([None, 1, 2])),
)
@example(texts=[[]], matches=(1, 0), capacity=9, places=64, limits=(3, 3, None))
@example(texts=[[0, 1, 0, 1, 2, 0, 1]], matches=(2, 3), capacity=9, places=64, limits=(3, 9, None))
def test_find_equals_a_search_through_the_text(texts, matches, capacity, places, limits):
    config = SuffixConfig(matches[0], sum(matches), places, capacity)
    index = SuffixIndex(config)
    for number, text in enumerate(texts):
        for end in range(len(text)):
            index.extend(text[end : end + 1])
            index.find(*limits)  # a search changes nothing
        if number + 1 < len(texts):
            index.end_text()
    expected, length = search(texts, config, *limits)
    found = index.find(*limits)
    assert [*zip(list_paths(found), found.counts, found.shares, strict=True)] == expected
    assert found.match_length == length
    assert all(parent < node for node, parent in enumerate(found.parents))


def test_find_takes_the_longest_match_and_counts_its_places():
    #                     .        .        .  (the three places of 7 8; only two have 6 before)
    index = build_index([6, 7, 8, 1, 6, 7, 8, 2, 5, 7, 8, 3, 6, 7, 8])
    found = index.find(depth=1, nodes=9)
    assert (found.tokens, found.counts, found.shares) == ((2, 1), (1, 1), (0.5, 0.5))
    assert found.match_length == 3
    assert build_index([7, 8, 1, 7, 8]).find(2, 9).tokens == (1, 7)
    assert len(build_index([7, 8, 1, 9, 8]).find(2, 9)) == 0  # one token is too short a match


def test_find_grows_the_tree_by_the_papers_share():
    repeats = [1, 2, 3, 4, 0, 1, 2, 3, 5, 0, 1, 2, 3, 5, 0, 1, 2, 6, 0, 1, 2]
    found = build_index(repeats, max_match=2).find(depth=2, nodes=9)
    assert list_paths(found) == [(3,), (3, 5), (6,), (6, 0), (3, 4)]
    assert found.counts == (3, 2, 1, 1, 1)
    assert found.shares == pytest.approx((3 / 4, 2 / 4, 1 / 4, 1 / 4, 1 / 4))
    chain = build_index(repeats, max_match=2).find(depth=4, nodes=9, siblings=1)
    assert chain.tokens == (3, 5, 0, 1) and chain.parents == (-1, 0, 1, 2)


def test_end_text_separates_texts():
    index = build_index([1, 2, 3], [4, 5], [1, 2])
    assert list_paths(index.find(4, 9)) == [(3,)]  # and not 4 after it
    assert len(build_index([1, 2, 3], [2], [3, 2]).find(4, 9)) == 0


def test_reset_keeps_the_earlier_texts_alone():
    index = SuffixIndex(earlier_texts=[[1, 2, 3], [4, 5, 6]])
    for _ in range(2):
        assert index.text_length == 0
        index.extend([4, 5, 7, 1, 2])
        assert index.text_length == 5
        assert list_paths(index.find(4, 9)) == [(3,)]
        index.extend([4, 5])
        assert list_paths(index.find(1, 9)) == [(7,), (6,)]  # the latest first
        index.reset()


def test_memory_is_flat_over_a_million_tokens():
    index = SuffixIndex(SuffixConfig(capacity=1 << 12))
    size, rng = index.bytes, random.Random(0)
    for _ in range(1000):
        index.extend(rng.choices(range(49_152), k=1000))
    assert index.bytes == size == 3 * 8 * (1 << 12)
    tracemalloc.start()
    for _ in range(10):
        index.extend(rng.choices(range(49_152), k=1000))
        index.find(4, 16)
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 10_000  # nothing is kept of the last 10,000 tokens beside the arrays


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        ({"min_match": 0}, "suffix min-match 0 must be at least 1"),
        ({"nodes": 0}, "suffix nodes 0 must be at least 1"),
        ({"places": 0}, "suffix places 0 must be at least 1"),
        ({"min_match": 3, "max_match": 2}, "suffix max-match 2 must be at least min-match 3"),
        ({"max_match": 0}, "suffix max-match 0 must be at least min-match 2"),
        ({"capacity": 5}, "suffix capacity 5 must be above max-match 5"),
        ({"min_match": "2"}, "min-match must be a whole number, not str '2'"),
    ],
)
def test_config_refuses_lengths_that_match_nothing(lengths, message):
    with pytest.raises(ArgumentError, match=message):
        SuffixConfig(**lengths)
