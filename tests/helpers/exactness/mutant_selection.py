"""The files that are mutated, and the test files that must detect each mutant."""

from pathlib import Path

ROOT = Path(__file__).parent.parent.parent.parent

_DISTRIBUTION = ["exactness/test_grid.py", "exactness/test_properties.py"]
_LOOP = ["core/test_decode.py", "exactness/test_walker.py", "exactness/test_health.py"]
_SOURCE = "exactness/test_source.py"
_SHORTLIST = [
    "shortlists/test_shortlists.py",
    "shortlists/test_evospec.py",
    "shortlists/test_statistical.py",
    "shortlists/test_semantic.py",
    "shortlists/test_dynaspec.py",
    "exactness/test_walker.py",
]
_CACHES = [
    "models/test_eagle_draft.py",
    "models/test_transformer.py",
    "exactness/test_metamorphic.py",
]

# From a file below minispec/ to test files below tests/.
SELECTION = {
    "verify": ["core/test_verify.py", *_DISTRIBUTION, _SOURCE],
    "sampling": ["core/test_sampling.py", *_DISTRIBUTION, _SOURCE],
    "propose": [
        "core/test_verify.py", "shortlists/test_shortlists.py", *_LOOP, *_DISTRIBUTION,
        "learning/test_learner.py", "learning/test_lora.py",
    ],
    "decode": [
        *_LOOP, "core/test_verify.py", "shortlists/test_shortlists.py", *_DISTRIBUTION, _SOURCE,
        "learning/test_learner.py", "learning/test_lora.py",
    ],
    "commit": ["core/test_decode.py", *_DISTRIBUTION],
    "shortlists/full": ["core/test_decode.py", *_SHORTLIST],
    "shortlists/frspec": [
        "tools/test_ranking.py", "exactness/test_properties.py", "models/test_eagle_draft.py",
        "shortlists/test_shortlists.py",
    ],
    "shortlists/microspec": _SHORTLIST,
    "shortlists/dynaspec": ["shortlists/test_dynaspec.py", *_SHORTLIST],
    "shortlists/kmeans": ["shortlists/test_kmeans.py", *_SHORTLIST],
    "shortlists/semantic": ["shortlists/test_semantic.py", *_SHORTLIST],
    "shortlists/statistical": ["shortlists/test_statistical.py", *_SHORTLIST],
    "shortlists/evospec": ["shortlists/test_evospec.py", *_SHORTLIST],
    "io/index_file": [
        "io/test_index_file.py", "shortlists/test_dynaspec.py", "shortlists/test_shortlists.py",
    ],
    "models/kv_cache": [*_CACHES, "tools/test_batched_decode.py"],
    "models/eagle_draft": [*_CACHES, "exactness/test_health.py", "tools/test_train_draft.py"],
}  # fmt: skip
# Files that determine the distribution of the output: all of their mutants must be killed.
DISTRIBUTION_FILES = ("verify", "sampling", "propose", "decode", "commit")


def source_path(file: str) -> Path:
    return ROOT / "minispec" / f"{file}.py"


def select_tests(file: str) -> list[str]:
    """The test files of a mutated file, relative to the root."""
    return [f"tests/{test}" for test in SELECTION[file]]
