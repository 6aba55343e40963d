"""Shortlists for a draft with a part of the vocabulary."""

import torch

from helpers.shortlists import make_round
from minispec.shortlists.full import FullShortlist
from minispec.shortlists.microspec import MicroSpecShortlist
from minispec.tools.evaluation.draft_vocabulary import ReducedShortlist, reduce_shortlist
from minispec.types import BaseShortlist, Context

IDS = torch.tensor([1, 4, 6, 7])
CONTEXT = Context((0,), torch.zeros(4), 0)


class Fixed(BaseShortlist):
    """The ids that it is given; counts what reaches it."""

    name, budget = "fixed", 3

    def __init__(self, ids: list[int]) -> None:
        self.ids = torch.tensor(ids)
        self.calls: list[str] = []

    def select(self, context: Context) -> torch.Tensor:
        return self.ids

    def observe(self, finished: object) -> None:
        self.calls.append("observe")

    def reset(self) -> None:
        self.calls.append("reset")


def test_reduce_shortlist_keeps_what_the_head_has() -> None:
    inner = Fixed([0, 4, 7])
    reduced = reduce_shortlist(inner, IDS, 8)
    selected = reduced.select(CONTEXT)
    assert selected.tolist() == [4, 7] and reduced.budget == 3 and reduced.name == "fixed"
    assert reduced.select(CONTEXT) is selected  # the head keeps its rows packed
    inner.ids = torch.tensor([6])
    assert reduced.select(CONTEXT).tolist() == [6]
    reduced.observe(make_round((1,)))
    reduced.reset()
    assert inner.calls == ["observe", "reset"]


def test_reduce_shortlist_falls_back_to_the_first_ids_of_the_head() -> None:
    assert reduce_shortlist(Fixed([0, 2, 3]), IDS, 8).select(CONTEXT).tolist() == [1, 4, 6]


def test_reduce_shortlist_gives_all_ids_of_the_head_for_the_full_vocabulary() -> None:
    reduced = reduce_shortlist(FullShortlist(8), IDS, 8)
    assert reduced.select(CONTEXT).tolist() == IDS.tolist() and reduced.budget == 4


def test_reduced_shortlist_reads_the_prompt_as_the_inner_one() -> None:
    reduced = ReducedShortlist(MicroSpecShortlist(8, 6), IDS, 8)
    assert reduced.reads_prompt and reduced.top_ids_wanted > 0
    reduced.on_prefill([0, 6], torch.tensor([[7, 2, 3]]))
    assert set(reduced.select(Context((0, 6), torch.zeros(4), 0)).tolist()) == {6, 7}
