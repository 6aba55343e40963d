"""All sides answer all prompts in turn, and greedy answers are compared id by id.

Knows nothing of engines.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from tqdm import tqdm

from benchmarks.peers.sides import Answer, Side, Work
from minispec.commit import StopRule
from minispec.decode import autoregressive
from minispec.sampling import Sampling, SeededRandom
from minispec.tools.evaluation.audit import first_difference, rank_next
from minispec.tools.evaluation.measure import measure
from minispec.types import Target

_WARM_UP = 24  # tokens
Answers = Mapping[Side, Sequence[Answer]]


def answer_all(sides: Sequence[Side], work: Work, temperature: float, seed: int) -> Answers:
    """Every side's answer to every prompt, after a warm-up. Which side goes first rotates from
    prompt to prompt, so that a machine that slows down slows all of them alike. Raises RuntimeError
    for a side that stops early."""
    _warm_up(sides, work, temperature)
    answers: dict[Side, list[Answer]] = {side: [] for side in sides}
    with tqdm(total=len(sides) * len(work.prompts), desc=f"temperature {temperature:g}",
              unit="answer", disable=None) as bar:  # fmt: skip
        for number, (_, ids) in enumerate(work.prompts):
            first = number % len(sides)
            for side in (*sides[first:], *sides[:first]):
                answer = side.run(ids, temperature, seed + number, work.max_new_tokens)
                if (count := len(answer.tokens)) != work.max_new_tokens:
                    raise RuntimeError(
                        f"{side.name} gave {count} tokens instead of {work.max_new_tokens}"
                    )
                answers[side].append(answer)
                bar.update()
    return answers


def _warm_up(sides: Sequence[Side], work: Work, temperature: float) -> None:
    """Each side answers the shortest and the longest prompt: they may need other shapes."""
    by_length = sorted((ids for _, ids in work.prompts), key=len)
    limit = min(_WARM_UP, work.max_new_tokens)
    for side in tqdm(sides, desc="warming up", unit="side", leave=False, disable=None):
        for ids in dict.fromkeys((by_length[0], by_length[-1])):
            side.run(ids, temperature, 0, limit)


@dataclass(frozen=True)
class Difference:
    """Where a greedy answer leaves minispec's in float32: the number of the prompt, the position in
    the answer, the gap between the two largest float32 logits there, and whether the other side
    took the second."""

    prompt: int
    position: int
    gap: float
    took_second: bool


def compare_ids(target: Target, answers: Answers, work: Work) -> dict[Side, list[Difference]]:
    """The first difference of each greedy answer from plain decoding with ``target``, minispec's
    model in float32: by side, in the order of the prompts."""
    stop = StopRule(work.max_new_tokens)
    found: dict[Side, list[Difference]] = {side: [] for side in answers}
    for number, (_, ids) in enumerate(work.prompts):
        rounds = autoregressive(target, ids, sampling=Sampling(), rng=SeededRandom(0), stop=stop)
        plain = measure(rounds).tokens
        rank = cache(lambda position, ids=ids, plain=plain: _rank(target, ids, plain[:position]))
        for side, given in answers.items():
            other = given[number].tokens
            position = first_difference(plain, other)
            if position is not None:
                gap, second = rank(position)  # sides often differ at the same place
                found[side].append(Difference(number, position, gap, other[position] == second))
    return found


def _rank(target: Target, ids: Sequence[int], plain: Sequence[int]) -> tuple[float, int]:
    """The gap between the two largest logits after a prompt and some tokens, and the id of the
    second."""
    values, found = rank_next(target, ids, plain)
    return float(values[0] - values[1]), int(found[1])


def summarize_differences(found: Sequence[Difference], prompts: int) -> dict[str, Any]:
    """How many answers are identical; the middle position of the first differences, the largest gap
    there, and how many took the second id."""
    return {
        "identical": prompts - len(found),
        "median_position": statistics.median(d.position for d in found) if found else None,
        "largest_gap": max((d.gap for d in found), default=None),
        "took_second": sum(d.took_second for d in found),
    }
