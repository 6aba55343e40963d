"""Does online learning raise the acceptance of a draft, and what does it cost?

    python -m benchmarks adaptation --model smollm2 --prompts law medicine --json FILE --quick

The prompts of each domain form one stream of greedy answers, which are recorded and replayed (see
``benchmarks.replay_bench``). Speed is measured with the target itself. All figures compare drafts
on the same prompts of the same stream; intervals are bootstrapped over prompts (95%). A seed
orders the prompts and starts the adapters.
"""

import argparse
import copy
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

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
from minispec.commit import StopRule
from minispec.decode import speculative
from minispec.errors import MinispecError
from minispec.io.files import write_json
from minispec.learning.config import LearnerConfig
from minispec.learning.learner import OnlineLearner
from minispec.models.eagle_draft import EagleDraft
from minispec.sampling import Sampling, SeededRandom
from minispec.tools.data.streams import Stream, load_streams
from minispec.tools.evaluation import assembly, methods
from minispec.tools.evaluation.full_finetuning import FullFinetuningLearner
from minispec.tools.evaluation.measure import measure
from minispec.tools.evaluation.memory import MeasuredLearner
from minispec.tools.evaluation.recorded_answers import RecordedAnswer
from minispec.tools.models import backend
from minispec.types import Draft, Learner

CONTROL = ("general", "code")  # domains that the draft was trained on
FULL_FINETUNING = LearnerConfig(learning_rate=2e-5)


def copy_draft(draft: EagleDraft) -> EagleDraft:
    """A draft with parameters of its own; it shares the target's embedding and head."""
    own = draft.with_own_head()
    return copy.deepcopy(own, {id(t): t for t in (own.embedding, own.head.weight)})


def measure_memory(
    bench: ReplayBench, answers: Sequence[RecordedAnswer], domain: str, build: Any
) -> dict[str, int]:
    """Peak bytes beyond plain speculative decoding, by kind, over a stream with several updates.
    ``build`` makes a learner of a draft."""
    own = copy_draft(bench.draft)
    shared = [*own.parameters(), own.embedding, own.head.weight, *bench.draft.parameters()]
    learner = MeasuredLearner(lambda: build(own), shared)
    for answer in answers:
        bench.replay(answer, domain, learner)
    return learner.memory.peak_by_kind()


def measure_speed(
    bench: ReplayBench, streams: Sequence[tuple[str, list[RecordedAnswer]]], name: str
) -> dict[str, float]:
    """Tokens per second with learning over those without, by stream, on a backend. The target
    runs, and the two sides take turns."""
    model, frozen = backend.place_on_backend(bench.model, bench.draft, name)
    assert frozen is not None
    ratios = {}
    for domain, answers in streams:
        learner, learning = assembly.build_learner(frozen, carry=True)
        sides: list[tuple[str, Draft, Learner | None]]
        sides = [("frozen", frozen.with_own_head(), None), ("learning", learning, learner)]
        seconds = {"frozen": 0.0, "learning": 0.0}
        for number, answer in enumerate(tqdm(answers, desc=f"speed {domain}", leave=False)):
            for side, draft, own_learner in sides[:: 1 if number % 2 else -1]:
                figures = measure(
                    speculative(
                        model.target, draft, bench.shortlist_for(domain), answer.prompt,
                        gamma=bench.gamma, sampling=Sampling(), rng=SeededRandom(0),
                        stop=StopRule(len(answer.answer)), learner=own_learner,
                    )
                )  # fmt: skip
                if number:  # the first prompt is a warm-up
                    seconds[side] += figures.decode_seconds / len(figures.tokens)
        ratios[domain] = seconds["frozen"] / seconds["learning"]
    return ratios


