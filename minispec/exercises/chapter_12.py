"""Exercises of chapter 12: trees, and candidates that cost nothing."""

from collections.abc import Callable, Sequence
from typing import Any

from minispec.certificate.walker import BranchingSource, fraction_distribution
from minispec.exercises.grading import Exercise, compare_distributions, compare_values
from minispec.growth import choose_candidates
from minispec.types import Distribution, RandomSource
from minispec.verify import acceptance_probability, residual

Candidates = Sequence[tuple[int, Distribution]]
Siblings = Callable[[Distribution, Candidates, RandomSource], int]
_PAIRS = [((3, 2, 1), (1, 3, 2)), ((1, 1, 4), (4, 1, 1))]


def _grade_ancestors(answer: Callable[..., Any]) -> str | None:
    trees = [(-1, -1, 0, 0, 1), (-1, 0, 1), (-1, 0, 0, 1, 3)]
    return compare_values(
        answer,
        _list_ancestors,
        [(parents,) for parents in trees],
        {
            "a node attends to itself too": lambda parents: [
                [int(bit and i != j) for j, bit in enumerate(row)]
                for i, row in enumerate(_list_ancestors(parents))
            ],
            "transposed: nodes attend to their descendants": lambda parents: [
                list(column) for column in zip(*_list_ancestors(parents), strict=True)
            ],
            "the mask of a chain: siblings and cousins are attended to": lambda parents: [
                [int(j <= i) for j in range(len(parents))] for i in range(len(parents))
            ],
            "the parent alone: its own ancestors are missing": lambda parents: [
                [int(j in (i, parent)) for j in range(len(parents))]
                for i, parent in enumerate(parents)
            ],
        },
    )


def _list_ancestors(parents: Sequence[int]) -> list[list[int]]:
    rows: list[list[int]] = []
    for node, parent in enumerate(parents):
        above = rows[parent] if parent >= 0 else [0] * len(parents)
        rows.append([int(bit or j == node) for j, bit in enumerate(above)])
    return rows


def _verify(p: Distribution, candidates: Candidates, rng: RandomSource) -> int:
    for token, q in candidates:
        if rng.bernoulli(acceptance_probability(p, q, token)):
            return token
        p = residual(p, q)
    return int(p.ids[rng.choose(p.probs)])


def _verify_against_p(p: Distribution, candidates: Candidates, rng: RandomSource) -> int:
    for token, q in candidates:
        if rng.bernoulli(acceptance_probability(p, q, token)):
            return token
    rest = residual(p, candidates[-1][1])
    return int(rest.ids[rng.choose(rest.probs)])


def _verify_then_p(p: Distribution, candidates: Candidates, rng: RandomSource) -> int:
    rest = p
    for token, q in candidates:
        if rng.bernoulli(acceptance_probability(rest, q, token)):
            return token
        rest = residual(rest, q)
    return int(p.ids[rng.choose(p.probs)])


def _verify_without_residual(p: Distribution, candidates: Candidates, rng: RandomSource) -> int:
    for token, q in candidates:
        if rng.bernoulli(acceptance_probability(p, q, token)):
            return token
    return int(p.ids[rng.choose(p.probs)])


def _run(verify: Siblings, kind: str, number: int) -> Callable[[BranchingSource], int]:
    """A program that draws two candidates and verifies them."""
    p, q = map(fraction_distribution, _PAIRS[number])

    def program(rng: BranchingSource) -> int:
        found = choose_candidates(kind, q, q, 2, rng)
        return int(verify(p, [(c.token, c.distribution) for c in found], rng))

    return program


def _grade_siblings(answer: Siblings) -> str | None:
    known: dict[str, Siblings] = {
        "each candidate is tested against p: those before it left a residual": _verify_against_p,
        "after the last rejection p itself instead of what is left of it": _verify_then_p,
        "rejected candidates are forgotten: p is tested and drawn from as if there were none": (
            _verify_without_residual
        ),
    }
    for number, (weights, _) in enumerate(_PAIRS):
        right = dict(enumerate(fraction_distribution(weights).probs))
        for kind in ("drawn", "distinct", "top"):
            mistakes = {name: _run(each, kind, number) for name, each in known.items()}
            error = compare_distributions(_run(answer, kind, number), right, mistakes)
            if error:
                return f"two candidates, {kind}: {error}"
    return None


EXERCISES = (
    Exercise("find_ancestors", "The mask of a tree.", _grade_ancestors),
    Exercise("verify_siblings", "Two candidates for one position.", _grade_siblings, defect=True),
)
