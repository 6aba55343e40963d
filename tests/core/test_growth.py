"""How trees grow: shapes, places of candidates, and the distributions they are recorded with."""

from collections import Counter
from fractions import Fraction
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from minispec.certificate.walker import distribution_of, enumerate_branches, fraction_distribution
from minispec.errors import ArgumentError
from minispec.growth import (
    CANDIDATES,
    GROWTHS,
    Candidate,
    Growth,
    TreeShape,
    choose_candidates,
    pick_candidates,
)
from minispec.tree import find_depths
from minispec.types import Distribution

Q = fraction_distribution([4, 0, 1, 3])


@st.composite
def draw_shape(draw: st.DrawFn) -> TreeShape:
    depth, beam = draw(st.integers(1, 5)), draw(st.integers(1, 4))
    nodes = draw(st.integers(depth, min(64, beam + (depth - 1) * beam**2)))
    return TreeShape(
        depth, beam, nodes, draw(st.sampled_from(GROWTHS)), draw(st.sampled_from(CANDIDATES))
    )


def grow(shape: TreeShape, depth: int, shares: list[float]) -> tuple[Any, list[int]]:
    """A tree whose candidates have the given shares of confidence, over and over."""
    growth, number = Growth(shape, depth), 0
    while plan := growth.plan_level():
        growth.start_level()
        for node, count in plan:
            found = []
            for _ in range(count):
                share = shares[number % len(shares)]
                probs = torch.tensor([share, 1 - share])
                q = Distribution(torch.tensor([number, number + 1000]), probs)
                found.append(Candidate(number, q, share))
                number += 1
            growth.add(node, sorted(found, key=lambda candidate: -candidate.confidence))
    return growth.finish()


@given(draw_shape(), st.integers(0, 6), st.lists(st.floats(0.01, 1), min_size=1, max_size=9))
def test_trees_stay_within_their_shape(shape: TreeShape, depth: int, shares: list[float]) -> None:
    proposal, nodes = grow(shape, depth, shares)
    assert len(proposal) <= shape.nodes and len(nodes) == len(proposal)
    depths = find_depths(proposal.parents)
    assert max(depths, default=-1) < min(depth, shape.depth)
    assert all(count <= shape.beam for count in Counter(proposal.parents).values())
    for level in range(shape.depth):
        inside = {p for p, d in zip(proposal.parents, depths, strict=True) if d == level}
        assert len(inside) <= shape.beam
    if depth >= shape.depth and (shape.growth == "static" or shape.candidates == "top"):
        assert len(proposal) == shape.nodes  # every candidate was found


@given(draw_shape())
def test_static_places_are_a_tree_of_the_likelier_candidates_first(shape: TreeShape) -> None:
    places = shape.places
    assert sum(places.values()) == shape.nodes
    for path in places:
        assert not path or path[-1] < places[path[:-1]]


def test_static_places_have_the_least_sums_of_ranks() -> None:
    assert TreeShape(3, 2, 5, "static").places == {(): 2, (0,): 2, (0, 0): 1}
    assert TreeShape(2, 3, 3, "static").places == {(): 2, (0,): 1}
    assert TreeShape(2, 1, 2, "static").places == {(): 1, (0,): 1}


def test_confidence_keeps_the_most_confident_nodes_of_picked_ones() -> None:
    growth = Growth(TreeShape(2, 2, 3), 2)
    assert growth.plan_level() == [(-1, 2)]
    growth.start_level()
    growth.add(-1, [Candidate(7, Q, 0.6), Candidate(8, Q, 0.4)])
    assert growth.plan_level() == [(0, 2), (1, 2)]
    growth.start_level()
    growth.add(0, [Candidate(9, Q, 0.5), Candidate(10, Q, 0.2)])
    growth.add(1, [Candidate(11, Q, 0.9), Candidate(12, Q, 0.1)])
    assert growth.plan_level() == []
    proposal, nodes = growth.finish()
    assert nodes == [0, 1, 4] and proposal.tokens == (7, 8, 11)  # 0.6, 0.4, 0.36 before 0.3
    assert proposal.parents == (-1, -1, 1)


