"""Continuations in a proposal: sharing prefixes with the draft's tokens, and exact."""

import itertools
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minispec.certificate.exact_sampling import ExactSampling
from minispec.certificate.walker import distribution_of, fraction_distribution, total_variation
from minispec.logits_processor import History
from minispec.sampling import Sampling
from minispec.suffix_candidates import SuffixProposer, merge_continuations
from minispec.suffix_index import Continuations, SuffixConfig, SuffixIndex
from minispec.types import Distribution, Proposal
from minispec.verify import verify, verify_block

PROMPT = History((9,), 1)
V = 3


def draw(*tokens: int) -> tuple[Distribution, ...]:
    """Any distributions for drafted tokens: merging does not read them."""
    return tuple(Distribution(torch.arange(10), torch.full((10,), 0.1)) for _ in tokens)


def merge(proposal: Proposal, tokens, parents, **shaping: Any) -> Proposal:
    found = Continuations(tuple(tokens), tuple(parents))
    return merge_continuations(proposal, found, Sampling(**shaping), PROMPT)


def test_merge_continuations_shares_prefixes_with_the_drafts_tokens():
    chain = Proposal((1, 2), draw(1, 2))
    merged = merge(chain, (1, 3, 2, 4, 1), (-1, 0, 0, 2, -1))
    assert merged.tokens == (1, 2, 3, 4)  # 1 and 1 2 are the draft's
    assert merged.parents == (-1, 0, 0, 1)
    assert merged.draft_distributions[:2] == chain.draft_distributions
    for q, token in zip(merged.draft_distributions[2:], (3, 4), strict=True):
        assert q.ids.tolist() == [token] and q.probs.tolist() == [1]


def test_merge_continuations_takes_the_first_of_equal_siblings():
    siblings = Proposal((1, 1, 2), draw(1, 1, 2), (-1, -1, 1))  # drawn with replacement
    assert merge(siblings, (1, 2), (-1, 0)).parents == (-1, -1, 1, 0)


def test_merge_continuations_keeps_a_chain_a_chain():
    nothing = Proposal((), ())
    assert merge(nothing, (1, 2, 3), (-1, 0, 1)).parents == (-1, 0, 1)
    assert merge(Proposal((1,), draw(1)), (1, 2), (-1, 0)).parents == (-1, 0)
    assert merge(nothing, (1, 2), (-1, -1)).parents == (-1, -1)
    assert len(merge(nothing, (), ())) == 0


def test_merge_continuations_leaves_out_bad_words_and_what_follows_them():
    shaping = {"bad_words": ((2,), (1, 3))}
    merged = merge(Proposal((), ()), (2, 5, 1, 3, 4), (-1, 0, -1, 2, 2), **shaping)
    assert merged.tokens == (1, 4) and merged.parents == (-1, 0)


@pytest.mark.parametrize("drafted", [(), (1,), (1, 2)])
@pytest.mark.parametrize("bad", [(1, 2, 3), (2, 3)])
def test_bad_words_may_begin_on_the_way_to_a_continuation(drafted, bad):
    chain = Proposal(drafted, draw(*drafted))
    merged = merge(chain, (1, 2, 3, 4, 3), (-1, 0, 1, 2, 0), bad_words=(bad,))
    assert merged.tokens == (1, 2, 3) and merged.parents == (-1, 0, 0)  # 3 after 1 alone


def test_bad_words_may_end_a_long_continuation():
    merged = merge(Proposal((), ()), range(1, 8), range(-1, 6), bad_words=((5, 6, 7),))
    assert merged.tokens == (1, 2, 3, 4, 5, 6)
    kept = merge(Proposal((), ()), range(1, 8), range(-1, 6), bad_words=((5, 1, 7), (1, 7)))
    assert kept.tokens == (1, 2, 3, 4, 5, 6, 7)


def test_find_follows_the_text_and_keeps_its_limits():
    index = SuffixIndex(SuffixConfig(min_match=1))
    tokens, nothing = (1, 2, 5, 1, 2, 6, 1), Proposal((), ())

    def extend(proposal: Proposal, text, most: int, **limits: int) -> tuple[Any, Any]:
        proposer = SuffixProposer(index, **({"depth": 4, "nodes": 3} | limits))
        found = proposer.find(text, most)
        merged = merge_continuations(proposal, found, Sampling(), History(text, 2))
        return merged.tokens, merged.parents

    assert extend(nothing, tokens, 9, siblings=1) == ((2, 6, 1), (-1, 0, 1))
    longer = (*tokens, 2)
    assert extend(nothing, longer, 9, siblings=1) == ((6, 1, 2), (-1, 0, 1))  # the latest place
    assert index.text_length == 8
    assert extend(nothing, longer, 2) == ((6, 5, 1), (-1, -1, 0))
    assert extend(nothing, longer, 9, depth=1) == ((6, 5), (-1, -1))
    assert extend(nothing, longer, 0) == ((), ())
    assert extend(Proposal((7,), draw(7)), longer, 2) == ((7, 6, 5, 1), (-1, -1, -1, 1))
    # The draft's own 6 takes the place of the continuation's.
    assert extend(Proposal((6,), draw(6)), longer, 2) == ((6, 5, 1), (-1, -1, 0))


