"""The draft's health: verification corrects a confused draft, so only these tests see one.

After any round the caches of target and draft are those of a fresh pass over what was emitted;
and a draft that knows the target's laws is accepted as often as its list allows, to the last
bit, whatever went wrong in the rounds before.
"""

from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from drawn import drawn
from helpers.drafts import assert_caches_fresh
from lists import LISTS, over_states
from minispec.certificate.toys import ToyDraft, ToyTarget, random_table
from minispec.commit import StopRule
from minispec.decode import speculative
from minispec.models.kv_cache import KVCache
from minispec.propose import Drafter
from minispec.sampling import Sampling, SeededRandom
from minispec.verify import VERIFIERS

names = st.sampled_from(list(LISTS))
verifiers = st.sampled_from(list(VERIFIERS))
History = dict[str, Any]
histories = st.fixed_dictionaries({
    "prompt": st.lists(st.integers(0, 49), min_size=1, max_size=6),
    "gamma": st.integers(1, 5),
    "temperature": st.sampled_from([0.0, 5.0, 9.0]),
    "seed": st.integers(0, 10**6),
    "shortlist": names,
    "verifier": verifiers,
})  # fmt: skip


def assert_healthy(history: History) -> None:
    """Both caches are those of a fresh pass throughout a history."""
    assert_caches_fresh(
        history["prompt"], over_states(history["shortlist"], 50, 24), gamma=history["gamma"],
        sampling=Sampling(history["temperature"]), rng=SeededRandom(history["seed"]),
        verifier=VERIFIERS[history["verifier"]],
    )  # fmt: skip


@drawn
@given(history=histories)
def test_after_any_round_both_caches_are_those_of_a_fresh_pass(history: History) -> None:
    assert_healthy(history)


V = 6
LAWS = random_table(V, 1)


@drawn
@given(
    prompt=st.lists(st.integers(0, V - 1), min_size=2, max_size=4),
    confused=st.integers(0, 12),
    gamma=st.integers(1, 5),
    seed=st.integers(0, 10**6),
    shortlist=names,
    verifier=verifiers,
)
def test_a_draft_that_knows_the_target_is_accepted_as_its_list_allows(
    prompt: list[int], confused: int, gamma: int, seed: int, shortlist: str, verifier: str
) -> None:
    """For its first tokens the draft guesses wildly, so the history is full of rejections; from
    then on its logits are the target's. The coin of a token must then be exactly p's mass on
    the list: 1 for a list of all ids. In a block they multiply."""
    other = random_table(V, 2, spread=4.0)

    def guess(tokens: tuple[int, ...]) -> torch.Tensor:
        return other(tokens) if len(tokens) < confused else LAWS(tokens)

    rounds = speculative(
        ToyTarget(V, LAWS), ToyDraft(V, guess), LISTS[shortlist](V), prompt, gamma=gamma,
        sampling=Sampling(1.0), rng=SeededRandom(seed), stop=StopRule(16), trace=True,
        verifier=VERIFIERS[verifier],
    )  # fmt: skip
    length = len(prompt)
    for finished in rounds:
        assert finished.evidence is not None
        if length >= confused:
            mass = 1.0
            evidence = finished.evidence
            pairs = zip(
                evidence.target_distributions,
                evidence.proposal.draft_distributions,
                evidence.acceptance,
                strict=False,
            )
            for p, q, acceptance in pairs:
                listed = 1.0 if len(q.ids) == V else float(p.probs[p.common_indices(q)[0]].sum())
                mass = listed * (mass if verifier == "block" else 1.0)
                assert float(acceptance) == pytest.approx(mass, abs=1e-12)
        length += len(finished.tokens)


HISTORY: History = {
    "prompt": [1, 2, 3], "gamma": 3, "temperature": 5.0, "seed": 0, "shortlist": "full",
    "verifier": "token",
}  # fmt: skip


def not_forgotten(patch: pytest.MonkeyPatch) -> None:
    """What was rejected stays in the target's cache."""
    patch.setattr(KVCache, "truncate", lambda self, length: None)


def own_guesses_kept(patch: pytest.MonkeyPatch) -> None:
    """The draft keeps the keys of its own guesses where they were accepted."""
    right = Drafter.resync

    def kept(self: Drafter, ids: torch.Tensor, aux_hidden_states: torch.Tensor) -> None:
        held = self._cache.length - self._verified_length
        skip = min(held, len(ids) - 1)
        self._verified_length += skip
        right(self, ids[skip:], aux_hidden_states[skip:])

    patch.setattr(Drafter, "resync", kept)


def one_place_off(patch: pytest.MonkeyPatch) -> None:
    """The draft hears the target's taps of the place before."""
    right = Drafter.resync
    patch.setattr(
        Drafter,
        "resync",
        lambda self, ids, aux_hidden_states: right(self, ids, aux_hidden_states.roll(1, 0)),
    )


@pytest.mark.parametrize("defect", [not_forgotten, own_guesses_kept, one_place_off])
def test_a_confused_draft_is_seen(defect: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its law is exact all the same, which is why these tests exist."""
    defect(monkeypatch)
    with pytest.raises((AssertionError, ValueError)):
        for seed in range(10):
            assert_healthy(HISTORY | {"seed": seed})
