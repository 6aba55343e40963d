"""What a shortlist and a learner get to observe: the round as it was emitted, nothing after it."""

from typing import Any

import pytest
import torch
from torch import Tensor

from minispec.certificate.toys import ToyDraft, ToyTarget, random_table
from minispec.commit import StopRule
from minispec.decode import speculative
from minispec.sampling import Sampling, SeededRandom
from minispec.types import BaseShortlist, Context, LearnerUpdate, Round
from minispec.verify import VERIFIERS

V, EOS = 6, 5
PROMPT = [0, 1]
TABLE = random_table(V, seed=3)
GAMMA = 8


class ObservingShortlist(BaseShortlist):
    """All ids, and every round that it was shown."""

    name, budget, top_ids_wanted = "observing", V, 3

    def __init__(self) -> None:
        self.observed: list[Round] = []

    def select(self, context: Context) -> Tensor:
        return torch.arange(V)

    def observe(self, finished: Round) -> None:
        self.observed.append(finished)


class ObservingLearner:
    """Changes nothing, and keeps what it was shown."""

    invalidates_cache, top_ids_wanted = False, 2

    def __init__(self, draft: ToyDraft) -> None:
        self.draft, self.observed = draft, list[Round]()
        self.prefilled: list[int] = []

    def start(self, continued: bool) -> None: ...

    def on_prefill(self, ids: Tensor, aux_hidden_states: Tensor, hidden: Tensor) -> None:
        assert len(ids) == len(aux_hidden_states) == len(hidden)
        self.prefilled += ids.tolist()

    def adjust_logits(self, logits: Tensor, *rest: Any) -> Tensor:
        return logits

    def observe(self, finished: Round) -> LearnerUpdate:
        self.observed.append(finished)
        return LearnerUpdate()


def decode(verifier: str, draft_seed: int, seed: int) -> tuple[list[Round], Any, Any]:
    """The rounds of a text, and the shortlist and the learner that observed them."""
    shortlist = ObservingShortlist()
    learner = ObservingLearner(ToyDraft(V, random_table(V, draft_seed)))
    rounds = list(speculative(
        ToyTarget(V, TABLE), learner.draft, shortlist, PROMPT, gamma=GAMMA, sampling=Sampling(1.0),
        rng=SeededRandom(seed), stop=StopRule(30, (EOS,)), verifier=VERIFIERS[verifier],
        learner=learner, trace=True,
    ))  # fmt: skip
    return rounds, shortlist, learner


@pytest.mark.parametrize("draft_seed", [3, 4], ids=["the target itself", "another"])
@pytest.mark.parametrize("verifier", VERIFIERS)
def test_speculative_shows_nothing_after_a_stop(verifier: str, draft_seed: int) -> None:
    """Of the round that stops: as many drafted tokens, distributions and acceptances as tokens
    were emitted, and the last one's own distribution only if the target drew it itself."""
    inside, drawn = 0, 0
    for seed in range(25):
        rounds, shortlist, learner = decode(verifier, draft_seed, seed)
        last = rounds[-1]
        for finished in (last, shortlist.observed[-1], learner.observed[-1]):
            kept, evidence = len(finished.tokens), finished.evidence
            assert finished.stop and evidence is not None
            assert len(finished.proposed) <= kept and len(finished.path) <= kept
            assert finished.proposed == evidence.proposal.tokens
            assert len(evidence.proposal.draft_distributions) == len(finished.proposed)
            assert len(finished.shortlist_sizes) == len(finished.proposed)
            assert len(evidence.target_distributions) == kept
            assert len(evidence.top_ids) == len(evidence.top_logits) == kept
            assert len(evidence.draft_hidden) <= kept
            assert len(evidence.acceptance) <= len(finished.proposed)
            assert EOS not in finished.tokens[:-1] and EOS not in finished.proposed[: kept - 1]
            accepted_stop = len(finished.path) == kept
            assert (evidence.next_distribution is None) == accepted_stop
        inside, drawn = inside + accepted_stop, drawn + (not accepted_stop)
    assert inside and (drawn or draft_seed == 3)


@pytest.mark.parametrize("draft_seed", [3, 4], ids=["the target itself", "another"])
@pytest.mark.parametrize("verifier", VERIFIERS)
def test_speculative_shows_each_round_as_it_was_emitted(verifier: str, draft_seed: int) -> None:
    """The distributions are those of the tokens' own positions, in every round, and what the
    draft processed is the text but for its first token and what a last round emitted."""
    for seed in range(8):
        rounds, shortlist, learner = decode(verifier, draft_seed, seed)
        text = list(PROMPT)
        for finished, seen, learnt in zip(
            rounds, shortlist.observed, learner.observed, strict=True
        ):
            assert seen.tokens == learnt.tokens == finished.tokens
            assert seen.path == finished.path == tuple(range(len(finished.path)))
            evidence = seen.evidence
            assert evidence is finished.evidence is learnt.evidence
            for i, p in enumerate(evidence.target_distributions):
                exact = Sampling(1.0).target_distribution(TABLE((*text, *finished.tokens[:i])))
                assert torch.equal(p.probs, exact.probs) and torch.equal(p.ids, exact.ids)
                logits, ids = TABLE((*text, *finished.tokens[:i])).topk(3)
                assert torch.equal(evidence.top_ids[i], ids)
                assert torch.equal(evidence.top_logits[i].double(), logits)
            # A round that stops does not process its tokens, so the state of one after a path that
            # was wholly accepted is not known.
            whole = len(finished.path) == len(finished.proposed)
            unknown = bool(finished.stop) and whole and len(finished.tokens) > len(finished.path)
            assert len(evidence.draft_hidden) == len(finished.tokens) - unknown
            for i, state in enumerate(evidence.draft_hidden):
                hidden = random_table(V, draft_seed)((*text, *finished.tokens[:i]))
                assert torch.equal(state, hidden)
            for i, q in enumerate(evidence.proposal.draft_distributions):
                logits = random_table(V, draft_seed)((*text, *finished.proposed[:i]))
                assert torch.equal(q.probs, Sampling(1.0).target_distribution(logits).probs)
            accepted = len(finished.path)
            assert finished.proposed[:accepted] == finished.tokens[:accepted]
            text += finished.tokens
        assert learner.prefilled == text[1 : len(text) - len(rounds[-1].tokens)]
