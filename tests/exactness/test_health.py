"""The draft's caches and inputs: verification corrects every wrong draft, so the output is exact
whatever the draft computes, and only these tests detect a defect there.

After any round the caches of target and draft equal those of a fresh pass over the emitted
tokens. A draft with the target's logits is accepted with exactly p's mass on its shortlist, after
any history of rejections.
"""

from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from helpers.drafts import assert_caches_fresh
from helpers.exactness.shortlists import SHORTLISTS, build_shortlist
from helpers.exactness.strategies import property_settings
from minispec.certificate.toys import ToyDraft, ToyTarget, random_table
from minispec.commit import StopRule
from minispec.decode import speculative
from minispec.growth import TreeShape
from minispec.models.kv_cache import KVCache
from minispec.propose import Drafter
from minispec.sampling import Sampling, SeededRandom
from minispec.verify import VERIFIERS

names = st.sampled_from(list(SHORTLISTS))
verifiers = st.sampled_from(list(VERIFIERS))
History = dict[str, Any]
histories = st.fixed_dictionaries({
    "prompt": st.lists(st.integers(0, 49), min_size=1, max_size=6),
    "gamma": st.integers(1, 5),
    "temperature": st.sampled_from([0.0, 5.0, 9.0]),
    "seed": st.integers(0, 10**6),
    "shortlist": names,
    "verifier": verifiers,
    "tree": st.sampled_from([None, "2x2x5", "3x3x7:static", "3x2x6:drawn", "2x3x6:distinct"]),
})  # fmt: skip


def assert_history_fresh(history: History) -> None:
    """Both caches equal those of a fresh pass after every round of a history."""
    assert_caches_fresh(
        history["prompt"], build_shortlist(history["shortlist"], 50, 24), gamma=history["gamma"],
        sampling=Sampling(history["temperature"]), rng=SeededRandom(history["seed"]),
        verifier=VERIFIERS[history["verifier"]],
        tree=TreeShape.parse(history["tree"]) if history["tree"] else None,
    )  # fmt: skip


@property_settings
@given(history=histories)
def test_speculative_caches_equal_a_fresh_pass_after_any_round(history: History) -> None:
    assert_history_fresh(history)


V = 6
TARGET_LOGITS = random_table(V, 1)


@property_settings
@given(
    prompt=st.lists(st.integers(0, V - 1), min_size=2, max_size=4),
    learned_at=st.integers(0, 12),
    gamma=st.integers(1, 5),
    seed=st.integers(0, 10**6),
    shortlist=names,
    verifier=verifiers,
)
def test_acceptance_of_a_draft_with_the_target_logits_is_the_mass_on_its_shortlist(
    prompt: list[int], learned_at: int, gamma: int, seed: int, shortlist: str, verifier: str
) -> None:
    """Up to a length of ``learned_at`` tokens the draft has other logits, so the history is full
    of rejections; after that its logits are the target's. The acceptance probability of a token
    must then be exactly p's mass on the shortlist: 1 for a shortlist of all ids. In a block the
    probabilities multiply."""
    other = random_table(V, 2, spread=4.0)

    def draft_logits(tokens: tuple[int, ...]) -> torch.Tensor:
        return other(tokens) if len(tokens) < learned_at else TARGET_LOGITS(tokens)

    rounds = speculative(
        ToyTarget(V, TARGET_LOGITS), ToyDraft(V, draft_logits), SHORTLISTS[shortlist](V), prompt,
        gamma=gamma, sampling=Sampling(1.0), rng=SeededRandom(seed), stop=StopRule(16), trace=True,
        verifier=VERIFIERS[verifier],
    )  # fmt: skip
    length = len(prompt)
    for finished in rounds:
        assert finished.evidence is not None
        if length >= learned_at:
            mass = 1.0
            evidence = finished.evidence
            pairs = zip(
                evidence.target_distributions,
                evidence.proposal.draft_distributions,
                evidence.acceptance,
                strict=False,
            )
            for p, q, acceptance in pairs:
                covered = 1.0 if len(q.ids) == V else float(p.probs[p.common_indices(q)[0]].sum())
                mass = covered * (mass if verifier == "block" else 1.0)
                assert float(acceptance) == pytest.approx(mass, abs=1e-12)
        length += len(finished.tokens)


HISTORY: History = {
    "prompt": [1, 2, 3], "gamma": 3, "temperature": 5.0, "seed": 0, "shortlist": "full",
    "verifier": "token", "tree": None,
}  # fmt: skip


def skip_truncation(patch: pytest.MonkeyPatch) -> None:
    """Rejected tokens stay in the target's cache."""
    patch.setattr(KVCache, "truncate", lambda self, length: None)


def keep_drafted_keys(patch: pytest.MonkeyPatch) -> None:
    """The draft keeps the keys of accepted draft tokens, which it computed from its own states."""
    right = Drafter.resync

    def resync_rest(
        self: Drafter, ids: torch.Tensor, aux_hidden_states: torch.Tensor, *path: Any
    ) -> None:
        drafted = self._cache.length - self._verified_length
        skip = min(drafted, len(ids) - 1)
        self._verified_length += skip
        right(self, ids[skip:], aux_hidden_states[skip:], *path)

    patch.setattr(Drafter, "resync", resync_rest)


def shift_hidden_states(patch: pytest.MonkeyPatch) -> None:
    """The draft gets the target's auxiliary hidden states of the position before."""
    right = Drafter.resync
    patch.setattr(
        Drafter,
        "resync",
        lambda self, ids, aux, *path: right(self, ids, aux.roll(1, 0), *path),
    )


def keep_first_nodes(patch: pytest.MonkeyPatch) -> None:
    """The target's cache keeps the first nodes of a tree instead of the accepted ones."""
    patch.setattr(KVCache, "keep", lambda self, start, path: self.truncate(start + len(path)))


@pytest.mark.parametrize("tree", [None, "2x3x6"])
@pytest.mark.parametrize(
    "defect", [skip_truncation, keep_drafted_keys, shift_hidden_states, keep_first_nodes]
)
def test_stale_cache_is_detected(
    defect: Any, tree: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The output would still be exact, which is why these tests exist."""
    if defect is keep_first_nodes and tree is None:
        return  # of a chain they are the accepted ones
    defect(monkeypatch)
    with pytest.raises((AssertionError, ValueError)):
        for seed in range(10):
            assert_history_fresh(HISTORY | {"seed": seed, "tree": tree})
