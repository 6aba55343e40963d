"""The rows of a report: paired ratios between methods, and each method at its best gamma."""

import statistics
from collections.abc import Iterator, Sequence

import pytest

from helpers import tiny_model
from helpers.comparison import STREAMS, FakeDecoders, run_compare, select_row, select_rows
from helpers.tiny_model import Tiny
from minispec.tools.evaluation import compare


@pytest.fixture(scope="module")
def tiny(tiny: Tiny) -> Iterator[Tiny]:
    with tiny_model.replace_shipped_rankings(tiny):
        yield tiny


def test_report_ratios_are_paired_by_prompt(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    def seconds(method: str, gamma: int, prompt: Sequence[int]) -> float:
        # A prompt takes one second per token; speculation is faster by a factor of its own.
        return len(prompt) / (len(prompt) % 7 + 1) if method == "full" else float(len(prompt))

    monkeypatch.setattr(compare, "build_decoder", FakeDecoders(seconds))
    found = run_compare(tiny, "autoregressive,full,frspec")
    everything = [text for texts in STREAMS.values() for text in texts]
    for stream, texts in [*STREAMS.items(), ("all", everything)]:
        lengths = [len(tiny.model.tokenizer.chat(text)) for text in texts]
        gains = [length % 7 + 1 for length in lengths]
        row = select_row(found, method="full", stream=stream)
        ratio = row["ratio_to_autoregressive"]
        assert ratio["value"] == pytest.approx(statistics.geometric_mean(gains))
        assert min(gains) - 1e-9 <= ratio["low"] < ratio["value"] < ratio["high"]
        assert ratio["high"] <= max(gains) + 1e-9
        assert row["ratio_to_frspec"] == ratio
        seconds_in_all = sum(n / g for n, g in zip(lengths, gains, strict=True))
        assert row["tokens_per_second"] == pytest.approx(2 * len(texts) / seconds_in_all)
        for method in ("autoregressive", "frspec"):
            same = select_row(found, method=method, stream=stream)
            assert same["ratio_to_autoregressive"] == {"value": 1, "low": 1, "high": 1}
            assert same["ratio_to_frspec"] == {"value": 1, "low": 1, "high": 1}


@pytest.mark.parametrize(
    ("names", "reference"),
    [
        ("frspec@40,frspec@0.25,frspec@0.5:mix", "frspec@0.25"),
        ("frspec@40,frspec", "frspec"),  # another spelling of frspec@0.25
        ("frspec@0.25:mix,frspec@40", "frspec@0.25:mix"),
        ("full,frspec@0.5,frspec@40", "frspec@0.5"),
        ("autoregressive,full", None),
    ],
)
def test_report_chooses_the_frspec_of_the_ratios(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, names: str, reference: str | None
) -> None:
    speeds = {name: 2.0**i for i, name in enumerate(names.split(","))}
    fake = FakeDecoders(lambda method, gamma, prompt: 1 / speeds[method])
    monkeypatch.setattr(compare, "build_decoder", fake)
    for row in run_compare(tiny, names)["results"]:
        if reference is None:
            assert row["ratio_to_frspec"] is None
        else:
            value = pytest.approx(speeds[row["method"]] / speeds[reference])
            assert row["ratio_to_frspec"]["value"] == value
        plain = speeds.get("autoregressive")
        ratio = row["ratio_to_autoregressive"]
        assert ratio is None if plain is None else ratio["value"] == speeds[row["method"]] / plain


def test_report_has_a_row_at_the_best_gamma_of_each_method(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    speeds = {
        ("autoregressive", 1): 1.0,
        ("full", 1): 3.0, ("full", 2): 2.0, ("full", 4): 1.5,
        ("frspec", 1): 2.0, ("frspec", 2): 4.0, ("frspec", 4): 8.0,
    }  # fmt: skip
    fake = FakeDecoders(lambda method, gamma, prompt: 1 / speeds[method, gamma])
    monkeypatch.setattr(compare, "build_decoder", fake)
    found = run_compare(tiny, "autoregressive,full,frspec", gammas=(1, 2, 4))
    for stream in ("law", "code", "all"):
        best = {row["method"]: row for row in select_rows(found, best=True, stream=stream)}
        assert {method: row["gamma"] for method, row in best.items()} == {
            "autoregressive": None, "full": 1, "frspec": 4,
        }  # fmt: skip
        # These rows compare both methods at their best gamma, ordinary rows at the same gamma.
        assert best["full"]["ratio_to_frspec"]["value"] == pytest.approx(3 / 8)
        assert best["full"]["ratio_to_autoregressive"]["value"] == pytest.approx(3)
        assert best["frspec"]["ratio_to_frspec"]["value"] == 1
        assert best["autoregressive"]["ratio_to_frspec"]["value"] == pytest.approx(1 / 8)
        for gamma in (1, 2, 4):
            row = select_row(found, method="full", stream=stream, gamma=gamma)
            ratio = speeds["full", gamma] / speeds["frspec", gamma]
            assert row["ratio_to_frspec"]["value"] == pytest.approx(ratio)
        # Plain decoding has no gamma: the reference is at its best.
        plain = select_row(found, method="autoregressive", stream=stream)
        assert plain["ratio_to_frspec"]["value"] == pytest.approx(1 / 8)
        for method, row in best.items():
            ordinary = select_row(found, method=method, stream=stream, gamma=row["gamma"])
            changed = {"best", "ratio_to_frspec", "ratio_to_autoregressive"}
            assert {k: v for k, v in row.items() if k not in changed} == {
                k: v for k, v in ordinary.items() if k not in changed
            }
    assert select_rows(run_compare(tiny, "full,frspec", gammas=(2,)), best=True) == []
