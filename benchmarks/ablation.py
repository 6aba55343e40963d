"""Which parts of online learning raise tau: each one removed, or changed, on its own.

    python -m benchmarks ablation --model smollm2 --prompts law medicine --json FILE

The same streams, replays and figures as in ``benchmarks.adaptation``. Variants of LoRA are run
without retrieval, whose gain would hide theirs.
"""

import argparse
import sys

from tqdm import tqdm

from benchmarks.replay_bench import (
    Pairs,
    ReplayBench,
    add_options,
    describe_settings,
    select_span,
    shuffle,
    tau_gain,
)
from minispec.errors import MinispecError
from minispec.io.files import write_json
from minispec.learning.config import LearnerConfig
from minispec.learning.learner import OnlineLearner
from minispec.learning.lora import TARGETS
from minispec.tools.data.streams import load_streams

VARIANTS = {
    "recall and LoRA": LearnerConfig(),
    "recall alone": LearnerConfig(learning_rate=0),
    "LoRA alone": LearnerConfig(retrieval=False),
    "without curriculum": LearnerConfig(retrieval=False, curriculum=False),
    "without replay": LearnerConfig(retrieval=False, replay=False),
    **{f"rank {rank}": LearnerConfig(retrieval=False, rank=rank) for rank in (2, 4, 16, 32)},
    **{name: LearnerConfig(retrieval=False, loss=name) for name in ("kl", "reverse_kl", "tv")},
    "all matrices": LearnerConfig(retrieval=False, targets=TARGETS),
    "rate 0.002": LearnerConfig(retrieval=False, learning_rate=2e-3),
    "four times as often": LearnerConfig(retrieval=False, update_interval=32),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    add_options(parser)
    options = parser.parse_args()
    try:
        bench = ReplayBench(options)
        streams = {stream.name: bench.record(stream) for stream in load_streams(options.prompts)}
        table = {}
        for name, config in tqdm(VARIANTS.items(), desc="ablation"):
            second_halves: Pairs = []
            for domain, answers in streams.items():
                learner = OnlineLearner(bench.draft, config, carry=True)
                pairs = bench.replay_pairs(shuffle(answers, options.seed), domain, learner)
                second_halves += select_span(pairs, options.tokens // 2, options.tokens)
            table[name] = tau_gain(second_halves)
            print(name, table[name])
        if options.json:
            write_json(options.json, {"tau_gain": table, **describe_settings(options)})
    except MinispecError as error:
        print(f"ablation: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
