"""The files that are mutated, and the test files that must detect each mutant."""

from pathlib import Path

ROOT = Path(__file__).parent.parent.parent.parent

_TREES = [
    "core/test_tree.py", "core/test_growth.py", "core/test_tree_decoding.py",
    "core/test_drafted_trees.py",
]  # fmt: skip
_DISTRIBUTION = [
    "exactness/test_grid.py", "exactness/test_trees.py", "exactness/test_properties.py",
]  # fmt: skip
_LOOP = [
    "core/test_decode.py",
    "core/test_observed.py",
    "core/test_stops.py",
    "core/test_every_stop.py",
    "core/test_auto_shape.py",
    "exactness/test_walker.py",
    "exactness/test_health.py",
]
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
    "models/test_tree_attention.py",
    "models/test_transformer.py",
    "exactness/test_metamorphic.py",
]

_LEARNING = [
    "learning/test_hooks.py", "learning/test_learner.py", "learning/test_lora.py",
    "learning/test_replay_buffer.py", "learning/test_recorder.py", "learning/test_horizon.py",
    "exactness/test_health.py",
]  # fmt: skip
_HEADS = ["models/test_heads.py"]
# What decoding takes and returns, and the steps of a round one by one.
_PARTS = [
    "core/test_held_types.py", "core/test_drafter.py", "core/test_phases.py",
    "core/test_prompt_reader.py", "core/test_logits_processor.py", "core/test_verdict.py",
    "core/test_wrong_types.py", "models/test_device.py",
]  # fmt: skip

# From a module to test files below tests/.
SELECTION = {
    "minispec/verify": [
        "core/test_verify.py", "core/test_empty_residual.py", "core/test_residual.py",
        "core/test_verdict.py", "core/test_long_chains.py", "core/test_held_types.py", *_TREES,
        *_DISTRIBUTION, _SOURCE,
    ],
    "minispec/tree": [*_TREES, "models/test_tree_attention.py", *_DISTRIBUTION],
    "minispec/growth": [*_TREES, *_DISTRIBUTION],
    "minispec/sampling": [
        "core/test_sampling.py", "core/test_random_source.py", "core/test_logits_processor.py",
        "core/test_rows.py", "core/test_held_types.py", "core/test_wrong_types.py",
        "models/test_device.py", "exactness/test_shapings.py", *_DISTRIBUTION, _SOURCE,
    ],
    "minispec/propose": [
        *_PARTS, "core/test_verify.py", "shortlists/test_shortlists.py", *_HEADS, *_LOOP, *_TREES,
        *_DISTRIBUTION, "learning/test_learner.py", "learning/test_lora.py",
    ],
    "minispec/decode": [
        *_PARTS, *_LOOP, *_TREES, "core/test_verify.py", "shortlists/test_shortlists.py",
        *_DISTRIBUTION,
        _SOURCE,
        "learning/test_learner.py", "learning/test_lora.py",
    ],
    "minispec/commit": [
        "core/test_decode.py", "core/test_every_stop.py", "core/test_held_types.py",
        "core/test_wrong_types.py", *_DISTRIBUTION,
    ],
    "minispec/suffix_candidates": [
        "core/test_suffix_candidates.py", "core/test_suffix_decoding.py", *_DISTRIBUTION,
    ],
    "minispec/suffix_index": ["core/test_suffix_index.py", "core/test_suffix_candidates.py"],
    "minispec/acceptance": ["core/test_auto_shape.py"],
    "minispec/auto_shape": ["core/test_auto_shape.py", "tools/test_auto_options.py"],
    "minispec/round_costs": ["core/test_auto_shape.py"],
    "minispec/rounds": [
        "core/test_every_stop.py", "core/test_observed.py", *_PARTS, *_TREES,
        "exactness/test_walker.py",
    ],
    "minispec/selections": ["core/test_drafter.py", "core/test_decode.py"],
    "minispec/preconditions": [
        "core/test_decode.py", "core/test_tree_decoding.py", "core/test_wrong_types.py",
    ],
    "minispec/shortlists/full": ["core/test_decode.py", *_SHORTLIST],
    "minispec/shortlists/frspec": [
        "tools/test_ranking.py", "exactness/test_properties.py", "models/test_eagle_draft.py",
        "shortlists/test_shortlists.py",
    ],
    "minispec/shortlists/microspec": ["shortlists/test_microspec.py", *_SHORTLIST],
    "minispec/shortlists/dynaspec": ["shortlists/test_dynaspec.py", *_SHORTLIST],
    "minispec/shortlists/kmeans": ["shortlists/test_kmeans.py", *_SHORTLIST],
    "minispec/shortlists/semantic": ["shortlists/test_semantic.py", *_SHORTLIST],
    "minispec/shortlists/statistical": ["shortlists/test_statistical.py", *_SHORTLIST],
    "minispec/shortlists/evospec": ["shortlists/test_evospec.py", *_SHORTLIST],
    "minispec/shortlists/arc": ["shortlists/test_arc.py", "shortlists/test_evospec_paper.py"],
    "minispec/shortlists/bigrams": [
        "shortlists/test_bigrams.py", "shortlists/test_evospec_paper.py", "io/test_bigram_file.py",
    ],
    "minispec/shortlists/hnsw": ["shortlists/test_hnsw.py", "shortlists/test_evospec_paper.py"],
    "minispec/shortlists/evospec_paper": ["shortlists/test_evospec_paper.py", *_SHORTLIST],
    "minispec/shortlists/lowrank": ["shortlists/test_lowrank.py", *_SHORTLIST],
    "minispec/ranked_head": [*_HEADS, "models/test_eagle_draft.py", "core/test_verify.py"],
    "minispec/io/index_file": [
        "io/test_index_file.py", "shortlists/test_dynaspec.py", "shortlists/test_shortlists.py",
    ],
    "minispec/learning/learner": _LEARNING,
    "minispec/learning/recorder": _LEARNING,
    "minispec/learning/guard": _LEARNING,
    "minispec/learning/retrieval_learner": _LEARNING,
    "minispec/learning/lora_learner": _LEARNING,
    "minispec/learning/replay_buffer": _LEARNING,
    "minispec/learning/retrieval": _LEARNING,
    "minispec/learning/horizon": _LEARNING,
    "minispec/learning/trajectories": _LEARNING,
    "minispec/learning/paper_learner": _LEARNING,
    "minispec/models/kv_cache": [*_CACHES, "tools/test_batched_decode.py"],
    "minispec/models/eagle_draft": [
        *_CACHES, "exactness/test_health.py", "tools/test_train_draft.py",
    ],
    "minispec/models/lm_head": [
        *_HEADS, "models/test_eagle_draft.py", "models/test_transformer.py",
    ],
    "minispec/models/int8": [*_HEADS, "fastpath/test_cpu_kernels.py"],
    "fastpath/cpu/head": [*_HEADS, "fastpath/test_cpu_head.py"],
    "fastpath/cuda/backend": [*_HEADS, "fastpath/test_cuda_device_round.py"],
}  # fmt: skip
# Files that determine the distribution of the output: all of their mutants must be killed.
DISTRIBUTION_FILES = tuple(
    f"minispec/{file}"
    for file in ("verify", "sampling", "growth", "propose", "suffix_candidates", "decode", "commit")
)


def source_path(file: str) -> Path:
    return ROOT / f"{file}.py"


def select_tests(file: str) -> list[str]:
    """The test files of a mutated file, relative to the root."""
    return [f"tests/{test}" for test in SELECTION[file]]