def run(options: argparse.Namespace) -> dict[str, Any]:
    bench = ReplayBench(options)
    held_out, control = load_streams(options.prompts), load_streams(CONTROL)
    recorded = {}
    for stream in tqdm([*held_out, *control], desc="recording"):
        recorded[stream.name] = bench.record(stream)
    seeds = range(options.seed, options.seed + (1 if options.quick else 3))

    def replay_streams(
        streams: Sequence[Stream], build: Callable[[int], Learner], seeds: Sequence[int] = seeds
    ) -> dict[str, Pairs]:
        """The second half of each stream, in one order of its prompts for each seed."""
        by_stream: dict[str, Pairs] = {}
        for stream in streams:
            by_stream[stream.name] = []
            for seed in seeds:
                order = shuffle(recorded[stream.name], seed)
                pairs = bench.replay_pairs(order, stream.name, build(seed))
                by_stream[stream.name] += select_span(pairs, options.tokens // 2, options.tokens)
        return by_stream

    def build_online(seed: int) -> OnlineLearner:
        return OnlineLearner(bench.draft, LearnerConfig(seed=seed), carry=True)

    def build_full(seed: int) -> FullFinetuningLearner:
        return FullFinetuningLearner(copy_draft(bench.draft), replace(FULL_FINETUNING, seed=seed))

    held_out_pairs = replay_streams(held_out, build_online)
    control_pairs = replay_streams(control, build_online)
    full_pairs = replay_streams(held_out, build_full, seeds[:1] if options.quick else seeds)

    # Retention: half of the first stream, all of the last one, the other half of the first.
    name = held_out[0].name
    first, last = recorded[name], recorded[held_out[-1].name]
    half = len(first) // 2
    learner = build_online(options.seed)
    bench.replay_pairs(first[:half], name, learner)
    bench.replay_pairs(last, held_out[-1].name, learner)
    retention = tau_gain(bench.replay_pairs(first[half:], name, learner))

    memory = {
        "ours": measure_memory(
            bench, first[:8], name, lambda own: OnlineLearner(own, carry=True)
        ),
        "rival": measure_memory(
            bench, first[:8], name, lambda own: FullFinetuningLearner(own, FULL_FINETUNING)
        ),
        "rival_full_laws": measure_memory(
            bench, first[:8], name,
            lambda own: FullFinetuningLearner(own, FULL_FINETUNING, full_distributions=True),
        ),
    }  # fmt: skip
    speed: dict[str, float] = {}
    limit = 4 if options.quick and options.speed_prompts is None else options.speed_prompts
    if limit != 0:
        last_prompt = limit + 1 if limit else None  # the first prompt is a warm-up
        prompts = [(s.name, recorded[s.name][:last_prompt]) for s in (*held_out, *control)]
        speed = measure_speed(bench, prompts, options.backend)

    def pooled_gain(by_stream: dict[str, Pairs]) -> dict[str, float]:
        return tau_gain([pair for pairs in by_stream.values() for pair in pairs])

    return {
        "tau_gain": pooled_gain(held_out_pairs),
        "tau_gain_control": pooled_gain(control_pairs),
        "tau_gain_rival": pooled_gain(full_pairs),
        "return_retention": retention,
        "memory_ratio": memory["ours"]["peak"] / memory["rival"]["peak"],
        "memory_ratio_full_laws": memory["ours"]["peak"] / memory["rival_full_laws"]["peak"],
        "speed_ratio": statistics.geometric_mean(speed.values()) if speed else None,
        "speed_by_stream": speed,
        "gain_by_stream": {
            **{n: tau_gain(p) for n, p in {**held_out_pairs, **control_pairs}.items()},
            **{f"{n} (rival)": tau_gain(p) for n, p in full_pairs.items()},
        },
        "speed_backend": options.backend,
        "memory_bytes": memory,
        "seeds": list(seeds),
        "tokens": {n: sum(len(r.answer) for r in rs) for n, rs in recorded.items()},
        **describe_settings(options),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    add_options(parser)
    parser.add_argument("--quick", action="store_true", help="one order of the prompts, not three")
    parser.add_argument(
        "--speed-prompts", type=int,
        help="prompts per domain to time (default: 4 with --quick, otherwise all; 0: none)",
    )  # fmt: skip
    parser.add_argument(
        "--backend", choices=methods.LEARNING_BACKENDS, default="reference",
        help="backend to time (default: reference)",
    )  # fmt: skip
    options = parser.parse_args()
    try:
        report = run(options)
        if options.json:
            write_json(options.json, report)
    except MinispecError as error:
        print(f"adaptation: {error}", file=sys.stderr)
        return 2
    for key in ("tau_gain", "tau_gain_control", "tau_gain_rival", "return_retention",
                "memory_ratio", "memory_ratio_full_laws", "speed_ratio"):  # fmt: skip
        print(key, report[key])
    return 0


if __name__ == "__main__":
    sys.exit(main())
