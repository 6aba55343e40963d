"""EvoSpec's shortlist: which ids each part adds, and how they share the budget."""

import pytest
import torch

from helpers.shortlists import make_round
from minispec.errors import ArgumentError
from minispec.shortlists.evospec import EvoSpecShortlist
from minispec.types import Context


def build_evospec(budget: int = 8, **options: int) -> EvoSpecShortlist:
    """40 ids in 10 clusters of four: 0..3, 4..7 and so on; unit state i points at cluster i."""
    rows = torch.eye(10).repeat_interleave(4, 0) + 0.01 * torch.arange(40)[:, None]
    clusters = torch.arange(10).repeat_interleave(4)
    return EvoSpecShortlist(torch.arange(40), budget, (39,), clusters, rows, **options)


def explain(
    shortlist: EvoSpecShortlist, tokens: tuple[int, ...], cluster: int
) -> dict[str, list[int]]:
    """The ids of each part after ``tokens``, for a state that points at ``cluster``."""
    context = Context(tokens, torch.eye(10)[cluster], 0)
    return {name: ids.tolist() for name, ids in shortlist.explain(context).items()}


def test_evospec_shares_its_budget() -> None:
    """A quarter for the core, a sixth for recency; all end ids are in the core."""
    parts = explain(build_evospec(budget=24), tuple(range(9, 30)), 9)
    assert len(parts["core"]) == 6 and len(parts["recency"]) == 4
    assert len(explain(build_evospec(budget=2), (1, 2, 3), 9)["core"]) == 1
    rows, clusters = torch.eye(40), torch.zeros(40, dtype=torch.int64)
    ends = EvoSpecShortlist(torch.arange(40), 4, (37, 38, 39), clusters, rows)
    context = Context((1, 2), torch.zeros(40), 0)
    assert ends.explain(context)["core"].tolist() == [37, 38, 39]


def test_evospec_explain_gives_the_ids_of_each_part() -> None:
    shortlist = build_evospec(core=2, recency=3)
    assert shortlist.rows_probed == 10
    parts = explain(shortlist, (30, 20, 10, 20, 0), 5)
    assert parts == {
        "core": [0, 39],
        "recency": [10, 20, 30],
        "successor": [],
        "semantic": [21, 22, 23],
    }
    shortlist.observe(make_round((7, 20), (7, 33), 1))  # after 7 the draft's 33 was rejected
    parts = explain(shortlist, (30, 20, 7), 5)
    assert parts["recency"] == [7, 20, 30] and parts["successor"] == [33]
    assert len(parts["semantic"]) == 2
    # The oldest ids leave recency first; the successors still have them.
    parts = explain(shortlist, (30, 20, 10, 11, 7), 5)
    assert parts["recency"] == [7, 10, 11] and parts["successor"] == [20, 33]
    shortlist.reset()
    assert explain(shortlist, (30, 20, 7), 5)["successor"] == []


def test_evospec_recency_forgets_old_topics() -> None:
    shortlist = build_evospec(budget=30, recency=10)
    assert 33 in explain(shortlist, (33, *[1] * 500), 0)["recency"]
    assert 33 not in explain(shortlist, (33, *[1] * 600), 0)["recency"]
    assert 33 not in explain(shortlist, (33, *range(10, 20), 1), 0)["recency"]


@pytest.mark.parametrize("core", [0, 9, -1])
def test_evospec_refuses_a_core_outside_its_budget(core: int) -> None:
    with pytest.raises(ArgumentError, match=f"core of {core} ids does not fit a budget of 8"):
        build_evospec(core=core)
