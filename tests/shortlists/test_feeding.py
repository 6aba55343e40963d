"""EvoSpec's shortlist, fed with other ids: its parts under one budget."""

import numpy as np
import pytest
import torch

from benchmarks.feeding import FedByBigrams, FedByTarget
from helpers.shortlists import make_round
from minispec.shortlists.bigrams import BigramGraph
from minispec.tools.evaluation import shortlist_files
from minispec.types import Context, Evidence, Proposal, Round

V, BUDGET = 600, 60
PARTS = (torch.arange(V), BUDGET, (5,), torch.arange(V) // 10, torch.randn(V, 4))
CONTEXT = Context((1, 400, 401), torch.ones(4), 0)


def _check_parts(shortlist: FedByTarget | FedByBigrams) -> dict[str, list[int]]:
    parts = {name: ids.tolist() for name, ids in shortlist.explain(CONTEXT).items()}
    assert tuple(parts) == shortlist.part_names
    joined = [i for ids in parts.values() for i in ids]
    assert len(joined) == len(set(joined)) == BUDGET
    assert shortlist.select(CONTEXT).tolist() == sorted(joined)
    return parts


def test_the_target_feeds_its_likeliest_ids_the_latest_first() -> None:
    shortlist = FedByTarget(*PARTS)
    assert _check_parts(shortlist)["fed"] == []
    for start in (300, 320):
        top = torch.arange(start, start + 10)[None].repeat(2, 1)  # of two positions
        evidence = Evidence(Proposal((), ()), (), (), None, top_ids=top)
        shortlist.observe(Round((400, 401), "", (), (), (), {}, None, evidence))
    assert _check_parts(shortlist)["fed"] == [*range(320, 330)]  # a sixth of the budget
    shortlist.reset()
    assert _check_parts(shortlist)["fed"] == []


def test_bigrams_feed_the_successors_of_the_last_token(monkeypatch: pytest.MonkeyPatch) -> None:
    degrees = np.zeros(V, np.int64)
    degrees[401] = 4
    graph = BigramGraph(degrees, np.array([7, 500, 400, 501]), np.full(4, 0.2, np.float32))
    monkeypatch.setattr(shortlist_files, "read_bigrams", lambda model: graph)
    shortlist = FedByBigrams(*PARTS, model=None)  # type: ignore[arg-type]
    shortlist.observe(make_round((401, 502)))
    parts = _check_parts(shortlist)
    assert parts["successor"] == [502]
    assert parts["fed"] == [500, 501]  # 7 is in the core, 400 is recent
