"""Defects, planted: each breaks one property, and must be seen to.

A defect takes the place of one part (a verifier, a list, a rule, a source), and the check that
the property passes by must then fail: with a total variation, or, where no law comes out at
all, with an error. Where a defect is known from a public implementation, it says which.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import pytest
import torch

import checks
import parts
from drawn import AS_IT_IS
from lists import RestlessList, static
from minispec import propose
from minispec import sampling as sampling_module
from minispec import verify as verification
from minispec.certificate.certify import GRID, Decoding, Toys, certify, speculation
from minispec.certificate.exact_sampling import ExactSampling
from minispec.commit import Committed, Output
from minispec.propose import Drafter
from minispec.sampling import Sampling, SeededRandom
from minispec.shortlists.frspec import FRSpecShortlist
from minispec.shortlists.full import FullShortlist
from minispec.types import Distribution, Proposal, RandomSource, Round, Verdict
from minispec.verify import excess, verify, verify_block
from parts import candidates


@dataclass(frozen=True)
class Planted:
    """``measure`` runs the property's own check with the defect in place: it returns a total
    variation, or raises where no law comes out. ``known_from``: a public implementation."""

    property: int
    defect: str
    known_from: str | None
    measure: Callable[[], Any]

    def seen(self) -> tuple[bool, float | None]:
        """Whether the check fails, and by how much."""
        try:
            distance = self.measure()
        except (AssertionError, ValueError, IndexError, RuntimeError, pytest.fail.Exception):
            return True, None
        return distance > 1e-6, float(distance)


PLANTED: list[Planted] = []
Measure = Callable[[], Any]


def planted(number: int, defect: str, known_from: str | None = None) -> Callable[[Measure], None]:
    def register(measure: Measure) -> None:
        PLANTED.append(Planted(number, defect, known_from, measure))

    return register


@contextmanager
def patched(target: Any, name: str, value: Any) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(target, name, value)
        yield


SOME = [GRID[i] for i in (2, 5, 9, 13, 18, 22)]
FEW = [case for case in GRID if case.gamma == 1 and case.vocabulary < 5]  # for many branches


def worst(decode: Decoding, sampling: Sampling = AS_IT_IS, cases: Any = SOME) -> Any:
    """The largest total variation over a part of the grid, in fractions."""
    return certify(decode, sampling, cases).worst_tv


def guarded(fallback: Callable[[Distribution, Any], Any]) -> Any:
    """A residual with another answer where nothing is left."""

    def residual(p: Distribution, q: Distribution, weight: Any = 1) -> Distribution:
        left = excess(p, q, weight)
        mass = left.sum()
        return Distribution(p.ids, left / mass if mass > 0 else fallback(p, left))

    return patched(verification, "residual", residual)


def up_to_the_impossible(proposal: Proposal, distributions: list[Distribution]) -> Proposal:
    """A chain with other laws, as far as these can have brought it about."""
    length = 0
    for token, q in zip(proposal.tokens, distributions, strict=True):
        if not q.probability(token) > 0:
            break
        length += 1
    return Proposal(proposal.tokens[:length], tuple(distributions[:length]))


# --- 1: a residual of zero mass -------------------------------------------------------------


@planted(1, "the residual is divided by a mass of zero", "transformers")
def _() -> Any:
    with guarded(lambda p, left: left / left.sum()):
        return checks.zero_mass(verify, [1, 2, 3], [0, 0, 0])


@planted(1, "a residual of zero mass becomes id 0", "vLLM")
def _() -> Any:
    with guarded(lambda p, left: (p.ids == 0) * 1.0):
        return checks.zero_mass(verify, [0, 2, 3], [0, 0, 0])


@planted(1, "a residual of zero mass becomes the last id", "SGLang")
def _() -> Any:
    with guarded(lambda p, left: (p.ids == len(p.ids) - 1) * 1.0):
        return checks.zero_mass(verify, [2, 3, 0], [0, 0, 0])


# --- 2: probability 0 on a drafted id -------------------------------------------------------


class Lax(SeededRandom):
    def bernoulli(self, probability: float) -> bool:
        return self.uniform() <= float(probability)


@planted(2, "a coin that accepts where u <= p/q", "gpt-fast")
def _() -> Any:
    checks.nothing_impossible(verify, [0, 1], [1, 0], Lax)
    return 0


# --- 3: q is the law drawn from -------------------------------------------------------------


@planted(3, "q's columns stand in another order than its ids", "transformers")
def _() -> Any:
    def misread(
        proposal: Proposal, distributions: Sequence[Distribution], rng: RandomSource
    ) -> Verdict:
        apply_rope = [
            Distribution(q.ids, q.probs[[*range(1, len(q.ids)), 0]])
            for q in proposal.draft_distributions
        ]
        given = up_to_the_impossible(proposal, apply_rope)
        return verify(given, distributions[: len(given) + 1], rng)

    return worst(speculation(RestlessList, misread))


@planted(3, "recorded laws share one buffer")
def _() -> Any:
    class Reusing:
        def __init__(self, toys: Toys) -> None:
            self._toys, self._recorded = toys, list[Distribution]()

        target_distributions = ExactSampling.target_distributions

        def distribution(self, logits: torch.Tensor, ids: torch.Tensor) -> Distribution:
            distribution = self._toys.sampling.distribution(logits, ids)
            if len(ids) == self._toys.case.vocabulary:  # the target's: the list is never all
                return distribution
            for recorded in self._recorded:
                recorded.probs[: len(ids)] = distribution.probs[: len(recorded.probs)]
            self._recorded.append(distribution)
            return distribution

    def reused(toys: Toys, source: RandomSource) -> Iterable[Round]:
        return speculation(static)(replace(toys, sampling=Reusing(toys)), source)

    return worst(reused)


@planted(3, "acceptance is scaled by 0.9")
def _() -> Any:
    right = verification.acceptance_probability

    def scaled(p: Distribution, q: Distribution, token: int, weight: Any = 1) -> Any:
        return right(p, q, token, weight) * Fraction(9, 10)

    with patched(verification, "acceptance_probability", scaled):
        return worst(speculation(static))


@planted(3, "the residual is the target's own law")
def _() -> Any:
    with patched(verification, "residual", lambda p, q, weight=1: p):
        return worst(speculation(static))


# --- 4: what was picked is a point mass -----------------------------------------------------


@planted(4, "candidates picked by argmax are judged by the soft law", "transformers, Gemma-4")
def _() -> Any:
    right = propose.top_k_candidates

    def soft(distribution: Distribution, count: int) -> Proposal:
        points = right(distribution, count)
        return up_to_the_impossible(points, [distribution] * len(points))

    with patched(parts, "top_k_candidates", soft):
        return worst(candidates(static))


@planted(4, "a chain drafted by argmax is judged by the soft law", "transformers, Gemma-4")
def _() -> Any:
    right = Drafter.propose

    class Argmax:
        def choose(self, probs: Any) -> int:
            return max(range(len(probs)), key=lambda i: (probs[i], -i))

    def greedy(self: Drafter, tokens: Any, gamma: int, sampling: Any, rng: Any, watch: Any):  # type: ignore[no-untyped-def]
        return right(self, tokens, gamma, sampling, Argmax(), watch)  # type: ignore[arg-type]

    with patched(Drafter, "propose", greedy):
        return worst(speculation(FullShortlist))


# --- 5: the list changes at every step ------------------------------------------------------


@planted(5, "the first step's ids are recorded for every step")
def _() -> Any:
    class Moving(RestlessList):
        """Two ids, and the next two at the next step."""

        def select(self, context: Any) -> torch.Tensor:
            return torch.tensor(sorted({(context.depth + i) % self._size for i in range(2)}))

    def first_ids(
        proposal: Proposal, distributions: Sequence[Distribution], rng: RandomSource
    ) -> Verdict:
        recorded = list(proposal.draft_distributions)
        for node, q in enumerate(proposal.draft_distributions):
            recorded[node] = Distribution(proposal.draft_distributions[0].ids, q.probs)
        given = up_to_the_impossible(proposal, recorded)
        return verify(given, distributions[: len(given) + 1], rng)

    return worst(speculation(Moving, first_ids))


@planted(5, "a block's residual forgets how far the block had come")
def _() -> Any:
    right = verification.residual
    with patched(verification, "residual", lambda p, q, weight=1: right(p, q)):
        return worst(speculation(FullShortlist, verify_block))


@planted(5, "a block's coin takes q of the last accepted place, not of the next")
def _() -> Any:
    def earlier(
        kept: int, proposal: Proposal, distributions: Sequence[Distribution], reach: Any
    ) -> Any:
        if kept == len(proposal):
            return reach
        left = excess(distributions[kept], proposal.draft_distributions[kept - 1], reach).sum()
        return left / (left + 1 - reach) if left > 0 else 0

    with patched(verification, "_settling", earlier):
        return worst(speculation(RestlessList, verify_block))


# --- 6: the draft changes before verification -----------------------------------------------


@planted(6, "q is asked for again, of the draft as it has become")
def _() -> Any:
    return worst(checks.changing_draft(verify, again=True))


# --- 7: the past alone ----------------------------------------------------------------------


@planted(7, "the list sees the coin that will judge what it lists")
def _() -> Any:
    return worst(checks.peeking(verify, honest=False), cases=FEW)


@planted(7, "a chain is cut before the token whose probability cut it")
def _() -> Any:
    return worst(speculation(static, checks.cut_short(verify, keep=False)))


@planted(7, "an unlikely token is drawn again", "EAGLE-2's re-ranking, of drawn candidates")
def _() -> Any:
    right = Drafter.propose

    class Twice:
        def __init__(self, source: RandomSource) -> None:
            self._source = source

        def choose(self, probs: Any) -> int:
            index = self._source.choose(probs)
            return index if 2 * probs[index] > 1 else self._source.choose(probs)

    def redrawn(self: Drafter, tokens: Any, gamma: int, sampling: Any, rng: Any, watch: Any):  # type: ignore[no-untyped-def]
        return right(self, tokens, gamma, sampling, Twice(rng), watch)  # type: ignore[arg-type]

    with patched(Drafter, "propose", redrawn):
        return worst(speculation(FullShortlist), cases=FEW)


# --- 8: duplicates --------------------------------------------------------------------------


@planted(8, "an id listed twice passes the door")
def _() -> Any:
    class Doubled(RestlessList):
        """The union of a core and an index, an id in both counted twice."""

        def select(self, context: Any) -> torch.Tensor:
            ids = super().select(context)
            return torch.cat((ids[:1], ids))

    with patched(Drafter, "_checked", lambda self, ids: ids):
        return worst(speculation(Doubled), cases=FEW)


@planted(8, "the ids that end an answer are listed twice", "FR-Spec's ranking script")
def _() -> Any:
    listed = FRSpecShortlist(torch.tensor([2, 1, 0]), 3, ())
    listed._ids = torch.tensor([0, 2, 2])
    checks.refused(listed._ids)  # which the door does
    with patched(Drafter, "_checked", lambda self, ids: ids):
        return checks.refused(listed._ids)


# --- 9: lists that lack something -----------------------------------------------------------


@planted(9, "what the list lacks is never given back")
def _() -> Any:
    def on_list(p: Distribution, q: Distribution, weight: Any = 1) -> Distribution:
        left = excess(p, q, weight)
        kept = left * 0
        kept[q.ids] = left[q.ids]
        return Distribution(p.ids, kept / kept.sum()) if kept.sum() > 0 else p

    with patched(verification, "residual", on_list):
        return worst(speculation(static))


@planted(9, "unlisted ids get a low logit instead of none", "transformers, Gemma-4")
def _() -> Any:
    right = Drafter.propose

    class Filled:
        """The draft's law as it is drawn from: every id keeps a little of it."""

        def __init__(self, sampling: Any) -> None:
            self._sampling = sampling

        def distribution(self, logits: torch.Tensor, ids: torch.Tensor) -> Distribution:
            distribution = self._sampling.distribution(logits, ids)
            share = Fraction(1, 10)
            return Distribution(
                distribution.ids, distribution.probs * (1 - share) + share / len(distribution.ids)
            )

    def filled(self: Drafter, tokens: Any, gamma: int, sampling: Any, rng: Any, watch: Any):  # type: ignore[no-untyped-def]
        drawn = right(self, tokens, gamma, Filled(sampling), rng, watch)  # type: ignore[arg-type]
        distributions = []
        for q in drawn.draft_distributions:  # what is recorded is the law without them
            probs = (q.probs - Fraction(1, 10) / len(q.ids)) / Fraction(9, 10)
            distributions.append(Distribution(q.ids, probs))
        return up_to_the_impossible(drawn, distributions)

    with patched(Drafter, "propose", filled):
        return worst(speculation(static), cases=FEW)


