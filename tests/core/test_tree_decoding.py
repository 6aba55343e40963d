"""Decoding with trees: chains as a special case, real layers, evidence, shortlists and learners.

That outputs have the target's distribution is certified in ``tests/exactness``.
"""

import functools
from collections.abc import Sequence
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from helpers.drafts import DRAFT, TARGET
from helpers.exactness.chain_verifiers import verify_chain, verify_chain_as_block
from helpers.online_learning import EXTREME
from helpers.toys import make_repeating_target
from minispec.auto_shape import ShapeChooser
from minispec.certificate.toys import ToyDraft, ToyTarget, random_table
from minispec.commit import StopRule
from minispec.decode import autoregressive, speculative
from minispec.errors import ArgumentError
from minispec.growth import TreeShape
from minispec.learning.learner import OnlineLearner
from minispec.learning.paper_learner import PaperConfig, PaperLearner
from minispec.round_costs import PassCosts
from minispec.sampling import Sampling, SeededRandom
from minispec.shortlists.full import FullShortlist
from minispec.shortlists.microspec import MicroSpecShortlist
from minispec.shortlists.statistical import StatisticalIndex
from minispec.suffix_decoding import suffix_decoding
from minispec.suffix_index import SuffixConfig, SuffixIndex
from minispec.tree import find_path, follow
from minispec.types import BaseShortlist, Context, Distribution, Proposal, Round
from minispec.verify import VERIFIERS, Verdict, Verifier, verify, verify_block

TREES = (
    "1x3x3", "3x2x7", "4x3x9", "3x2x6:drawn", "3x3x8:distinct", "3x3x8:static",
    "4x2x8:static:drawn", "3x3x9:static:distinct",
)  # fmt: skip
each_tree = pytest.mark.parametrize("tree", TREES)
V = 6
TABLE = random_table(V, 1)
WEIGHTS = st.lists(st.integers(0, 4), min_size=4, max_size=4).filter(any)


class RecordingSource:
    """A seeded source that records what it is asked, and what it answers."""

    def __init__(self, seed: int) -> None:
        self._source, self.decisions = SeededRandom(seed), list[Any]()

    def bernoulli(self, probability: Any) -> bool:
        self.decisions.append((float(probability), self._source.bernoulli(probability)))
        return bool(self.decisions[-1][1])

    def choose(self, probs: Any) -> int:
        self.decisions.append((probs.tolist(), self._source.choose(probs)))
        return int(self.decisions[-1][1])


@pytest.mark.parametrize(
    ("ours", "published"), [(verify, verify_chain), (verify_block, verify_chain_as_block)]
)
@given(
    pairs=st.lists(st.tuples(WEIGHTS, WEIGHTS), min_size=1, max_size=6), seed=st.integers(0, 999)
)
def test_verification_of_a_chain_is_that_of_its_papers(
    ours: Verifier, published: Verifier, pairs: list[Any], seed: int
) -> None:
    """The same verdict, from the same decisions with the same probabilities."""

    def build(weights: Sequence[int]) -> Distribution:
        return Distribution(torch.arange(4), torch.tensor(weights).double() / sum(weights))

    p, q = ([build(pair[side]) for pair in pairs] for side in (0, 1))
    rng = SeededRandom(seed)
    tokens = tuple(rng.choose(each.probs) for each in q[:-1])
    chain, found, sources = Proposal(tokens, tuple(q[:-1])), list[Verdict](), []
    for verifier in (ours, published):
        sources.append(RecordingSource(seed))
        found.append(verifier(chain, p, sources[-1]))
    first, second = found
    assert (first.path, first.next_token) == (second.path, second.next_token)
    assert list(map(float, first.acceptance)) == list(map(float, second.acceptance))
    assert first.next_distribution.probs.tolist() == second.next_distribution.probs.tolist()
    assert sources[0].decisions == sources[1].decisions


def decode(seed: int = 0, **options: Any) -> list[Round]:
    """Rounds of real layers in float64."""
    settings: dict[str, Any] = {
        "gamma": 3, "sampling": Sampling(), "stop": StopRule(24), "trace": True,
        "rng": SeededRandom(seed),
    }  # fmt: skip
    shortlist = options.pop("shortlist", None) or FullShortlist(50)
    draft = options.pop("draft", DRAFT)
    return list(speculative(TARGET, draft, shortlist, [1, 2, 3], **settings | options))


