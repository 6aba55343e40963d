"""Every LM head against plain rows, whatever kind of change the shortlist makes."""

import math

import pytest
import torch
from torch import Tensor

from helpers.heads import CHANGES, HEADS, SIZE, A, EditingShortlist, ScriptedShortlist, plain_rows
from minispec.certificate.toys import ToyDraft, ToyTarget, random_table
from minispec.commit import StopRule
from minispec.decode import speculative
from minispec.errors import ArgumentError, ShortlistError
from minispec.models.lm_head import LinearHead
from minispec.sampling import Sampling, SeededRandom
from minispec.types import Head, Round, Shortlist

HIDDEN_SIZE = 20
WEIGHT = torch.randn(SIZE, HIDDEN_SIZE, generator=torch.Generator().manual_seed(0))
STATES = WEIGHT[[3, 7, 0]] + 0.1  # each nearest to another row
TOLERANCE = 1e-5  # of a head in float32


def compute_plainly(name: str, states: Tensor, ids: Tensor) -> Tensor:
    """Logits (..., K) from the rows themselves, in float64."""
    # The kernels for bfloat16 rows of the CPU round the states too.
    states = states.bfloat16() if name == "cpu, bfloat16" else states
    return states.double() @ plain_rows(name, WEIGHT)[ids].T


def list_shortlists(name: str, change: str) -> list[Tensor]:
    """The shortlists of a change. A kernel in the simulator is slow, and its head counts no calls:
    it gets the same tensor twice in a row, not twenty times."""
    shortlists = CHANGES[change]
    if "cuda" not in name:
        return list(shortlists)
    before = [None, None, *shortlists]
    return [c for a, b, c in zip(before, before[1:], shortlists, strict=False) if not a is b is c]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", HEADS)
def test_logits_of_follow_every_change_of_shortlist(name: str, change: str) -> None:
    head = HEADS[name](WEIGHT)
    results = []
    for i, ids in enumerate(list_shortlists(name, change)):
        states = (STATES, STATES[0], STATES[:1])[i % 3]  # (..., D)
        results.append((states, ids, head.logits_of(states, ids)))
    # Compared only now: no result may be a view of memory that was used again.
    for states, ids, logits in results:
        assert logits.shape == (*states.shape[:-1], len(ids))
        assert (logits - compute_plainly(name, states, ids)).abs().max() < TOLERANCE


@pytest.mark.parametrize("name", HEADS)
def test_logits_are_those_of_all_rows(name: str) -> None:
    head = HEADS[name](WEIGHT)
    for states in (STATES[1], STATES, STATES[None]):
        exact = compute_plainly(name, states, torch.arange(SIZE))
        head.logits_of(states, A)
        assert head.logits(states).shape == exact.shape
        assert (head.logits(states) - exact).abs().max() < TOLERANCE


def decode(head: Head, shortlist: Shortlist, limit: int) -> list[Round]:
    target, draft = (ToyTarget(SIZE, random_table(SIZE, 3)), ToyDraft(SIZE, random_table(SIZE, 4)))
    draft.head = head
    draft.logits_after = lambda tokens: random_table(SIZE, 4)(tokens).float()
    return list(speculative(
        target, draft, shortlist, [0, 1], gamma=3, sampling=Sampling(1.0), rng=SeededRandom(5),
        stop=StopRule(limit), trace=True,
    ))  # fmt: skip


@pytest.mark.parametrize("per_round", [False, True], ids=["each step", "per round"])
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", ["packed", "compiled", "cpu", "cuda"])  # which keep rows
def test_speculative_records_the_distribution_of_the_selected_rows(
    name: str, change: str, per_round: bool
) -> None:
    """At every draft step: the softmax over the ids that were selected for it."""
    shortlist = ScriptedShortlist(list_shortlists(name, change), per_round)
    head = HEADS[name](torch.eye(SIZE))
    rows = plain_rows(name, torch.eye(SIZE))
    tokens, step = (0, 1), 0
    for finished in decode(head, shortlist, 8 if name == "cuda" else 24):
        assert finished.evidence is not None
        proposal = finished.evidence.proposal
        for depth, q in enumerate(proposal.draft_distributions):
            state = random_table(SIZE, 4)((*tokens, *proposal.tokens[:depth])).float()
            ids = shortlist.selected[step]
            exact = torch.softmax(rows[ids] @ state.double(), 0)
            assert q.ids.tolist() == ids and (q.probs - exact).abs().max() < TOLERANCE
            step += not per_round
        step += per_round and bool(proposal.tokens)
        tokens += finished.tokens
    assert step == len(shortlist.selected) > 2