WEIGHTS = st.lists(st.integers(0, 4), min_size=V, max_size=V).filter(any)
VERIFIERS = {"token": verify, "block": verify_block}
# Two levels: each drawn token of the first has a drawn one below it, and continuations branch.
BRANCHES = Continuations((0, 1, 2, 1, 0), (-1, 0, -1, 0, 2))


@pytest.mark.parametrize("verifier", VERIFIERS)
@given(
    p=WEIGHTS,
    q=WEIGHTS,
    drawn=st.integers(0, 2),
    picked=st.lists(st.integers(0, V - 1), unique=True, max_size=V),
)
def test_drawn_and_picked_siblings_leave_the_target_distribution(verifier, p, q, drawn, picked):
    """One position, in fractions: candidates drawn from q, with replacement, and continuations
    added unless one of those is the same token. Every branch is enumerated."""
    found = Continuations(tuple(picked), (-1,) * len(picked))
    emitted = emit_distribution(verifier, [p] * 9, q, drawn, 0, found)
    assert {token: share for (token,), share in emitted.items()} == {
        token: Fraction(weight, sum(p)) for token, weight in enumerate(p) if weight
    }


@pytest.mark.parametrize("verifier", VERIFIERS)
@given(first=WEIGHTS, after=st.lists(WEIGHTS, min_size=V, max_size=V), q=WEIGHTS)
@settings(max_examples=25)
def test_continuations_on_two_levels_leave_the_target_distribution(verifier, first, after, q):
    emitted = emit_distribution(verifier, [first, *after], q, 2, 1, BRANCHES)
    assert emitted == multiply_levels(first, after)


def test_a_continuation_tested_before_the_draft_that_may_replace_it_is_not_exact():
    """The continuation first, left out where the draft drew the same token."""
    p, found = (1, 1, 2), Continuations((0,), (-1,))
    wrong = emit_distribution("token", [p] * 9, (2, 1, 1), 1, 0, found, change=put_drafted_last)
    right = {(0,): Fraction(1, 4), (1,): Fraction(1, 4), (2,): Fraction(1, 2)}
    assert total_variation(wrong, right) > 0.02


def emit_distribution(
    verifier: str, p, q, drawn: int, below: int, found: Continuations, change=None
) -> dict[Any, Any]:
    """The distribution of the text that verification emits. ``p[0]``: weights of the first token,
    ``p[1 + i]``: of the token after token i. ``drawn`` candidates are drawn from q for the first,
    and ``below`` after each of them. A second token that was not verified is drawn as well, if any
    is drafted. ``change`` the merged proposal of so many drafted tokens."""
    targets, draft = [*map(fraction_distribution, p)], fraction_distribution(q)
    sampling = ExactSampling(Sampling(1.0))

    def emit(source) -> tuple[int, ...]:
        parents = [*[-1] * drawn, *[node for node in range(drawn) for _ in range(below)]]
        tokens = [int(draft.ids[source.choose(draft.probs)]) for _ in parents]
        own = Proposal(tuple(tokens), (draft,) * len(parents), tuple(parents))
        merged = merge_continuations(own, found, sampling, PROMPT)
        if change:
            merged = change(merged, len(own))
        after = [targets[1 + token] for token in merged.tokens]
        verdict = VERIFIERS[verifier](merged, [targets[0], *after], source)
        text = (*(merged.tokens[node] for node in verdict.path), verdict.next_token)
        if below and len(text) == 1:
            second = targets[1 + text[0]]
            text = (*text, int(second.ids[source.choose(second.probs)]))
        return text[: 1 + (below > 0)]

    return distribution_of(emit)


def multiply_levels(first, after) -> dict[Any, Any]:
    """The distribution of two tokens in plain decoding."""
    pairs = itertools.product(range(V), range(V))
    shares = {
        (a, b): Fraction(first[a] * after[a][b], sum(first) * sum(after[a])) for a, b in pairs
    }
    return {text: share for text, share in shares.items() if share}


def put_drafted_last(merged: Proposal, drafted: int) -> Proposal:
    order = [*range(drafted, len(merged)), *range(drafted)]
    return Proposal(
        tuple(merged.tokens[i] for i in order),
        tuple(merged.draft_distributions[i] for i in order),
        (-1,) * len(merged),
    )


@pytest.mark.parametrize("temperature", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("shape", [Sampling, lambda t, **k: ExactSampling(Sampling(t, **k))])
def test_continuations_are_point_masses_under_any_sampling(shape, temperature):
    sampling = shape(temperature, top_k=2, top_p=0.5, min_p=0.5)
    found = Continuations((4,), (-1,))
    merged = merge_continuations(Proposal((), ()), found, sampling, PROMPT)
    assert [*merged.draft_distributions[0].probs] == [1]