def tokens_of(rounds: Sequence[Round]) -> list[int]:
    return [token for finished in rounds for token in finished.tokens]


PLAIN = tokens_of(list(autoregressive(
    TARGET, [1, 2, 3], sampling=Sampling(), rng=SeededRandom(0), stop=StopRule(24)
)))  # fmt: skip


@pytest.mark.parametrize("verifier", VERIFIERS)
@each_tree
def test_greedy_decoding_with_trees_equals_plain_decoding(tree: str, verifier: str) -> None:
    rounds = decode(tree=TreeShape.parse(tree), verifier=VERIFIERS[verifier])
    assert tokens_of(rounds) == PLAIN
    for finished in rounds:
        last = finished.path[-1] if finished.path else -1
        assert finished.path == find_path(finished.parents, last)
        assert len(finished.proposed) <= TreeShape.parse(tree).nodes


@pytest.mark.parametrize("verifier", [verify_chain, verify_chain_as_block])
def test_a_verifier_of_chains_is_refused_where_there_may_be_branches(verifier: Verifier) -> None:
    """It would take a sibling for a child, and the output would not follow p."""
    index = SuffixIndex()
    for options in ({"tree": TreeShape(2, 2, 4)}, {"index": index}):
        with pytest.raises(ArgumentError, match=rf"^verifier {verifier.__name__} reads chains, no"):
            decode(verifier=verifier, **options)
    with pytest.raises(ArgumentError, match=r"let it follow proposal\.parents, or use no tree"):
        [*suffix_decoding(
            TARGET, [1, 2, 3], gamma=3, sampling=Sampling(), rng=SeededRandom(0), stop=StopRule(9),
            tree=TreeShape(2, 2, 4), verifier=verifier,
        )]  # fmt: skip
    assert tokens_of(decode(verifier=verifier)) == PLAIN


