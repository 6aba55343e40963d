"""Does a draft that learns while it serves accept more, and at what price?

    python -m benchmarks.adaptation --model smollm2 --prompts law medicine --json FILE --quick

The prompts of each topic are one stream of greedy answers. What the target says is recorded
once, and drafts are then led through it by the real decoding loop (``benchmarks.replay``), so
that tau is exact and runs can be repeated; speed is measured with the target itself. All
figures compare drafts on the same prompts of the same stream; intervals are bootstrapped over
prompts (95%). A seed orders the prompts and starts the adapters.
"""

import argparse
import copy
import random
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from benchmarks.memory import Watched
from benchmarks.replay import Recording, record
from benchmarks.rival import Rival
from minispec.commit import StopRule
from minispec.decode import speculative
from minispec.errors import MinispecError
from minispec.io import draft_file
from minispec.io.artifacts import find_artifact
from minispec.io.files import write_json
from minispec.learning.learner import AdaptConfig, Aligner
from minispec.models.eagle_draft import EagleDraft
from minispec.sampling import Sampling, SeededRandom
from minispec.tools.data.streams import Stream, load_streams
from minispec.tools.evaluation import methods
from minispec.tools.evaluation.measure import Figures, machine, measure
from minispec.tools.models import backend, pretrained
from minispec.types import Draft, Learner, Shortlist

CONTROL = ("general", "code")
RIVAL = AdaptConfig(rate=2e-5)
Played = list[tuple[Figures, Figures]]  # frozen and learning, prompt by prompt


class Bench:
    """A model, a draft, a list of ids for each domain, and what was recorded."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.model = pretrained.load(options.model)
        name = {"main": "draft", "general-code": "draft-general-code"}[options.draft]
        path = find_artifact(options.model, name)
        if path is None:
            raise MinispecError(f"no draft {options.draft} of {options.model} is shipped")
        self.draft = draft_file.load_draft(path, self.model.reference, self.model.fingerprint)
        self.method = methods.Method.parse(options.method)
        self.gamma, self.tokens, self.answer = options.gamma, options.tokens, options.answer
        self._lists: dict[str | None, Shortlist] = {}
        self._frozen: dict[tuple[int, ...], Figures] = {}

    def list_for(self, domain: str) -> Shortlist:
        name = self.method.ranking_for(domain)
        if name not in self._lists:
            self._lists[name] = methods.shortlist(self.method, self.model, domain)
        return self._lists[name]

    def recorded(self, stream: Stream) -> list[Recording]:
        """Answers of a stream, at least ``tokens`` in all; the prompts cycle if they are few."""
        prompts = [self.model.tokenizer.chat(text) for text in stream.prompts]
        found: list[Recording] = []
        for start in range(0, len(prompts), 16):
            found += record(self.model, prompts[start : start + 16], self.answer)
            if sum(len(r.answer) for r in found) >= 1.1 * self.tokens:
                return found
        enough = found
        while sum(len(r.answer) for r in enough) < self.tokens:
            enough = enough + found
        return enough

    def play(self, recording: Recording, domain: str, learner: Learner | None) -> Figures:
        """One answer again, by the frozen draft or by a learner's. A learner's text is kept in
        one stream by the learner itself."""
        said = self.model.target
        target = recording.reciter(said.head.vocab_size, said.context_limit)
        figures = measure(
            speculative(
                target, learner.draft if learner else self.draft, self.list_for(domain),
                recording.prompt, gamma=self.gamma, sampling=Sampling(), rng=SeededRandom(0),
                stop=StopRule(len(recording.answer)), learner=learner,
            )
        )  # fmt: skip
        assert figures.tokens == recording.answer, "a replay must say what was recorded"
        return figures

    def frozen(self, recording: Recording, domain: str) -> Figures:
        """The frozen draft's figures, which no order of prompts changes."""
        if recording.prompt not in self._frozen:
            self._frozen[recording.prompt] = self.play(recording, domain, None)
        return self._frozen[recording.prompt]

    def pairs(self, recordings: Sequence[Recording], domain: str, learner: Learner) -> Played:
        return [(self.frozen(r, domain), self.play(r, domain, learner)) for r in recordings]


