"""Methods side by side: correct figures, and the same conditions for every method.

Speeds depend on the machine, so where a figure follows from speeds, the decoders are replaced by
fakes with given durations; everything else runs on a tiny model.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jsonschema
import pytest
import torch
from torch import Tensor

from helpers import tiny_model
from helpers.comparison import (
    SCHEMA,
    STREAMS,
    VOCAB_SIZE,
    FakeDecoders,
    run_compare,
    select_row,
    select_rows,
)
from helpers.tiny_model import Tiny
from minispec.errors import ArgumentError, ContextError, TextError
from minispec.sampling import Sampling
from minispec.tools.cli import main
from minispec.tools.data import ranking
from minispec.tools.data.streams import Stream
from minispec.tools.evaluation import assembly, compare
from minispec.tools.evaluation.compare import Settings
from minispec.tools.evaluation.methods import Method
from minispec.tools.reporting import report, table
from minispec.types import BaseShortlist, Context, Round

METHODS = ("autoregressive", "full", "frspec@40", "frspec@0.25", "frspec@0.5:mix")


@pytest.fixture(scope="module")
def tiny(tiny: Tiny) -> Iterator[Tiny]:
    with tiny_model.replace_shipped_rankings(tiny):
        yield tiny


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("prompts")
    for name, prompts in STREAMS.items():
        (folder / f"{name}.txt").write_text("\n\n".join(prompts) + "\n")
    return [str(folder / f"{name}.txt") for name in STREAMS]


def run(tiny: Tiny, files: list[str], out: Path, *options: str) -> dict[str, Any]:
    """Run `minispec compare`; returns the report, checked against the schema."""
    model = ["--model", str(tiny.folder), "--draft", str(tiny.draft_path)]
    length = ["--max-new-tokens", "14", "--threads", "1"]
    command = ["compare", *model, "--prompts", *files, *length, "--out", str(out), *options]
    assert main.main(command) == 0
    found = json.loads((out / "report.json").read_text())
    jsonschema.validate(found, SCHEMA)
    return found


@pytest.fixture(scope="module")
def several(tiny: Tiny, files: list[str], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A greedy comparison of several methods at several gammas, and its folder."""
    out = tmp_path_factory.mktemp("several") / "new"
    options = ["--methods", ",".join(METHODS), "--gamma", "2,4", "--backend", "reference"]
    return SimpleNamespace(report=run(tiny, files, out, *options), out=out)


# ------------------------------------------------------------------ the report


def test_schema_requires_every_key(several: Any) -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(several.report, SCHEMA)
    for key in ("model", "dtype", "backend", "gamma", "sampling", "seed", "threads", "machine"):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({k: v for k, v in several.report.items() if k != key}, SCHEMA)
    row = several.report["results"][0]
    for key in row.keys() - {"lossless"}:
        incomplete = {k: v for k, v in row.items() if k != key}
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(several.report | {"results": [incomplete]}, SCHEMA)


def test_report_has_the_settings(tiny: Tiny, several: Any) -> None:
    found = several.report
    assert found["model"] == str(tiny.folder)
    assert (found["dtype"], found["backend"], found["gamma"]) == ("float32", "reference", [2, 4])
    assert found["sampling"] == {"temperature": 0.0, "top_k": 0, "top_p": 1.0}
    assert (found["seed"], found["threads"], found["max_new_tokens"]) == (0, 1, 14)
    assert found["machine"].keys() == {"processor", "cores", "system", "python", "torch"}


def test_report_has_a_row_for_each_stream_method_and_gamma(several: Any) -> None:
    found = [(r["stream"], r["method"], r["gamma"]) for r in select_rows(several.report)]
    expected = [
        (stream, method, gamma)
        for stream in ("law", "code", "all")
        for method in METHODS
        for gamma in ([None] if method == "autoregressive" else [2, 4])
    ]
    assert found == expected


