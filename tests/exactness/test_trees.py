"""The rows of the certificate that decode trees, over fewer cases, and what they cover."""

import itertools
from fractions import Fraction

import pytest

from helpers.exactness.combinations import LEARNING, SAMPLINGS_BY_NAME, SHORTLISTS
from helpers.exactness.optimal import BOUND_CASES, compute_shares, format_shares
from helpers.exactness.tree_rows import (
    TREES,
    build_decoding,
    compute_tree_row,
    find_tree_faults,
    list_all_tree_keys,
    list_tree_keys,
    select_cases,
)
from minispec.certificate.cases import GRID
from minispec.certificate.decodings import Backend
from minispec.certificate.enumeration import certify_decoding
from minispec.growth import CANDIDATES, GROWTHS, TreeShape
from minispec.verify import VERIFIERS

SOME_CASES = [GRID[i] for i in (2, 8)]
KEYS = list_tree_keys()


@pytest.mark.parametrize("verifier", VERIFIERS)
@pytest.mark.parametrize("tree", TREES)
def test_trees_have_exactly_the_target_distribution(tree: str, verifier: str) -> None:
    for shortlist, sampling in (
        ("history", "temperature 1"), ("changing", "temperature 0.5"), ("frspec", "temperature 0"),
    ):  # fmt: skip
        decode = build_decoding(tree, verifier, shortlist)
        certificate = certify_decoding(decode, SAMPLINGS_BY_NAME[sampling], SOME_CASES)
        assert isinstance(certificate.worst_tv, Fraction | int) and certificate.worst_tv == 0


@pytest.mark.parametrize("drafter", LEARNING)
def test_trees_with_a_learner_have_the_target_distribution(drafter: str) -> None:
    decode = build_decoding("2x2x4", "block", drafter)
    sampling = SAMPLINGS_BY_NAME["temperature 1"]
    cases = select_cases("float64", "2x2x4", drafter)[:1]
    certificate = certify_decoding(decode, sampling, cases, Backend("float64"))
    assert certificate.branches > 1 and certificate.worst_tv < 1e-12


def test_rows_cover_all_pairs_of_options() -> None:
    """Of builders, verifiers, shortlists and samplings, in fractions."""
    exact = [key[2:] for key in KEYS if key[1] == "fraction"]
    options = (TREES, VERIFIERS, SHORTLISTS, SAMPLINGS_BY_NAME)
    for i, j in itertools.combinations(range(4), 2):
        found = {(key[i], key[j]) for key in exact}
        assert found == set(itertools.product(options[i], options[j]))
    assert {key[4] for key in KEYS} == {*SHORTLISTS, *LEARNING}
    assert {key[1] for key in KEYS} == {"fraction", "float64", "float32"}
    shapes = [TreeShape.parse(tree) for tree in TREES]
    assert {(s.growth, s.candidates) for s in shapes} == set(itertools.product(GROWTHS, CANDIDATES))


@pytest.mark.slow
@pytest.mark.parametrize("tree", TREES)
def test_the_whole_product_has_the_target_distribution(tree: str) -> None:
    rows = [compute_tree_row(key)[0] for key in list_all_tree_keys() if key[2] == tree]
    faults = [fault for fault in find_tree_faults(rows) if "no branch" not in fault]
    assert len(rows) == len(VERIFIERS) * len(SHORTLISTS) * len(SAMPLINGS_BY_NAME) and not faults


def test_find_tree_faults_names_each_fault() -> None:
    row = compute_tree_row(("reference", "fraction", "1x3x3", "token", "frspec", "temperature 1"))
    [known] = [{**row[0], "kinds": dict.fromkeys(row[0]["kinds"], 1)}]
    assert find_tree_faults([known]) == []
    assert len(find_tree_faults([known | {"worst_tv": 1e-9}])) == 1
    kinds = known["kinds"] | {"eos_inside": 0}
    assert find_tree_faults([known | {"kinds": kinds}]) == [
        f"{name}: no branch with eos_inside" for name in ("1x3x3", "token", "temperature 1")
    ]


def test_no_verifier_accepts_more_than_the_bound() -> None:
    """The bound is the value of a transport problem, reached for a chain by block verification."""
    rows = [compute_shares(case) for case in BOUND_CASES]
    for row in rows:
        assert all(0 < share <= 1 + 1e-9 for share in row["shares"].values())
        if row["tree"].startswith("chain"):
            assert row["shares"]["block"] == pytest.approx(1, abs=1e-9)
    assert min(row["shares"]["token"] for row in rows) < 0.999  # it is not always reached
    assert len(format_shares(rows)) == 1 + len(rows)
