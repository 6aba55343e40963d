"""EvoSpec's shortlist as published: events, seeds, candidates and the buffer."""

import numpy as np
import pytest
import torch

from minispec.errors import ArgumentError
from minispec.shortlists.bigrams import BigramGraph
from minispec.shortlists.evospec_paper import EvoSpecPaperShortlist
from minispec.types import Context, Evidence, Proposal, Round

V, CORE = 400, 10
CONTEXT = Context((1,), torch.zeros(2), 0)


class _Rows:
    """The "nearest" rows to hidden state (x, _) are x, x + 1, ..."""

    def find_nearest(self, hidden, count):
        return np.arange(count) + int(hidden[0])


def _graph(edges):
    """A graph from {u: [(v, weight), ...]}."""
    degrees = np.zeros(V, np.int64)
    for u, successors in edges.items():
        degrees[u] = len(successors)
    pairs = [pair for u in sorted(edges) for pair in edges[u]]
    ids = np.array([v for v, _ in pairs], np.int64)
    return BigramGraph(degrees, ids, np.array([w for _, w in pairs], np.float32))


def _build(edges=None, **options):
    return EvoSpecPaperShortlist(
        torch.arange(V), CORE, (3,), _Rows(), _graph(edges or {}), **options
    )


def _round(tokens, top=(), hidden=None, stop=None):
    """A round whose last token has the target's likeliest ids ``top``, and whose draft was in the
    state (hidden, 0) there."""
    n = len(tokens)
    top_ids = torch.zeros(n, max(1, len(top)), dtype=torch.int64)
    top_ids[-1] = torch.tensor(top or [0])
    last = [] if hidden is None else [[float(hidden), 0]]
    states = torch.tensor([[0.0, 0]] * (n - 1) + last)
    evidence = Evidence(
        Proposal((), ()), (), (), None, top_ids=top_ids, draft_hidden=states.reshape(-1, 2)
    )
    return Round(tokens, "", (), (), (), {}, stop, evidence)


def _dynamic(shortlist):
    return [i for i in shortlist.select(CONTEXT).tolist() if i >= CORE]


def test_observe_changes_the_shortlist_at_a_failure_event_alone():
    shortlist = _build()
    assert shortlist.select(CONTEXT).tolist() == [*range(CORE)]
    shortlist.observe(_round((1, 2, 4), [50], 60))
    assert _dynamic(shortlist) == []
    shortlist.observe(_round((1, 50), [50, 51], 60))
    # The target's likeliest ids, then the ten nearest rows.
    assert _dynamic(shortlist) == [50, 51, *range(60, 70)]
    before = shortlist.select(CONTEXT)
    shortlist.observe(_round((50, 60, 1), [90], 95))  # all on the shortlist
    assert shortlist.select(CONTEXT) is before


def test_observe_admits_seeds_first_and_then_the_heaviest_successors():
    edges = {50: [(200, 0.5), (201, 0.1)], 60: [(202, 0.3)] + [(300 + i, 0.01) for i in range(20)]}
    shortlist = _build(edges)
    shortlist.observe(_round((50,), [50, 51], 60))
    # 12 seeds, and of each seed the eight heaviest successors: 2 and 8.
    assert _dynamic(shortlist) == [50, 51, *range(60, 70), 200, 201, 202, *range(300, 307)]
    parts = shortlist.explain(CONTEXT)
    assert parts["target"].tolist() == [50, 51]
    assert parts["hnsw"].tolist() == [*range(60, 70)]
    assert parts["bigrams"].tolist() == [200, 201, 202, *range(300, 307)]
    assert parts["core"].tolist() == [*range(CORE)]