def copied(draft: EagleDraft) -> EagleDraft:
    """The same draft with parameters of its own; embedding and head stay the target's."""
    own = draft.with_own_head()
    return copy.deepcopy(own, {id(t): t for t in (own.embedding, own.head.weight)})


def between(played: Played, low: int, high: int) -> Played:
    """The prompts of a stream that begin within these tokens of it."""
    chosen, place = [], 0
    for frozen, ours in played:
        if low <= place < high:
            chosen.append((frozen, ours))
        place += len(frozen.tokens)
    return chosen


def gain(played: Played) -> dict[str, float]:
    """tau of the second over tau of the first, pooled, with a bootstrapped interval."""
    # A prompt is drawn with all its orders: what it says in one is not news in the next.
    prompts: dict[tuple[int, ...], list[tuple[int, int]]] = {}
    for a, b in played:  # the tokens are the same
        prompts.setdefault(a.tokens, []).append((a.passes, b.passes))
    passes = list(prompts.values())

    def ratio(sample: Sequence[list[tuple[int, int]]]) -> float:
        return sum(a for p in sample for a, _ in p) / sum(b for p in sample for _, b in p)

    draws = random.Random(0)
    ratios = sorted(ratio(draws.choices(passes, k=len(passes))) for _ in range(2000))
    return {"value": ratio(passes), "low": ratios[50], "high": ratios[1949]}


def ordered(recordings: Sequence[Recording], seed: int) -> list[Recording]:
    shuffled = list(recordings)
    random.Random(seed).shuffle(shuffled)
    return shuffled


def memory(bench: Bench, recordings: Sequence[Recording], domain: str, make: Any) -> dict[str, int]:
    """Peak bytes beyond plain speculation, by kind, over a stream with several updates."""
    own = copied(bench.draft)
    shared = [*own.parameters(), own.embedding, own.head.weight, *bench.draft.parameters()]
    watched = Watched(lambda: make(own), shared)
    for recording in recordings:
        bench.play(recording, domain, watched)
    return watched.live.split()


def speeds(
    bench: Bench, streams: Sequence[tuple[str, list[Recording]]], name: str
) -> dict[str, float]:
    """Tokens per second, learning over frozen, by stream: the real loop on a backend, prompts in
    turn."""
    model, frozen = backend.place_on_backend(bench.model, bench.draft, name)
    assert frozen is not None
    ratios = {}
    for domain, recordings in streams:
        learner, learning = methods.learner_of(frozen, carry=True)
        sides: list[tuple[str, Draft, Learner | None]]
        sides = [("frozen", frozen.with_own_head(), None), ("ours", learning, learner)]
        seconds = {"frozen": 0.0, "ours": 0.0}
        for number, recording in enumerate(tqdm(recordings, desc=f"speed {domain}", leave=False)):
            for side, draft, who in sides[:: 1 if number % 2 else -1]:
                figures = measure(
                    speculative(
                        model.target, draft, bench.list_for(domain), recording.prompt,
                        gamma=bench.gamma, sampling=Sampling(), rng=SeededRandom(0),
                        stop=StopRule(len(recording.answer)), learner=who,
                    )
                )  # fmt: skip
                if number:  # the first one warms up
                    seconds[side] += figures.decode_seconds / len(figures.tokens)
        ratios[domain] = seconds["frozen"] / seconds["ours"]
    return ratios


def add_options(parser: argparse.ArgumentParser) -> None:
    """What ``Bench`` needs to know, and where a report goes."""
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--prompts", nargs="+", default=["law", "medicine"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="where the figures go")
    parser.add_argument("--draft", choices=("main", "general-code"), default="general-code")
    parser.add_argument("--method", default="frspec@0.25:mix", help="which list drafts")
    parser.add_argument("--gamma", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=2000, help="of a stream (2000)")
    parser.add_argument("--answer", type=int, default=128, help="tokens of an answer at most (128)")


