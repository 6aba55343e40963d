"""Choosing how much to draft: the estimate, the choice, and that it keeps outputs exact."""

import itertools
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minispec.acceptance import AcceptanceEstimate, ContinuationEstimate, expect_accepted
from minispec.auto_shape import ShapeChooser
from minispec.certificate.cases import GRID
from minispec.certificate.decodings import ToyModels
from minispec.certificate.enumeration import certify_decoding
from minispec.certificate.toys import ToyDraft, ToyTarget, random_table
from minispec.commit import StopRule
from minispec.decode import autoregressive, speculative
from minispec.errors import ArgumentError
from minispec.growth import TreeShape
from minispec.propose import Drafter
from minispec.round_costs import PassCosts
from minispec.sampling import Sampling, SeededRandom
from minispec.shortlists.full import FullShortlist
from minispec.suffix_index import Continuations
from minispec.tree import select
from minispec.types import Proposal, Round

V = 8
TARGET = ToyTarget(V, random_table(V, seed=3))
DRAFT = ToyDraft(V, random_table(V, seed=3))  # equals the target
# A target pass grows by a tenth with each row, a draft step takes a twentieth of it.
COSTS = PassCosts(((1, 1.0), (2, 1.1), (9, 1.8)), ((1, 0.05), (6, 0.1)), 0.05)
NOTHING = Continuations()
# After a match of three tokens a chain of three, and a second candidate for the first of them.
FOUND = Continuations((1, 2, 3, 5), (-1, 0, 1, -1), (9, 9, 9, 1), (0.9, 0.9, 0.9, 0.1), 3)


def make_round(shape: TreeShape, path: Sequence[int], parents: Sequence[int], **changes: Any):
    """A finished round whose tokens nobody reads."""
    values: dict[str, Any] = {
        "tokens": (0,) * (len(path) + 1), "text": "", "path": tuple(path), "stop": None,
        "proposed": (0,) * len(parents), "shortlist_sizes": (V,) * len(parents), "seconds": {},
        "parents": tuple(parents),
    } | changes  # fmt: skip
    return Round(**values)


def simulate(shape: TreeShape | None, rates: Sequence[Sequence[float]], rng: random.Random):
    """A round of a static tree in which the candidate of rank k at depth d is right with
    probability ``rates[d][k]``."""
    if shape is None:
        return make_round(TreeShape.chain(1), (), (), proposed=(), shortlist_sizes=())
    parents, ranks = list[int](), list[int]()
    level = [-1]
    for _ in range(shape.depth):
        following = []
        for node in level[: shape.beam]:
            for rank in range(shape.beam):
                if len(parents) < shape.nodes:
                    following.append(len(parents))
                    parents.append(node)
                    ranks.append(rank)
        level = following
    path, node = list[int](), -1
    for depth in itertools.count():
        children = [i for i, parent in enumerate(parents) if parent == node]
        shares = [rates[depth][ranks[i]] for i in children]
        chosen = rng.choices([*children, None], [*shares, 1 - sum(shares)])[0] if children else None
        if chosen is None:
            return make_round(shape, path, parents)
        path.append(chosen)
        node = chosen


def test_round_seconds_interpolates_and_extrapolates():
    assert COSTS.round_seconds(0, 1, 0) == 1.0  # no draft, and nothing to resync
    assert COSTS.round_seconds(1, 1, 1) == pytest.approx(1.1 + 0.05 + 0.05)
    assert COSTS.round_seconds(3, 1, 3) == pytest.approx(1.3 + 0.15 + 0.05)
    assert COSTS.round_seconds(3, 6, 10) == pytest.approx(2.0 + 0.05 + 0.2 + 0.05)


@pytest.mark.parametrize(
    ("target", "draft"),
    [
        ((), ((1, 1.0),)), (((2, 1.0),), ((1, 1.0),)), (((1, 1.0), (1, 2.0)), ((1, 1.0),)),
        (((1, 0.0),), ((1, 1.0),)), (((1, 1.0),), ((1, float("inf")),)),
    ],
)  # fmt: skip
def test_pass_costs_refuse_what_cannot_be_interpolated(target, draft):
    with pytest.raises(ArgumentError, match="passes"):
        PassCosts(target, draft)


