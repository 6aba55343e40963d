"""``certify``: is the output of speculative decoding with your part distributed as the target's?

    result = certify(MyShortlist)
    assert result.exact, result

A shortlist is certified with every built-in verifier; a verifier over a full, a half and a
changing shortlist, so that one which never samples the tokens a shortlist lacks is caught. All
branches of all cases are enumerated in exact fractions, at every sampling of ``SAMPLINGS``.
Knows toy models only.
"""

import inspect
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import torch

from minispec.certificate.cases import GRID, SAMPLINGS, Case
from minispec.certificate.decodings import FRACTIONS, ToyModels, decode_with
from minispec.certificate.enumeration import (
    certify_decoding,
    output_distribution,
    plain_distribution,
)
from minispec.certificate.toys import ChangingShortlist
from minispec.errors import ArgumentError, MinispecError
from minispec.sampling import Sampling
from minispec.shortlists.frspec import FRSpecShortlist
from minispec.shortlists.full import FullShortlist
from minispec.types import Shortlist
from minispec.verify import VERIFIERS, Verifier

ShortlistFactory = Callable[..., Shortlist]


@dataclass(frozen=True)
class Combination:
    """A shortlist and a verifier that are enumerated together."""

    shortlist_name: str
    shortlist: ShortlistFactory
    verifier_name: str
    verifier: Verifier


@dataclass(frozen=True)
class Mismatch:
    """A beginning of an output whose probability differs from plain decoding's; with ``stop`` a
    whole output that ends for that reason."""

    tokens: tuple[int, ...]
    stop: str | None
    probability: Fraction
    plain_probability: Fraction

    def __str__(self) -> str:
        event = f"output {list(self.tokens)}, {self.stop}" if self.stop else (
            f"output begins with {list(self.tokens)}"
        )  # fmt: skip
        ours, plain = _format(self.probability), _format(self.plain_probability)
        return f"{event}: probability {ours}, in plain decoding {plain}"


def _format(probability: Fraction) -> str:
    """A probability as a fraction, if that is short, and as a float."""
    short = probability.denominator < 10_000
    return f"{probability} = {float(probability):.4g}" if short else f"{float(probability):.4g}"


@dataclass(frozen=True)
class CertificationResult:
    """The result of ``certify``.

    ``worst_tv``: the largest total variation between the distribution of whole outputs and plain
    decoding's, an exact fraction, found in ``worst_case`` at ``worst_sampling`` with
    ``worst_combination``; 0 if all are equal. ``mismatch``: the shortest beginning of an output
    there whose probability is wrong. ``error``: the message of the error that ended the
    enumeration, if one did, at ``worst_sampling`` with ``worst_combination``.
    """

    worst_tv: Fraction
    cases: int
    branches: int
    worst_case: Case | None = None
    worst_sampling: Sampling | None = None
    worst_combination: Combination | None = None
    mismatch: Mismatch | None = None
    error: str | None = None

    @property
    def exact(self) -> bool:
        """True if every case was enumerated and every distribution equals the target's."""
        return self.error is None and self.worst_tv == 0

    def __str__(self) -> str:
        enumerated = f"{self.cases:,} cases, {self.branches:,} branches"
        if self.exact:
            return f"exact: total variation 0 ({enumerated})"
        lines = [f"not exact: total variation {float(self.worst_tv):.4g} ({enumerated})"]
        if self.error is not None:
            lines = [f"not exact: {self.error} ({enumerated})"]
        if self.worst_combination is not None:
            lines.append(
                f"  shortlist {self.worst_combination.shortlist_name}, "
                f"verifier {self.worst_combination.verifier_name}"
            )
        lines += [f"  {found}" for found in (self.worst_sampling, self.worst_case) if found]
        lines += [f"  {self.mismatch}"] if self.mismatch else []
        return "\n".join(lines)


def certify(
    part: ShortlistFactory | Verifier | None = None,
    *,
    shortlist: ShortlistFactory | None = None,
    verifier: Verifier | None = None,
    samplings: Sequence[Sampling] = SAMPLINGS,
    cases: Sequence[Case] = GRID,
) -> CertificationResult:
    """Certify a shortlist, a verifier, or both together, by enumeration in exact fractions.

    ``part``: a verifier (a function of proposal, target distributions and random source), or a
    shortlist: a class or function that takes the vocabulary size, or no argument. A shortlist is
    enumerated with every built-in verifier, a verifier over three shortlists; ``shortlist`` and
    ``verifier`` by keyword are enumerated together. The hidden states that a shortlist reads are
    logits (V,), and the LM head is the identity.

    A part that is not exact, or breaks its contract with a MinispecError, gives a result with
    ``exact`` False; any other exception of a part is not caught. Raises ArgumentError if there is
    nothing to certify, or if ``part`` is neither a verifier nor a shortlist factory. Takes about
    ten seconds for a shortlist, half a minute for a verifier.
    """
    if part is not None:
        if _count_required(part) == 3 and not inspect.isclass(part):
            verifier = _only(verifier, part, "verifier")
        else:
            shortlist = _only(shortlist, part, "shortlist")
    if shortlist is None and verifier is None:
        raise ArgumentError("nothing to certify: give a shortlist class or a verifier")
    result = CertificationResult(Fraction(0), 0, 0)
    for combination in _combine(shortlist, verifier):
        for sampling in samplings:
            result = _enumerate(combination, sampling, cases, result)
            if result.error is not None:
                return result
    return result