@planted(9, "an empty retrieval passes the door")
def _() -> Any:
    with patched(Drafter, "_checked", lambda self, ids: ids):
        return checks.refused(torch.tensor([], dtype=torch.int64))


@planted(9, "an id below 0 passes the door")
def _() -> Any:
    with patched(Drafter, "_checked", lambda self, ids: ids):
        return checks.refused(torch.tensor([-1, 1]))


# --- 10 and 11: ends and limits -------------------------------------------------------------


@planted(10, "an end inside an accepted run is passed by")
def _() -> Any:
    right = Output.commit

    def last_only(self: Output, tokens: Sequence[int]) -> Committed:
        self._count += len(tokens) - 1
        for token in tokens[:-1]:
            self._held += self._stream.feed([token]) if self._stream else ""
        done = right(self, tokens[-1:])
        return Committed((*tokens[:-1], *done.tokens), done.text, done.stop)

    with patched(Output, "commit", last_only):
        return max(checks.text_distance(verify, case, ()) for case in SOME)


@planted(10, "a stop string is looked for in one token at a time")
def _() -> Any:
    def forgetful(self: Output, token: int) -> str | None:
        text = self._stream.feed([token]) if self._stream else ""
        self._held += text
        return "stop_string" if any(s in text for s in self._rule.stop_strings) else None

    with patched(Output, "_text_of", forgetful):
        return max(checks.text_distance(verify, case, ("ba",)) for case in SOME)