def test_observe_admits_at_most_32_new_ids_an_event():
    edges = {50 + i: [(100 + 8 * i + j, (i + j + 1) / 500) for j in range(8)] for i in range(10)}
    shortlist = _build(edges)
    shortlist.observe(_round((50,), [*range(50, 60)], 60))
    dynamic = _dynamic(shortlist)
    assert len(dynamic) == 32
    assert {*range(50, 70)} <= {*dynamic}
    # Of 80 successors the twelve heaviest.
    heaviest = sorted((-w, v) for successors in edges.values() for v, w in successors)[:12]
    weights = {v: w for successors in edges.values() for v, w in successors}
    found = {*dynamic} - {*range(50, 70)}
    assert sorted(weights[v] for v in found) == sorted(-w for w, _ in heaviest)
    shortlist.observe(_round((30,), [*range(50, 60)], 60))
    # Residents do not count: the next 32 of the same candidates, and the new token's if retrieved.
    assert len(_dynamic(shortlist)) == 64


def test_observe_retrieves_at_the_position_of_the_failure():
    shortlist = _build()
    shortlist.observe(_round((1, 2, 50), [50], 200))
    assert 200 in _dynamic(shortlist)
    shortlist = _build()
    # The output ended: the draft has no state there, and nothing is retrieved.
    shortlist.observe(_round((1, 50), [50], None, stop="length"))
    assert _dynamic(shortlist) == []


@pytest.mark.parametrize("delay", [1, 2, 3])
def test_observe_takes_effect_after_the_stated_delay(delay):
    shortlist = _build(delay=delay)
    started = []

    def run(retrieve):
        started.append(retrieve)
        return retrieve

    shortlist._run = run
    shortlist.observe(_round((50,), [50], 60))
    for _ in range(delay - 1):
        assert _dynamic(shortlist) == []
        shortlist.observe(_round((1,)))
    assert _dynamic(shortlist) == [50, *range(60, 70)]
    assert len(started) == 1


def test_observe_keeps_used_ids_and_the_buffers_size():
    shortlist = _build(buffer=16)
    assert shortlist.budget == CORE + 16
    shortlist.observe(_round((50,), [50], 60))
    for start in range(100, 390, 10):
        for _ in range(9):
            shortlist.observe(_round((50, 1)))  # 50 is used all the time
        shortlist.observe(_round((start,), [start], start))
        assert len(_dynamic(shortlist)) <= 16
        assert {50, start} <= {*_dynamic(shortlist)}
    assert sum(map(len, shortlist.explain(CONTEXT).values())) == len(shortlist.select(CONTEXT))


def test_reset_restores_the_state_after_construction():
    shortlist = _build(delay=2)
    shortlist.observe(_round((50,), [50], 60))
    shortlist.reset()
    shortlist.observe(_round((1,)))
    shortlist.observe(_round((1,)))
    assert _dynamic(shortlist) == []


@pytest.mark.parametrize(("core", "buffer"), [(0, 5), (5, 0), (390, 11), (401, 1)])
def test_construction_refuses_what_does_not_fit_the_vocabulary(core, buffer):
    with pytest.raises(ArgumentError, match="do not fit a vocabulary of 400"):
        EvoSpecPaperShortlist(torch.arange(V), core, (), _Rows(), _graph({}), buffer=buffer)
    with pytest.raises(ArgumentError, match="delay 0"):
        _build(delay=0)


def test_candidates_of_the_core_or_named_twice_are_not_admitted_again():
    shortlist = _build()
    assert isinstance(shortlist.select(CONTEXT), torch.Tensor)
    shortlist.observe(_round((50,), [50, 2, 60, 50, 9], 60))
    assert shortlist.select(CONTEXT).tolist() == [*range(CORE), 50, *range(60, 70)]
    assert shortlist._buffer.ids() == [50, *range(60, 70)]
    # A second mention in the same event does not count as use: all were seen once.
    assert [*shortlist._buffer._recent] == [50, *range(60, 70)]
    before = shortlist.select(CONTEXT)
    shortlist.observe(_round((30,), [50, 2], 60))  # an event that brings nothing new
    assert shortlist.select(CONTEXT) is before
    assert [*shortlist._buffer._frequent] == [50, *range(60, 70)]
    shortlist.reset()
    assert isinstance(shortlist.select(CONTEXT), torch.Tensor)