def test_report_figures_of_a_row_are_consistent(several: Any) -> None:
    sizes = {"full": VOCAB_SIZE, "frspec@40": 40, "frspec@0.25": 80, "frspec@0.5:mix": 160}
    for row in several.report["results"]:
        prompts = {**{k: len(v) for k, v in STREAMS.items()}, "all": 5}[row["stream"]]
        assert row["prompts"] == prompts
        assert row["tokens"] == 14 * prompts
        assert row["tau"] == row["tokens"] / row["target_passes"]
        assert len(row["accepted_by_position"]) == (row["gamma"] or 0)
        decoding = sum(row["seconds"].values()) - row["seconds"]["prefill"]
        assert row["tokens_per_second"] == pytest.approx(row["tokens"] / decoding)
        assert 0 < row["latency_ms"]["p50"] <= row["latency_ms"]["p95"]
        assert row["peak_rss_mb"] > 50
        assert row["shortlist_mean"] == sizes.get(row["method"])
        assert row["rows_probed"] == (0 if row["gamma"] else None)
        assert row["budget"] == sizes.get(row["method"]) or row["method"] == "full"
        assert (row["method"] == "autoregressive") == (row["gamma"] is None)
        if row["method"] == "autoregressive":
            assert row["tau"] == 1
    assert select_row(several.report, method="full", stream="all", gamma=4)["budget"] is None
    # The first position accepts some tokens and rejects some.
    accepted = select_row(several.report, method="full", stream="all", gamma=4)[
        "accepted_by_position"
    ]
    assert 0 < accepted[0] < 1


def test_report_all_pools_the_streams(several: Any) -> None:
    for row in select_rows(several.report, stream="all"):
        parts = [
            select_row(several.report, method=row["method"], gamma=row["gamma"], stream=stream)
            for stream in STREAMS
        ]
        for key in ("prompts", "tokens", "target_passes"):
            assert row[key] == sum(part[key] for part in parts)
        assert row["seconds"].keys() == parts[0]["seconds"].keys() | parts[1]["seconds"].keys()
        for phase, seconds in row["seconds"].items():
            assert seconds == pytest.approx(sum(part["seconds"].get(phase, 0) for part in parts))
        for key, counts in row.get("lossless", {}).items():
            assert counts == sum(part["lossless"][key] for part in parts)
        assert row["peak_rss_mb"] == parts[0]["peak_rss_mb"]


def test_report_greedy_rows_are_lossless(several: Any) -> None:
    for row in several.report["results"]:
        assert row["lossless"] == {
            "checked": row["prompts"], "identical": row["prompts"], "near_ties": 0, "violations": 0,
        }  # fmt: skip


def test_audit_runs_without_plain_decoding(tiny: Tiny, files: list[str], tmp_path: Path) -> None:
    found = run(tiny, files, tmp_path, "--methods", "full")
    assert {row["method"] for row in found["results"]} == {"full"}
    for row in found["results"]:
        assert row["lossless"]["identical"] == row["lossless"]["checked"] == row["prompts"]
        assert row["ratio_to_autoregressive"] is None and row["ratio_to_frspec"] is None


def test_compare_sampled_text_follows_the_seed_and_is_not_audited(
    tiny: Tiny, files: list[str], tmp_path: Path
) -> None:
    def sample(seed: str) -> list[tuple[int, Any, Any]]:
        found = run(tiny, files, tmp_path, "--temperature", "1.5", "--seed", seed)
        assert found["sampling"]["temperature"] == 1.5 and found["seed"] == int(seed)
        assert not any("lossless" in row for row in found["results"])
        keys = ("target_passes", "accepted_by_position", "repeated_4gram_share")
        return [tuple(row[key] for key in keys) for row in found["results"]]

    assert sample("1") == sample("1") != sample("2")


