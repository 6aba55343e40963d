"""Checks of the properties of one round: 1 and 2 (zero probabilities), 3 (recorded distributions),
6 (drafts that change) and 7 (what shortlists and lengths may depend on).

A check runs production code on one case. It returns the total variation from the right
distribution, or raises if something happens that never may. The project's parts pass the checks;
planted defects fail them.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

import torch

from helpers.exactness.shortlists import build_frspec
from minispec.certificate.decodings import Decoding, ToyModels, decode_with
from minispec.certificate.toys import ToyDraft
from minispec.certificate.walker import distribution_of, total_variation
from minispec.models.lm_head import LinearHead
from minispec.sampling import Sampling, SeededRandom
from minispec.types import BaseShortlist, Context, Distribution, Proposal, RandomSource, Round
from minispec.verify import Verdict, Verifier

LAST_BELOW_ONE = 1 - 2**-53

# --- 1 and 2: residuals without mass, tokens of probability 0 -------------------------------


class RejectingSource:
    """A source that rejects everything, as rounding may, then chooses the first or last index
    with positive probability."""

    def __init__(self, last: bool) -> None:
        self._last = last

    def bernoulli(self, probability: Any) -> bool:
        return False

    def choose(self, probs: Any) -> int:
        possible = [i for i, share in enumerate(probs) if share > 0]
        return possible[-1 if self._last else 0]


def check_zero_mass_residual(
    verifier: Verifier, weights: Sequence[int], nudges: Sequence[int]
) -> float:
    """q equals p up to ``nudges`` units in the last place, in float64."""
    shares = torch.tensor(weights, dtype=torch.float64)
    p = Distribution(torch.arange(len(weights)), shares / shares.sum())
    q = Distribution(p.ids, p.probs * (1 + torch.tensor(nudges) * 2.0**-52))

    def sample_first(source: RandomSource) -> int:
        drafted = int(q.ids[source.choose(q.probs)])
        verdict = verifier(Proposal((drafted,), (q,)), [p, p], source)
        assert torch.isfinite(verdict.next_distribution.probs).all(), "probabilities are not finite"
        assert p.probability(verdict.next_token) > 0, f"id {verdict.next_token} has probability 0"
        return drafted if verdict.path else verdict.next_token

    for last in (False, True):
        sample_first(RejectingSource(last))
    expected = {i: float(share) for i, share in enumerate(p.probs) if share > 0}
    return float(total_variation(distribution_of(sample_first), expected))


def check_excluded_tokens(
    verifier: Verifier, p: Sequence[int], q: Sequence[int], source: type[SeededRandom]
) -> None:
    """A token of probability 0 is never emitted, neither for a uniform of 0 nor for the last
    float below 1."""
    p_distribution, q_distribution = (
        Sampling(1.0).distribution(torch.tensor(w).float().log(), torch.arange(len(w)))
        for w in (p, q)
    )
    for uniform in (0.0, LAST_BELOW_ONE):
        fixed = type("Fixed", (source,), {"uniform": lambda self, u=uniform: u})(0)
        for token in range(len(q)):
            if q[token]:
                proposal = Proposal((token,), (q_distribution,))
                verdict = verifier(proposal, [p_distribution] * 2, fixed)
                emitted = [token] * len(verdict.path) + [verdict.next_token]
                assert all(p[t] for t in emitted), f"{emitted} at u = {uniform}, p {p}, q {q}"


# --- 3: recorded distributions --------------------------------------------------------------


def permute_recorded(verifier: Verifier, order: Callable[[int], list[int]]) -> Verifier:
    """The verifier, given the recorded distributions with their ids in another order."""

    def verify(
        proposal: Proposal, distributions: Sequence[Distribution], rng: RandomSource
    ) -> Verdict:
        orders = [order(len(q.ids)) for q in proposal.draft_distributions]
        permuted = [
            Distribution(q.ids[o], q.probs[o])
            for q, o in zip(proposal.draft_distributions, orders, strict=True)
        ]
        return verifier(Proposal(proposal.tokens, tuple(permuted)), distributions, rng)

    return verify


class OneBufferHead(LinearHead):
    """A head that writes all logits of a shortlist into the same memory."""

    def logits_of(self, hidden: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        if not hasattr(self, "_buffer"):
            self._buffer = torch.empty(self.vocab_size, dtype=self.weight.dtype)
        return self._buffer[: len(ids)].copy_(super().logits_of(hidden, ids))


def reuse_one_buffer(decode: Decoding) -> Decoding:
    """The decoding with a draft whose head reuses its buffer."""

    def decode_reusing(models: ToyModels, source: RandomSource) -> Iterable[Round]:
        head = OneBufferHead(models.target.head.weight)
        draft = ToyDraft(models.case.vocab_size, models.draft.logits_after, head=head)
        return decode(replace(models, draft=draft), source)

    return decode_reusing


# --- 6: a draft that changes at the worst moment --------------------------------------------


def change_draft(verifier: Verifier, recompute: bool = False) -> Decoding:
    """Decoding in which the draft changes after each proposal, before verification; with
    ``recompute`` verification computes q from the changed draft instead of reading the record."""

    def decode(models: ToyModels, source: RandomSource) -> Iterable[Round]:
        version: list[int] = []
        prefixes: list[tuple[int, ...]] = []

        def logits_after(tokens: tuple[int, ...]) -> torch.Tensor:
            prefixes.append(tokens)
            return models.draft.logits_after((*tokens, *version))

        def change_and_verify(
            proposal: Proposal, distributions: Sequence[Distribution], rng: RandomSource
        ) -> Verdict:
            drafted_after = prefixes[-len(proposal) :] if len(proposal) else []
            version.append(-1)
            if recompute:
                proposal = recompute_proposal(proposal, drafted_after)
                distributions = distributions[: len(proposal) + 1]
            return verifier(proposal, distributions, rng)

        def recompute_proposal(
            proposal: Proposal, drafted_after: list[tuple[int, ...]]
        ) -> Proposal:
            recomputed: list[Distribution] = []
            for token, q, tokens in zip(
                proposal.tokens, proposal.draft_distributions, drafted_after, strict=True
            ):
                ids = torch.as_tensor(q.ids)
                logits = models.draft.head.logits_of(logits_after(tokens), ids)  # (K,)
                changed = models.sampling.distribution(logits, ids)
                if not changed.probability(token) > 0:
                    break
                recomputed.append(changed)
            return Proposal(proposal.tokens[: len(recomputed)], tuple(recomputed))

        draft = ToyDraft(models.case.vocab_size, logits_after, head=models.draft.head)
        return decode_with(build_frspec, change_and_verify)(replace(models, draft=draft), source)

    return decode


# --- 7: what shortlists and lengths may depend on -------------------------------------------


class PeekableSource:
    """A source that can reveal in advance which half of [0, 1) its next coin's uniform is in.
    An honest one reveals an independent coin."""

    def __init__(self, source: RandomSource, honest: bool) -> None:
        self._source, self._honest = source, honest
        self._low: bool | None = None

    def peek_low(self) -> bool:
        low = self._source.bernoulli(Fraction(1, 2))
        self._low = None if self._honest else low
        return low

    def bernoulli(self, probability: Any) -> bool:
        low, self._low = self._low, None
        if low is not None:
            probability = min(1, 2 * probability) if low else max(0, 2 * probability - 1)
        return self._source.bernoulli(probability)

    def choose(self, probs: Any) -> int:
        return self._source.choose(probs)


class PeekingShortlist(BaseShortlist):
    """The lower ids if the next coin will be low (and accept), the upper ones if not."""

    name, per_round = "peeking", True

    def __init__(self, vocab_size: int, source: PeekableSource) -> None:
        self.budget, self._vocab_size, self._source = vocab_size, vocab_size, source

    def select(self, context: Context) -> torch.Tensor:
        half = (self._vocab_size + 1) // 2
        low = self._source.peek_low()
        return torch.arange(half) if low else torch.arange(half - 1, self._vocab_size)


def peek_at_coins(verifier: Verifier, honest: bool) -> Decoding:
    """Decoding with a shortlist that depends on a coin: one of its own if ``honest``, else the
    coin that will verify its tokens."""

    def decode(models: ToyModels, source: RandomSource) -> Iterable[Round]:
        peekable = PeekableSource(source, honest)

        def build_shortlist(vocab_size: int) -> PeekingShortlist:
            return PeekingShortlist(vocab_size, peekable)

        return decode_with(build_shortlist, verifier)(models, peekable)

    return decode


def cut_at_unsure_token(verifier: Verifier, keep: bool) -> Verifier:
    """The verifier, given chains that end at the first token with q below 0.5: after that token
    with ``keep``, else before it."""

    def verify(
        proposal: Proposal, distributions: Sequence[Distribution], rng: RandomSource
    ) -> Verdict:
        length = len(proposal)
        for node, (token, q) in enumerate(
            zip(proposal.tokens, proposal.draft_distributions, strict=True)
        ):
            if q.probability(token) < 0.5:
                length = min(length, node + keep)
        shortened = Proposal(proposal.tokens[:length], proposal.draft_distributions[:length])
        return verifier(shortened, distributions[: length + 1], rng)

    return verify