@pytest.mark.parametrize("seed", range(20))
def test_each_seed_brings_its_heaviest_successor(seed):
    """Of 20 seeds, 50 to 69, one has the heaviest successor and one before it the lightest."""
    edges = {50 + i: [(100 + i, 0.5)] for i in range(20)}
    edges[50 + (seed - 1) % 20] = [(200, 0.1)]
    edges[50 + seed] = [(201, 0.9)]
    shortlist = _build(edges)
    shortlist.observe(_round((50,), [*range(50, 60)], 60))
    admitted = shortlist.explain(CONTEXT)["bigrams"].tolist()
    assert len(admitted) == 12 and 201 in admitted and 200 not in admitted


def test_successors_of_equal_weight_are_admitted_in_the_order_of_their_seeds():
    edges = {
        50 + i: [(100 + 8 * i + j, 0.25 if j % 2 else 0.125) for j in range(8)] for i in range(20)
    }
    shortlist = _build(edges)
    shortlist.observe(_round((50,), [*range(50, 60)], 60))
    assert shortlist.explain(CONTEXT)["bigrams"].tolist() == [*range(101, 125, 2)]


def test_a_retrieval_runs_at_once_whenever_its_ids_count():
    shortlist, calls = _build(delay=3), []
    find_nearest = shortlist._rows.find_nearest
    shortlist._rows.find_nearest = lambda *args: calls.append(args) or find_nearest(*args)
    shortlist.observe(_round((50,), [50], 60))
    assert len(calls) == 1
    for _ in range(4):
        shortlist.observe(_round((1,)))
    assert len(calls) == 1 and _dynamic(shortlist) == [50, *range(60, 70)]


@pytest.mark.parametrize(
    ("token", "event"), [(0, False), (1, False), (9, False), (10, True), (V - 1, True)]
)
def test_an_event_is_a_token_outside_the_core(token, event):
    shortlist = _build()
    shortlist.observe(_round((token,), [50], 60))
    assert _dynamic(shortlist) == ([50, *range(60, 70)] if event else [])
    assert shortlist._buffer._events == event


def test_a_round_without_evidence_is_no_event():
    shortlist = _build()
    shortlist.observe(Round((50,), "", (), (), (), {}, None))
    assert _dynamic(shortlist) == []


def test_explain_is_what_select_has_after_each_event_and_reset():
    shortlist, starts = _build(buffer=24), [50, 100, 150, 200]
    for start in starts:
        for _ in range(8):
            shortlist.observe(_round((1,)))
        shortlist.observe(_round((start,), [start, start + 1], start + 10))
        parts = shortlist.explain(CONTEXT)
        assert all(isinstance(ids, torch.Tensor) and ids.dtype == torch.int64
                   for ids in (*parts.values(), shortlist.select(CONTEXT)))  # fmt: skip
        together = sorted(token for ids in parts.values() for token in ids.tolist())
        assert together == shortlist.select(CONTEXT).tolist()
        assert {start, start + 1} <= {*parts["target"].tolist()} and not len(parts["bigrams"])
        assert shortlist._parts.keys() == {*_dynamic(shortlist)}
    shortlist.reset()
    shortlist.observe(_round((300,), [300], 310))
    assert _dynamic(shortlist) == [300, *range(310, 320)]


@pytest.mark.parametrize("residence", [0, 3, 8])
def test_ids_stay_for_the_stated_rounds(residence):
    shortlist = _build(buffer=11, residence=residence)
    shortlist.observe(_round((50,), [50], 60))
    for age in range(1, 10):
        shortlist.observe(_round((100 + 20 * age,), [100 + 20 * age], 105 + 20 * age))
        replaced = not set(_dynamic(shortlist)) & {50, *range(60, 70)}
        assert replaced == (age >= residence)
        if replaced:
            break


def test_candidates_next_to_the_core_are_admitted():
    shortlist = _build()
    shortlist.observe(_round((50,), [0, 9, 10, V - 1], 60))
    assert shortlist.select(CONTEXT).tolist() == [*range(CORE), 10, *range(60, 70), V - 1]
