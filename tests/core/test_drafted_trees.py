"""What a drafter drafts, node by node, against the definition: contexts, distributions, places."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from minispec.certificate.toys import ToyDraft, ToyTarget, random_table
from minispec.growth import TreeShape
from minispec.models.lm_head import LinearHead
from minispec.propose import Drafter
from minispec.sampling import Sampling, SeededRandom
from minispec.stopwatch import Stopwatch
from minispec.tree import find_path
from minispec.types import BaseShortlist, Context, Learner, LearnerUpdate, Proposal, Round

V = 12
PROMPT = (3, 1, 2)
TABLE = random_table(V, seed=5, spread=2.0)
SHAPES = [
    "1x3x3", "3x2x7", "3x6x20", "2x6x18:static", "3x2x6:drawn", "2x6x20:drawn", "3x3x8:distinct",
    "2x6x20:distinct", "4x2x8:static:drawn", "3x3x9:static:distinct",
]  # fmt: skip


class RecordingShortlist(BaseShortlist):
    """Other ids after each token, or the same ones throughout a round. Keeps its contexts."""

    name, budget = "recording", V - 1

    def __init__(self, per_round: bool) -> None:
        self.per_round = per_round
        self.contexts: list[Context] = []

    def select(self, context: Context) -> Tensor:
        self.contexts.append(context)
        return self.find(context.tokens)

    @staticmethod
    def find(tokens: Sequence[int]) -> Tensor:
        """All ids but two, which the last token determines."""
        left_out = {tokens[-1] % V, (5 * tokens[-1] + 1) % V}
        return torch.tensor([token for token in range(V) if token not in left_out])


class CountingHead(LinearHead):
    """Counts its products."""

    products = 0

    def logits_of(self, hidden: Tensor, ids: Tensor) -> Tensor:
        self.products += 1
        return super().logits_of(hidden, ids)


class CountingDraft(ToyDraft):
    """Counts its passes."""

    passes = 0

    def step(self, *arguments: Any) -> Tensor:
        self.passes += 1
        return super().step(*arguments)


class Session:
    """A drafter that has read the prompt. Its cache holds no more than the text, ``more`` tokens
    after the prompt, and a tree need."""

    def __init__(
        self, shape: str, per_round: bool = False, more: int = 0, learner: Learner | None = None
    ) -> None:
        self.shape, self.shortlist = TreeShape.parse(shape), RecordingShortlist(per_round)
        self.head = CountingHead(torch.eye(V, dtype=torch.float64))
        self.draft = CountingDraft(V, TABLE, self.head)
        self._target = ToyTarget(V, TABLE)
        self._cache, self._text = self._target.new_cache(60), [*PROMPT]
        capacity = len(PROMPT) + (more or self.shape.depth)
        self.drafter = Drafter(
            self.draft, self.shortlist, capacity, learner, len(PROMPT), self.shape
        )
        self._resync(PROMPT[:-1], PROMPT[1:], None)

    def _resync(self, inputs: Sequence[int], after: Sequence[int], path: Any) -> None:
        features = self._target.step(torch.tensor(inputs), self._cache)
        self.drafter.resync(torch.tensor(after), features.aux_hidden_states, path)

    def emit(self, token: int) -> None:
        """End a round, all drafted tokens of which were rejected."""
        self._resync(self._text[-1:], [token], ())
        self._text.append(token)

    def propose(self, temperature: float = 1.0, depth: int = 9) -> Proposal:
        sampling, rng = Sampling(temperature), SeededRandom(4)
        return self.drafter.propose(self._text, depth, sampling, rng, Stopwatch())


def read(proposal: Proposal, node: int) -> tuple[int, ...]:
    """The prompt and the tokens on the way to a node."""
    return (*PROMPT, *(proposal.tokens[each] for each in find_path(proposal.parents, node)))


def find_ids(tokens: Sequence[int], per_round: bool) -> Tensor:
    return RecordingShortlist.find(PROMPT if per_round else tokens)


def list_confidences(
    tokens: Sequence[int], temperature: float, per_round: bool
) -> dict[int, float]:
    """The softmax of the logits after ``tokens`` over the shortlist there, the likeliest first; for
    temperature 0 at temperature 1."""
    ids = find_ids(tokens, per_round)
    shares = torch.softmax(TABLE(tuple(tokens))[ids] / (temperature or 1), 0).tolist()
    return dict(sorted(zip(ids.tolist(), shares, strict=True), key=lambda pair: -pair[1]))


def grow_likeliest(shape: TreeShape, temperature: float, per_round: bool) -> set[tuple[int, ...]]:
    """The paths of EAGLE-2's tree: the likeliest of what the likeliest of each level bring."""

    def list_likeliest(path: tuple[int, ...]) -> list[tuple[int, float]]:
        return [*list_confidences((*PROMPT, *path), temperature, per_round).items()]

    level: dict[tuple[int, ...], float] = {(): 1.0}
    known: dict[tuple[int, ...], float] = {}
    for _ in range(shape.depth):
        best = sorted(level, key=lambda path: -level[path])[: shape.beam]
        level = {
            (*path, token): level[path] * share
            for path in best
            for token, share in list_likeliest(path)[: shape.beam]
        }
        known |= level
    return {*sorted(known, key=lambda path: -known[path])[: shape.nodes]}


