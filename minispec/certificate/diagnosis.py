"""How a wrong verifier decides otherwise than token-level verification, call by call.

An exact verifier need not decide as ``verify`` does (``verify_block`` does not), but where an
output is wrong the first call that differs usually shows the mistake. Knows toy models only.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from minispec.certificate.decodings import Decoding, ToyModels
from minispec.certificate.mismatch import format_probability, is_equal
from minispec.certificate.walker import enumerate_branches
from minispec.types import Distribution, Proposal, RandomSource
from minispec.verify import Verdict, Verifier, positive_part, verify

Call = tuple[Proposal, Sequence[Distribution]]


def record_calls(
    decode_with_verifier: Callable[[Verifier], Decoding], verifier: Verifier, models: ToyModels
) -> list[Call]:
    """The arguments of the verifier in all branches of a case, shortest chains first."""
    calls: list[Call] = []

    def record(
        proposal: Proposal, target_distributions: Sequence[Distribution], rng: RandomSource
    ) -> Verdict:
        if proposal:
            calls.append((proposal, target_distributions))
        return verifier(proposal, target_distributions, rng)

    decode = decode_with_verifier(record)
    for _ in enumerate_branches(lambda source: list(decode(models, source))):
        pass
    return sorted(calls, key=lambda call: len(call[0]))


@dataclass(frozen=True)
class _Comparison:
    """What a verifier and ``verify`` do at one point of a call: "acceptance" of a token,
    "rejection", the next token after one, or "bonus". ``alike``: names of mistakes that give the
    verifier's numbers; ``undefined``: names of those that give no distribution here."""

    point: str
    differs: bool
    text: str
    alike: frozenset[str]
    undefined: frozenset[str] = frozenset()


def explain_difference(calls: Iterable[Call], verifier: Verifier) -> str | None:
    """How the first call in which a verifier decides otherwise than ``verify`` differs from it,
    and which common mistake fits all calls. None if no call differs."""
    comparisons = [c for call in _drop_repeated(calls) for c in _compare_call(*call, verifier)]
    first = next((c for c in comparisons if c.differs), None)
    if first is None:
        return None
    same_point = [c for c in comparisons if c.point == first.point]
    fitting = frozenset.intersection(*(c.alike | c.undefined for c in same_point))
    common = sorted(fitting & frozenset.union(*(c.alike for c in same_point)))
    return first.text + (f"; all calls agree with {' or '.join(common)}" if common else "")


def _drop_repeated(calls: Iterable[Call]) -> list[Call]:
    """Each call once."""
    unique: dict[str, Call] = {}
    for proposal, distributions in calls:
        pairs = [(list(d.ids), list(d.probs)) for d in proposal.draft_distributions]
        key = f"{proposal.tokens} {pairs} {[(list(d.ids), list(d.probs)) for d in distributions]}"
        unique.setdefault(key, (proposal, distributions))
    return [*unique.values()]


def _compare_call(
    proposal: Proposal, distributions: Sequence[Distribution], verifier: Verifier
) -> Iterator[_Comparison]:
    """The acceptance of each token in turn and the next token after a rejection or the chain."""
    tables = [_tabulate(function, proposal, distributions) for function in (verifier, verify)]
    for i in range(len(proposal) + 1):
        reached = [
            sum(sum(tokens.values()) for kept, tokens in table.items() if kept >= i)
            for table in tables
        ]
        if not all(reached):
            return
        next_tokens = [_normalise(table.get(i, {})) for table in tables]
        if i == len(proposal):
            yield _compare_bonus(proposal, distributions, *next_tokens)
            return
        p, q, x = distributions[i], proposal.draft_distributions[i], proposal.tokens[i]
        kept = [1 - sum(t.get(i, {}).values()) / r for t, r in zip(tables, reached, strict=True)]
        yield _compare_acceptance(p, q, x, *kept)
        if all(next_tokens):
            yield _compare_rejection(p, q, x, distributions[i + 1], *next_tokens)


def _tabulate(
    verifier: Verifier, proposal: Proposal, distributions: Sequence[Distribution]
) -> dict[int, dict[int, Any]]:
    """The probability of each next token, by the number of accepted tokens."""
    table: dict[int, dict[int, Any]] = {}
    for verdict, probability in enumerate_branches(
        lambda rng: verifier(proposal, list(distributions), rng)
    ):
        next_tokens = table.setdefault(len(verdict.path), {})
        next_tokens[verdict.next_token] = next_tokens.get(verdict.next_token, 0) + probability
    return table


def _normalise(weights: dict[int, Any]) -> dict[int, Any]:
    total = sum(weights.values())
    return {token: w / total for token, w in weights.items() if w}


