"""Streams of recorded answers, replayed by drafts that learn and by the frozen draft.

Shared by ``benchmarks.adaptation`` and ``benchmarks.ablation``. The target's greedy answers to the
prompts of a stream are recorded once. Drafts are then run through them by the real decoding loop,
so tau is exact and a run can be repeated.
"""

import argparse
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from minispec.commit import StopRule
from minispec.decode import speculative
from minispec.errors import MinispecError
from minispec.io import draft_file
from minispec.io.artifacts import find_artifact
from minispec.sampling import Sampling, SeededRandom
from minispec.tools.data.streams import Stream
from minispec.tools.evaluation import assembly, methods
from minispec.tools.evaluation.measure import Figures, describe_machine, measure
from minispec.tools.evaluation.recorded_answers import RecordedAnswer, record_answers
from minispec.tools.models import pretrained
from minispec.types import Learner, Shortlist

# The figures of the frozen draft and of a draft that learns, for each prompt of a stream.
Pairs = list[tuple[Figures, Figures]]


class ReplayBench:
    """A model, its draft, a shortlist for each domain, and the frozen draft's figures."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.model = pretrained.load(options.model)
        name = {"main": "draft", "general-code": "draft-general-code"}[options.draft]
        path = find_artifact(options.model, name)
        if path is None:
            raise MinispecError(f"model {options.model} has no draft {options.draft}")
        self.draft = draft_file.load_draft(path, self.model.reference, self.model.fingerprint)
        self.method = methods.Method.parse(options.method)
        self.gamma, self.tokens, self.answer = options.gamma, options.tokens, options.answer
        self._shortlists: dict[str | None, Shortlist] = {}
        self._frozen: dict[tuple[int, ...], Figures] = {}

    def shortlist_for(self, domain: str) -> Shortlist:
        name = self.method.ranking_for(domain)
        if name not in self._shortlists:
            self._shortlists[name] = assembly.build_shortlist(self.method, self.model, domain)
        return self._shortlists[name]

    def record(self, stream: Stream) -> list[RecordedAnswer]:
        """Answers to the prompts of a stream, at least ``tokens`` tokens in all. If there are too
        few prompts, they are repeated."""
        prompts = [self.model.tokenizer.chat(text) for text in stream.prompts]
        answers: list[RecordedAnswer] = []
        for start in range(0, len(prompts), 16):
            answers += record_answers(self.model, prompts[start : start + 16], self.answer)
            if sum(len(answer.answer) for answer in answers) >= 1.1 * self.tokens:
                return answers
        repeated = answers
        while sum(len(answer.answer) for answer in repeated) < self.tokens:
            repeated = repeated + answers
        return repeated

    def replay(self, recorded: RecordedAnswer, domain: str, learner: Learner | None) -> Figures:
        """Decode a recorded answer with the frozen draft, or with a learner's."""
        target = recorded.replay_target(
            self.model.target.head.vocab_size, self.model.target.context_limit
        )
        figures = measure(
            speculative(
                target, learner.draft if learner else self.draft, self.shortlist_for(domain),
                recorded.prompt, gamma=self.gamma, sampling=Sampling(), rng=SeededRandom(0),
                stop=StopRule(len(recorded.answer)), learner=learner,
            )
        )  # fmt: skip
        assert figures.tokens == recorded.answer, "a replay must emit the recorded answer"
        return figures

    def replay_frozen(self, recorded: RecordedAnswer, domain: str) -> Figures:
        """The figures of the frozen draft, which do not depend on the order of prompts."""
        if recorded.prompt not in self._frozen:
            self._frozen[recorded.prompt] = self.replay(recorded, domain, None)
        return self._frozen[recorded.prompt]

    def replay_pairs(
        self, answers: Sequence[RecordedAnswer], domain: str, learner: Learner
    ) -> Pairs:
        """Replay a stream with the frozen draft and with a learner."""
        return [
            (self.replay_frozen(answer, domain), self.replay(answer, domain, learner))
            for answer in answers
        ]


def select_span(pairs: Pairs, low: int, high: int) -> Pairs:
    """The prompts whose answers begin at a token of the stream within [low, high)."""
    selected, position = [], 0
    for frozen, learning in pairs:
        if low <= position < high:
            selected.append((frozen, learning))
        position += len(frozen.tokens)
    return selected


def tau_gain(pairs: Pairs) -> dict[str, float]:
    """The learning draft's tau over the frozen draft's, pooled over all prompts, with a 95%
    interval bootstrapped over prompts."""
    # A prompt is resampled with all its orders, since these are not independent. The tokens of both
    # figures are the same, so tau is compared by target passes.
    by_prompt: dict[tuple[int, ...], list[tuple[int, int]]] = {}
    for frozen, learning in pairs:
        by_prompt.setdefault(frozen.tokens, []).append((frozen.passes, learning.passes))
    passes = list(by_prompt.values())

    def ratio(sample: Sequence[list[tuple[int, int]]]) -> float:
        return sum(a for p in sample for a, _ in p) / sum(b for p in sample for _, b in p)

    rng = random.Random(0)
    ratios = sorted(ratio(rng.choices(passes, k=len(passes))) for _ in range(2000))
    return {"value": ratio(passes), "low": ratios[50], "high": ratios[1949]}


def shuffle(answers: Sequence[RecordedAnswer], seed: int) -> list[RecordedAnswer]:
    """A shuffled copy."""
    shuffled = list(answers)
    random.Random(seed).shuffle(shuffled)
    return shuffled


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of ``ReplayBench``, the seed, and the file of the report."""
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--prompts", nargs="+", default=["law", "medicine"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--draft", choices=("main", "general-code"), default="general-code")
    parser.add_argument(
        "--method", default="frspec@0.25:mix", help="shortlist (default: frspec@0.25:mix)"
    )
    parser.add_argument("--gamma", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=2000, help="per stream (default: 2000)")
    parser.add_argument(
        "--answer", type=int, default=128, help="maximum tokens per answer (default: 128)"
    )


def describe_settings(options: argparse.Namespace) -> dict[str, Any]:
    """The options and the machine that the figures depend on, for a report."""
    names = ("model", "draft", "method", "gamma", "seed", "answer")
    chosen = {name: getattr(options, name) for name in names}
    return {**chosen, "threads": torch.get_num_threads(), "machine": describe_machine()}
