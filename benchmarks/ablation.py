"""Which part of learning while serving earns its place: each taken away, or changed, by itself.

    python -m benchmarks.ablation --model smollm2 --prompts law medicine --json FILE

The same streams, replays and figures as in ``benchmarks.adaptation``. What concerns the adapters
is tried without recall, whose gain would hide theirs.
"""

import argparse
import sys

from tqdm import tqdm

from benchmarks.adaptation import Bench, add_options, between, gain, ordered, settings
from minispec.errors import MinispecError
from minispec.io.files import write_json
from minispec.learning.learner import AdaptConfig, Aligner
from minispec.learning.lora import TARGETS
from minispec.tools.data.streams import load_streams

VARIANTS = {
    "recall and LoRA": AdaptConfig(),
    "recall alone": AdaptConfig(rate=0),
    "LoRA alone": AdaptConfig(recall=False),
    "without curriculum": AdaptConfig(recall=False, curriculum=False),
    "without replay": AdaptConfig(recall=False, replay=False),
    **{f"rank {rank}": AdaptConfig(recall=False, rank=rank) for rank in (2, 4, 16, 32)},
    **{name: AdaptConfig(recall=False, objective=name) for name in ("kl", "reverse_kl", "tv")},
    "all matrices": AdaptConfig(recall=False, targets=TARGETS),
    "rate 0.002": AdaptConfig(recall=False, rate=2e-3),
    "four times as often": AdaptConfig(recall=False, interval=32),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    add_options(parser)
    options = parser.parse_args()
    try:
        bench = Bench(options)
        streams = {stream.name: bench.recorded(stream) for stream in load_streams(options.prompts)}
        table = {}
        for name, config in tqdm(VARIANTS.items(), desc="ablation"):
            played = []
            for domain, recordings in streams.items():
                learner = Aligner(bench.draft, config, carry=True)
                pairs = bench.pairs(ordered(recordings, options.seed), domain, learner)
                played += between(pairs, options.tokens // 2, options.tokens)
            table[name] = gain(played)
            print(name, table[name])
        if options.json:
            write_json(options.json, {"tau_gain": table, **settings(options)})
    except MinispecError as error:
        print(f"ablation: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
