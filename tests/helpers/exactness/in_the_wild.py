"""Defects of exactness that public implementations had, each as a small case in fractions.

``docs/in-the-wild.md`` tells where each was seen, and prints the cases. A small case is one
position, or a few alike, with p and q given; ``certify`` then enumerates the same defect inside
the decoding loop. The defects themselves are verifiers, shortlists and samplings of the suite.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import torch

from helpers.exactness.planting import patch_attribute
from helpers.exactness.round_checks import cut_at_unsure_token
from helpers.exactness.wrong_parts import HindsightShortlist, UnshapedBonus
from helpers.exactness.wrong_verifiers import build_verifier, normalise, subtract_at_token
from minispec import verify as verification
from minispec.certificate.cases import GRID
from minispec.certificate.certification_result import CertificationResult
from minispec.certificate.certify import certify
from minispec.certificate.walker import (
    distribution_of,
    enumerate_branches,
    fraction_distribution,
    total_variation,
)
from minispec.sampling import Sampling
from minispec.shortlists.full import FullShortlist
from minispec.types import BaseShortlist, Context, Distribution, Proposal, RandomSource
from minispec.verify import Verdict, Verifier, residual, verify, verify_block

Report = Callable[[Distribution, Distribution], Distribution]
# Short chains over few ids, with every kind of relation between draft and target.
CASES = [GRID[2], GRID[9]]

# --- q that is not what was drawn from ------------------------------------------------------


def judge_with(report: Report) -> Verifier:
    """Token-level verification with ``report(q, p)`` for the q that a token was drawn from."""

    def judge(proposal: Proposal, distributions: Any, rng: RandomSource) -> Verdict:
        pairs = zip(proposal.draft_distributions, distributions, strict=False)
        reported = tuple(report(q, p) for q, p in pairs)
        return verify(Proposal(proposal.tokens, reported), distributions, rng)

    judge.__name__ = f"judge_with({report.__name__})"
    return judge


def restore_tail(q: Distribution, p: Distribution) -> Distribution:
    """q before a top-k that kept its ids: each other id of p as likely as the least of them."""
    least = min(share for share in q.probs if share > 0)
    kept = dict(zip(q.ids.tolist(), q.probs.tolist(), strict=True))
    ids = sorted({*kept, *p.ids.tolist()})
    probs = np.array([kept.get(i) or least for i in ids], dtype=object)
    return Distribution(np.array(ids), probs / probs.sum())


def round_to_bfloat16(q: Distribution, p: Distribution | None = None) -> Distribution:
    """q with each probability rounded to the eight significant bits of bfloat16."""
    numbers = torch.tensor([float(share) for share in q.probs]).bfloat16().double().tolist()
    probs = np.array([Fraction(number) for number in numbers], dtype=object)
    return Distribution(q.ids, probs / probs.sum())


class TopTwoShortlist(BaseShortlist):
    """The draft's two likeliest ids, as by top-k."""

    name, budget = "top two", 2

    def select(self, context: Context) -> torch.Tensor:
        return context.hidden.topk(self.budget).indices.sort().values


class ArgmaxShortlist(TopTwoShortlist):
    """The draft's likeliest id alone, so that its token is picked, not drawn."""

    name, budget = "argmax", 1


# --- verifiers ------------------------------------------------------------------------------


def verify_by_match(proposal: Proposal, distributions: Any, rng: RandomSource) -> Verdict:
    """Draws from p at each position and accepts the drafted token if it is the same."""
    for i, p in enumerate(distributions):
        token = int(p.ids[rng.choose(p.probs)])
        if i == len(proposal) or token != proposal.tokens[i]:
            break
    acceptance = tuple(map(Distribution.probability, distributions, proposal.tokens))
    return Verdict(tuple(range(i)), token, p, acceptance)