@planted(11, "the limit is looked at between rounds")
def _() -> Any:
    return worst(checks.late_limit, cases=FEW)


# --- 12: every position is shaped -----------------------------------------------------------


@planted(12, "the bonus token forgets temperature and top-k", "Spec-Bench's copies of EAGLE")
def _() -> Any:
    def bonus(toys: Toys, source: RandomSource) -> Iterable[Round]:
        return speculation(static)(replace(toys, sampling=checks.BonusUnshaped(toys)), source)

    return worst(bonus, Sampling(0.5, top_k=2))


@planted(12, "a processor of the past does not see the drafted tokens")
def _() -> Any:
    return max(checks.processed(case, verify, blind=True) for case in SOME)


# --- 13 and 14: ties and precision ----------------------------------------------------------


@planted(13, "top-k keeps all that equal the k-th")
def _() -> Any:
    def loose(logits: torch.Tensor, k: int) -> torch.Tensor:
        return logits >= logits.topk(k).values[-1]

    with patched(sampling_module, "_top_k", loose):
        return checks.tied([1, 2, 2, 2], Sampling(1.0, top_k=2))


@planted(13, "top-p takes ties from the end")
def _() -> Any:
    right = sampling_module._top_p
    with patched(sampling_module, "_top_p", lambda probs, p: right(probs.flip(0), p).flip(0)):
        return checks.tied([1, 1, 1, 1], Sampling(1.0, top_p=0.5))


@planted(13, "greedy is a very low temperature, which ties share", "romsto")
def _() -> Any:
    right = Sampling.distribution

    def almost(self: Sampling, logits: torch.Tensor, ids: torch.Tensor) -> Distribution:
        return right(Sampling(1e-9) if self.temperature == 0 else self, logits, ids)

    with patched(Sampling, "distribution", almost):
        return checks.tied([1, 2, 2], Sampling(0.0))


@planted(14, "a law in bfloat16", "gpt-fast")
def _() -> Any:
    def low(self: Sampling, logits: torch.Tensor, ids: torch.Tensor) -> Distribution:
        return Distribution(ids, torch.softmax(logits / self.temperature, dim=0).float())

    with patched(Sampling, "distribution", low):
        return checks.precise([0.0, 1.0, 2.0, 2.5], 0.7, torch.bfloat16)


# --- 15: rows -------------------------------------------------------------------------------


@planted(15, "rows share one source")
def _() -> Any:
    checks.rows_as_alone([3, 7, 5], rows=2, temperatures=[8.0], shared=True)
    return 0
