"""The drafter by itself: what it asks of its parts, what it keeps, and what it drafts from."""

import gc
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.drafts import DRAFT, TARGET
from minispec.certificate.toys import ToyCache, ToyDraft, ToyTarget, random_table
from minispec.commit import StopRule
from minispec.decode import speculative
from minispec.errors import ShortlistError
from minispec.logits_processor import History
from minispec.propose import CheckedSelections, Drafter
from minispec.sampling import Sampling, SeededRandom
from minispec.shortlists.full import FullShortlist
from minispec.stopwatch import Stopwatch
from minispec.types import BaseShortlist, Context, LearnerUpdate, Proposal, Round

V = 8
PROMPT = [0, 1, 2]
TABLE = random_table(V, seed=3)


class PlainShortlist:
    """All ids, by a class that does not inherit."""

    name, budget, per_round = "plain", V, False

    def select(self, context: Context) -> Tensor:
        return torch.arange(V)

    def observe(self, finished: Round) -> None: ...

    def reset(self) -> None: ...


class ReadingShortlist(FullShortlist):
    reads_prompt, top_ids_wanted = True, 3


class ToyLearner:
    """Adds to the logits, and keeps what it was shown."""

    def __init__(self, *, wanted: int = 0, invalidates: bool = False, changes: bool = False):
        self.draft = CountingDraft(V, TABLE)
        self.top_ids_wanted, self.invalidates_cache, self._changes = wanted, invalidates, changes
        self.hidden: list[Tensor] = []
        self.added = torch.linspace(-2, 2, V, dtype=torch.float64)

    def start(self, continued: bool) -> None: ...

    def on_prefill(self, ids: Tensor, aux_hidden_states: Tensor, hidden: Tensor) -> None:
        self.hidden += list(hidden)

    def adjust_logits(self, logits: Tensor, ids: Tensor, context: Context, sampling: Any) -> Tensor:
        return logits + self.added[ids]

    def observe(self, finished: Round) -> LearnerUpdate:
        return LearnerUpdate(self._changes, {"seen": len(finished.tokens)})


class CountingDraft(ToyDraft):
    """Counts its caches, and the positions that it processes."""

    caches = positions = 0

    def new_cache(self, capacity: int) -> ToyCache:
        self.caches += 1
        return super().new_cache(capacity)

    def step(self, ids: Tensor, states: Tensor, cache: ToyCache) -> Tensor:
        self.positions += len(ids)
        return super().step(ids, states, cache)


def start_drafter(learner: Any = None, sampling: Sampling | None = None) -> tuple[Any, ...]:
    """A drafter that has read the prompt, its first proposal of 3 tokens, and the target's
    auxiliary hidden states at the last token of the prompt and the drafted ones."""
    target, drafter = ToyTarget(V, TABLE), Drafter(
        ToyDraft(V, TABLE), FullShortlist(V), 60, learner, len(PROMPT)
    )  # fmt: skip
    cache = target.new_cache(60)
    features = target.step(torch.tensor(PROMPT[:-1]), cache)
    drafter.resync(torch.tensor(PROMPT[1:]), features.aux_hidden_states)
    proposal = drafter.propose(PROMPT, 3, sampling or Sampling(1.0), SeededRandom(0), Stopwatch())
    features = target.step(torch.tensor([PROMPT[-1], *proposal.tokens]), cache)
    return drafter, proposal, features.aux_hidden_states


@pytest.mark.parametrize(
    ("shortlist", "learner", "wanted"),
    [
        (PlainShortlist(), None, 0),
        (PlainShortlist(), ToyLearner(wanted=2), 2),
        (FullShortlist(V), None, 0),
        (ReadingShortlist(V), None, 3),
        (ReadingShortlist(V), ToyLearner(wanted=2), 3),
        (ReadingShortlist(V), ToyLearner(wanted=5), 5),
    ],
)
def test_top_ids_wanted_is_the_larger_wish(shortlist: Any, learner: Any, wanted: int) -> None:
    assert Drafter(ToyDraft(V, TABLE), shortlist, 9, learner).top_ids_wanted == wanted


def test_reader_is_the_shortlist_that_reads_prompts_at_the_time() -> None:
    drafter = Drafter(ToyDraft(V, TABLE), PlainShortlist(), 9)
    for shortlist, reads in [
        (PlainShortlist(), False), (ReadingShortlist(V), True), (FullShortlist(V), False),
        (ReadingShortlist(V), True),
    ]:  # fmt: skip
        drafter.shortlist = shortlist
        assert drafter.reader is (shortlist if reads else None)


