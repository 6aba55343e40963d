"""``certify``: is the output of speculative decoding with your part distributed as the target's?

    result = certify(MyShortlist)
    assert result.exact, result

A shortlist is certified with every built-in verifier; a verifier over a full, a half and a
changing shortlist, so that one which never samples the tokens a shortlist lacks is caught. All
branches of all cases are enumerated, in exact fractions if the part allows it, at every sampling
of ``SAMPLINGS``. Knows toy models only.
"""

import inspect
import re
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import torch

from minispec.certificate.cases import GRID, SAMPLINGS, Case
from minispec.certificate.certification_result import CertificationResult, Combination
from minispec.certificate.checked_parts import CheckedLearner, CheckedShortlist, check_verifier
from minispec.certificate.decodings import Backend, Decoding, ToyModels, decode_with
from minispec.certificate.diagnosis import explain_difference, record_calls
from minispec.certificate.enumeration import (
    certify_decoding,
    output_distribution,
    plain_distribution,
)
from minispec.certificate.mismatch import count_origins, find_mismatch
from minispec.certificate.toys import ChangingShortlist
from minispec.errors import ArgumentError, MinispecError
from minispec.sampling import Sampling
from minispec.shortlists.frspec import FRSpecShortlist
from minispec.shortlists.full import FullShortlist
from minispec.types import Learner, Shortlist
from minispec.verify import VERIFIERS, Verifier, verify

ShortlistFactory = Callable[..., Shortlist]
DraftFactory = Callable[[ToyModels], Any]  # a draft
LearnerFactory = Callable[[ToyModels], Learner]
# What an error says if an operation takes no fractions.
_FRACTIONS = re.compile("ndarray|Fraction|object_|ufunc|Tensor|'(int|float)' object has no")


def certify(
    part: ShortlistFactory | Verifier | None = None,
    *,
    shortlist: ShortlistFactory | None = None,
    verifier: Verifier | None = None,
    draft: DraftFactory | None = None,
    learner: LearnerFactory | None = None,
    samplings: Sequence[Sampling] = SAMPLINGS,
    cases: Sequence[Case] = GRID,
    arithmetic: str | None = None,
) -> CertificationResult:
    """Certify a shortlist, a verifier, a draft, a learner or a sampling by enumeration.

    ``part``: a verifier (a function of proposal, target distributions and random source), or a
    shortlist: a class or function that takes the vocabulary size, or no argument. A shortlist is
    enumerated with every built-in verifier, anything else over three shortlists; parts given by
    keyword are enumerated together. The hidden states that a shortlist reads are logits (V,), and
    the LM head is the identity. ``draft`` and ``learner`` are functions of the toy models.

    ``arithmetic``: "fraction", where probabilities are numpy arrays of ``fractions.Fraction``, or
    "float64", where they are tensors and a total variation of 1e-12 counts as rounding. Without
    it, fractions, unless there is a draft, a learner or a subclass of ``Sampling``.

    A part that is not exact, or breaks its contract, gives a result with ``exact`` False, which
    says why; so does a certificate that saw no rejection after which a token outside the shortlist
    was drawn. Raises ArgumentError if there is nothing to certify, or if ``part`` is neither a
    verifier nor a shortlist factory. Takes about ten seconds for a shortlist, half a minute for a
    verifier.
    """
    if part is not None:
        if _count_required(part) == 3 and not inspect.isclass(part):
            verifier = _only(verifier, part, "verifier")
        else:
            shortlist = _only(shortlist, part, "shortlist")
    for given in (shortlist, verifier, draft, learner):
        if given is not None:
            _count_required(given)  # refuses what cannot be called
    own_sampling = any(type(sampling) is not Sampling for sampling in samplings)
    if not (shortlist or verifier or draft or learner or own_sampling):
        raise ArgumentError("nothing to certify: give a shortlist class or a verifier")
    floats = bool(draft or learner or own_sampling)
    backend = _choose_backend(arithmetic, floats)
    result = CertificationResult(tolerance=0 if backend.arithmetic == "fraction" else 1e-12)
    worst: _Walk | None = None
    for combination in _combine(shortlist, verifier):
        for sampling in samplings:
            walk = _Walk(combination, sampling, backend, draft, learner, verifier is not None)
            before = result.worst_tv
            result = walk.enumerate(cases, result)
            if result.error is not None:
                return result
            if result.worst_tv > before:
                worst = walk
    return worst.explain(result) if worst and not result.exact else result


