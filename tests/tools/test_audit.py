"""The lossless audit: its classes, the passes that it repeats, and its counts in a report."""

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers import tiny_model
from helpers.comparison import STREAMS, FakeDecoders, run_compare, select_row
from helpers.tiny_model import Tiny
from minispec.certificate.toys import ToyTarget
from minispec.commit import StopRule
from minispec.decode import autoregressive
from minispec.sampling import Sampling, SeededRandom
from minispec.shortlists.full import FullShortlist
from minispec.tools.evaluation import assembly, audit, compare, measure
from minispec.tools.evaluation.methods import Method


@pytest.fixture(scope="module")
def tiny(tiny: Tiny) -> Iterator[Tiny]:
    with tiny_model.replace_shipped_rankings(tiny):
        yield tiny


def make_toy(values: Sequence[float], dtype: torch.dtype = torch.float64) -> ToyTarget:
    """A target with the logits ``values`` after token 9, and certain of 9 after any other."""

    def table(tokens: tuple[int, ...]) -> Tensor:
        certain = torch.zeros(10, dtype=torch.float64)
        certain[9] = 50.0
        given = torch.tensor([*values, *[-99.0] * (10 - len(values))], dtype=torch.float64)
        return given if tokens[-1] == 9 else certain

    target = ToyTarget(10, table)
    target.head.weight = target.head.weight.to(dtype)
    return target


PROMPT, PLAIN = [5, 6], [9, 1]  # after the 9, id 1 has the largest logit
IDENTICAL, NEAR, VIOLATION = "identical", "near_tie", "violation"


@pytest.mark.parametrize(
    ("logits", "other", "expected"),
    [
        ([0.0, 0.9], [9, 1], IDENTICAL),
        ([0.9, 0.9 + 1e-5], [9, 0], NEAR),
        ([0.9, 0.9 + 1e-5], [9, 0, 4], NEAR),  # what follows a near tie is not compared
        ([0.9, 0.9 + 2e-4], [9, 0], VIOLATION),  # too far apart
        ([0.9, 0.9 + 1e-5], [9, 2], VIOLATION),  # not the second
        ([0.9, 0.9 + 1e-5], [0, 1], VIOLATION),  # a near tie, but an earlier difference
        ([99.0, 99.0 + 5e-3], [9, 0], NEAR),  # the gap is relative to large logits
        ([99.0, 99.0 + 2e-2], [9, 0], VIOLATION),
        ([-0.5, -0.5 + 9e-5, -7], [9, 0], NEAR),
        ([-50.0, -50.0 + 4e-3], [9, 0], NEAR),
        ([0.0, 0.9], [9], VIOLATION),  # a prefix
        ([0.0, 0.9], [9, 1, 1], VIOLATION),
        ([0.0, 0.9], [], VIOLATION),
    ],
)
def test_audit_classifies(logits: list[float], other: list[int], expected: str) -> None:
    gap = audit.NEAR_TIE[torch.float32]
    assert audit.audit(make_toy(logits), PROMPT, PLAIN, other, gap) == expected


def test_audit_orders_exact_ties_by_id() -> None:
    # Of the equal ids 1, 2 and 3, plain decoding takes 1; the second is 2, not 3.
    tied = make_toy([0.0, 0.9, 0.9, 0.9])
    for other, expected in ((1, IDENTICAL), (2, NEAR), (3, VIOLATION), (0, VIOLATION)):
        assert audit.audit(tied, PROMPT, PLAIN, [9, other], 1e-4) == expected
    many = ToyTarget(2000, lambda tokens: torch.zeros(2000, dtype=torch.float64))
    for other, expected in ((0, IDENTICAL), (1, NEAR), (2, VIOLATION), (1999, VIOLATION)):
        assert audit.audit(many, PROMPT, [0], [other], 1e-4) == expected


