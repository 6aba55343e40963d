"""Methods side by side: correct figures, and the same conditions for every method.

Speeds depend on the machine, so where a figure follows from speeds, the decoders are replaced by
fakes with given durations; everything else runs on a tiny model.
"""

import json
import math
import random
import statistics
from collections.abc import Callable, Iterator, Sequence
from importlib import resources
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jsonschema
import pytest
import torch
from torch import Tensor

from helpers import tiny_model
from helpers.tiny_model import Tiny
from minispec.certificate.toys import ToyTarget
from minispec.commit import StopRule
from minispec.decode import autoregressive
from minispec.errors import ArgumentError, ContextError, FileError, TextError
from minispec.sampling import Sampling, SeededRandom
from minispec.shortlists.full import FullShortlist
from minispec.tools.cli import main
from minispec.tools.data import corpus, ranking, streams
from minispec.tools.data.streams import Stream
from minispec.tools.evaluation import audit, compare, measure, methods
from minispec.tools.evaluation.compare import Settings
from minispec.tools.evaluation.measure import Figures
from minispec.tools.evaluation.methods import Method
from minispec.tools.reporting import report
from minispec.types import BaseShortlist, Context, Distribution, Evidence, Proposal, Round

SCHEMA = json.loads(resources.files("minispec").joinpath("data/report.schema.json").read_text())
METHODS = ("autoregressive", "full", "frspec@40", "frspec@0.25", "frspec@0.5:mix")
STREAMS = {
    "law": ["The court must decide.", "A party may appeal.", "This licence ends."],
    "code": ["def run():", "import this"],
}
VOCAB_SIZE = 320
Row = dict[str, Any]


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


def select_rows(found: dict[str, Any], **wanted: Any) -> list[Row]:
    """The rows with the given values; the ordinary ones unless ``best`` is given."""
    wanted = {"best": False} | wanted
    return [row for row in found["results"] if all(row[key] == wanted[key] for key in wanted)]


def select_row(found: dict[str, Any], **wanted: Any) -> Row:
    (row,) = select_rows(found, **wanted)
    return row


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
    lines = report.format_table(several.report).splitlines()
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
    shown = report.format_table(several.report | {"results": [row | {"lossless": counts}]})
    assert shown.splitlines()[1].endswith("6/9 +2 near ties 1 VIOLATIONS")
    del row["lossless"]
    assert report.format_table(several.report | {"results": [row]}).splitlines()[1].endswith("-")


def test_report_write_escapes_dollars_in_names(several: Any, tmp_path: Path) -> None:
    row = {**select_rows(several.report, stream="all")[0], "method": "frspec:$x^$.pt"}
    report.write(several.report | {"model": "a$_$b", "results": [row]}, tmp_path)
    assert (tmp_path / "report.png").stat().st_size > 10_000


# ------------------------------------------------------------------ the streams


def test_load_streams_of_files_and_domains(files: list[str], tmp_path: Path) -> None:
    assert streams.load_streams(files) == [Stream(n, tuple(p)) for n, p in STREAMS.items()]
    (general,) = streams.load_streams(["general"])
    assert general.name == "general" and len(general.prompts) >= 24
    assert streams.load_streams(["general"], 3)[0].prompts == general.prompts[:3]
    bare = tmp_path / "bare"
    bare.write_bytes("\ufeffone\r\n\r\n  two \r\n".encode())
    assert streams.load_streams([str(bare)]) == [Stream("bare", ("one", "two"))]
    assert [s.name for s in streams.load_streams(corpus.DOMAINS)] == list(corpus.DOMAINS)


@pytest.mark.parametrize(
    ("names", "kind", "reason"),
    [
        (["nosuch"], ArgumentError, "neither a file nor one of general, code, law, medicine"),
        (["nosuch.txt"], FileError, "No such file"),
        (["law", "law"], ArgumentError, "must differ"),
    ],
)
def test_load_streams_refuses_bad_names(names: list[str], kind: type, reason: str) -> None:
    with pytest.raises(kind, match=reason):
        streams.load_streams(names)


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

Seconds = Callable[[str, int, Sequence[int]], float]


class FakeDecoders:
    """Replaces ``methods.build_decoder``: each prompt is one round of ``tokens`` that takes
    ``seconds``. ``log``: method, gamma, prompt and first random number of each run, in order."""

    def __init__(self, seconds: Seconds = lambda method, gamma, prompt: 1.0) -> None:
        self.seconds = seconds
        self.tokens: Callable[[str, Sequence[int]], tuple[int, ...]] = lambda method, prompt: (5, 6)
        self.log: list[tuple[str, int, tuple[int, ...], float]] = []

    def __call__(
        self, method: Method, model: Any, draft: Any, domain: str, *, gamma: int, **rest: Any
    ) -> methods.Decoder:
        def decode(
            prompt: Sequence[int], source: Any, *, continued: bool = False
        ) -> Iterator[Round]:
            self.log.append((str(method), gamma, tuple(prompt), source.uniform()))
            seconds = {"prefill": 99.0, "target": self.seconds(str(method), gamma, prompt)}
            yield Round(self.tokens(str(method), prompt), "", (), (), (), seconds, "length")

        return decode


def run_compare(
    tiny: Tiny,
    names: str,
    gammas: tuple[int, ...] = (4,),
    prompts: dict[str, list[str]] = STREAMS,
    temperature: float = 1.0,
    **options: Any,
) -> dict[str, Any]:
    settings = Settings(
        tuple(Method.parse(name) for name in names.split(",")), gammas, Sampling(temperature),
        max_new_tokens=8, seed=3, **options,
    )  # fmt: skip
    found = [Stream(name, tuple(texts)) for name, texts in prompts.items()]
    return compare.compare(tiny.model, tiny.draft, found, settings)


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

    monkeypatch.setattr(methods, "build_shortlist", build_shortlist)
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


# ------------------------------------------------------------------ ratios and the best gamma


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


# ------------------------------------------------------------------ figures of a prompt


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
        return Round(tokens, "", path, proposed, (), {"target": 1.0}, None, evidence)

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
    decode = methods.build_decoder(
        Method.parse("full"), tiny.model, tiny.draft, None,
        gamma=3, sampling=Sampling(1.0), stop=StopRule(60),
    )  # fmt: skip
    got = measure.measure(decode(tiny.model.tokenizer.chat("The sea"), SeededRandom(0)))
    assert len(got.tokens) == got.passes + sum(got.accepted_at) > got.passes
    assert sorted(got.accepted_at, reverse=True) == list(got.accepted_at)


def test_peak_mb_is_the_maximum_since_reset_peak() -> None:
    measure.reset_peak()
    before = measure.peak_mb()
    # Large, since the system may meanwhile reclaim memory that earlier tests left over.
    block = torch.ones(400 * 2**20, dtype=torch.uint8)
    assert measure.peak_mb() > before + 300
    del block


# ------------------------------------------------------------------ the audit


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
        methods.build_shortlist(Method.parse("full"), tiny.model, None), FullShortlist
    )
    monkeypatch.setattr("minispec.verify.acceptance_probability", always_accept)
    found = run_compare(tiny, "autoregressive,full", temperature=0.0)
    lossless = select_row(found, method="full", stream="all")["lossless"]
    assert lossless["violations"] > 0 == lossless["near_ties"]
    assert select_row(found, method="autoregressive", stream="all")["lossless"]["identical"] == 5
