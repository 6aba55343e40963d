"""A draft step as the vocabulary grows at a fixed budget, and as the context grows.

Physics: a step reads the draft's layer, the K head rows of its shortlist and the cached keys and
values; selecting a shortlist reads centroids and a mask of V ids. Of these only the mask, one byte
for each id, grows with V, as long as nothing reads all rows. The full head is V * D numbers.

The models have the shape of SmolLM2 or Gemma-3-270M, random weights, one layer, and different
vocabularies. The whole proposal is timed (shortlist, four steps, distributions, draws) and
divided by its steps. Between two proposals other memory is read, as the target's pass does. The
sides alternate, proposal by proposal, in one process; figures are medians.

    python -m benchmarks scaling --json FILE
"""

import argparse
import json
import statistics
from collections.abc import Iterator
from pathlib import Path
from timeit import default_timer

import numba
import torch

from fastpath.cpu import backend as cpu
from minispec.io.files import write_json
from minispec.models import eagle_draft as drafts
from minispec.models.model_config import ModelConfig
from minispec.models.transformer import Transformer
from minispec.propose import Drafter
from minispec.sampling import Sampling, SeededRandom
from minispec.shortlists.evospec import EvoSpecShortlist
from minispec.shortlists.full import FullShortlist
from minispec.stopwatch import Stopwatch
from minispec.types import Shortlist

VOCABULARIES = (32_768, 65_536, 131_072, 262_144)
CONTEXTS = (64, 512, 2_048)
CLUSTERS, GAMMA = 2_048, 4
FLUSH_BUFFER = torch.zeros(16 * 2**20)  # 64 MiB, read between two proposals

# By hidden size: the rest of the layer, and the shortlist's budget, which is that of `compare`.
SHAPES: dict[int, tuple[dict[str, int], int]] = {
    576: (
        {
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "head_dim": 64,
            "intermediate_size": 1_536,
        },
        1_536,
    ),
    640: (
        {
            "num_attention_heads": 4,
            "num_key_value_heads": 1,
            "head_dim": 256,
            "intermediate_size": 2_048,
        },
        2_621,
    ),
}


def build_config(vocab_size: int, width: int) -> ModelConfig:
    """A model's shape, with another vocabulary and one layer."""
    return ModelConfig(
        vocab_size=vocab_size, hidden_size=width, num_hidden_layers=1, rms_norm_eps=1e-5,
        rope_theta=100_000.0, context_limit=4_096, aux_hidden_state_layer_ids=(1,),
        **SHAPES[width][0],
    )  # fmt: skip


def time_proposals(vocab_size: int, context: int, name: str, width: int = 576) -> Iterator[float]:
    """Yields seconds per draft step, proposal by proposal, after ``context`` tokens."""
    model = Transformer(build_config(vocab_size, width)).eval().requires_grad_(False)
    target = cpu.build_target(model)
    draft = cpu.build_draft(drafts.init_from_target(model), target)
    ids = torch.randperm(vocab_size)
    shortlist: Shortlist = FullShortlist(vocab_size)
    if name == "evospec":
        clusters = torch.arange(vocab_size) % CLUSTERS
        shortlist = EvoSpecShortlist(ids, SHAPES[width][1], (), clusters, model.head.weight)
    drafter = Drafter(draft, shortlist, model.context_limit)
    tokens = torch.randint(vocab_size, (context,)).tolist()
    drafter.resync(torch.tensor(tokens), torch.randn(context, width))
    sampling, rng, watch = Sampling(), SeededRandom(0), Stopwatch()
    while True:
        drafter.resync(torch.tensor(tokens[:1]), torch.randn(1, width))  # drops the last proposal
        FLUSH_BUFFER.sum()
        start = default_timer()
        drafter.propose(tokens, GAMMA, sampling, rng, watch)
        yield (default_timer() - start) / GAMMA


def measure_medians(sides: dict[str, Iterator[float]], count: int) -> dict[str, float]:
    """Median microseconds per step of each side; the sides alternate."""
    for side in sides.values():
        next(side)  # compiles kernels and packs shortlists
    seconds: dict[str, list[float]] = {label: [] for label in sides}
    for _ in range(count):
        for label, side in sides.items():
            seconds[label].append(next(side))
    return {label: round(1e6 * statistics.median(s), 1) for label, s in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument(
        "--chains", type=int, default=200, help="proposals of each side (default: 200)"
    )
    options = parser.parse_args()
    by_vocabulary = {
        f"{name} V={v}": time_proposals(v, 256, name)
        for v in VOCABULARIES
        for name in ("evospec", "full")
    }
    ends = VOCABULARIES[0], VOCABULARIES[-1]
    by_vocabulary |= {f"evospec V={v} D=640": time_proposals(v, 256, "evospec", 640) for v in ends}
    steps = measure_medians(by_vocabulary, options.chains)
    by_context = {f"evospec T={t}": time_proposals(VOCABULARIES[0], t, "evospec") for t in CONTEXTS}
    first, last = (f"evospec V={v}" for v in ends)
    figures = {
        "threads": numba.get_num_threads(),
        "microseconds_a_step": steps | measure_medians(by_context, options.chains),
        "largest_over_smallest_vocabulary": {
            width: round(steps[last + tail] / steps[first + tail], 3)
            for width, tail in ((576, ""), (640, " D=640"))
        },
    }
    if options.json:
        write_json(options.json, figures)
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