class ChainsAlone:
    """A target or a draft whose ``step`` takes no parents."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def step(self, ids: Tensor, *rest: Any) -> Any:
        assert not isinstance(rest[-1], list), "parents"
        return self._model.step(ids, *rest)


@pytest.mark.parametrize("options", [{"tree": TreeShape(2, 2, 4)}, {"index": SuffixIndex()}])
def test_models_that_run_chains_alone_are_refused_before_they_run(options: Any) -> None:
    """A draft only where trees are drafted."""
    chains = {"gamma": 3, "sampling": Sampling(), "rng": SeededRandom(0), "stop": StopRule(24)}
    for target, draft in [(ChainsAlone(TARGET), DRAFT), (TARGET, ChainsAlone(DRAFT))]:
        models: Any = target, draft, FullShortlist(50), [1, 2, 3]
        assert tokens_of([*speculative(*models, **chains)]) == PLAIN  # type: ignore[arg-type]
        if target is TARGET and "index" in options:
            assert tokens_of([*speculative(*models, **chains, **options)]) == PLAIN
            continue
        with pytest.raises(ArgumentError, match="ChainsAlone runs chains, no trees"):
            speculative(*models, **chains, **options)


class Choosing(ShapeChooser):
    """Drafts in every second round alone, and keeps the rounds that it is shown."""

    def reset(self) -> None:
        super().reset()
        self.seen: list[Round] = []

    def choose(self, found: Any) -> tuple[TreeShape | None, int]:
        return (TreeShape.chain(2) if len(self.seen) % 2 else None), 0

    def observe(self, finished: Round) -> None:
        self.seen.append(finished)


def test_a_chooser_sees_each_round_and_decides_what_is_drafted() -> None:
    chooser = Choosing(PassCosts(((1, 1.0),), ((1, 0.1),)))
    rounds = decode(tree=chooser)
    assert tokens_of(rounds) == PLAIN
    assert [r.tokens for r in chooser.seen] == [r.tokens for r in rounds]
    for number, finished in enumerate(rounds):
        most = PLAIN[: 24 - sum(len(r.tokens) for r in rounds[:number])]
        assert len(finished.proposed) == (min(2, len(most) - 1) if number % 2 else 0)


def test_an_index_starts_afresh_unless_the_conversation_continues() -> None:
    index = SuffixIndex()
    first, again = decode(index=index), decode(index=index)
    assert [r.proposed for r in first] == [r.proposed for r in again]
    assert index.text_length == 3 + len(PLAIN) - len(first[-1].tokens)


def test_continuations_keep_to_gamma_and_to_the_nodes_of_their_index() -> None:
    target, prompt = make_repeating_target(V, 3), [0, 1, 2] * 4
    for gamma, nodes in ((2, 5), (5, 2)):
        rounds = [*speculative(
            target, ToyDraft(V, TABLE), FullShortlist(V), prompt, gamma=gamma, sampling=Sampling(),
            rng=SeededRandom(0), stop=StopRule(20), index=SuffixIndex(SuffixConfig(nodes=nodes)),
        )]  # fmt: skip
        continued = [len(r.proposed) - len(r.shortlist_sizes) for r in rounds[:3]]
        assert max(continued) == 2, (gamma, nodes)
    [first, *_] = speculative(  # 0 1 went on with 2 and with 3
        target, ToyDraft(V, TABLE), FullShortlist(V), [0, 1, 2, 0, 1, 3, 0, 1], gamma=1,
        sampling=Sampling(), rng=SeededRandom(0), stop=StopRule(9),
        index=SuffixIndex(SuffixConfig(nodes=5)),
    )  # fmt: skip
    assert {2, 3} <= {*first.proposed} and {*first.parents} == {-1}


def test_a_verifier_that_follows_parents_is_taken() -> None:
    def verify_trees(proposal: Proposal, p: Sequence[Distribution], rng: Any) -> Verdict:
        return verify(proposal, p, rng)

    for options in ({"tree": TreeShape(2, 2, 4)}, {"index": SuffixIndex()}):
        assert tokens_of(decode(verifier=verify_trees, **options)) == PLAIN


@pytest.mark.parametrize("temperature", [0.0, 3.0])
@pytest.mark.parametrize("verifier", VERIFIERS)
@pytest.mark.parametrize("growth", ["confidence", "static"])
def test_a_tree_without_branches_is_the_chain(
    growth: str, verifier: str, temperature: float
) -> None:
    """Token by token and draw by draw."""
    options: dict[str, Any] = {
        "sampling": Sampling(temperature), "verifier": VERIFIERS[verifier], "seed": 5,
    }  # fmt: skip
    first, second = RecordingSource(5), RecordingSource(5)
    chains = decode(**options, rng=first, gamma=3)
    trees = decode(**options, rng=second, tree=TreeShape(3, 1, 3, growth, "drawn"))
    assert tokens_of(chains) == tokens_of(trees) and first.decisions == second.decisions
    assert [f.path for f in chains] == [f.path for f in trees]


@each_tree
def test_a_wider_tree_is_drafted_with_one_pass_for_each_level(
    tree: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[int] = []
    right = type(DRAFT).step

    @functools.wraps(right)
    def count(self: Any, ids: Any, *rest: Any) -> Any:
        passes.append(len(ids))
        return right(self, ids, *rest)

    monkeypatch.setattr(type(DRAFT), "step", count)
    shape = TreeShape.parse(tree)
    decode(tree=shape, stop=StopRule(shape.depth + 1))  # one round of full depth at first
    assert len(passes) >= shape.depth and max(passes[1 : shape.depth] or [0]) <= shape.beam


class PathShortlist(BaseShortlist):
    """All ids; records what it is asked."""

    name, budget = "path", V

    def __init__(self, per_round: bool) -> None:
        self.per_round, self.rows_probed, self.contexts = per_round, 10, list[Context]()
        self.rounds: list[Round] = []

    def select(self, context: Context) -> torch.Tensor:
        self.contexts.append(context)
        return torch.arange(V)

    def observe(self, finished: Round) -> None:
        self.rounds.append(finished)


@pytest.mark.parametrize("verifier", VERIFIERS)
@pytest.mark.parametrize("per_round", [True, False])
@each_tree
def test_each_node_is_drafted_after_its_own_path(tree: str, per_round: bool, verifier: str) -> None:
    """A shortlist of each step is asked once for each node with candidates, one of a round once.
    The evidence has p and the draft's hidden state at every emitted token."""
    shortlist, other = PathShortlist(per_round), random_table(V, 2)
    rounds = speculative(
        ToyTarget(V, TABLE), ToyDraft(V, other), shortlist, [0, 1], gamma=1, trace=True,
        sampling=Sampling(1.0), rng=SeededRandom(3), stop=StopRule(30, (5,)),
        tree=TreeShape.parse(tree), verifier=VERIFIERS[verifier],
    )  # fmt: skip
    text = [0, 1]
    for finished in rounds:
        evidence, kept = finished.evidence, len(finished.tokens)
        assert evidence is not None
        asked = shortlist.contexts[:]
        shortlist.contexts.clear()
        assert len(asked) == 1 or not per_round
        assert finished.rows_probed == 10 * len(asked)
        paths = [find_path(finished.parents, node) for node in range(-1, len(finished.proposed))]
        known = {(*text, *(finished.proposed[i] for i in path)) for path in paths}
        for context in asked:
            assert torch.equal(context.hidden, other(context.tokens))
            assert context.depth == len(context.tokens) - len(text)
            pruned = "drawn" not in tree and "static" not in tree
            assert context.tokens in known or pruned or finished.stop
        accepted = [finished.proposed[node] for node in finished.path]
        assert list(finished.tokens[: len(accepted)]) == accepted
        assert len(evidence.target_distributions) == kept
        for i, p in enumerate(evidence.target_distributions):
            exact = Sampling(1.0).target_distribution(TABLE((*text, *finished.tokens[:i])))
            assert torch.equal(p.probs, exact.probs)
        for i, state in enumerate(evidence.draft_hidden):
            assert torch.equal(state, other((*text, *finished.tokens[:i])))
        assert finished.stop or len(evidence.draft_hidden) == kept
        chain = follow(evidence.proposal, finished.path)
        assert list(chain.tokens[: len(accepted)]) == accepted
        text += finished.tokens