@given(
    weights=st.lists(
        st.lists(st.floats(0.05, 0.95), min_size=3, max_size=3), min_size=3, max_size=3
    ),
    depth=st.integers(1, 3),
    nodes=st.integers(1, 12),
)
def test_expect_accepted_equals_the_likeliest_nodes(weights, depth, nodes):
    """With as many candidates as there are ranks no level is full: the largest products."""
    rates = np.zeros((3, 6))
    for level, row in enumerate(weights):
        rates[level, :3] = sorted(row, reverse=True)
        rates[level] /= max(1, rates[level].sum())
    products = [
        float(np.prod([rates[level, rank] for level, rank in enumerate(ranks)]))
        for length in range(1, depth + 1)
        for ranks in itertools.product(range(3), repeat=length)
    ]
    expected = np.cumsum(sorted(products, reverse=True))[:nodes]
    assert expect_accepted(rates, depth, 9, nodes)[: len(expected)] == pytest.approx(expected)


def test_expect_accepted_keeps_to_the_beam():
    rates = np.full((3, 6), 0.5)
    assert len(expect_accepted(rates, 3, 1, 9)) == 3
    assert len(expect_accepted(rates, 2, 2, 9)) == 2 + 4
    assert len(expect_accepted(rates, 3, 2, 99)) == 2 + 4 + 4


def test_estimate_counts_candidates_by_depth_and_rank():
    estimate = AcceptanceEstimate()
    before = estimate.rates()
    assert before[0, 0] == before[3, 0] == 0.6 and before[0, 1] == pytest.approx(0.21)
    tree = (-1, -1, 0, 0, 1)  # two candidates, the first has two, the second has one
    for _ in range(200):
        estimate.observe(make_round(TreeShape(2, 2, 5), (0, 3), tree))
    rates = estimate.rates()
    assert rates[0, 0] > 0.9 and rates[0, 1] < 0.1 and rates[1, 0] < 0.2 and rates[1, 1] > 0.9
    for _ in range(400):  # the last rounds count more
        estimate.observe(make_round(TreeShape(2, 2, 5), (), tree))
    assert estimate.rates()[0, 0] < 0.1


def test_estimate_leaves_out_stops_and_continuations():
    estimate, chain = AcceptanceEstimate(), (-1, 0)
    estimate.observe(make_round(TreeShape.chain(2), (), chain, stop="length"))
    assert (estimate.rates() == AcceptanceEstimate().rates()).all()
    # The second candidate for the first place is a continuation, which was accepted: the draft's
    # own was rejected, and its second place was not reached.
    estimate.observe(make_round(TreeShape.chain(2), (2,), (-1, 0, -1), shortlist_sizes=(V, V)))
    rates = estimate.rates()
    assert rates[0, 0] < 0.6 and rates[1, 1] == rates[2, 1]
    deep = tuple(range(-1, 15))
    estimate.observe(make_round(TreeShape.chain(16), tuple(range(16)), deep))


def emit(tokens: Sequence[int], path: Sequence[int] = (), drafted: int = 0) -> Round:
    return make_round(
        TreeShape.chain(1), path, range(-1, len(path)), tokens=tuple(tokens),
        shortlist_sizes=(V,) * drafted,
    )  # fmt: skip


def test_continuations_are_estimated_by_match_length_and_depth():
    estimate = ContinuationEstimate()
    first = estimate.expect(FOUND)
    assert first == pytest.approx([0.54, 0.324, 0.1944, 0.06])  # shares times 0.6 for each token
    for _ in range(300):  # the first two tokens are right, the third is not
        estimate.observe(FOUND, emit((1, 2, 9)))
    seen = estimate.expect(FOUND)
    assert seen[0] == pytest.approx(0.9, rel=0.1) and seen[1] == pytest.approx(seen[0], rel=0.1)
    assert seen[2] < 0.1 * seen[1]
    # Where no text was matched so far, what is known of other lengths counts a little.
    other = Continuations(FOUND.tokens, FOUND.parents, FOUND.counts, FOUND.shares, 5)
    assert first[0] < estimate.expect(other)[0] < seen[0]
    for _ in range(600):
        estimate.observe(FOUND, emit((9,)))
    assert estimate.expect(FOUND)[0] < 0.1


