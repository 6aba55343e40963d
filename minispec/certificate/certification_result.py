"""The result of ``certify``: exact or not, and if not, what shows it.

Knows nothing of the enumeration.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from minispec.certificate.cases import Case
from minispec.certificate.mismatch import Mismatch
from minispec.sampling import Sampling
from minispec.types import Shortlist
from minispec.verify import Verifier


@dataclass(frozen=True)
class Combination:
    """A shortlist and a verifier that are enumerated together."""

    shortlist_name: str
    shortlist: Callable[..., Shortlist]
    verifier_name: str
    verifier: Verifier


@dataclass(frozen=True)
class CertificationResult:
    """The result of ``certify``.

    ``worst_tv``: the largest total variation between the distribution of whole outputs and plain
    decoding's, an exact fraction or a float, found in ``worst_case`` at ``worst_sampling`` with
    ``worst_combination``; 0 if all are equal. ``kinds``: the number of branches with each of
    ``enumeration.KINDS``. ``mismatch``: the shortest beginning of an output whose probability is
    wrong, in the worst case. ``explanation``: how the verifier decides otherwise there than
    token-level verification. ``error``: the message of the error that ended the enumeration, if
    one did. ``tolerance``: the total variation that rounding may cause, 0 in fractions.
    """

    worst_tv: Any = 0
    cases: int = 0
    branches: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    worst_case: Case | None = None
    worst_sampling: Sampling | None = None
    worst_combination: Combination | None = None
    mismatch: Mismatch | None = None
    explanation: str | None = None
    error: str | None = None
    tolerance: float = 0

    @property
    def exact(self) -> bool:
        """True if every case was enumerated, every distribution equals the target's, and tokens
        outside a shortlist were drawn after a rejection."""
        return self.error is None and self.worst_tv <= self.tolerance and self._off_list > 0

    @property
    def _off_list(self) -> int:
        """Branches with a rejection after which a token outside the shortlist was drawn."""
        return self.kinds["residual_off_list"]

    def __str__(self) -> str:
        enumerated = f"{self.cases:,} cases, {self.branches:,} branches"
        if self.exact:
            tv = f"{float(self.worst_tv):.1e}" if self.worst_tv else "0"
            return (
                f"exact: total variation {tv} ({enumerated}, {self._off_list:,} of them with a "
                "token from outside the shortlist)"
            )
        lines = [f"not exact: total variation {float(self.worst_tv):.4g} ({enumerated})"]
        if self.error is not None:
            lines = [f"not exact: {self.error} ({enumerated})"]
        elif self.worst_tv <= self.tolerance:
            return (
                "not certified: saw no rejection after which a token outside the shortlist was "
                f"drawn ({enumerated}): use a shortlist that lacks ids, and more cases"
            )
        if self.worst_combination is not None:
            lines.append(
                f"  shortlist {self.worst_combination.shortlist_name}, "
                f"verifier {self.worst_combination.verifier_name}"
            )
        lines += [f"  {found}" for found in (self.worst_sampling, self.worst_case) if found]
        if self.mismatch is not None:
            lines += [f"  {self.mismatch}", *map("    {}".format, self.mismatch.list_origins())]
        elif self.error is None:
            lines.append("  as small as rounding: certify with arithmetic='float64'")
        if self.explanation:
            lines.append("  " + self.explanation.replace("; ", ";\n    "))
        return "\n".join(lines)
