"""Continuations in a proposal: sharing prefixes with the draft's tokens, and exact."""

import itertools
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minispec.certificate.exact_sampling import ExactSampling
from minispec.certificate.walker import distribution_of, fraction_distribution, total_variation
from minispec.logits_processor import History
from minispec.sampling import Sampling
from minispec.suffix_candidates import add_continuations, merge_continuations
from minispec.suffix_index import Continuations, SuffixConfig, SuffixIndex
from minispec.types import Distribution, Proposal
from minispec.verify import verify_siblings

PROMPT = History((9,), 1)
V = 3


def draw(*tokens: int) -> tuple[Distribution, ...]:
    """Any distributions for drafted tokens: merging does not read them."""
    return tuple(Distribution(torch.arange(10), torch.full((10,), 0.1)) for _ in tokens)


def merge(proposal: Proposal, tokens, parents, limit: int = 8, **shaping: Any) -> Proposal:
    found = Continuations(tuple(tokens), tuple(parents))
    return merge_continuations(proposal, found, limit, Sampling(**shaping), PROMPT)


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


def test_merge_continuations_adds_at_most_the_limit():
    merged = merge(Proposal((1,), draw(1)), (1, 2, 3, 4, 5), (-1, 0, -1, 1, 2), limit=2)
    assert merged.tokens == (1, 2, 3)  # 1 is the draft's: it takes no place
    assert merged.parents == (-1, 0, -1)


def test_merge_continuations_leaves_out_bad_words_and_what_follows_them():
    shaping = {"bad_words": ((2,), (1, 3))}
    merged = merge(Proposal((), ()), (2, 5, 1, 3, 4), (-1, 0, -1, 2, 2), **shaping)
    assert merged.tokens == (1, 4) and merged.parents == (-1, 0)


def test_add_continuations_follows_the_text_and_branches_beside_a_draft():
    index = SuffixIndex(SuffixConfig(min_match=1, nodes=3))
    tokens = (1, 2, 5, 1, 2, 6, 1)
    alone = add_continuations(Proposal((), ()), index, 4, Sampling(), History(tokens, 2))
    assert (alone.tokens, alone.parents) == ((2, 6, 1), (-1, 0, 1))  # the latest place first
    longer = History((*tokens, 2), 2)
    drafted = add_continuations(Proposal((7,), draw(7)), index, 2, Sampling(), longer)
    assert index.text_length == 8
    assert drafted.tokens == (7, 6, 5, 1) and drafted.parents == (-1, -1, -1, 1)
    assert add_continuations(Proposal((), ()), index, 0, Sampling(), longer).tokens == ()


@given(
    p=st.lists(st.integers(0, 4), min_size=V, max_size=V).filter(any),
    q=st.lists(st.integers(0, 4), min_size=V, max_size=V).filter(any),
    drawn=st.integers(0, 2),
    picked=st.lists(st.integers(0, V - 1), unique=True, max_size=V),
)
def test_drawn_and_picked_siblings_leave_the_target_distribution(p, q, drawn, picked):
    """One position, in fractions: candidates drawn from q, with replacement, and continuations
    added unless one of those is the same token. Every branch is enumerated."""
    assert emit_distribution(p, q, drawn, picked, continuations_first=False) == {
        token: Fraction(weight, sum(p)) for token, weight in enumerate(p) if weight
    }


def test_a_continuation_tested_before_the_draft_that_may_replace_it_is_not_exact():
    """The same with the continuation first, left out where the draft drew the same token."""
    p, q = (1, 1, 2), (2, 1, 1)
    wrong = emit_distribution(p, q, 1, [0], continuations_first=True)
    assert total_variation(wrong, {0: Fraction(1, 4), 1: Fraction(1, 4), 2: Fraction(1, 2)}) > 0.02


def emit_distribution(p, q, drawn: int, picked, *, continuations_first: bool) -> dict[Any, Any]:
    """The distribution of the token that verification emits at a position with distribution p."""
    target, draft = fraction_distribution(p), fraction_distribution(q)
    found = Continuations(tuple(picked), (-1,) * len(picked))
    sampling = ExactSampling(Sampling(1.0))

    def emit(source) -> int:
        tokens = [int(draft.ids[source.choose(draft.probs)]) for _ in range(drawn)]
        own = Proposal(tuple(tokens), (draft,) * drawn, (-1,) * drawn)
        merged = merge_continuations(own, found, 8, sampling, PROMPT)
        if continuations_first:
            order = [*range(drawn, len(merged)), *range(drawn)]
            merged = Proposal(
                tuple(merged.tokens[i] for i in order),
                tuple(merged.draft_distributions[i] for i in order),
            )
        after = itertools.repeat(target, len(merged))  # any: only the position's token is read
        verdict = verify_siblings(merged, [target, *after], source)
        return merged.tokens[verdict.path[0]] if verdict.path else verdict.next_token

    return distribution_of(emit)


@pytest.mark.parametrize("temperature", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("shape", [Sampling, lambda t, **k: ExactSampling(Sampling(t, **k))])
def test_continuations_are_point_masses_under_any_sampling(shape, temperature):
    sampling = shape(temperature, top_k=2, top_p=0.5, min_p=0.5)
    found = Continuations((4,), (-1,))
    merged = merge_continuations(Proposal((), ()), found, 8, sampling, PROMPT)
    assert [*merged.draft_distributions[0].probs] == [1]
