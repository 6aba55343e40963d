"""Decoding with continuations of the text alone."""

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.toys import make_repeating_target
from minispec.auto_shape import ShapeChooser
from minispec.certificate.toys import ToyTarget, random_table
from minispec.commit import StopRule
from minispec.decode import autoregressive
from minispec.errors import ArgumentError
from minispec.round_costs import PassCosts
from minispec.sampling import Sampling, SeededRandom
from minispec.suffix_decoding import suffix_decoding
from minispec.suffix_index import Continuations, SuffixConfig, SuffixIndex
from minispec.types import Round
from minispec.verify import verify_block

V = 6
TARGET = ToyTarget(V, random_table(V, seed=3, spread=3.0))


def run(target: ToyTarget, prompt, limit: int = 20, **changes: Any) -> list[Round]:
    settings: dict[str, Any] = {
        "gamma": 4, "sampling": Sampling(), "rng": SeededRandom(0), "stop": StopRule(limit),
        "index": SuffixIndex(SuffixConfig(min_match=1, capacity=64)),
    } | changes  # fmt: skip
    return list(suffix_decoding(target, prompt, **settings))


def tokens_of(rounds: list[Round]) -> list[int]:
    return [token for finished in rounds for token in finished.tokens]


@given(
    prompt=st.lists(st.integers(0, V - 1), min_size=1, max_size=12),
    gamma=st.integers(1, 6),
    limit=st.integers(0, 12),
    block=st.booleans(),
)
def test_greedy_suffix_decoding_equals_plain_decoding(prompt, gamma, limit, block):
    stop, changes = StopRule(limit, (5,)), {"verifier": verify_block} if block else {}
    plain = autoregressive(TARGET, prompt, sampling=Sampling(), rng=SeededRandom(0), stop=stop)
    rounds = run(TARGET, prompt, gamma=gamma, stop=stop, **changes)
    assert tokens_of(rounds) == tokens_of([*plain])


def test_suffix_decoding_accepts_what_repeats():
    rounds = run(make_repeating_target(V, 3), [1, 2, 4, 1, 2])
    assert tokens_of(rounds) == [4, 1, 2] * 6 + [4, 1]
    assert [len(finished.tokens) for finished in rounds] == [4, 4, 5, 5, 2]
    assert all(len(finished.path) == len(finished.proposed) for finished in rounds)
    assert rounds[0].shortlist_sizes == () and rounds[0].seconds["draft"] > 0
    unlike = run(make_repeating_target(V, 3), [1, 2, 4], limit=1)
    assert unlike[0].proposed == ()


class FirstOnly(ShapeChooser):
    """Chooses the first continuation, and no draft."""

    def choose(self, found: Continuations) -> tuple[None, int]:
        return None, min(1, len(found))


def test_no_more_continuations_are_proposed_than_were_chosen():
    """Of four that are right, the first alone."""
    prompt, chooser = [0, 1, 2] * 4, FirstOnly(PassCosts(((1, 1.0), (9, 1.8))))
    chosen = run(make_repeating_target(V, 3), prompt, tree=chooser)
    assert {len(finished.proposed) for finished in chosen} == {1}
    assert tokens_of(chosen) == tokens_of(run(make_repeating_target(V, 3), prompt))


def test_index_starts_afresh_unless_the_conversation_continues():
    index = SuffixIndex(SuffixConfig(min_match=1, capacity=64))
    first = run(make_repeating_target(V, 2), [1, 2], limit=4, index=index)
    conversation = [1, 2, *tokens_of(first)]
    held = index.text_length
    rounds = run(make_repeating_target(V, 2), [*conversation, 3, 4, 3], limit=1, index=index,
                 continued=True)  # fmt: skip
    assert held >= 2 and rounds[0].proposed == ()  # gamma is cut to the limit
    assert index.text_length == len(conversation) + 3  # no token was added twice
    run(make_repeating_target(V, 2), [3, 4], limit=1, index=index)
    assert index.text_length == 2


def test_earlier_texts_are_continued():
    index = SuffixIndex(SuffixConfig(min_match=2, capacity=64), earlier_texts=[[1, 2, 5, 4, 3]])
    for _ in range(2):
        assert run(TARGET, [1, 2], index=index)[0].proposed == (5, 4, 3)
    assert run(TARGET, [1, 2])[0].proposed == ()


def test_rounds_can_be_abandoned():
    rounds = suffix_decoding(
        make_repeating_target(V, 3), [1, 2, 4, 1, 2], gamma=4, sampling=Sampling(),
        rng=SeededRandom(0), stop=StopRule(20),
    )  # fmt: skip
    assert len([*itertools.islice(rounds, 2)]) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gamma": 0}, "gamma 0 must lie in 1..16"),
        ({"prompt": []}, "the prompt has no tokens"),
        ({"sampling": Sampling(logit_bias=((V, 1.0),))}, "name token 6"),
        ({"stop": 3}, "stop is int 3"),
    ],
)
def test_suffix_decoding_refuses_bad_arguments_before_a_model_runs(changes, message):
    settings = {"prompt": [0]} | changes
    with pytest.raises(ArgumentError, match=message):
        run(TARGET, **settings)
