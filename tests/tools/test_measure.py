"""Figures: of one prompt, of many, ratios with their intervals, and peak memory."""

import math
import random
import subprocess
import sys
from typing import Any

import pytest
import torch

from helpers.tiny_model import Tiny
from minispec.commit import StopRule
from minispec.sampling import Sampling, SeededRandom
from minispec.tools.evaluation import assembly, measure
from minispec.tools.evaluation.measure import Figures
from minispec.tools.evaluation.methods import Method
from minispec.types import Distribution, Evidence, Proposal, Round


def figures(speed: float, tokens: int = 10) -> Figures:
    return Figures(
        tokens=tuple(range(tokens)), text="", stop=None, passes=tokens,
        seconds={"target": tokens / speed}, accepted_at=(), proposed_at=(),
        latencies=(1 / speed,) * tokens, shortlist_sizes=(), rows_probed=0,
    )  # fmt: skip


def test_paired_ratio_of_three_prompts() -> None:
    ours, theirs = [figures(s) for s in (2, 8, 1)], [figures(s) for s in (1, 2, 2)]
    ratio, inverse = measure.paired_ratio(ours, theirs), measure.paired_ratio(theirs, ours)
    assert ratio["value"] == pytest.approx((2 * 4 * 0.5) ** (1 / 3))
    assert ratio["low"] < ratio["value"] < ratio["high"]
    assert inverse["value"] == pytest.approx(1 / ratio["value"])
    assert measure.paired_ratio(ours, theirs) == ratio  # the resampling has a fixed seed
    single = measure.paired_ratio(ours[:1], theirs[:1])
    assert single == {"value": pytest.approx(2), "low": single["value"], "high": single["value"]}
    with pytest.raises(ValueError):
        measure.paired_ratio(ours, theirs[:2])


