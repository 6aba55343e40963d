import torch

from minispec.shortlists.microspec import MicroSpecShortlist
from minispec.types import Context, Evidence, Proposal, Round

CONTEXT = Context((1,), torch.zeros(2), 0)


def _round(tokens, proposed, top_ids):
    evidence = Evidence(Proposal((), ()), (), (), None, top_ids=torch.tensor(top_ids))
    return Round(tokens, "", (), proposed, (), {}, None, evidence)


def test_select_holds_the_prompt_and_the_targets_likeliest_ids():
    shortlist = MicroSpecShortlist(100)
    shortlist.on_prefill([5, 9, 5], torch.tensor([[9, 30, 31], [30, 32, 4]]))
    assert shortlist.select(CONTEXT).tolist() == [4, 5, 9, 30, 31, 32]
    # Drafted ids, rejected ones too, and the three likeliest ids at each emitted token.
    shortlist.observe(_round((60, 61), (60, 70, 71), [[60, 80, 81, 99], [61, 82, 83, 99]]))
    assert shortlist.select(CONTEXT).tolist() == [
        4, 5, 9, 30, 31, 32, 60, 61, 70, 71, 80, 81, 82, 83,
    ]  # fmt: skip


def test_select_forgets_what_was_observed_first_and_renews_what_is_seen_again():
    shortlist = MicroSpecShortlist(100, window=6)
    assert shortlist.budget == 6
    shortlist.on_prefill([1, 2, 3], torch.tensor([[4, 5, 6], [4, 5, 6]]))
    assert shortlist.select(CONTEXT).tolist() == [1, 2, 3, 4, 5, 6]
    shortlist.observe(_round((7,), (1,), [[7, 2, 8]]))  # now 5, 6, 1, 7, 2, 8
    assert shortlist.select(CONTEXT).tolist() == [1, 2, 5, 6, 7, 8]


def test_on_prefill_begins_a_new_stream():
    shortlist = MicroSpecShortlist(100)
    shortlist.on_prefill([1, 2], torch.tensor([[3, 4, 5]]))
    before = shortlist.select(CONTEXT)
    shortlist.on_prefill([8], torch.zeros(0, 3, dtype=torch.int64))
    assert shortlist.select(CONTEXT).tolist() == [8]
    assert before.tolist() == [1, 2, 3, 4, 5]
    shortlist.reset()
    shortlist.on_prefill([1, 2], torch.tensor([[3, 4, 5]]))
    assert shortlist.select(CONTEXT).tolist() == before.tolist()


def test_select_keeps_the_tensor_while_its_ids_stay():
    shortlist = MicroSpecShortlist(100)
    shortlist.on_prefill([1, 2, 3], torch.tensor([[2, 3, 1], [1, 2, 3]]))
    ids = shortlist.select(CONTEXT)
    shortlist.observe(_round((2,), (3,), [[2, 1, 3]]))
    assert shortlist.select(CONTEXT) is ids


def test_select_before_a_prompt_and_after_a_reset_has_no_ids():
    shortlist = MicroSpecShortlist(100)
    for _ in range(2):
        ids = shortlist.select(CONTEXT)
        assert ids.dtype == torch.int64 and ids.shape == (0,)
        shortlist.on_prefill([1, 2], torch.tensor([[3, 4, 5]]))
        shortlist.reset()


def test_observe_appends_the_drafted_ids_before_the_targets():
    shortlist = MicroSpecShortlist(100, window=4)
    shortlist.on_prefill([1], torch.zeros(0, 3, dtype=torch.int64))
    shortlist.observe(_round((7,), (20, 21, 22), [[7, 8, 9]]))
    assert shortlist.select(CONTEXT).tolist() == [7, 8, 9, 22]


def test_observe_appends_each_id_of_a_round_once():
    shortlist = MicroSpecShortlist(100, window=4)
    shortlist.on_prefill([1], torch.zeros(0, 3, dtype=torch.int64))
    shortlist.observe(_round((7, 8), (20,), [[7, 8, 9], [8, 9, 7]]))
    assert shortlist.select(CONTEXT).tolist() == [7, 8, 9, 20]
    shortlist.observe(_round((7,), (30, 30, 30), [[7, 8, 7]]))
    assert shortlist.select(CONTEXT).tolist() == [7, 8, 9, 30]


def test_budget_is_the_window_or_the_whole_vocabulary():
    assert MicroSpecShortlist(100, window=99).budget == 99
    assert MicroSpecShortlist(100, window=101).budget == 100