def _only(given: Any, part: Any, name: str) -> Any:
    """The part, unless the same is given by keyword too."""
    if given is not None:
        raise ArgumentError(f"two {name}s to certify: give one, by position or by keyword")
    return part


def _count_required(part: Any) -> int:
    """The number of positional arguments that must be given. Raises ArgumentError."""
    if not callable(part):
        raise ArgumentError(
            f"a {type(part).__name__} cannot be certified: give a shortlist class or a function of "
            "the vocabulary size (the cases differ in size), or a verifier"
        )
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(part).parameters.values()
    return sum(p.kind in kinds and p.default is p.empty for p in parameters)


def _combine(
    shortlist: ShortlistFactory | None, verifier: Verifier | None
) -> Iterator[Combination]:
    """Every shortlist with every verifier that are to be certified together."""
    shortlists = SHORTLISTS
    if shortlist is not None:
        required = _count_required(shortlist)
        name = getattr(shortlist, "__name__", type(shortlist).__name__)
        if required > 1:
            raise ArgumentError(
                f"{name} needs {required} arguments, a shortlist factory takes the vocabulary size "
                f"only: wrap it, as in certify(lambda vocab_size: {name}(...))"
            )
        shortlists = {name: shortlist}
    verifiers = VERIFIERS
    if verifier is not None:
        verifiers = {getattr(verifier, "__name__", type(verifier).__name__): verifier}
    for shortlist_name, factory in shortlists.items():
        for verifier_name, function in verifiers.items():
            yield Combination(shortlist_name, factory, verifier_name, function)


def _enumerate(
    combination: Combination,
    sampling: Sampling,
    cases: Sequence[Case],
    result: CertificationResult,
) -> CertificationResult:
    """``result`` with the cases of one combination at one sampling added."""
    try:
        takes_size = bool(inspect.signature(combination.shortlist).parameters)
        factory = combination.shortlist
        decode = decode_with(
            factory if takes_size else lambda vocab_size: factory(), combination.verifier
        )
        certificate = certify_decoding(decode, sampling, cases)
        count = result.cases + certificate.cases, result.branches + certificate.branches
        if certificate.worst_tv <= result.worst_tv:
            return replace(result, cases=count[0], branches=count[1])
        case = certificate.worst_case
        assert case is not None
        ours = output_distribution(decode, ToyModels.build(case, sampling, FRACTIONS))
        mismatch = find_mismatch(ours, plain_distribution(case, sampling))
    except MinispecError as error:
        return replace(
            result, error=str(error), worst_case=None, mismatch=None, worst_sampling=sampling,
            worst_combination=combination,
        )  # fmt: skip
    return CertificationResult(
        Fraction(certificate.worst_tv), *count, case, sampling, combination, mismatch
    )


def find_mismatch(ours: dict[Hashable, Any], plain: dict[Hashable, Any]) -> Mismatch | None:
    """The shortest beginning of an output with different probabilities in two distributions over
    (tokens, stop reason); of several the one that differs most. None if all are equal."""
    for our_probs, plain_probs in (
        (_sum_by_prefix(ours), _sum_by_prefix(plain)),
        (Counter(ours), Counter(plain)),  # only stop reasons differ
    ):
        wrong: list[Any] = [
            event
            for event in our_probs.keys() | plain_probs.keys()
            if our_probs[event] != plain_probs[event]
        ]
        if wrong:
            tokens, stop = event = min(
                wrong,
                key=lambda e: (len(e[0]), -abs(our_probs[e] - plain_probs[e]), e[0], e[1] or ""),
            )
            return Mismatch(tokens, stop, Fraction(our_probs[event]), Fraction(plain_probs[event]))
    return None


def _sum_by_prefix(distribution: dict[Hashable, Any]) -> Counter[Any]:
    """The probability of (prefix, None) for each beginning of an output."""
    probabilities: Counter[Any] = Counter()
    outputs: Any = distribution.items()
    for (tokens, _), probability in outputs:
        for length in range(1, len(tokens) + 1):
            probabilities[tokens[:length], None] += probability
    return probabilities


def _half(vocab_size: int) -> Shortlist:
    """The upper half of the vocabulary, in which the EOS ids are."""
    ranking = torch.arange(vocab_size).flip(0)
    return FRSpecShortlist(ranking, (vocab_size + 1) // 2, ())


SHORTLISTS: dict[str, ShortlistFactory] = {
    "full": FullShortlist,
    "half": _half,
    "changing": ChangingShortlist,
}