@pytest.mark.parametrize("accepted", range(4))
def test_hidden_states_are_those_that_the_tokens_were_predicted_from(accepted: int) -> None:
    """Of each drafted token, and of the target's own after a path that was wholly accepted."""
    drafter, proposal, aux = start_drafter()
    prefixes = [(*PROMPT, *proposal.tokens[:i]) for i in range(4)]
    kept = [*proposal.tokens[:accepted], 5]
    nodes = range(-1, 8)
    assert drafter.hidden_states(nodes).shape == (3, V)
    drafter.resync(torch.tensor(kept), aux[: len(kept)], range(accepted))
    rows = torch.stack([TABLE(prefix) for prefix in prefixes[: 3 + (accepted == 3)]])
    for count in (9, 2):
        assert torch.equal(drafter.hidden_states(nodes[:count]), rows[:count])
    # Of the next round, whose first token follows the emitted ones.
    text = [*PROMPT, *kept]
    drafter.propose(text, 1, Sampling(1.0), SeededRandom(0), Stopwatch())
    assert torch.equal(drafter.hidden_states(nodes), TABLE(tuple(text))[None])


def test_hidden_states_of_drafted_tokens_stay_after_a_resync() -> None:
    """Those that were computed from the draft's own, and differ from those of the target's."""
    prompt = torch.tensor([1, 2, 3])
    drafter, cache = Drafter(DRAFT, FullShortlist(50), 20), TARGET.new_cache(20)
    drafter.resync(prompt[1:], TARGET.step(prompt[:-1], cache).aux_hidden_states)
    proposal = drafter.propose([1, 2, 3], 3, Sampling(1.0), SeededRandom(0), Stopwatch())
    before = drafter.hidden_states([-1, 0, 1])
    features = TARGET.step(torch.tensor([3, *proposal.tokens]), cache)
    drafter.resync(torch.tensor([*proposal.tokens, 7]), features.aux_hidden_states, (0, 1, 2))
    after = drafter.hidden_states([-1, 0, 1, 2])
    assert len(after) == 4 and torch.equal(after[:3], before)


def test_hidden_states_of_no_token_have_no_rows() -> None:
    drafter = Drafter(ToyDraft(V, TABLE), FullShortlist(V), 9)
    proposal = drafter.propose([0], 3, Sampling(), SeededRandom(0), Stopwatch())
    assert len(proposal) == 0 and drafter.hidden_states([-1, 0]).shape == (0, 0)


def test_resync_after_nothing_was_drafted_keeps_the_state_that_was_at_hand() -> None:
    """Bad words leave nothing to draft; the one token emitted comes from the prompt's state."""
    sampling = Sampling(1.0, bad_words=[[token] for token in range(V)])
    drafter, proposal, aux = start_drafter(sampling=sampling)
    assert proposal.tokens == () and drafter.hidden_states([-1, 0]).shape == (0, 0)
    drafter.resync(torch.tensor([5]), aux, ())
    assert torch.equal(drafter.hidden_states([-1, 0]), TABLE(tuple(PROMPT))[None])


@pytest.mark.parametrize("invalidates", [None, False, True])
def test_resync_keeps_its_inputs_only_to_rebuild_a_cache(invalidates: bool | None) -> None:
    learner = None if invalidates is None else ToyLearner(invalidates=invalidates)
    drafter, proposal, aux = start_drafter(learner)
    aux = aux.clone()
    inputs = weakref.ref(aux)
    drafter.resync(torch.tensor([*proposal.tokens, 5]), aux)
    del aux
    gc.collect()
    assert (inputs() is not None) == bool(invalidates)


@pytest.mark.parametrize("changes", [False, True])
@pytest.mark.parametrize("invalidates", [False, True])
def test_learn_rebuilds_the_cache_of_changed_weights_until_the_end(
    changes: bool, invalidates: bool
) -> None:
    """All positions anew, after every round but the last; ``ToyDraft`` checks its cache."""
    learner = ToyLearner(invalidates=invalidates, changes=changes)
    draft, extra = learner.draft, []
    rounds = speculative(
        ToyTarget(V, TABLE), draft, FullShortlist(V), PROMPT, gamma=2, sampling=Sampling(1.0),
        rng=SeededRandom(1), stop=StopRule(12), learner=learner,
    )  # fmt: skip
    before, text = 0, len(PROMPT)
    for finished in rounds:
        text += len(finished.tokens)
        resynced = 0 if finished.stop else len(finished.tokens)
        expected = (len(PROMPT) - 1 if before == 0 else 0) + max(0, len(finished.proposed) - 1)
        extra.append(draft.positions - before - expected - resynced)
        before = draft.positions
        counts = {"seen": len(finished.tokens)} | ({"changed": 1} if changes else {})
        assert finished.events == counts
        if not finished.stop:
            assert extra[-1] == (text - 1 if changes and invalidates else 0)
    rebuilt = len(extra) - 1 if changes and invalidates else 0
    assert len(extra) > 2 and draft.caches == 1 + rebuilt