def settings(options: argparse.Namespace) -> dict[str, Any]:
    """What a report's figures hang on."""
    names = ("model", "draft", "method", "gamma", "seed", "answer")
    chosen = {name: getattr(options, name) for name in names}
    return {**chosen, "threads": torch.get_num_threads(), "machine": machine()}


def run(options: argparse.Namespace) -> dict[str, Any]:
    bench = Bench(options)
    held_out, control = load_streams(options.prompts), load_streams(CONTROL)
    recorded = {}
    for stream in tqdm([*held_out, *control], desc="recording"):
        recorded[stream.name] = bench.recorded(stream)
    seeds = range(options.seed, options.seed + (1 if options.quick else 3))

    def all_of(
        streams: Sequence[Stream], make: Callable[[int], Learner], seeds: Sequence[int] = seeds
    ) -> dict[str, Played]:
        played: dict[str, Played] = {}
        for stream in streams:
            played[stream.name] = []
            for seed in seeds:
                order = ordered(recorded[stream.name], seed)
                pairs = bench.pairs(order, stream.name, make(seed))
                played[stream.name] += between(pairs, options.tokens // 2, options.tokens)
        return played

    def ours(seed: int) -> Aligner:
        return Aligner(bench.draft, AdaptConfig(seed=seed), carry=True)

    def rival(seed: int) -> Rival:
        return Rival(copied(bench.draft), replace(RIVAL, seed=seed))

    held = all_of(held_out, ours)
    controls = all_of(control, ours)
    rivals = all_of(held_out, rival, seeds[:1] if options.quick else seeds)
    first, second = recorded[held_out[0].name], recorded[held_out[-1].name]
    half = len(first) // 2
    learner = ours(options.seed)
    bench.pairs(first[:half], held_out[0].name, learner)
    bench.pairs(second, held_out[-1].name, learner)
    back = gain(bench.pairs(first[half:], held_out[0].name, learner))
    some = first[:8]
    name = held_out[0].name
    used = {
        "ours": memory(bench, some, name, lambda own: Aligner(own, carry=True)),
        "rival": memory(bench, some, name, lambda own: Rival(own, RIVAL)),
        "rival_full_laws": memory(
            bench, some, name, lambda own: Rival(own, RIVAL, full_distributions=True)
        ),
    }
    fast = {}
    few = 4 if options.quick and options.speed_prompts is None else options.speed_prompts
    if few != 0:
        most = few + 1 if few else None  # the first one warms up
        prompts = [(s.name, recorded[s.name][:most]) for s in (*held_out, *control)]
        fast = speeds(bench, prompts, options.backend)

    def pooled(played: dict[str, Played]) -> dict[str, float]:
        return gain([pair for pairs in played.values() for pair in pairs])

    return {
        "tau_gain": pooled(held),
        "tau_gain_control": pooled(controls),
        "tau_gain_rival": pooled(rivals),
        "return_retention": back,
        "memory_ratio": used["ours"]["peak"] / used["rival"]["peak"],
        "memory_ratio_full_laws": used["ours"]["peak"] / used["rival_full_laws"]["peak"],
        "speed_ratio": statistics.geometric_mean(fast.values()) if fast else None,
        "speed_by_stream": fast,
        "gain_by_stream": {
            **{n: gain(p) for n, p in {**held, **controls}.items()},
            **{f"{n} (rival)": gain(p) for n, p in rivals.items()},
        },
        "speed_backend": options.backend,
        "memory_bytes": used,
        "seeds": list(seeds),
        "tokens": {n: sum(len(r.answer) for r in rs) for n, rs in recorded.items()},
        **settings(options),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    add_options(parser)
    parser.add_argument("--quick", action="store_true", help="one order of the prompts, not three")
    parser.add_argument("--speed-prompts", type=int, help="of each topic (--quick: 4, else all)")
    parser.add_argument(
        "--backend", choices=backend.LEARNING_BACKENDS, default="reference", help="where speed is measured"
    )
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