@pytest.mark.parametrize(
    ("dtype", "near", "far"),
    [(torch.float64, 1e-11, 1e-9), (torch.float32, 1e-5, 1e-3), (torch.bfloat16, 1e-2, 1e-1)],
)
def test_audit_gap_depends_on_the_dtype(dtype: torch.dtype, near: float, far: float) -> None:
    for step, expected in ((near, NEAR), (far, VIOLATION)):
        target = make_toy([0.5, 0.5 + step])
        assert audit.audit(target, PROMPT, PLAIN, [9, 0], audit.NEAR_TIE[dtype]) == expected


def test_first_difference() -> None:
    for plain, other, position in [
        ([], [], None), ([1, 2], [1, 2], None), ([1, 2], [1, 3], 1), ([1, 2], [0, 2], 0),
        ([1, 2], [1], 1), ([1], [1, 2], 1), ([], [1], 0),
    ]:  # fmt: skip
        assert audit.first_difference(plain, other) == position


def test_audit_repeats_the_passes_of_plain_decoding() -> None:
    """A pass over other positions could differ in the last bits."""
    passes: list[tuple[int, int]] = []

    class RecordingTarget(ToyTarget):
        def step(self, ids: Tensor, cache: Any) -> Any:
            passes.append((cache.length, len(ids)))
            return super().step(ids, cache)

    target = RecordingTarget(
        10, lambda tokens: torch.eye(10, dtype=torch.float64)[len(tokens) % 10], 2000
    )
    for length in (1, 2, 500, 513, 1200):
        prompt, rule = [3] * length, StopRule(6)
        rounds = autoregressive(target, prompt, sampling=Sampling(), rng=SeededRandom(0), stop=rule)
        plain = measure.measure(rounds).tokens
        decoding = list(passes)
        passes.clear()
        assert audit.audit(target, prompt, plain, [*plain[:5], 11], 1e-4) == VIOLATION
        assert passes == decoding
        passes.clear()


def test_report_counts_the_classes_of_the_audit(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One method gives a wrong token for one prompt of each stream; then these become near ties."""
    fake = FakeDecoders()
    altered = [tuple(tiny.model.tokenizer.chat(texts[1])) for texts in STREAMS.values()]
    fake.tokens = lambda method, prompt: (
        (5, 7) if method == "full" and tuple(prompt) in altered else (5, 6)
    )
    monkeypatch.setattr(compare, "build_decoder", fake)
    found = run_compare(tiny, "autoregressive,full,frspec", temperature=0.0)
    for stream, prompts, bad in (("law", 3, 1), ("code", 2, 1), ("all", 5, 2)):
        assert select_row(found, method="full", stream=stream)["lossless"] == {
            "checked": prompts, "identical": prompts - bad, "near_ties": 0, "violations": bad,
        }  # fmt: skip
        assert select_row(found, method="frspec", stream=stream)["lossless"]["identical"] == prompts
    real = audit.audit
    monkeypatch.setattr(audit, "audit", lambda *a: NEAR if real(*a) == VIOLATION else IDENTICAL)
    found = run_compare(tiny, "autoregressive,full,frspec", temperature=0.0)
    counts = select_row(found, method="full", stream="all")["lossless"]
    assert counts == {"checked": 5, "identical": 3, "near_ties": 2, "violations": 0}


def test_audit_finds_a_planted_defect(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """Real decoding, with a verifier that accepts every drafted token."""

    def always_accept(p: Any, q: Any, token: int) -> float:
        return 1.0

    assert isinstance(
        assembly.build_shortlist(Method.parse("full"), tiny.model, None), FullShortlist
    )
    monkeypatch.setattr("minispec.verify.acceptance_probability", always_accept)
    found = run_compare(tiny, "autoregressive,full", temperature=0.0)
    lossless = select_row(found, method="full", stream="all")["lossless"]
    assert lossless["violations"] > 0 == lossless["near_ties"]
    assert select_row(found, method="autoregressive", stream="all")["lossless"]["identical"] == 5