def test_compare_uses_and_reports_the_verifier(
    tiny: Tiny, files: list[str], tmp_path: Path
) -> None:
    options = ["--methods", "full", "--temperature", "2", "--verifier"]
    found = {v: run(tiny, files, tmp_path, *options, v) for v in ("token", "block")}
    assert {v: report["verifier"] for v, report in found.items()} == {v: v for v in found}
    # The verifiers consume random numbers in another order, so the texts differ.
    assert found["token"]["samples"] != found["block"]["samples"]


def test_compare_refuses_an_unknown_verifier(tiny: Tiny) -> None:
    with pytest.raises(ArgumentError, match="unknown verifier 'tree': choose from token, block"):
        run_compare(tiny, "full", verifier="tree")


def test_report_table_and_files(several: Any, capsys: pytest.CaptureFixture[str]) -> None:
    lines = table.format_table(several.report).splitlines()
    assert len(lines) == 1 + len(several.report["results"])
    assert lines[0].split()[:3] == ["method", "stream", "gamma"]
    for line, row in zip(lines[1:], several.report["results"], strict=True):
        assert line.startswith(row["method"] + (" (best)" if row["best"] else ""))
        assert f" {row['stream']} " in line and f" {row['tau']:.2f} " in line
        assert line.endswith(f"{row['prompts']}/{row['prompts']}")
    names = {"report.json", "report.png", "report.html"}
    assert {path.name for path in several.out.iterdir()} == names
    png = (several.out / "report.png").read_bytes()
    assert png.startswith(b"\x89PNG\r\n\x1a\n") and len(png) > 10_000


def test_format_table_shows_violations(several: Any) -> None:
    row = select_rows(several.report)[0]
    counts = {"checked": 9, "identical": 6, "near_ties": 2, "violations": 1}
    shown = table.format_table(several.report | {"results": [row | {"lossless": counts}]})
    assert shown.splitlines()[1].endswith("6/9 +2 near ties 1 VIOLATIONS")
    del row["lossless"]
    assert table.format_table(several.report | {"results": [row]}).splitlines()[1].endswith("-")


def test_report_write_escapes_dollars_in_names(several: Any, tmp_path: Path) -> None:
    row = {**select_rows(several.report, stream="all")[0], "method": "frspec:$x^$.pt"}
    report.write(several.report | {"model": "a$_$b", "results": [row]}, tmp_path)
    assert (tmp_path / "report.png").stat().st_size > 10_000