def test_estimate_counts_what_the_draft_proposes_too():
    estimate = ContinuationEstimate()
    assert estimate.shared == pytest.approx(0.7)
    for _ in range(300):
        estimate.observe(FOUND, emit((1, 9), path=(0,), drafted=1))
    assert estimate.shared > 0.95
    for _ in range(600):  # the draft's one token is rejected, the continuation is accepted
        estimate.observe(FOUND, emit((1, 9), path=(1,), drafted=1))
    assert estimate.shared < 0.06
    before = estimate.shared
    estimate.observe(FOUND, emit((9,), drafted=1))  # not right
    estimate.observe(FOUND, emit((1, 9), path=(0,)))  # nothing was drafted
    estimate.observe(NOTHING, emit((1, 9), path=(0,), drafted=1))
    assert estimate.shared == before


def test_chooser_takes_continuations_that_pay():
    alone = ShapeChooser(PassCosts(COSTS.target))
    assert alone.choose(NOTHING) == (None, 0)
    for _ in range(200):
        alone.choose(FOUND)
        alone.observe(emit((1, 2, 3, 4)))
    assert alone.choose(FOUND) == (None, 3)  # not the fourth: once in ten, and it costs a row
    for _ in range(600):
        alone.choose(FOUND)
        alone.observe(emit((9,)))
    assert alone.choose(FOUND) == (None, 0)


def test_chooser_drafts_no_more_than_what_continuations_leave():
    """A draft that costs half a pass a token is left out where continuations are right."""
    costs = PassCosts(COSTS.target, ((1, 0.3), (6, 0.4)), 0.05)
    chooser = ShapeChooser(costs)
    for _ in range(200):
        chooser.choose(NOTHING)
        chooser.observe(emit((1, 2, 3), path=(0, 1), drafted=2))
    assert chooser.choose(NOTHING)[0] is not None
    for _ in range(200):
        chooser.choose(FOUND)
        chooser.observe(emit((1, 2, 3, 4)))
    assert chooser.choose(FOUND) == (None, 3)
    assert chooser.choose(NOTHING)[0] is not None


@pytest.mark.parametrize(
    "rates",
    [[[0.9, 0.05, 0.02]] * 16, [[0.5, 0.2, 0.1]] * 16, [[0.75, 0.1, 0.05], [0.3, 0.1, 0.05]] * 8,
     [[0.25, 0.05, 0.0]] * 16],
    ids=["sure", "broad", "shallow", "poor"],
)  # fmt: skip
def test_chooser_comes_within_three_percent_of_the_best_shape(rates):
    """In the mean of four runs, after 45 rounds, about a prompt."""
    padded = np.array([[*row, 0, 0, 0] for row in rates])
    tokens = seconds = 0.0
    for seed in range(4):
        rng, chooser = random.Random(seed), ShapeChooser(COSTS)
        for number in range(300):
            shape, _ = chooser.choose(NOTHING)
            chooser.observe(simulate(shape, padded.tolist(), rng))
            if number >= 45:
                tokens += 1 + (expect(shape, padded) if shape else 0)
                seconds += COSTS.round_seconds(*list_sizes(shape))
    shapes = [None, *map(TreeShape.chain, range(1, 9))]
    for depth, beam in itertools.product(range(1, 9), (2, 3, 4, 6)):
        most = min(24, beam + (depth - 1) * beam**2)
        shapes += [TreeShape(depth, beam, nodes) for nodes in range(depth, most + 1)]
    best = max(
        (1 + (expect(shape, padded) if shape else 0)) / COSTS.round_seconds(*list_sizes(shape))
        for shape in shapes
    )
    assert 0.97 * best < tokens / seconds <= best + 1e-9


def expect(shape: TreeShape, rates: Any) -> float:
    return expect_accepted(rates, shape.depth, shape.beam, shape.nodes)[-1]


def list_sizes(shape: TreeShape | None) -> tuple[int, int, int]:
    return (shape.depth, shape.beam, shape.nodes) if shape else (0, 1, 0)


