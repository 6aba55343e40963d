"""A long run with learning: memory, time per token and state stay as they are."""

import gc
import os
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

import minispec
from minispec.errors import ContextError
from minispec.learning.learner import OnlineLearner
from minispec.tools.data import corpus

_TURN = 96  # tokens of an answer, at most
_TURNS = 8  # of a conversation, which fill most of the pocket pair's context
_SHARES = (("cpu", 0.7), ("reference", 0.3))  # of the tokens, by backend
# What counts as flat, from the second fifth of the run to its end.
_GROWTH_BYTES, _SLOWER = 24e6, 1.25


@dataclass
class Sample:
    """After some tokens: memory in bytes, and the processor's seconds per token since the sample
    before, which other work on the machine hardly changes."""

    tokens: int
    memory: int
    seconds: float


def drill_soak(tokens: int, seed: int = 0) -> dict[str, Any]:
    """Generate ``tokens`` tokens with the pocket pair and ``+adapt``; returns the part of the
    summary."""
    parts = {backend: _run(backend, int(tokens * share), seed) for backend, share in _SHARES}
    failures = [failure for part in parts.values() for failure in part.pop("failures")]
    total = sum(part["tokens"] for part in parts.values())
    return {"tokens": total, "backends": parts, "failures": failures}


def _run(backend: str, tokens: int, seed: int) -> dict[str, Any]:
    """Conversations and single prompts of all domains on one thread of a backend."""
    model = minispec.load("pocket", backend=backend, threads=1, adapt=True)
    prompts = [text for name in corpus.DOMAINS for text in corpus.load_prompts(name, base=True)]
    samples: list[Sample] = []
    failures: list[str] = []
    done, since, number = 0, 0, 0
    started = time.process_time()
    while done < tokens or len(samples) < 8:  # lines are drawn through eight points at least
        options = {"shortlist": "evospec+adapt", "temperature": 1.0, "seed": seed + number,
                   "max_new_tokens": _TURN, "ignore_eos": True}  # fmt: skip
        if number % 4 == 3:
            new = len(model.generate(prompts[number % len(prompts)], **options).token_ids)
        else:
            chat, new = model.chat(**options), 0
            for turn in range(_TURNS):
                message = prompts[(number + turn) % len(prompts)][:120]
                try:
                    new += len(chat.send(message).token_ids)
                except ContextError:  # the conversation has filled it
                    break
            failures += _check_state(model.tokenizer.vocab_size)
        done, since, number = done + new, since + new, number + 1
        if since >= tokens / 50:
            gc.collect()
            now = time.process_time()
            samples.append(Sample(done, _memory(), (now - started) / since))
            started, since = time.process_time(), 0
    return _judge(backend, samples, failures)


def _check_state(vocab_size: int) -> list[str]:
    """Each learner that is alive holds no more than its settings say."""
    problems = []
    for learner in [each for each in gc.get_objects() if type(each) is OnlineLearner]:
        buffer, config = learner.recorder.buffer, learner.config
        capacity = config.num_windows * config.window_size
        if len(buffer) > capacity or any(len(t) != capacity for t in buffer.tensors()):
            problems.append(f"a buffer of {len(buffer)} entries, its capacity is {capacity}")
    return problems


def _judge(backend: str, samples: list[Sample], failures: list[str]) -> dict[str, Any]:
    """Straight lines through memory and time, without the first fifth, in which caches fill."""
    steady = samples[len(samples) // 5 :]
    counts = np.array([sample.tokens for sample in steady], float)
    memory = np.polyfit(counts, [sample.memory for sample in steady], 1)[0]
    growth = memory * (counts[-1] - counts[0])
    if growth > _GROWTH_BYTES:
        failures.append(f"memory grew by {growth / 1e6:.0f} MB in {counts[-1]:.0f} tokens")
    # The fastest of each third: other work on the machine only ever slows a part down.
    thirds = np.array_split(np.array([sample.seconds for sample in steady]), 3)
    slower = float(thirds[2].min() / thirds[0].min())
    if slower > _SLOWER:
        failures.append(f"a token took {slower:.2f} times as long at the end as at the start")
    return {
        "tokens": samples[-1].tokens,
        "bytes_per_token": round(float(memory), 2),
        "grown_mb": round(float(growth) / 1e6, 2),
        "last_to_first_third": round(slower, 3),
        "tokens_per_second": round(float(1 / np.mean([s.seconds for s in samples])), 1),
        "failures": [{"backend": backend, "problem": each} for each in dict.fromkeys(failures)],
    }


def _memory() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