def _agree(left: dict[int, Any], right: dict[int, Any]) -> bool:
    return all(is_equal(left.get(i, 0), right.get(i, 0)) for i in left.keys() | right.keys())


def _compare_acceptance(
    p: Distribution, q: Distribution, x: int, ours: Any, right: Any
) -> _Comparison:
    """The probability that a token x ~ q is accepted."""
    p_x, q_x = p.probability(x), q.probability(x)
    known = {
        "probability p(x)": p_x, "probability q(x)": q_x, "probability 1": 1, "probability 0": 0,
        "min(1, q(x) / p(x))": min(1, q_x / p_x) if p_x else 1,
        "1 - min(1, p(x) / q(x))": 1 - right,
    }  # fmt: skip
    alike = frozenset(name for name, value in known.items() if is_equal(value, ours))
    text = (
        f"token x = {x} is accepted with probability {format_probability(ours)}; min(1, p(x) / "
        f"q(x)) is {format_probability(right)}, with p(x) = {format_probability(p_x)} and "
        f"q(x) = {format_probability(q_x)}"
    )
    if not alike and 0 < p_x < ours < 1:
        text += f"; it would be right for q(x) = {format_probability(p_x / ours)}"
    return _Comparison("acceptance", not is_equal(ours, right), text, alike)


def _compare_rejection(
    p: Distribution,
    q: Distribution,
    x: int,
    following: Distribution,
    ours: dict[int, Any],
    right: dict[int, Any],
) -> _Comparison:
    """The distribution of the next token after token x was rejected."""
    known = _list_wrong_residuals(p, q, x) | {"p one position later": following}
    text = f"after token {x} was rejected the next token is drawn from {_format(ours)}"
    missing = right.keys() - {int(i) for i in q.ids} - ours.keys()
    if missing:
        text += f", never a token outside the shortlist, such as {min(missing)}"
    text += f"; the residual (p - q)+, normalised, is {_format(right)}"
    return _Comparison("rejection", not _agree(ours, right), text, *_find_alike(known, ours))


def _compare_bonus(
    proposal: Proposal,
    distributions: Sequence[Distribution],
    ours: dict[int, Any],
    right: dict[int, Any],
) -> _Comparison:
    """The distribution of the next token after the whole chain was accepted."""
    known = {
        "q at the last drafted token": proposal.draft_distributions[-1],
        "p one position earlier": distributions[-2],
    }
    text = f"after the whole chain the next token is drawn from {_format(ours)}; p there is "
    differs = not _agree(ours, right)
    return _Comparison("bonus", differs, text + _format(right), *_find_alike(known, ours))


def _list_wrong_residuals(p: Distribution, q: Distribution, x: int) -> dict[str, Distribution]:
    """The distributions that common mistakes draw from after a rejection, unnormalised."""
    in_p, in_q = p.common_indices(q)
    at_x = np.flatnonzero(np.asarray(p.ids) == x)
    difference = p.probs * 1
    difference[in_p] = difference[in_p] - q.probs[in_q]
    in_shortlist = positive_part(p, q) * 0
    in_shortlist[in_p] = positive_part(p, q)[in_p]
    without_x, less_at_x = p.probs * 1, p.probs * 1
    without_x[at_x] = without_x[at_x] * 0
    less_at_x[at_x] = less_at_x[at_x] - q.probability(x)
    probs = {
        "p itself": p.probs,
        "(p - q)+ within the shortlist": in_shortlist,
        "p without the rejected token": without_x,
        "p less q at the rejected token alone": less_at_x * (less_at_x > 0),
        "|p - q|": abs(difference),
    }
    return {name: Distribution(p.ids, row) for name, row in probs.items()} | {"q itself": q}


def _find_alike(
    known: dict[str, Distribution], ours: dict[int, Any]
) -> tuple[frozenset[str], frozenset[str]]:
    """The names of the distributions that are equal to ours, and of those without mass."""
    undefined = frozenset(name for name, d in known.items() if not d.probs.sum() > 0)
    tables = {
        name: _normalise(dict(zip(d.ids.tolist(), d.probs.tolist(), strict=True)))
        for name, d in known.items()
        if name not in undefined
    }
    return frozenset(name for name, table in tables.items() if _agree(table, ours)), undefined


def _format(distribution: dict[int, Any]) -> str:
    shown = (
        f"{i}: {p if isinstance(p, Fraction | int) else f'{p:.4g}'}"
        for i, p in sorted(distribution.items())
    )
    return "{" + ", ".join(shown) + "}"