@pytest.mark.parametrize("per_round", [False, True])
@pytest.mark.parametrize("temperature", [0.0, 0.5])
@pytest.mark.parametrize("shape", ["1x3x3", "3x2x7", "3x6x20", "4x3x8"])
def test_most_confident_tree_equals_its_definition(
    shape: str, temperature: float, per_round: bool
) -> None:
    session = Session(shape, per_round)
    proposal = session.propose(temperature)
    paths = {read(proposal, node)[len(PROMPT) :] for node in range(len(proposal))}
    assert paths == grow_likeliest(session.shape, temperature, per_round)
    assert len(paths) == len(proposal)


@pytest.mark.parametrize("per_round", [False, True])
@pytest.mark.parametrize("temperature", [0.0, 0.5])
@pytest.mark.parametrize("shape", SHAPES)
def test_each_node_is_recorded_with_what_it_was_chosen_by(
    shape: str, temperature: float, per_round: bool
) -> None:
    session = Session(shape, per_round)
    proposal, kind = session.propose(temperature), session.shape.candidates
    for parent in {*proposal.parents}:
        siblings = [i for i, other in enumerate(proposal.parents) if other == parent]
        prefix, seen = read(proposal, parent), list[int]()
        ids = find_ids(prefix, per_round)
        shares = list_confidences(prefix, temperature, per_round)
        for rank, node in enumerate(siblings):
            token, q = proposal.tokens[node], proposal.draft_distributions[node]
            assert q.ids.tolist() == ids.tolist()
            if kind == "top" or temperature == 0:  # certain: in the order of their confidence
                assert token == [*shares][rank]
                assert q.probs.tolist() == [float(other == token) for other in ids.tolist()]
            else:
                left = {i: p for i, p in shares.items() if kind == "drawn" or i not in seen}
                expected = [left.get(i, 0.0) / sum(left.values()) for i in ids.tolist()]
                assert q.probs.tolist() == pytest.approx(expected)
            seen.append(token)


@pytest.mark.parametrize("per_round", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_shortlist_sees_the_past_of_each_node_and_its_hidden_state(
    shape: str, per_round: bool
) -> None:
    session = Session(shape, per_round)
    proposal, drafter = session.propose(), session.drafter
    contexts = session.shortlist.contexts
    for context in contexts:
        assert torch.equal(context.hidden, TABLE(context.tokens))
        assert context.depth == len(context.tokens) - len(PROMPT)
    seen = [context.tokens for context in contexts]
    assert seen[0] == PROMPT and len({*seen}) == len(seen) == drafter.selections
    if per_round:
        assert len(seen) == 1
    else:
        assert {read(proposal, parent) for parent in proposal.parents} <= {*seen}
    for parent in {*proposal.parents}:  # the states from which tokens were drafted
        assert torch.equal(drafter.hidden_states([parent]), TABLE(read(proposal, parent))[None])
    session.propose(depth=1)  # counted anew in each round
    assert drafter.selections == 1


@pytest.mark.parametrize("per_round", [False, True])
def test_nodes_with_the_same_ids_are_scored_together(per_round: bool) -> None:
    """Each row of the head is read once a level."""
    session = Session("3x3x9", per_round)
    session.propose()
    assert session.head.products == (3 if per_round else 1 + 3 + 3)


class ShownLearner:
    """Keeps what it is shown after each resync."""

    top_ids_wanted, invalidates_cache = 0, False

    def __init__(self) -> None:
        self.draft = CountingDraft(V, TABLE)
        self.shown: list[list[int]] = []

    def start(self, continued: bool) -> None: ...

    def on_prefill(self, ids: Tensor, aux_hidden_states: Tensor, hidden: Tensor) -> None:
        self.shown.append(ids.tolist())

    def adjust_logits(self, logits: Tensor, ids: Tensor, context: Context, sampling: Any) -> Tensor:
        return logits

    def observe(self, finished: Round) -> LearnerUpdate:
        return LearnerUpdate(False, {})


def test_rounds_that_draft_nothing_share_one_pass_of_the_draft() -> None:
    """Before the next draft; what is drafted is the same as if each had had its own."""
    ours, other = (Session("2x2x4", more=9) for _ in range(2))
    for tokens in ([7, 4, 9], [8, 2]):
        before = ours.draft.passes
        for token in tokens:
            assert ours.propose(depth=0).tokens == ()
            ours.emit(token)
            other.propose(depth=1)  # no pass of its own: the state is at hand
            other.emit(token)
        assert ours.draft.passes == before
        proposal, expected = ours.propose(), other.propose()
        assert proposal.tokens == expected.tokens and proposal.parents == expected.parents
        assert ours.draft.passes == before + 2  # one for those rounds, one for the second level
        ours.emit(6)
        other.emit(6)
        assert ours.draft.passes == before + 3


def test_a_learner_sees_every_round_even_those_that_draft_nothing() -> None:
    learner: Any = ShownLearner()
    session = Session("2x2x4", more=9, learner=learner)
    for token in (7, 4):
        session.propose(depth=0)
        session.emit(token)
    assert learner.shown == [[*PROMPT[1:]], [7], [4]]
