"""What a draft step costs as the vocabulary grows at a fixed budget, and as the context grows.

Physics: a step reads the draft's layer, the K rows of its list and the keys and values so far;
choosing a list reads centroids and marks V ids. Of these only the marks, one byte an id, grow
with V, as long as nobody touches all rows: the whole head, beside it, is V * D numbers.

Models of SmolLM2's and of Gemma-3-270M's width with random weights and one layer, whose
vocabularies differ. The whole production chain is timed (choosing the list, four steps, laws,
draws), divided by its steps.
Between two chains other memory is read, as the target's pass does. The sides alternate, chain
by chain, in one process; figures are medians.

Run: make bench, or python -m benchmarks.bench_scaling --json FILE
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
from minispec.models.transformer import ModelConfig, Transformer
from minispec.propose import Drafter
from minispec.sampling import Sampling, SeededRandom
from minispec.shortlists.evospec import EvoSpecShortlist
from minispec.shortlists.full import FullShortlist
from minispec.stopwatch import Stopwatch
from minispec.types import Shortlist

VOCABULARIES = (32_768, 65_536, 131_072, 262_144)
CONTEXTS = (64, 512, 2_048)
CLUSTERS, GAMMA = 2_048, 4
BETWEEN = torch.zeros(16 * 2**20)  # 64 MiB that are read between two chains


# By width: the rest of the layer, and the budget of the list, which is that of compare.
SHAPES: dict[int, tuple[dict[str, int], int]] = {
    576: ({"heads": 9, "kv_heads": 3, "head_width": 64, "mlp_width": 1_536}, 1_536),
    640: ({"heads": 4, "kv_heads": 1, "head_width": 256, "mlp_width": 2_048}, 2_621),
}


def config(vocabulary: int, width: int) -> ModelConfig:
    """A model's shape, but for the vocabulary and the number of layers."""
    return ModelConfig(
        vocab_size=vocabulary, hidden_size=width, num_hidden_layers=1, rms_norm_eps=1e-5,
        rope_theta=100_000.0, context_limit=4_096, aux_hidden_state_layer_ids=(1,), **SHAPES[width][0],
    )  # fmt: skip


def chains(vocabulary: int, context: int, name: str, width: int = 576) -> Iterator[float]:
    """Seconds a draft step, chain after chain, behind a context of so many tokens."""
    model = Transformer(config(vocabulary, width)).eval().requires_grad_(False)
    target = cpu.target(model)
    draft = cpu.draft(drafts.init_from_target(model), target)
    ids = torch.randperm(vocabulary)
    shortlist: Shortlist = FullShortlist(vocabulary)
    if name == "evospec":
        clusters = torch.arange(vocabulary) % CLUSTERS
        shortlist = EvoSpecShortlist(ids, SHAPES[width][1], (), clusters, model.head.weight)
    drafter = Drafter(draft, shortlist, model.context_limit)
    tokens = torch.randint(vocabulary, (context,)).tolist()
    drafter.resync(torch.tensor(tokens), torch.randn(context, width))
    sampling, rng, watch = Sampling(), SeededRandom(0), Stopwatch()
    while True:
        drafter.resync(torch.tensor(tokens[:1]), torch.randn(1, width))  # forgets the last chain
        BETWEEN.sum()
        start = default_timer()
        drafter.propose(tokens, GAMMA, sampling, rng, watch)
        yield (default_timer() - start) / GAMMA


def medians(sides: dict[str, Iterator[float]], count: int) -> dict[str, float]:
    """Microseconds a step of each side, which take turns."""
    for side in sides.values():
        next(side)  # compiles, and packs what is packed once
    seconds: dict[str, list[float]] = {label: [] for label in sides}
    for _ in range(count):
        for label, side in sides.items():
            seconds[label].append(next(side))
    return {label: round(1e6 * statistics.median(s), 1) for label, s in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="where the figures go")
    parser.add_argument("--chains", type=int, default=200, help="of each side (200)")
    options = parser.parse_args()
    by_vocabulary = {
        f"{name} V={v}": chains(v, 256, name) for v in VOCABULARIES for name in ("evospec", "full")
    }
    ends = VOCABULARIES[0], VOCABULARIES[-1]
    by_vocabulary |= {f"evospec V={v} D=640": chains(v, 256, "evospec", 640) for v in ends}
    steps = medians(by_vocabulary, options.chains)
    by_context = {f"evospec T={t}": chains(VOCABULARIES[0], t, "evospec") for t in CONTEXTS}
    first, last = (f"evospec V={v}" for v in ends)
    figures = {
        "threads": numba.get_num_threads(),
        "microseconds_a_step": steps | medians(by_context, options.chains),
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