def _choose_backend(arithmetic: str | None, floats: bool) -> Backend:
    """The arithmetic that was asked for, or that the parts allow. Raises ArgumentError."""
    if arithmetic not in (None, "fraction", "float64"):
        raise ArgumentError(f"arithmetic {arithmetic!r} is not known: use 'fraction' or 'float64'")
    if arithmetic == "fraction" and floats:
        raise ArgumentError(
            "a draft, a learner or a sampling of your own computes in floating point: use "
            "arithmetic='float64'"
        )
    return Backend(arithmetic or ("float64" if floats else "fraction"))


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
    shortlists, verifiers = SHORTLISTS, VERIFIERS
    if shortlist is not None:
        required, name = _count_required(shortlist), _name(shortlist)
        if required > 1:
            raise ArgumentError(
                f"{name} needs {required} arguments, a shortlist factory takes the vocabulary size "
                f"only: wrap it, as in certify(lambda vocab_size: {name}(...))"
            )
        shortlists = {name: shortlist}
    elif verifier is None:
        verifiers = {"token": verify}
    if verifier is not None:
        verifiers = {_name(verifier): verifier}
    for shortlist_name, factory in shortlists.items():
        for verifier_name, function in verifiers.items():
            yield Combination(shortlist_name, factory, verifier_name, function)


def _name(part: Any) -> str:
    return str(getattr(part, "__name__", type(part).__name__))


class _Walk:
    """The enumeration of one combination at one sampling."""

    def __init__(
        self,
        combination: Combination,
        sampling: Sampling,
        backend: Backend,
        draft: DraftFactory | None,
        learner: LearnerFactory | None,
        own_verifier: bool,
    ) -> None:
        self._combination, self._sampling, self._backend = combination, sampling, backend
        self._draft, self._own_verifier = draft and cache(draft), own_verifier
        self._learner = learner and (lambda models: CheckedLearner(learner(models)))
        takes_size = bool(inspect.signature(combination.shortlist).parameters)
        factory = combination.shortlist
        self._build_shortlist = cache(factory if takes_size else lambda vocab_size: factory())

    def decode_with(self, verifier: Verifier) -> Decoding:
        """Decoding of one case with the parts of this walk, all of them checked."""

        def build_shortlist(vocab_size: int) -> Shortlist:
            return CheckedShortlist(self._build_shortlist(vocab_size))

        decode = decode_with(build_shortlist, verifier, self._learner)
        build_draft = self._draft
        if build_draft is None:
            return decode
        return lambda models, source: decode(replace(models, draft=build_draft(models)), source)

    def enumerate(self, cases: Sequence[Case], result: CertificationResult) -> CertificationResult:
        """``result`` with the cases added."""
        combination, verifier = self._combination, self._combination.verifier
        if self._own_verifier:
            verifier = check_verifier(verifier, combination.verifier_name)
        for case in cases:
            here: dict[str, Any] = {
                "worst_case": case,
                "worst_sampling": self._sampling,
                "worst_combination": combination,
            }
            try:
                decode = self.decode_with(verifier)
                certificate = certify_decoding(decode, self._sampling, [case], self._backend)
            except MinispecError as error:
                return replace(result, error=str(error), **here)
            except (TypeError, AttributeError) as error:
                if self._backend.arithmetic != "fraction" or not _FRACTIONS.search(str(error)):
                    raise
                return replace(result, error=_explain_fractions(error), **here)
            if certificate.worst_tv > result.worst_tv:
                result = replace(result, worst_tv=certificate.worst_tv, **here)
            result = replace(
                result, cases=result.cases + 1, branches=result.branches + certificate.branches,
                kinds=result.kinds + certificate.kinds,
            )  # fmt: skip
        return result

    def explain(self, result: CertificationResult) -> CertificationResult:
        """``result`` with the shortest wrong output of its worst case, and what led there."""
        case, verifier = result.worst_case, self._combination.verifier
        assert case is not None
        models = ToyModels.build(case, self._sampling, self._backend)
        decode = self.decode_with(verifier)
        reference = plain_distribution(case, self._sampling, self._backend)
        mismatch = find_mismatch(output_distribution(decode, models), reference)
        if mismatch is None:  # as small as rounding
            return result
        origins = count_origins(decode, models, mismatch.tokens)
        mismatch = replace(mismatch, origins=origins)
        if not self._own_verifier:
            return replace(result, mismatch=mismatch)
        token_level = count_origins(self.decode_with(verify), models, mismatch.tokens)
        calls = record_calls(self.decode_with, verifier, models)
        return replace(
            result, mismatch=replace(mismatch, token_level=token_level),
            explanation=explain_difference(calls, verifier),
        )  # fmt: skip


def _explain_fractions(error: Exception) -> str:
    """An error of an operation that fractions do not have, with what to do instead."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    text = str(error).split("\n")[0]
    return (
        f"{type(error).__name__} in {frame.name}, line {frame.lineno}: {text}. Probabilities are "
        "numpy arrays of fractions here: use operators, indexing and sums, or certify with "
        "arithmetic='float64', where they are tensors"
    )


def _half(vocab_size: int) -> Shortlist:
    """The upper half of the vocabulary, in which the EOS ids are."""
    ranking = torch.arange(vocab_size).flip(0)
    return FRSpecShortlist(ranking, (vocab_size + 1) // 2, ())


SHORTLISTS: dict[str, ShortlistFactory] = {
    "full": FullShortlist,
    "half": _half,
    "changing": ChangingShortlist,
}