@pytest.mark.parametrize("verifier", VERIFIERS)
@each_tree
def test_nothing_after_a_stop_is_shown(tree: str, verifier: str) -> None:
    inside = 0
    for seed in range(40):
        shortlist = PathShortlist(False)
        [*_, last] = speculative(
            ToyTarget(V, TABLE), ToyDraft(V, random_table(V, 1)), shortlist, [0, 1], gamma=1,
            sampling=Sampling(1.0), rng=SeededRandom(seed), stop=StopRule(9, (5,)), trace=True,
            tree=TreeShape.parse(tree), verifier=VERIFIERS[verifier],
        )  # fmt: skip
        kept, evidence = len(last.tokens), last.evidence
        assert last.stop and evidence is not None and shortlist.rounds[-1].tokens == last.tokens
        assert len(last.path) <= kept == len(evidence.target_distributions)
        assert [last.proposed[node] for node in last.path] == list(last.tokens[: len(last.path)])
        deepest = max(
            (len(find_path(last.parents, n)) for n in range(len(last.proposed))), default=0
        )
        assert deepest <= kept and len(evidence.acceptance) <= len(last.proposed)
        assert len(last.shortlist_sizes) == len(last.proposed) == len(evidence.proposal)
        inside += len(last.path) == kept
    assert inside


def test_statistical_index_learns_all_candidates_that_were_rejected() -> None:
    index = StatisticalIndex(10)
    index.observe(Round((4,), "", (), (), (), {}, None))
    parents = (-1, -1, 0, 0)
    index.observe(Round((1, 7), "", (0,), (1, 2, 3, 5), (), {}, None, parents=parents))
    assert index.successors(4).tolist() == [1]  # 2 lost to an accepted token
    assert index.successors(1).tolist() == [7, 3, 5]


@settings(max_examples=10, deadline=None)
@given(tree=st.sampled_from(TREES), seed=st.integers(0, 99))
def test_learners_learn_from_trees(tree: str, seed: int) -> None:
    """Their drafts change, and greedy outputs stay those of plain decoding."""
    paper = PaperLearner(DRAFT, PaperConfig(steps=2, samples=1))
    for learner in (OnlineLearner(DRAFT, EXTREME), paper):
        rounds = decode(seed, draft=learner.draft, learner=learner, tree=TreeShape.parse(tree))
        assert tokens_of(rounds) == PLAIN
        assert any("changed" in finished.events for finished in rounds)


@each_tree
def test_shortlists_that_observe_see_every_draft(tree: str) -> None:
    """MicroSpec's window takes all drafted tokens."""
    shortlist = MicroSpecShortlist(50, 30)
    rounds = decode(shortlist=shortlist, tree=TreeShape.parse(tree))
    assert tokens_of(rounds) == PLAIN