def move_pruned_mass(proposal: Proposal, distributions: Any, rng: RandomSource) -> Verdict:
    """The mass of p outside the shortlist is moved to the ids within it before the test."""
    moved = list(distributions)
    for i, q in enumerate(proposal.draft_distributions):
        p = distributions[i]
        moved[i] = normalise(p, p.probs * np.isin(p.ids, q.ids).astype(int))
    return verify(proposal, moved, rng)


def verify_block_unweighted(proposal: Proposal, distributions: Any, rng: RandomSource) -> Verdict:
    """Block verification with the residual of token-level verification, (p - q)+."""
    with patch_attribute(verification, "residual", lambda p, q, weight=1: residual(p, q)):
        return verify_block(proposal, distributions, rng)


# --- the table ------------------------------------------------------------------------------


@dataclass(frozen=True)
class WildCase:
    """A defect in its smallest case: one p and one q for all positions.

    ``q`` is drawn from, ``reported`` is what verification gets instead (default: q).
    ``drafted`` tokens are verified and the first ``emitted`` of the output compared. ``right`` and
    ``right_q`` are the right form. ``parts`` are the arguments of ``certify`` for the same defect
    inside the decoding loop, and ``says`` what its result must say.
    """

    p: Distribution
    q: Distribution
    parts: dict[str, Any]
    says: str
    wrong: Verifier = verify
    reported: Distribution | None = None
    right: Verifier = verify
    right_q: Distribution | None = None
    drafted: int = 1
    emitted: int = 1

    def run_wrong(self) -> "Outcome":
        """The output of the defect."""
        return self._run(self.q, self.reported or self.q, self.wrong)

    def run_right(self) -> "Outcome":
        """The output of the right form."""
        q = self.right_q or self.q
        return self._run(q, q, self.right)

    def certify(self) -> CertificationResult:
        """The certificate of the same defect inside the decoding loop, over a few cases."""
        return certify(**{"samplings": [Sampling(1.0)], "cases": CASES, **self.parts})

    def _run(self, q: Distribution, reported: Distribution, verifier: Verifier) -> "Outcome":
        def decode(rng: RandomSource) -> tuple[tuple[int, ...], int]:
            tokens = tuple(_draw(q, rng) for _ in range(self.drafted))
            proposal = Proposal(tokens, (reported,) * self.drafted)
            verdict = verifier(proposal, [self.p] * (self.drafted + 1), rng)
            output = [*(tokens[i] for i in verdict.path), verdict.next_token]
            while len(output) < self.emitted:
                output.append(_draw(self.p, rng))
            return tuple(output[: self.emitted]), len(verdict.path)

        output: Counter[Any] = Counter()
        accepted: Any = 0
        for (tokens, kept), probability in enumerate_branches(decode):
            output[tokens] += probability
            accepted += kept * probability
        plain = distribution_of(lambda rng: tuple(_draw(self.p, rng) for _ in range(self.emitted)))
        return Outcome(dict(output), accepted, total_variation(dict(output), plain))

    def show(self) -> None:
        """Print the small case, as it was seen and in its right form, and the certificate."""
        wrong, right = self.run_wrong(), self.run_right()
        rows = {"p": _format(self.p), "drawn from q": _format(self.q)}
        if self.reported:
            rows["judged by"] = _format(self.reported)
        if self.emitted == 1:
            shares = sorted(wrong.output.items())
            rows["emitted"] = ", ".join(f"{token}: {share}" for (token,), share in shares)
        for name, outcome in (("as seen", wrong), ("right form", right)):
            rows[name] = f"total variation {outcome.tv}, accepted tokens {outcome.accepted}"
        for name, text in rows.items():
            print(f"{name:14}{text}")
        print(self.certify())


@dataclass(frozen=True)
class Outcome:
    """The distribution over the tokens of an output, the expected number of accepted tokens, and
    the total variation from plain decoding."""

    output: dict[Any, Any]
    accepted: Any
    tv: Any


def _format(distribution: Distribution) -> str:
    shares = zip(distribution.ids.tolist(), distribution.probs.tolist(), strict=True)
    return ", ".join(f"{i}: {share}" for i, share in shares)