def test_paired_ratio_interval_covers_the_true_ratio(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ratios drawn around a known mean: about 95% of 200 intervals should contain it; with 20
    draws each, bootstrapped intervals are slightly narrow, about 93%. Fewer than 170 or more than
    199 has probability 1e-6 for a free seed; this seed is fixed."""
    monkeypatch.setattr(measure, "_RESAMPLES", 200)
    draws, covered = random.Random(0), 0
    for _ in range(200):
        ours = [figures(math.exp(draws.gauss(0.5, 0.3))) for _ in range(20)]
        ratio = measure.paired_ratio(ours, [figures(1.0)] * 20)
        assert ratio["low"] <= ratio["value"] <= ratio["high"]
        covered += ratio["low"] <= math.exp(0.5) <= ratio["high"]
    assert 170 <= covered <= 199


def test_measure_sums_over_rounds() -> None:
    rounds = [
        Round(
            (1, 2, 3), "abc", (0, 1), (1, 2, 9), (8, 8, 8), {"prefill": 5.0, "target": 0.3}, None
        ),
        Round(
            (4,),
            "d",
            (),
            (7, 7, 7),
            (8, 8, 8),
            {"target": 0.2, "draft": 0.2},
            None,
            rows_probed=26,
        ),
        Round((5, 6), "e", (0,), (5,), (4,), {"target": 0.4}, "eos"),
    ]
    got = measure.measure(rounds)
    assert (got.tokens, got.text, got.stop, got.passes) == ((1, 2, 3, 4, 5, 6), "abcde", "eos", 3)
    assert got.seconds == pytest.approx({"prefill": 5.0, "target": 0.9, "draft": 0.2})
    assert (got.accepted_at, got.proposed_at) == ((2, 1, 0), (3, 2, 2))
    assert got.acceptance == [2 / 3, 1 / 2, 0]
    assert got.latencies == pytest.approx([0.1, 0.1, 0.1, 0.4, 0.2, 0.2])
    assert got.shortlist_sizes == (8,) * 6 + (4,)
    assert got.tau == 2
    assert got.decode_seconds == pytest.approx(1.1)
    assert got.tokens_per_second == pytest.approx(6 / 1.1)
    row = measure.pool([got, measure.measure(rounds[:2])])
    assert (row["prompts"], row["tokens"], row["target_passes"], row["tau"]) == (2, 10, 5, 2)
    assert row["accepted_by_position"] == [3 / 5, 2 / 4, 0]
    assert row["tokens_per_second"] == pytest.approx(10 / 1.8)
    assert row["latency_ms"]["p50"] == pytest.approx(100)
    assert row["shortlist_mean"] == pytest.approx((8 * 12 + 4) / 13)
    assert row["rows_probed"] == pytest.approx(2 * 26 / 13)
    assert row["seconds"] == pytest.approx({"prefill": 10.0, "target": 1.4, "draft": 0.4})


def test_measure_coverage_is_the_targets_mass_on_the_shortlist() -> None:
    """At each draft step up to the first rejection, that one included; the target's own token at
    the end of an accepted chain has no shortlist."""
    ids = torch.arange(4)

    def p(*probs: float) -> Distribution:
        return Distribution(ids, torch.tensor(probs))

    def q(*on: int) -> Distribution:
        return Distribution(torch.tensor(on), torch.ones(len(on)) / len(on))

    def make_round(tokens: tuple[int, ...], proposed: tuple[int, ...], p: Any, q: Any) -> Round:
        path = tuple(range(len(tokens) - 1))
        evidence = Evidence(Proposal(proposed, tuple(q)), tuple(p), (), None)
        sizes = tuple(len(each.ids) for each in q)
        return Round(tokens, "", path, proposed, sizes, {"target": 1.0}, None, evidence)

    distributions = [p(0.5, 0.25, 0.25, 0), p(0, 0, 0.125, 0.875), p(0.25, 0.25, 0.25, 0.25)]
    rejected = make_round((1, 3), (1, 2, 0), distributions[:2], [q(1, 2), q(2), q(0, 1)])
    accepted = make_round((0, 3, 1), (0, 3), distributions, [q(0), q(0, 3)])
    assert measure.measure([rejected]).coverage == (0.5, 0.125)
    assert measure.measure([accepted]).coverage == (0.5, 0.875)
    both = [measure.measure([each]) for each in (rejected, accepted)]
    assert measure.pool(both)["coverage"] == 0.5


def test_measure_without_rounds() -> None:
    got = measure.measure([])
    assert (got.tokens, got.stop, got.passes, got.tau) == ((), None, 0, 0)
    assert (got.tokens_per_second, got.acceptance, got.repeated_4gram_share) == (0, [], 0)


@pytest.mark.parametrize(
    ("tokens", "share"),
    [([], 0), ([1, 2, 3], 0), ([1, 2, 3, 4], 0), ([1] * 5, 1 / 2), ([1, 2] * 4, 3 / 5),
     (list(range(50)), 0)],
)  # fmt: skip
def test_figures_repeated_4gram_share(tokens: list[int], share: float) -> None:
    finished = Round(tuple(tokens), "", (), (), (), {"target": 1.0}, None)
    got = measure.measure([finished] if tokens else [])
    assert got.repeated_4gram_share == pytest.approx(share)


def test_measure_counts_accepted_tokens_and_one_per_pass(tiny: Tiny) -> None:
    decode = assembly.build_decoder(
        Method.parse("full"), tiny.model, tiny.draft, None,
        gamma=3, sampling=Sampling(1.0), stop=StopRule(60),
    )  # fmt: skip
    got = measure.measure(decode(tiny.model.tokenizer.chat("The sea"), SeededRandom(0)))
    assert len(got.tokens) == got.passes + sum(got.accepted_at) > got.passes
    assert sorted(got.accepted_at, reverse=True) == list(got.accepted_at)


PEAK = """
import torch
from minispec.tools.evaluation import measure
measure.reset_peak()
before = measure.peak_mb()
block = torch.ones(400 * 2**20, dtype=torch.uint8)
print(before, measure.peak_mb())
"""


def test_peak_mb_is_the_maximum_since_reset_peak() -> None:
    # In a process of its own: the system may reclaim memory that earlier tests left over here.
    done = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=True)
    before, after = map(float, done.stdout.split())
    assert after > before + 300
