"""A certificate: is the law of the output the target's? Every branch of every case is walked.

A *case* is a pair of toy models whose laws are whole-number weights that depend on all tokens
read, so the same case runs through the production code in exact fractions, in float64 and in
float32. Its weights hold what goes wrong elsewhere: zeros, ties, laws that are equal, nearly
equal, disjoint, or all on one id. A way of decoding is certified in three lines:

    for sampling in SAMPLINGS:
        found = certify(speculation(lambda size: MyList(size), my_verifier), sampling)
        assert found.worst_tv == 0

The law is that of whole outputs, end ids and limits included, and is compared with what plain
decoding says in the same arithmetic. Knows toy models only.
"""

import random
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor

from minispec.certificate.exact_sampling import ExactSampling
from minispec.certificate.toys import ToyDraft, ToyTarget
from minispec.certificate.walker import every_branch, total_variation
from minispec.commit import StopRule
from minispec.decode import autoregressive, speculative
from minispec.models.lm_head import LinearHead
from minispec.sampling import Sampling
from minispec.types import Distribution, Head, Learner, RandomSource, Round, Shortlist
from minispec.verify import Verifier, excess, verify

_NOTHING = -1e4  # the logit of weight 0: its probability is exactly 0 in every dtype
_KINDS = ("settled", "alike", "near", "apart", "other", "other", "other", "other")

SAMPLINGS = (
    Sampling(0.0), Sampling(0.5), Sampling(1.0), Sampling(1.0, top_k=2), Sampling(1.0, top_p=0.87),
)  # fmt: skip
# What a branch may hold, and how often it did is counted.
KINDS = ("residual_off_list", "zero_mass_residual", "full_acceptance", "eos_inside", "limit_cut")