def _draw(distribution: Distribution, rng: RandomSource) -> int:
    return int(distribution.ids[rng.choose(distribution.probs)])


_UNROUNDED = fraction_distribution([5, 2])
_WITHOUT_TOP_P = fraction_distribution([6, 3, 1])
_subtract_at_token = build_verifier(replace=subtract_at_token)
_subtract_at_token.__name__ = "subtract_at_token"
_cut_before_token = cut_at_unsure_token(verify, keep=False)
_cut_before_token.__name__ = "cut_before_token"

WILD: dict[str, WildCase] = {
    "q before top-k": WildCase(
        p=fraction_distribution([2, 1, 1]),
        q=fraction_distribution([2, 1], [0, 1]),
        reported=fraction_distribution([2, 1, 1]),
        parts={"shortlist": TopTwoShortlist, "verifier": judge_with(restore_tail)},
        says="it would be right for q(x) = 1/4",
    ),
    "q in bfloat16": WildCase(
        p=fraction_distribution([1, 1]),
        q=round_to_bfloat16(_UNROUNDED),
        reported=_UNROUNDED,
        parts={"verifier": judge_with(round_to_bfloat16), "cases": [GRID[20]]},
        says="it would be right for q(x) = 284/341",
    ),
    "q at the drafted id alone": WildCase(
        p=fraction_distribution([2, 1, 1]),
        q=fraction_distribution([1, 2, 1]),
        wrong=_subtract_at_token,
        parts={"verifier": _subtract_at_token},
        says="p less q at the rejected token alone",
    ),
    "a picked token and a soft q": WildCase(
        p=fraction_distribution([1, 1]),
        q=fraction_distribution([1], [0]),
        reported=fraction_distribution([3, 2]),
        parts={"shortlist": ArgmaxShortlist, "verifier": judge_with(restore_tail)},
        says="token x = 1 is accepted with probability 4/5",
    ),
    "acceptance by match": WildCase(
        p=fraction_distribution([2, 1, 1]),
        q=fraction_distribution([1, 2, 1]),
        wrong=verify_by_match,
        parts={"verifier": verify_by_match},
        says="exact: total variation 0",
    ),
    "length by the token's confidence": WildCase(
        p=fraction_distribution([1, 1]),
        q=fraction_distribution([9, 1]),
        wrong=_cut_before_token,
        right=cut_at_unsure_token(verify, keep=True),
        parts={"verifier": _cut_before_token},
        says="token x = 1 is accepted with probability 0;",
    ),
    "pruned mass moved within p": WildCase(
        p=fraction_distribution([2, 1, 1]),
        q=fraction_distribution([2, 1], [0, 1]),
        wrong=move_pruned_mass,
        right_q=fraction_distribution([3, 2, 1]),
        parts={"verifier": move_pruned_mass},
        says="rejection, then a token outside it: 0, by token-level verification",
    ),
    "a bonus token without top-p": WildCase(
        p=fraction_distribution([2, 1]),
        q=fraction_distribution([1, 1]),
        emitted=2,
        wrong=build_verifier(bonus=lambda proposal, distributions: _WITHOUT_TOP_P),
        parts={"samplings": [UnshapedBonus(1.0, top_p=0.7)]},
        says="bonus token: ",
    ),
    "a block's residual without w": WildCase(
        p=fraction_distribution([3, 3, 2]),
        q=fraction_distribution([6, 1, 1]),
        drafted=2,
        emitted=2,
        wrong=verify_block_unweighted,
        right=verify_block,
        parts={
            "verifier": verify_block_unweighted,
            "shortlist": FullShortlist,
            "cases": [GRID[22]],
        },
        says="rejection, then a token of the shortlist: 2/175",
    ),
    "a shortlist in its own round": WildCase(
        p=fraction_distribution([2, 1, 1]),
        q=fraction_distribution([1, 1], [0, 1]),
        reported=fraction_distribution([2, 2, 1]),
        parts={"shortlist": HindsightShortlist},
        says="ids were edited in place after they were selected",
    ),
}
