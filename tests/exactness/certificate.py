"""``make exactness``: enumerate every branch of every verifier, shortlist, sampling and backend.

Prints a table and writes it as JSON if a file is named. Runs the property tests beside it. The
exit code is 1 if anything is wrong: a distribution that is not the target's, a kind of branch that
never occurred, a planted defect that was not detected, or a property test that fails.
"""

import argparse
import json
import multiprocessing
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from numba import set_num_threads

from helpers.exactness.optimal import BOUND_CASES, compute_shares, format_shares
from helpers.exactness.planted import DEFECTS
from helpers.exactness.rows import (
    Key,
    compare_block_with_token,
    compute_row,
    find_faults,
    list_keys,
)
from helpers.exactness.shapings import SHAPING_KEYS, compute_shaping_row, find_shaping_faults
from helpers.exactness.tree_rows import compute_tree_row, find_tree_faults, list_tree_keys
from minispec.certificate.enumeration import Certificate

HERE = Path(__file__).parent
# Test files that do not run beside the certificate: the grid and the planted defects are
# enumerated here, and tests of the real model or of mutants are not properties.
NOT_RUN = ("test_grid.py", "test_trees.py", "test_statistics.py", "test_mutants.py")


def use_one_thread() -> None:
    """One thread per process: threads that wait for each other on too few cores are several times
    slower. Numba comes first, because torch takes its number of threads when Numba starts."""
    set_num_threads(1)
    torch.set_num_threads(1)


def detect_defect(index: int) -> tuple[bool, float | None]:
    """Whether a planted defect is detected, and its total variation."""
    return DEFECTS[index].detect()


def start_property_tests(examples: int) -> "subprocess.Popen[str]":
    environment = {**os.environ, "EXAMPLES": str(examples)}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-m", "not slow", str(HERE)]
    command += ["-k", "not planted_defect_is_detected"]
    command += [f"--ignore={HERE / name}" for name in NOT_RUN]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def print_row(key: Key, row: dict[str, Any]) -> None:
    backend, arithmetic, verifier, shortlist, sampling = key
    print(f"{backend:10}{arithmetic:12}{verifier:12}{shortlist:25}{sampling:29}", end="")
    print(f"{row['cases']:6}{row['stressed']:9}{row['branches']:9}  {row['worst_tv']:.1e}")


def print_tree_row(row: dict[str, Any]) -> dict[str, Any]:
    """Print a row of a tree, and return it."""
    print(f"{row['backend']:10}{row['arithmetic']:12}{row['tree']:24}{row['verifier']:8}", end="")
    print(f"{row['shortlist']:25}{row['sampling']:29}{row['cases']:3}{row['branches']:9}", end="")
    print(f"  {row['worst_tv']:.1e}")
    return row


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("certificate", nargs="?", type=Path, help="JSON file to write")
    parser.add_argument(
        "--examples", type=int, default=100, help="examples per property (default: 100)"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    started = time.perf_counter()
    property_tests = start_property_tests(options.examples)

    # One process per core; the defects follow the rows.
    context = multiprocessing.get_context("fork")
    pool = context.Pool(initializer=use_one_thread)
    possible, refused = list_keys()
    computed = pool.imap(compute_row, possible)
    grown = pool.imap(compute_tree_row, list_tree_keys())
    shaped = pool.imap(compute_shaping_row, SHAPING_KEYS)
    bounded = pool.imap(compute_shares, BOUND_CASES)
    detected = pool.imap(detect_defect, range(len(DEFECTS)))
    faults: list[str] = []
    rows: list[dict[str, Any]] = []
    certificates: dict[Key, Certificate] = {}
    print(f"{'backend':10}{'arithmetic':12}{'verifier':12}{'shortlist':25}{'sampling':29}", end="")
    print(f"{'cases':>6}{'stressed':>9}{'branches':>9}  worst total variation")
    for key, (row, certificates[key]) in zip(possible, computed, strict=True):
        rows.append(row)
        print_row(key, row)
        faults += [f"{', '.join(key)}: {fault}" for fault in find_faults(row)]
    cases = sum(row["cases"] for row in rows)
    stressed = sum(row["stressed"] for row in rows)
    if 2 * stressed < cases:
        faults.append(f"only {stressed} of {cases} cases are stressed")
    gains = compare_block_with_token(certificates)
    if gains["fewer"]:
        faults.append(f"block verification accepts fewer tokens in {gains['fewer']} cases")

    tree_rows = [print_tree_row(row) for row, _ in grown]
    faults += find_tree_faults(tree_rows)

    shapings = []
    for row in shaped:
        shapings.append(row)
        print(
            f"{row['verifier']:12}{row['shaping']:28}{row['chains']:4} chains in float64 ", end=""
        )
        print(f"{row['worst_tv_float64']:.1e}, {row['cases']} cases in fractions ", end="")
        print(f"{row['worst_tv_fraction']:.1e}")
        faults += find_shaping_faults(row)

    print("the most tokens that any verifier could accept in a round, and the share of each:")
    bounds = list(bounded)
    print("\n".join(format_shares(bounds)))

    planted = []
    for defect, (found, distance) in zip(DEFECTS, detected, strict=True):
        planted.append({
            "defect": defect.defect,
            "property": defect.property,
            "known_from": defect.known_from,
            "total_variation": distance,
        })  # fmt: skip
        if not found:
            faults.append(f"a planted defect is not detected: {defect.defect}")
    pool.close()
    pool.join()
    output, _ = property_tests.communicate()
    if property_tests.returncode:
        faults.append(f"a property test fails:\n{output}")
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    certificate = {
        "rows": rows,
        "trees": tree_rows,
        "shapings": shapings,
        "bounds": bounds,
        "refused": refused,
        "planted": planted,
        "block_against_token": gains,
        "examples": options.examples,
        "seconds": round(time.perf_counter() - started, 1),
        "cpu_seconds": round(sum(use.ru_utime + use.ru_stime for use in usage), 1),
    }
    if options.certificate:
        options.certificate.parent.mkdir(parents=True, exist_ok=True)
        options.certificate.write_text(json.dumps(certificate, indent=1) + "\n", "utf-8")
    branches = sum(row["branches"] for row in [*rows, *tree_rows])
    cases += sum(row["cases"] for row in tree_rows)
    print(f"{len(rows)} rows of chains, {len(tree_rows)} of trees, {cases} cases ", end="")
    print(f"({stressed} stressed), {branches} branches, {len(planted)} planted defects, ", end="")
    print(f"{certificate['seconds']} s ({certificate['cpu_seconds']} s of CPU time)")
    print("\n".join(["NOT EXACT:", *faults] if faults else ["exact"]))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
