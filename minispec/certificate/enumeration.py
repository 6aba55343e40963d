"""Certify one way of decoding: is the distribution of whole outputs the target's?

Every branch of every case is enumerated. The distribution of whole outputs, EOS ids and limits
included, is compared with that of plain decoding in the same arithmetic:

    for sampling in SAMPLINGS:
        certificate = certify_decoding(decode_with(MyShortlist, my_verifier), sampling)
        assert certificate.worst_tv == 0

Knows toy models only.
"""

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from minispec.certificate.cases import GRID, Case
from minispec.certificate.decodings import FRACTIONS, Backend, Decoding, ToyModels, decode_plain
from minispec.certificate.walker import enumerate_branches, total_variation
from minispec.sampling import Sampling
from minispec.tree import follow, list_rejected
from minispec.types import Round
from minispec.verify import positive_part

# Events that a certificate counts: a branch may contain several.
KINDS = ("residual_off_list", "zero_mass_residual", "full_acceptance", "eos_inside", "limit_cut")


@dataclass
class Certificate:
    """The result of enumerating many cases.

    ``worst_tv``: the largest total variation between the distribution of whole outputs and plain
    decoding's, found in ``worst_case``. ``kinds``: the number of branches with each of ``KINDS``.
    ``stressed``: the number of cases whose first shortlist misses more than 0.05 of the target's
    mass and whose first round rejects with probability 0.05 to 0.95. ``accepted``: the expected
    number of tokens that the first round accepts, case by case.
    """

    cases: int = 0
    branches: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    stressed: int = 0
    worst_tv: Any = 0
    worst_case: Case | None = None
    accepted: list[Any] = field(default_factory=list)


def certify_decoding(
    decode: Decoding,
    sampling: Sampling,
    cases: Iterable[Case] = GRID,
    backend: Backend = FRACTIONS,
) -> Certificate:
    """Enumerate every branch of every case and compare with plain decoding.

    The reference is plain decoding in fractions for a fraction backend, in float64 for the
    others. Raises ArgumentError if the decoding keeps state between runs.
    """
    certificate = Certificate()
    reference = FRACTIONS if backend.arithmetic == "fraction" else Backend("float64")
    for case in cases:
        models = ToyModels.build(case, sampling, backend)
        distribution = output_distribution(decode, models, certificate)
        certificate.cases += 1
        distance = total_variation(distribution, plain_distribution(case, sampling, reference))
        if distance > certificate.worst_tv or certificate.worst_case is None:
            certificate.worst_tv, certificate.worst_case = distance, case
    return certificate


@cache
def plain_distribution(
    case: Case, sampling: Sampling, backend: Backend = FRACTIONS
) -> dict[Hashable, Any]:
    """The distribution of whole outputs of plain decoding, computed once per process."""
    return output_distribution(decode_plain, ToyModels.build(case, sampling, backend))


def output_distribution(
    decode: Decoding, models: ToyModels, certificate: Certificate | None = None
) -> dict[Hashable, Any]:
    """The distribution over (tokens, stop reason); counts branches into ``certificate``."""
    distribution: Counter[Any] = Counter()
    missed, rejected, accepted = 0.0, 0.0, 0
    for rounds, probability in enumerate_branches(lambda source: list(decode(models, source))):
        tokens = tuple(t for finished in rounds for t in finished.tokens)
        distribution[tokens, rounds[-1].stop if rounds else None] += probability
        if certificate is not None:
            certificate.branches += 1
            certificate.kinds.update(_find_kinds(rounds, models.case))
            first = rounds[0].evidence
            if first and first.proposal.draft_distributions:
                p, q = first.target_distributions[0], first.proposal.draft_distributions[0]
                covered = p.probs[p.common_indices(q)[0]].sum()
                missed += float(probability) * (1 - float(covered))
                rejected += float(probability) * bool(list_rejected(rounds[0]))
                accepted += probability * len(rounds[0].path)
    if certificate is not None:
        certificate.stressed += missed > 0.05 and 0.05 < rejected < 0.95
        certificate.accepted.append(accepted)
    return dict(distribution)


def _find_kinds(rounds: Sequence[Round], case: Case) -> set[str]:
    """Which of ``KINDS`` a branch contains."""
    kinds, emitted = set(), 0
    for finished in rounds:
        evidence = finished.evidence
        assert evidence is not None
        verified = follow(evidence.proposal, finished.path).draft_distributions
        pairs = list(zip(evidence.target_distributions, verified, strict=False))
        if any(positive_part(p, q).sum() == 0 for p, q in pairs):
            kinds.add("zero_mass_residual")
        rejected = bool(list_rejected(finished))
        last = finished.tokens[-1]
        if (
            rejected
            and evidence.next_distribution
            and last not in pairs[len(finished.path)][1].ids.tolist()
        ):
            kinds.add("residual_off_list")
        if finished.proposed and evidence.next_distribution and not rejected:
            kinds.add("full_acceptance")
        if finished.stop == "eos" and not evidence.next_distribution:
            kinds.add("eos_inside")
        if case.max_new_tokens - emitted - 1 < case.gamma:
            kinds.add("limit_cut")
        emitted += len(finished.tokens)
    return kinds