def test_drawn_nodes_are_counted_before_they_are_drawn() -> None:
    """A share of the nodes for each level that is left, more of them for surer nodes."""
    growth = Growth(TreeShape(3, 3, 8, candidates="drawn"), 3)
    assert growth.plan_level() == [(-1, 3)]
    growth.start_level()
    growth.add(-1, [Candidate(1, Q, 0.9), Candidate(1, Q, 0.9), Candidate(2, Q, 0.01)])
    assert growth.plan_level() == [(0, 3)]  # the second is a repetition
    growth.start_level()
    growth.add(0, [Candidate(1, Q, 0.5), Candidate(2, Q, 0.4), Candidate(3, Q, 0.1)])
    assert growth.plan_level() == [(3, 1), (4, 1)]


@pytest.mark.parametrize(
    ("nodes", "expected"), [(3, [(0, 1)]), (4, [(0, 1), (1, 1)]), (5, [(0, 2), (1, 1)])]
)
def test_what_is_left_is_shared_out_by_confidence(nodes: int, expected: list[Any]) -> None:
    """The second candidate of a node counts as half of its confidence."""
    growth = Growth(TreeShape(2, 2, nodes, candidates="drawn"), 2)
    assert growth.plan_level() == [(-1, 2)]
    growth.start_level()
    growth.add(-1, [Candidate(1, Q, 0.6), Candidate(2, Q, 0.5)])
    assert growth.plan_level() == expected


@pytest.mark.parametrize("text", ["2x6x30:static", "3x3x9:static:distinct", "4x2x8:static"])
def test_static_growth_follows_its_places_whatever_the_confidence(text: str) -> None:
    shape = TreeShape.parse(text)
    growth, planned = Growth(shape, shape.depth), dict[tuple[int, ...], int]()
    ranks: dict[int, tuple[int, ...]] = {-1: ()}
    while plan := growth.plan_level():
        growth.start_level()
        for parent, count in plan:
            assert ranks[parent] not in planned
            planned[ranks[parent]] = count
            for rank in range(count):
                ranks[len(growth.tokens) + rank] = (*ranks[parent], rank)
            # The later candidates are surer, and so are those of later parents.
            shares = [0.1 + 0.01 * len(growth.tokens) + 0.001 * rank for rank in range(count)]
            growth.add(parent, [Candidate(9 + i, Q, share) for i, share in enumerate(shares)])
    assert planned == shape.places


def test_a_path_is_read_from_the_root_on() -> None:
    growth = Growth(TreeShape.chain(7), 7)
    for node, token in enumerate((5, 3, 8, 1, 9, 2)):
        growth.start_level()
        growth.add(node - 1, [Candidate(token, Q, 0.5)])
    assert growth.read(5) == [5, 3, 8, 1, 9, 2] and growth.read(-1) == []
    proposal, _ = growth.finish()
    assert isinstance(proposal.draft_distributions, tuple) and isinstance(proposal.parents, tuple)


@pytest.mark.parametrize("kind", ["drawn", "distinct"])
def test_choose_candidates_finds_no_second_where_the_first_is_certain(kind: str) -> None:
    certain, greedy = (fraction_distribution([0, 1, 0, 0]) for _ in range(2))
    [(chosen, _)] = enumerate_branches(lambda rng: choose_candidates(kind, greedy, certain, 3, rng))
    assert [candidate.token for candidate in chosen] == [1]


@pytest.mark.parametrize("size", [9, 64, 1000])
def test_pick_candidates_takes_the_lower_of_equal_ids(size: int) -> None:
    for period, expected in ((1, [0, 1, 2]), (2, [1, 3, 5]), (3, [2, 5, 8])):
        shares = torch.arange(size) % period + 1.0
        equal = Distribution(torch.arange(size), shares / shares.sum())
        assert [c.token for c in pick_candidates(equal, 3)] == expected


def test_choose_candidates_with_replacement_records_q() -> None:
    found = distribution_of(
        lambda rng: tuple(c.token for c in choose_candidates("drawn", Q, Q, 2, rng))
    )
    assert found[0, 0] == Fraction(1, 4) and found[3, 2] == Fraction(3, 64) and len(found) == 9


