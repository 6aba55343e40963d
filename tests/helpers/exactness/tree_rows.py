"""The rows of the certificate that decode trees: builders, verifiers, shortlists and samplings.

The whole product would take an hour. The rows cover all pairs: each builder meets each shortlist,
each verifier and each sampling, and so do these among themselves (``test_trees.py`` counts them).
"""

import itertools
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from helpers.exactness.combinations import (
    ARITHMETICS,
    LEARNING,
    SAMPLINGS_BY_NAME,
    SHORTLISTS,
    build_backend,
)
from helpers.exactness.rows import describe_case
from minispec.certificate.cases import GRID, Case
from minispec.certificate.decodings import Decoding, decode_with
from minispec.certificate.enumeration import KINDS, Certificate, certify_decoding
from minispec.growth import TreeShape
from minispec.verify import VERIFIERS

# Each way to grow and each kind of candidates, with trees of one to three levels.
TREES = (
    "1x3x3", "2x2x4", "3x2x5:static", "2x2x4:drawn", "2x2x3:static:drawn", "2x2x4:distinct",
    "3x2x4:static:distinct",
)  # fmt: skip
Key = tuple[str, ...]  # backend, arithmetic, tree, verifier, shortlist, sampling

# With EOS ids and limits inside a branch, independent, equal, disjoint and one-hot distributions.
CASES = [GRID[seed] for seed in (2, 8, 11, 13, 20)]
FEW_CASES = CASES[:3]
# Few ids and a limit of 5: the same text comes after different rejections.
LONG_CASES = (Case(100, 3, 1, 4),)


def build_decoding(tree: str, verifier: str, drafter: str) -> Decoding:
    """The decoding of trees with a shortlist, or a shortlist and a learner, by name."""
    shape, verify = TreeShape.parse(tree), VERIFIERS[verifier]
    if drafter in LEARNING:
        shortlist, learner = LEARNING[drafter]
        return decode_with(shortlist, verify, learner, shape)
    return decode_with(SHORTLISTS[drafter], verify, tree=shape)


def list_tree_keys() -> list[Key]:
    """The rows: in fractions all pairs of builders and shortlists, in float64 learners and some
    shortlists, and in float32 another backend's head."""
    samplings, verifiers = list(SAMPLINGS_BY_NAME), list(VERIFIERS)

    def pick(i: int, j: int) -> tuple[str, str]:
        return verifiers[(i + j // 2) % 2], samplings[(i + 2 * j) % len(samplings)]

    def combine(backend: str, arithmetic: str, drafters: Sequence[str]) -> Iterator[Key]:
        for (i, tree), (j, name) in itertools.product(enumerate(TREES), enumerate(drafters)):
            verifier, sampling = pick(i, j)
            yield backend, arithmetic, tree, verifier, name, sampling

    few = ("changing", "evospec")
    keys = [*combine("reference", "fraction", [*SHORTLISTS])]
    keys += [*combine("reference", "float64", few), *combine("cpu", "float32", few[:1])]
    for (i, tree), (j, name) in itertools.product(enumerate(TREES[1:6:2]), enumerate(LEARNING)):
        sampling = ("temperature 1", "temperature 0", "temperature 0.5")[(i + j) % 3]
        keys.append(("reference", "float64", tree, verifiers[(i + j) % 2], name, sampling))
    return keys


def list_all_tree_keys() -> list[Key]:
    """The whole product in fractions."""
    return [
        ("reference", "fraction", *options)
        for options in itertools.product(TREES, VERIFIERS, SHORTLISTS, SAMPLINGS_BY_NAME)
    ]


def select_cases(arithmetic: str, tree: str, shortlist: str) -> Sequence[Case]:
    """The cases of a row; fewer where there are many branches and nothing but rounding is new."""
    if shortlist in LEARNING:  # an update after each round
        return FEW_CASES[::2]
    if arithmetic != "fraction" or shortlist == "full":
        return FEW_CASES
    learns = shortlist in ("history", "statistical", "evospec")
    return (*CASES, *LONG_CASES) if learns and "drawn" not in tree else CASES


def compute_tree_row(key: Key) -> tuple[dict[str, Any], Certificate]:
    """One row as JSON, and the certificate that it summarises."""
    backend, arithmetic, tree, verifier, shortlist, sampling = key
    started = time.perf_counter()
    certificate = certify_decoding(
        build_decoding(tree, verifier, shortlist),
        SAMPLINGS_BY_NAME[sampling],
        select_cases(arithmetic, tree, shortlist),
        build_backend(backend, arithmetic),
    )
    return {
        "tree": tree,
        "verifier": verifier,
        "shortlist": shortlist,
        "sampling": sampling,
        "backend": backend,
        "arithmetic": arithmetic,
        "cases": certificate.cases,
        "stressed": certificate.stressed,
        "branches": certificate.branches,
        "kinds": {kind: certificate.kinds[kind] for kind in KINDS},
        "worst_tv": float(certificate.worst_tv),
        "worst_case": describe_case(certificate.worst_case),
        "seconds": round(time.perf_counter() - started, 2),
    }, certificate


def find_tree_faults(rows: Sequence[dict[str, Any]]) -> list[str]:
    """What is wrong with rows, one line each: a distribution, or a kind of branch that no row of a
    builder, a verifier or a sampling above temperature 0 contains."""
    faults = []
    kinds: dict[str, Counter[str]] = {}
    for row in rows:
        name = ", ".join(row[each] for each in ("tree", "verifier", "shortlist", "sampling"))
        if row["worst_tv"] > ARITHMETICS[row["arithmetic"]]:
            faults.append(
                f"{name}: total variation {row['worst_tv']:.2e} in case {row['worst_case']}"
            )
        for option in ("tree", "verifier", "sampling"):
            kinds.setdefault(row[option], Counter()).update(row["kinds"])
    for option, counts in kinds.items():
        faults += [f"{option}: no branch with {kind}" for kind in KINDS if not counts[kind]]
    return faults
