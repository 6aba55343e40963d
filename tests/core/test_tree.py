"""Trees as sequences of parents: depths, paths, ancestors, and what is cut out of a proposal."""

from collections.abc import Sequence

import hypothesis.strategies as st
import pytest
from hypothesis import given

from minispec.certificate.walker import fraction_distribution
from minispec.errors import ArgumentError
from minispec.logits_processor import History
from minispec.tree import (
    find_ancestors,
    find_depths,
    find_path,
    follow,
    is_chain,
    list_arguments,
    list_children,
    list_rejected,
    select,
)
from minispec.types import Proposal, Round

TREE = (-1, -1, 0, 1, 1, 4)


@st.composite
def draw_parents(draw: st.DrawFn) -> list[int]:
    return [draw(st.integers(-1, node - 1)) for node in range(draw(st.integers(0, 9)))]


def build(tokens: Sequence[int], parents: Sequence[int] = ()) -> Proposal:
    distributions = tuple(fraction_distribution([1, 1, 1]) for _ in tokens)
    return Proposal(tuple(tokens), distributions, tuple(parents))


def test_proposal_is_a_chain_unless_parents_are_given() -> None:
    assert build([5, 6, 7]).parents == (-1, 0, 1) and build([]).parents == ()
    assert build([5, 6, 7], (-1, -1, 1)).parents == (-1, -1, 1)


@pytest.mark.parametrize("parents", [(0, 0), (-1,), (-1, 1), (-2, 0), (-1, 0, 1)])
def test_proposal_refuses_parents_that_are_no_tree(parents: tuple[int, ...]) -> None:
    with pytest.raises(ArgumentError, match="of 2 tokens are not earlier indices"):
        build([1, 2], parents)


def test_functions_of_a_tree_by_hand() -> None:
    assert find_depths(TREE) == [0, 0, 1, 1, 1, 2]
    assert list_children(TREE) == [[2], [3, 4], [], [], [5], [], [0, 1]]
    assert find_path(TREE, 5) == (1, 4, 5) and find_path(TREE, -1) == ()
    assert find_ancestors(TREE)[5].tolist() == [False, True, False, False, True, True]


@given(draw_parents())
def test_ancestors_are_the_nodes_of_the_path(parents: list[int]) -> None:
    related, depths = find_ancestors(parents), find_depths(parents)
    for node in range(len(parents)):
        path = find_path(parents, node)
        assert related[node].nonzero().flatten().tolist() == list(path)
        assert [depths[each] for each in path] == list(range(len(path)))
        assert len(list_children(parents)[node]) == parents.count(node)
    assert is_chain(parents) == (depths == list(range(len(parents))))


def test_select_renumbers_parents() -> None:
    tree = build([10, 11, 12, 13, 14, 15], TREE)
    some = select(tree, [1, 4, 5])
    assert some.tokens == (11, 14, 15) and some.parents == (-1, 0, 1)
    assert some.draft_distributions == tuple(tree.draft_distributions[i] for i in (1, 4, 5))
    assert select(tree, [0, 1, 4]).parents == (-1, -1, 1)
    assert select(tree, list(range(6))) is tree


@pytest.mark.parametrize(
    ("path", "tokens"),
    [((), (10,)), ((0,), (10, 12)), ((1,), (11, 13)), ((1, 4), (11, 14, 15)), ((0, 2), (10, 12))],
)
def test_follow_ends_with_the_first_candidate_after_the_path(
    path: tuple[int, ...], tokens: tuple[int, ...]
) -> None:
    found = follow(build([10, 11, 12, 13, 14, 15], TREE), path)
    assert found.tokens == tokens and is_chain(found.parents)


@given(st.integers(0, 5), st.integers(0, 5))
def test_follow_of_a_chain_is_its_beginning(length: int, accepted: int) -> None:
    path = range(min(length, accepted))
    found = follow(build(range(length)), path)
    assert found.tokens == tuple(range(length))[: len(path) + 1]


def test_follow_keeps_the_distribution_of_each_node() -> None:
    tree = build([10, 11, 12, 13, 14, 15], TREE)
    for path in [(), *(find_path(TREE, node) for node in range(6))]:
        found = follow(tree, path)
        for token, q in zip(found.tokens, found.draft_distributions, strict=True):
            assert q is tree.draft_distributions[token - 10]


def test_list_arguments_are_parents_of_the_tokens_of_a_pass_and_none_for_a_chain() -> None:
    assert list_arguments(build([7, 8])) == () == list_arguments(build([]))
    assert list_arguments(build([7, 8], [-1, -1])) == ([-1, 0, 0],)


def test_list_rejected_names_the_candidates_after_the_path() -> None:
    def finish(path: tuple[int, ...], parents: tuple[int, ...] = TREE) -> Round:
        return Round((1,), "", path, (10, 11, 12, 13, 14, 15), (), {}, None, parents=parents)

    assert list_rejected(finish(())) == (10, 11)
    assert list_rejected(finish((1,))) == (13, 14)
    assert list_rejected(finish((0, 2))) == ()
    assert list_rejected(finish((0, 1), ())) == (12,)  # a chain


def test_history_of_a_tree_has_the_tokens_on_the_way_to_a_position() -> None:
    history = History((1, 2, 10, 11, 12, 13, 14, 15), 1, TREE)
    paths = [history.without_last(count).tokens for count in reversed(range(7))]
    assert paths == [
        (1, 2), (1, 2, 10), (1, 2, 11), (1, 2, 10, 12), (1, 2, 11, 13), (1, 2, 11, 14),
        (1, 2, 11, 14, 15),
    ]  # fmt: skip
    assert history.without_last(7).tokens == (1,)