def test_choose_candidates_without_replacement_records_what_was_left() -> None:
    total = Fraction(0)
    for chosen, probability in enumerate_branches(
        lambda rng: choose_candidates("distinct", Q, Q, 4, rng)
    ):
        assert len({c.token for c in chosen}) == len(chosen) == 3  # id 1 has no probability
        first, second = chosen[0], chosen[1]
        assert first.distribution is Q
        assert second.distribution.probability(first.token) == 0
        left = 1 - Q.probability(first.token)
        assert second.distribution.probability(second.token) == Q.probability(second.token) / left
        total += probability
    assert total == 1


@pytest.mark.parametrize("kind", ["drawn", "distinct"])
def test_choose_candidates_at_temperature_0_picks_all_but_the_first(kind: str) -> None:
    """The first is drawn from the one-hot q, so a chain spends the same draws in a tree."""
    greedy = fraction_distribution([1, 0, 0, 0])
    [(chosen, probability)] = enumerate_branches(
        lambda rng: choose_candidates(kind, greedy, Q, 3, rng)
    )
    assert probability == 1 and [c.token for c in chosen] == [0, 3, 2]
    assert chosen[0].distribution is greedy
    for candidate in chosen:
        assert candidate.distribution.probability(candidate.token) == 1


def test_pick_candidates_leaves_out_ids_of_probability_0() -> None:
    assert [c.token for c in pick_candidates(Q, 9)] == [0, 3, 2]


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ((0, 2, 2), r"depth 0 of a tree must lie in 1\.\.16"),
        ((17, 2, 20), r"depth 17 of a tree must lie in 1\.\.16"),
        ((2, 17, 20), r"beam 17 of a tree must lie in 1\.\.16"),
        ((2, 2, 65), r"nodes 65 of a tree must lie in 1\.\.64"),
        ((4, 2, 3), "a tree of depth 4 and beam 2 has 4 to 14 nodes, not 3"),
        ((2, 2, 7), "a tree of depth 2 and beam 2 has 2 to 6 nodes, not 7"),
        (("2", 2, 3), "depth must be a whole number"),
        ((2, "2", 3), "beam must be a whole number"),
        ((2, 2, "3"), "nodes must be a whole number"),
        ((2, 2, 3, 1), "growth must be a text"),
        ((2, 2, 3, "static", 1), "candidates must be a text"),
        ((2, 2, 3, "wide"), "growth 'wide' of a tree is none of confidence, static"),
        (
            (2, 2, 3, "static", "best"),
            "candidates 'best' of a tree is none of top",
        ),
    ],
)
def test_tree_shape_refuses_impossible_numbers_by_name(numbers: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        TreeShape(*numbers)


@pytest.mark.parametrize(
    "text", ["", "4", "4x3", "4x3x8x2", "4x-3x8", "4x3x8:", "4x3x8:wide", "axbxc", "chains"]
)
def test_parse_refuses_other_spellings(text: str) -> None:
    with pytest.raises(ArgumentError, match="is not chain or DEPTHxBEAMxNODES"):
        TreeShape.parse(text)


@pytest.mark.parametrize("words", ["drawn:distinct", "static:confidence"])
def test_parse_refuses_two_ways_of_one_choice(words: str) -> None:
    with pytest.raises(ArgumentError, match="names two ways"):
        TreeShape.parse(f"4x3x8:{words}")


@given(draw_shape())
def test_parse_reads_what_str_writes(shape: TreeShape) -> None:
    if not shape.is_chain:
        assert TreeShape.parse(str(shape)) == shape


@pytest.mark.parametrize(
    "text", ["4x3x8", "4x3x8:static", "4x3x8:drawn", "4x3x8:static:distinct", "3x1x3"]
)
def test_str_names_what_differs_from_the_defaults(text: str) -> None:
    assert str(TreeShape.parse(text)) == text


def test_a_tree_without_branches_is_a_chain_where_its_tokens_are_drawn() -> None:
    assert not TreeShape(3, 1, 3).is_chain
    assert TreeShape(3, 1, 3, candidates="drawn").is_chain
    assert not TreeShape(3, 2, 3, candidates="drawn").is_chain


def test_a_chain_is_a_tree_of_drawn_tokens() -> None:
    shape = TreeShape.chain(4)
    assert shape.is_chain and str(shape) == "chain of 4" and shape.extra_rows == 0
    assert shape.places == {(0,) * depth: 1 for depth in range(4)}