def test_chooser_decodes_plainly_where_nothing_is_accepted():
    """At most two percent are lost to rounds that look whether this has changed."""
    chooser, spent = ShapeChooser(COSTS), 0.0
    never = [[0.0] * 6] * 16
    rng = random.Random(0)
    for number in range(1200):
        shape, _ = chooser.choose(NOTHING)
        chooser.observe(simulate(shape, never, rng))
        if number >= 200:
            spent += COSTS.round_seconds(*list_sizes(shape))
    assert 1000 < spent < 1020
    for _ in range(1000):  # and it notices a change
        shape, _ = chooser.choose(NOTHING)
        chooser.observe(simulate(shape, [[0.9] + [0.01] * 5] * 16, rng))
    assert chooser.choose(NOTHING)[0] is not None
    chooser.reset()
    assert chooser.predict(None) == 1.0 < chooser.predict(TreeShape.chain(2))


def test_largest_shape_has_as_many_rows_as_any():
    chooser = ShapeChooser(COSTS, max_depth=5, beams=(1, 3), max_nodes=12)
    shapes = [TreeShape.chain(5), TreeShape(5, 3, 12), TreeShape(1, 3, 3)]
    assert chooser.largest.extra_rows == max(shape.extra_rows for shape in shapes)
    assert ShapeChooser(COSTS, beams=(1,)).largest == TreeShape.chain(8)


class ScriptedChooser(ShapeChooser):
    """Every kind of round in turn: plain ones in between, chains, trees."""

    def __init__(self, candidates: str = "top") -> None:
        super().__init__(COSTS, candidates=candidates)

    def reset(self) -> None:
        super().reset()
        self._number = -1

    def choose(self, found: Continuations) -> tuple[TreeShape | None, int]:
        self._number += 1
        plain = (None, None, None)
        script = (TreeShape.chain(2), *plain, self._build(2, 2, 4), None, TreeShape.chain(1))
        return script[self._number % len(script)], 0


@pytest.mark.parametrize("candidates", ["top", "drawn"])
def test_rounds_without_a_draft_leave_its_cache_right(candidates):
    """The toy draft refuses a step after anything but the tokens before it."""
    options = {"sampling": Sampling(), "rng": SeededRandom(0), "stop": StopRule(30)}
    plain = [t for each in autoregressive(TARGET, [0, 1], **options) for t in each.tokens]
    rounds = [
        *speculative(
            TARGET, DRAFT, FullShortlist(V), [0, 1], gamma=4, tree=ScriptedChooser(candidates),
            **options,
        )
    ]  # fmt: skip
    assert [token for each in rounds for token in each.tokens] == plain
    assert {len(each.proposed) for each in rounds} >= {0, 1, 2, 4}


CASES = [GRID[seed] for seed in (2, 8, 13, 20)]


def certify(chooser: ShapeChooser) -> Any:
    def decode(models: ToyModels, source: Any) -> Any:
        case = models.case
        chooser.reset()
        return speculative(
            models.target, models.draft, FullShortlist(case.vocab_size), case.prompt, gamma=4,
            sampling=models.sampling, rng=source, stop=case.stop, trace=True, tree=chooser,
        )  # fmt: skip

    return certify_decoding(decode, Sampling(1.0), CASES).worst_tv


@pytest.mark.parametrize("candidates", ["top", "drawn", "distinct"])
def test_chosen_shapes_leave_the_output_exact(candidates):
    costs = PassCosts(((1, 1.0), (9, 1.5)), ((1, 0.02), (6, 0.03)))
    options = {"max_depth": 2, "beams": (1, 2), "max_nodes": 3, "candidates": candidates}
    assert certify(ShapeChooser(costs, **options)) == 0
    assert certify(ScriptedChooser(candidates)) == 0


def test_a_length_that_anticipates_is_not_exact(monkeypatch):
    """A chain that ends before a token that the draft was unsure of: the length depends on the
    token that is being decided."""
    propose = Drafter.propose

    def propose_sure_tokens(self: Drafter, *arguments: Any) -> Proposal:
        found = propose(self, *arguments)
        sure = [
            q.probability(token) * 2 > 1
            for token, q in zip(found.tokens, found.draft_distributions, strict=True)
        ]
        return select(found, range([*sure, False].index(False)))

    monkeypatch.setattr(Drafter, "propose", propose_sure_tokens)
    assert certify(ShapeChooser(COSTS, max_depth=2, beams=(1,), max_nodes=2)) > 0
