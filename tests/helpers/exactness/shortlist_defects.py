"""Planted defects of properties 7 to 9: what shortlists and chains may depend on, duplicates,
degenerate shortlists."""

from fractions import Fraction
from typing import Any

import torch

from helpers.exactness import output_checks, round_checks
from helpers.exactness.planting import (
    SMALL_CASES,
    keep_possible,
    patch_attribute,
    plant,
    restrict_residual,
    worst_tv,
)
from helpers.exactness.shortlists import build_evospec_paper, build_frspec
from minispec import verify as verification
from minispec.certificate.decodings import decode_with
from minispec.certificate.toys import ChangingShortlist
from minispec.propose import Drafter
from minispec.selections import CheckedSelections
from minispec.shortlists.frspec import FRSpecShortlist
from minispec.shortlists.full import FullShortlist
from minispec.types import Distribution, Proposal, RandomSource
from minispec.verify import verify


def skip_contract_check() -> Any:
    """Drafting without the check that refuses illegal shortlists."""
    return patch_attribute(CheckedSelections, "_check_ids", lambda self, ids: None)


# --- 7: only the past -----------------------------------------------------------------------


@plant(7, "the shortlist depends on the coin that will verify its token")
def _() -> Any:
    return worst_tv(round_checks.peek_at_coins(verify, honest=False), cases=SMALL_CASES)


@plant(7, "a chain is cut before the token whose probability cut it")
def _() -> Any:
    return worst_tv(decode_with(build_frspec, round_checks.cut_at_unsure_token(verify, keep=False)))


@plant(7, "an unlikely token is drawn again", "EAGLE-2's re-ranking, of drawn candidates")
def _() -> Any:
    right = Drafter.propose

    class Redrawing:
        def __init__(self, source: RandomSource) -> None:
            self._source = source

        def choose(self, probs: Any) -> int:
            index = self._source.choose(probs)
            return index if 2 * probs[index] > 1 else self._source.choose(probs)

    def redraw(self: Drafter, tokens: Any, gamma: int, sampling: Any, rng: Any, watch: Any):  # type: ignore[no-untyped-def]
        return right(self, tokens, gamma, sampling, Redrawing(rng), watch)  # type: ignore[arg-type]

    with patch_attribute(Drafter, "propose", redraw):
        return worst_tv(decode_with(FullShortlist), cases=SMALL_CASES)


@plant(7, "the ids that a round revealed count in that round")
def _() -> Any:
    right = Drafter.propose

    def propose(self: Drafter, tokens: Any, gamma: int, sampling: Any, rng: Any, watch: Any):  # type: ignore[no-untyped-def]
        """Records q over the shortlist to which the round's event has added its ids."""
        drafted = right(self, tokens, gamma, sampling, rng, watch)
        every_id = torch.arange(self.draft.head.vocab_size)
        later = [
            sampling.distribution(self.draft.head.logits(hidden), every_id)
            for hidden in self.hidden_states(range(-1, len(drafted) - 1))
        ]
        return Proposal(drafted.tokens, tuple(later))

    with patch_attribute(Drafter, "propose", propose):
        return worst_tv(decode_with(build_evospec_paper), cases=SMALL_CASES)


# --- 8: duplicates --------------------------------------------------------------------------


@plant(8, "a duplicate id in a shortlist is not refused")
def _() -> Any:
    class Duplicated(ChangingShortlist):
        """The union of a core and an index, with an id of both in it twice."""

        def select(self, context: Any) -> torch.Tensor:
            ids = super().select(context)
            return torch.cat((ids[:1], ids))

    with skip_contract_check():
        return worst_tv(decode_with(Duplicated), cases=SMALL_CASES)


@plant(8, "the EOS ids are in the shortlist twice", "FR-Spec's ranking script")
def _() -> Any:
    shortlist = FRSpecShortlist(torch.tensor([2, 1, 0]), 3, ())
    shortlist._ids = torch.tensor([0, 2, 2])
    output_checks.check_refused(shortlist._ids)  # passes: the production code refuses it
    with skip_contract_check():
        return output_checks.check_refused(shortlist._ids)


# --- 9: degenerate shortlists ---------------------------------------------------------------


@plant(9, "tokens outside the shortlist are never sampled after a rejection")
def _() -> Any:
    with patch_attribute(verification, "residual", restrict_residual):
        return worst_tv(decode_with(build_frspec))


@plant(9, "ids outside the shortlist get a low logit instead of none", "transformers, Gemma-4")
def _() -> Any:
    right = Drafter.propose

    class Mixed:
        """The draft distribution that is drawn from: every id keeps a small share."""

        def __init__(self, sampling: Any) -> None:
            self._sampling = sampling

        def __getattr__(self, name: str) -> Any:
            return getattr(self._sampling, name)

        def shape(self, logits: torch.Tensor, ids: torch.Tensor) -> Distribution:
            distribution = self._sampling.shape(logits, ids)
            share = Fraction(1, 10)
            return Distribution(
                distribution.ids, distribution.probs * (1 - share) + share / len(distribution.ids)
            )

    def propose_mixed(self: Drafter, tokens: Any, gamma: int, sampling: Any, rng: Any, watch: Any):  # type: ignore[no-untyped-def]
        drawn = right(self, tokens, gamma, Mixed(sampling), rng, watch)  # type: ignore[arg-type]
        distributions = []
        for q in drawn.draft_distributions:  # the record lacks the small shares
            probs = (q.probs - Fraction(1, 10) / len(q.ids)) / Fraction(9, 10)
            distributions.append(Distribution(q.ids, probs))
        return keep_possible(drawn, distributions)

    with patch_attribute(Drafter, "propose", propose_mixed):
        return worst_tv(decode_with(build_frspec), cases=SMALL_CASES)


@plant(9, "an empty shortlist is not refused")
def _() -> Any:
    with skip_contract_check():
        return output_checks.check_refused(torch.tensor([], dtype=torch.int64))


@plant(9, "an id below 0 is not refused")
def _() -> Any:
    with skip_contract_check():
        return output_checks.check_refused(torch.tensor([-1, 1]))