def test_compare_without_own_uses_the_ranking_without_the_streams_domain(
    tiny: Tiny, files: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = []

    def find_shipped_ranking(model: str, name: str) -> Path:
        names.append(name)
        return tiny.ranking(name)

    monkeypatch.setattr(ranking, "find_shipped_ranking", find_shipped_ranking)
    found = run(tiny, files, tmp_path, "--methods", "frspec@0.25:without-own,frspec@0.25")
    assert names[:3] == ["without-law", "without-code", "general"]
    assert {row["method"] for row in found["results"]} == {
        "frspec@0.25:without-own", "frspec@0.25",
    }  # fmt: skip
    assert all(row["budget"] == row["shortlist_mean"] == 80 for row in found["results"])


# ------------------------------------------------------------------ fairness


def test_compare_rotates_the_order_and_shares_the_seed(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeDecoders()
    monkeypatch.setattr(compare, "build_decoder", fake)
    run_compare(tiny, "autoregressive,full,frspec", gammas=(2, 4))
    variants = [("autoregressive", 1), ("full", 2), ("full", 4), ("frspec", 2), ("frspec", 4)]
    assert [entry[:2] for entry in fake.log[:5]] == variants  # the warm-up
    prompts = [tuple(tiny.model.tokenizer.chat(t)) for texts in STREAMS.values() for t in texts]
    runs = fake.log[5:]
    assert len(runs) == len(variants) * len(prompts)
    draws = []
    for number, prompt in enumerate(prompts):
        turn = runs[number * 5 : number * 5 + 5]
        assert [entry[:2] for entry in turn] == variants[number:] + variants[:number]
        assert {entry[2] for entry in turn} == {prompt}
        draws += {entry[3] for entry in turn}
    assert len(set(draws)) == len(draws) == len(prompts)


class CountingShortlist(BaseShortlist):
    """A shortlist that counts the rounds observed since the last reset."""

    name, budget = "counting", VOCAB_SIZE

    def __init__(self, prompts: set[tuple[int, ...]]) -> None:
        self.prompts, self.observed, self.resets = prompts, 0, 0
        self.observed_at_start: list[int] = []

    def select(self, context: Context) -> Tensor:
        if context.tokens in self.prompts:  # nothing has been emitted or drafted yet
            self.observed_at_start.append(self.observed)
        return torch.arange(VOCAB_SIZE)

    def observe(self, finished: Round) -> None:
        self.observed += 1

    def reset(self) -> None:
        self.resets += 1
        self.observed = 0


def test_compare_resets_shortlists_before_every_prompt(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = {tuple(tiny.model.tokenizer.chat(t)) for texts in STREAMS.values() for t in texts}
    built = []

    def build_shortlist(method: Method, model: Any, domain: str | None) -> CountingShortlist:
        built.append(CountingShortlist(prompts))
        return built[-1]

    monkeypatch.setattr(assembly, "build_shortlist", build_shortlist)
    found = run_compare(tiny, "full,frspec", temperature=0.0)
    # Two methods, each with one shortlist for both streams; reset once for each prompt and once
    # for the warm-up. Those built to look up their parts were never used.
    used = [shortlist for shortlist in built if shortlist.resets]
    assert [shortlist.resets for shortlist in used] == [len(prompts) + 1] * 2
    assert all(shortlist.observed_at_start == [0] * shortlist.resets for shortlist in used)
    assert all(shortlist.observed > 0 for shortlist in used)  # it does observe
    assert all(row["lossless"]["violations"] == 0 for row in found["results"])


def test_compare_decodes_a_prompt_independently_of_earlier_ones(tiny: Tiny) -> None:
    """Passes, not only tokens: state carried over would first change the acceptance."""
    once = run_compare(tiny, "full,frspec", prompts={"law": ["The sea"]}, temperature=0.0)
    late = run_compare(
        tiny, "full,frspec", prompts={"code": ["The wind", "A tree"], "law": ["The sea"]},
        temperature=0.0,
    )  # fmt: skip
    for method in ("full", "frspec"):
        for key in ("target_passes", "accepted_by_position", "repeated_4gram_share"):
            first, second = (select_row(f, method=method, stream="law")[key] for f in (once, late))
            assert first == second


def test_compare_checks_its_input_before_decoding(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any) -> None:
        raise AssertionError("decoding began")

    monkeypatch.setattr(compare, "_decode_all", fail)
    good = ["The sea", "The wind"]
    for kind, message, change in [
        (
            ContextError,
            "prompt 2 of code",
            {"prompts": {"law": good, "code": ["a", "the " * 3000]}},
        ),
        (TextError, "0x04", {"prompts": {"law": good, "code": ["a", "\x04"]}}),
        (ArgumentError, "budget 999", {"names": "full,frspec@999"}),
        (ArgumentError, "no ranking", {"names": "full,frspec@9:nosuch.pt"}),
        (ArgumentError, "'mine'", {"names": "frspec:without-own", "prompts": {"mine": good}}),
        (ArgumentError, "gamma 17", {"gammas": (1, 17)}),
    ]:
        with pytest.raises(kind, match=message):
            run_compare(tiny, **{"names": "full", **change})
    with pytest.raises(AssertionError, match="decoding began"):
        run_compare(tiny, "full")
    with pytest.raises(ArgumentError, match="full needs a draft"):
        settings = Settings((Method.parse("full"),), (4,), Sampling(), 8, 0)
        compare.compare(tiny.model, None, [Stream("law", ("a",))], settings)