@dataclass(frozen=True)
class Case:
    """A pair of toy models, and an output of at most ``limit`` tokens to be walked."""

    seed: int
    vocabulary: int
    gamma: int
    limit: int

    @property
    def prompt(self) -> list[int]:
        """The ids that each case begins with."""
        return [0, 1]

    @property
    def stop(self) -> StopRule:
        """No end id, one, or two, which are the last ones of the vocabulary."""
        ends = self.seed % 3 if self.vocabulary > 3 else self.seed % 2
        return StopRule(self.limit, tuple(range(self.vocabulary - ends, self.vocabulary)))

    def weights(self, tokens: Sequence[int]) -> tuple[list[int], list[int]]:
        """Of the target and of the draft after ``tokens``: whole numbers (V,), some of them 0."""
        luck = random.Random(f"{self.seed} {tuple(tokens)}")
        # Most cases begin where draft and target disagree, so that much is rejected.
        first = self.seed % 16 and len(tokens) == len(self.prompt)
        kind, size = "other" if first else luck.choice(_KINDS), self.vocabulary
        if kind == "settled":
            weights = [0] * size
            weights[luck.randrange(size)] = 1
            return weights, weights
        draw = [luck.choice((1, 2, 3, 5) if first else (0, 1, 1, 2, 3, 5)) for _ in range(size)]
        target = draw if any(draw) else [1] * size
        if kind == "alike":
            return target, target
        if kind == "near":
            return target, [w + (i == size // 2) for i, w in enumerate(target)]
        if kind == "apart" and not all(target):
            return target, [int(w == 0) for w in target]
        return target, [luck.choice((0, 1, 1, 2, 4)) for _ in range(size)]


# Vocabulary, gamma, limit: long chains over few ids, short ones over more.
SHAPES = (
    (3, 2, 3), (2, 3, 4), (4, 1, 3), (3, 1, 3), (4, 2, 3), (5, 1, 2), (6, 1, 2), (3, 3, 4),
    (2, 4, 5),
)  # fmt: skip
GRID = tuple(Case(seed, *SHAPES[seed % len(SHAPES)]) for seed in range(3 * len(SHAPES)))


class _Remembered:
    """A way of sampling that makes the laws of the same states once, since a walk comes by them
    in every branch that they lie on the way to."""

    def __init__(self, sampling: Any) -> None:
        self.distribution = _once(sampling.distribution)
        self._target_distributions = _once(sampling.target_distributions)
        self._sampling = sampling

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sampling, name)

    def target_distributions(self, head: Head, hidden: Tensor) -> list[Distribution]:
        return list(self._target_distributions(head, hidden))


def _once(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of tensors, and of things that stay what they are, that answers the same
    question once."""
    answers: dict[Hashable, Any] = {}

    def answered(*questions: Any) -> Any:
        key = tuple(q.numpy().tobytes() if isinstance(q, Tensor) else id(q) for q in questions)
        if key not in answers:
            answers[key] = function(*questions)
        return answers[key]

    return answered


@dataclass(frozen=True)
class Backend:
    """Whose head multiplies, and how exactly: "fraction", "float64" or "float32"."""

    arithmetic: str = "fraction"
    head: Callable[[Tensor], Head] = LinearHead


@dataclass(frozen=True)
class Toys:
    """What a way of decoding is given in a case."""

    case: Case
    target: ToyTarget
    draft: ToyDraft
    sampling: Any

    @staticmethod
    def of(case: Case, sampling: Sampling, backend: Backend) -> "Toys":
        """The models of a case, in a backend's arithmetic."""
        dtype = torch.float32 if backend.arithmetic == "float32" else torch.float64
        exact = backend.arithmetic == "fraction"

        def table(which: int) -> Callable[[tuple[int, ...]], Tensor]:
            def logits(tokens: tuple[int, ...]) -> Tensor:
                weights = torch.tensor(case.weights(tokens)[which], dtype=dtype)
                return weights if exact else weights.log().clamp(min=_NOTHING)

            return cache(logits)

        head = backend.head(torch.eye(case.vocabulary, dtype=dtype))
        target = ToyTarget(case.vocabulary, table(0), head=head)
        draft = ToyDraft(case.vocabulary, table(1), head=head)
        return Toys(
            case, target, draft, _Remembered(ExactSampling(sampling) if exact else sampling)
        )


Decoding = Callable[[Toys, RandomSource], Iterable[Round]]


def plain(toys: Toys, source: RandomSource) -> Iterable[Round]:
    """Plain decoding of a case."""
    case = toys.case
    return autoregressive(
        toys.target, case.prompt, sampling=toys.sampling, rng=source, stop=case.stop
    )


def speculation(
    shortlist: Callable[[int], Shortlist],
    verifier: Verifier = verify,
    learner: Callable[[Toys], Learner] | None = None,
) -> Decoding:
    """Speculative decoding with a list made for a vocabulary's size, any verifier, and a learner
    made for the models at hand (not in fractions), whose draft is then the one that drafts."""
    made = cache(shortlist)
    taught: Callable[[Toys], Learner | None] = cache(learner) if learner else lambda toys: None

    def decode(toys: Toys, source: RandomSource) -> Iterable[Round]:
        case, learns = toys.case, taught(toys)
        return speculative(
            toys.target, learns.draft if learns else toys.draft, made(case.vocabulary),
            case.prompt, gamma=case.gamma, sampling=toys.sampling, rng=source, stop=case.stop,
            verifier=verifier, trace=True, learner=learns,
        )  # fmt: skip

    return decode


@dataclass
class Certificate:
    """What the walk over many cases found.

    ``worst_tv``: the largest total variation between the law of whole outputs and plain
    decoding's, of case ``worst_case``. ``stressed``: cases with more than 0.05 of the target's
    mass off the first list and a first round that rejects with probability 0.05 to 0.95.
    ``accepted``: the mean number of tokens that the first round accepts, case by case.
    """

    cases: int = 0
    branches: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    stressed: int = 0
    worst_tv: Any = 0
    worst_case: Case | None = None
    accepted: list[Any] = field(default_factory=list)


def certify(
    decode: Decoding,
    sampling: Sampling,
    cases: Iterable[Case] = GRID,
    backend: Backend = Backend(),
) -> Certificate:
    """Walks every branch of every case. In float32 the law is compared with the float64 one."""
    found = Certificate()
    oracle = Backend() if backend.arithmetic == "fraction" else Backend("float64")
    for case in cases:
        distribution = output_distribution(decode, Toys.of(case, sampling, backend), found)
        found.cases += 1
        distance = total_variation(distribution, _plain_distribution(case, sampling, oracle))
        if distance > found.worst_tv or found.worst_case is None:
            found.worst_tv, found.worst_case = distance, case
    return found


@cache
def _plain_distribution(case: Case, sampling: Sampling, backend: Backend) -> dict[Hashable, Any]:
    """What each certificate's law is compared with: walked once for all of them."""
    return output_distribution(plain, Toys.of(case, sampling, backend))


def output_distribution(
    decode: Decoding, toys: Toys, found: Certificate | None = None
) -> dict[Hashable, Any]:
    """The law over (tokens, reason of the end); branches are counted into ``found``."""
    distribution: Counter[Any] = Counter()
    off_list, rejecting, accepted = 0.0, 0.0, 0
    for rounds, probability in every_branch(lambda source: list(decode(toys, source))):
        tokens = tuple(t for finished in rounds for t in finished.tokens)
        distribution[tokens, rounds[-1].stop if rounds else None] += probability
        if found is not None:
            found.branches += 1
            found.kinds.update(_kinds(rounds, toys.case))
            first = rounds[0].evidence
            if first and first.proposal.draft_distributions:
                p, q = first.target_distributions[0], first.proposal.draft_distributions[0]
                listed = p.probs[p.shared(q)[0]].sum()
                off_list += float(probability) * (1 - float(listed))
                rejecting += float(probability) * (len(rounds[0].path) < len(rounds[0].proposed))
                accepted += probability * len(rounds[0].path)
    if found is not None:
        found.stressed += off_list > 0.05 and 0.05 < rejecting < 0.95
        found.accepted.append(accepted)
    return dict(distribution)


def _kinds(rounds: Sequence[Round], case: Case) -> set[str]:
    """Which of ``KINDS`` a branch holds."""
    kinds, emitted = set(), 0
    for finished in rounds:
        evidence = finished.evidence
        assert evidence is not None
        pairs = list(
            zip(evidence.target_distributions, evidence.proposal.draft_distributions, strict=False)
        )
        if any(excess(p, q).sum() == 0 for p, q in pairs):
            kinds.add("zero_mass_residual")
        rejected = len(finished.path) < len(finished.proposed)
        own = finished.tokens[-1]
        if (
            rejected
            and evidence.next_distribution
            and own not in pairs[len(finished.path)][1].ids.tolist()
        ):
            kinds.add("residual_off_list")
        if finished.proposed and len(finished.tokens) > len(finished.proposed) and not rejected:
            kinds.add("full_acceptance")
        if finished.stop == "eos" and not evidence.next_distribution:
            kinds.add("eos_inside")
        if case.limit - emitted - 1 < case.gamma:
            kinds.add("limit_cut")
        emitted += len(finished.tokens)
    return kinds