@pytest.mark.parametrize("name", HEADS)
def test_argmax_gives_the_lowest_of_tied_ids(name: str) -> None:
    """At both ends, within a block of rows and in different ones, and of three equal rows."""
    size = 40 if "cuda" in name else 700
    for tied in [(0, size - 1), (3, size // 2, size - 1), (size - 4, size - 1)]:
        weight = torch.zeros(size, 4)
        weight[list(tied)] = torch.ones(4)
        ids, logits = HEADS[name](weight).argmax(torch.ones(2, 4))
        assert ids.tolist() == [tied[0]] * 2 and logits.tolist() == [4.0] * 2


@pytest.mark.parametrize("name", HEADS)
def test_argmax_takes_each_state_by_itself(name: str) -> None:
    head = HEADS[name](WEIGHT)
    exact = compute_plainly(name, STATES, torch.arange(SIZE))
    ids, logits = head.argmax(STATES)
    assert head.vocab_size == SIZE and ids.dtype == torch.int64
    assert ids.tolist() == exact.argmax(1).tolist()
    assert (logits - exact.amax(1)).abs().max() < TOLERANCE
    assert len(set(ids.tolist())) > 1


@pytest.mark.parametrize("name", [name for name in HEADS if "int8" not in name])
def test_argmax_gives_a_nan_as_the_largest(name: str) -> None:
    weight = WEIGHT.clone()
    weight[7, 2] = math.nan
    head = HEADS[name](weight)
    ids, logits = head.argmax(STATES)
    assert ids.tolist() == [7] * 3 and logits.isnan().all()
    with pytest.raises(ArgumentError, match="not finite"):
        Sampling().target_distributions(head, STATES)


@pytest.mark.parametrize("per_round", [False, True], ids=["each step", "per round"])
@pytest.mark.parametrize("when", ["select", "observe"])
@pytest.mark.parametrize("way", ["tensor", "view", "array"])
def test_speculative_names_a_shortlist_that_edits_its_tensor(
    way: str, when: str, per_round: bool
) -> None:
    shortlist = EditingShortlist(way, when, per_round)
    with pytest.raises(ShortlistError, match="editing: ids were edited in place"):
        decode(HEADS["packed"](torch.eye(SIZE)), shortlist, 24)


def test_speculative_records_ids_that_no_shortlist_can_edit() -> None:
    """Not even between rounds, by a caller or a shortlist that keeps all it returned."""
    ids = A.clone()
    shortlist = ScriptedShortlist([ids], per_round=True)
    rounds = decode(HEADS["packed"](torch.eye(SIZE)), shortlist, 12)
    ids.zero_()
    for finished in rounds:
        assert finished.evidence is not None
        for q in finished.evidence.proposal.draft_distributions:
            assert torch.equal(q.ids, A)


def test_plain_rows_of_int8_are_within_half_a_step_of_each_rows_own_scale() -> None:
    """Each row has its own scale: its largest number over 127."""
    weight = WEIGHT * torch.logspace(-3, 3, SIZE)[:, None]
    steps = weight.abs().amax(1, keepdim=True).double() / 127
    assert ((plain_rows("cpu, int8", weight) - weight).abs() <= 0.5001 * steps).all()


def test_linear_head_adds_a_bias_and_caps_logits() -> None:
    generator = torch.Generator().manual_seed(0)
    weight, bias = (torch.randn(*shape, generator=generator).double() for shape in ((9, 4), (9,)))
    hidden = torch.randn(3, 4, generator=generator).double()
    head = LinearHead(weight, bias, softcap=0.5)
    expected = 0.5 * torch.tanh((hidden @ weight.T + bias) / 0.5)
    assert torch.allclose(head.logits(hidden), expected, atol=1e-12)
    ids = torch.tensor([1, 4, 8])
    assert torch.allclose(head.logits_of(hidden, ids), expected[:, ids], atol=1e-12)
    assert torch.equal(head.argmax(hidden)[0], expected.argmax(-1))
    assert head.select(ids, torch.float32).logits(hidden.float()).dtype == torch.float32