def test_learner_adjusts_each_distribution_and_gets_final_hidden_states() -> None:
    learner = ToyLearner()
    drafter, proposal, aux = start_drafter(learner)
    for i, q in enumerate(proposal.draft_distributions):
        logits = TABLE((*PROMPT, *proposal.tokens[:i])) + learner.added
        assert torch.equal(q.probs, Sampling(1.0).distribution(logits, torch.arange(V)).probs)
    drafter.resync(torch.tensor([*proposal.tokens, 5]), aux)
    text = (*PROMPT, *proposal.tokens, 5)
    expected = [TABLE(text[:i]) for i in range(2, len(text) + 1)]
    assert all(map(torch.equal, learner.hidden, expected))
    assert len(learner.hidden) == len(expected)


def test_propose_changes_logits_as_the_target_does() -> None:
    """With the target's own logits q is p, whatever is asked for: biases, penalties, bad words."""
    sampling = Sampling(
        1.0, repetition_penalty=1.5, frequency_penalty=0.5, logit_bias={3: 1.5}, bad_words=[[4]],
    )  # fmt: skip
    _, proposal, _ = start_drafter(sampling=sampling)
    assert len(proposal) == 3
    for i, q in enumerate(proposal.draft_distributions):
        history = History((*PROMPT, *proposal.tokens[:i]), len(PROMPT))
        p = sampling.distribution(TABLE(history.tokens), torch.arange(V), history)  # type: ignore[arg-type]
        assert torch.equal(q.probs, p.probs)


@pytest.mark.parametrize("per_round", [False, True])
def test_round_counts_the_rows_probed_of_each_selection(per_round: bool) -> None:
    shortlist = FullShortlist(V)
    shortlist.rows_probed, shortlist.per_round = 7, per_round
    rounds = list(speculative(
        ToyTarget(V, TABLE), ToyDraft(V, TABLE), shortlist, PROMPT, gamma=3, stop=StopRule(9),
        sampling=Sampling(1.0), rng=SeededRandom(1),
    ))  # fmt: skip
    for finished in rounds:
        drafted = len(finished.proposed)
        assert finished.rows_probed == 7 * (min(drafted, 1) if per_round else drafted)
    for unread in (PlainShortlist(), shortlist):
        assert Drafter(ToyDraft(V, TABLE), unread, 9).rows_probed == 0


# ------------------------------------------------------------------ selections


class GivenIds(BaseShortlist):
    name, budget = "given", 4

    def __init__(self, ids: Any) -> None:
        self.ids = ids

    def select(self, context: Context) -> Tensor:
        return self.ids  # type: ignore[no-any-return]


CONTEXT = Context((0,), torch.zeros(2), 0)


def test_select_returns_the_same_copy_while_the_selection_is_the_same() -> None:
    """Heads recognise a tensor of ids by its identity."""
    shortlist = GivenIds(torch.tensor([1, 5]))
    selections = CheckedSelections(shortlist, V)
    first = selections.select(CONTEXT)
    assert first is selections.select(CONTEXT) and first is not shortlist.ids
    shortlist.ids = torch.tensor([1, 5])
    other = selections.select(CONTEXT)
    assert other is not first and torch.equal(other, first)
    assert other is selections.select(CONTEXT)


@pytest.mark.parametrize("ids", [torch.tensor([5, 1]), torch.tensor([1, V]), [1]], ids=str)
def test_select_refuses_a_selection_every_time(ids: Any) -> None:
    selections = CheckedSelections(GivenIds(ids), V)
    for _ in range(2):
        with pytest.raises(ShortlistError, match="given: "):
            selections.select(CONTEXT)


def test_rounds_have_no_likeliest_ids_where_nobody_wants_them() -> None:
    for finished in speculative(
        ToyTarget(V, TABLE), ToyDraft(V, TABLE), FullShortlist(V), PROMPT, gamma=2,
        sampling=Sampling(1.0), rng=SeededRandom(1), stop=StopRule(6), trace=True,
    ):  # fmt: skip
        assert finished.evidence is not None
        for found, dtype in [
            (finished.evidence.top_ids, torch.int64), (finished.evidence.top_logits, torch.float32)
        ]:  # fmt: skip
            assert found.shape == (0, 0) and found.dtype == dtype


def test_proposal_is_empty_before_the_first_resync() -> None:
    drafter = Drafter(ToyDraft(V, TABLE), FullShortlist(V), 9)
    empty = drafter.propose([0], 2, Sampling(), SeededRandom(0), Stopwatch())
    assert isinstance(empty, Proposal) and empty.tokens == () == empty.draft_distributions
