"""Methods side by side: that the figures are what they say, and that everyone is treated alike.

Speeds depend on the machine, so where a figure follows from speeds, the decoders are replaced
by ones that take as long as they are told; everything else runs on a tiny model.
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
from minispec.types import Context, Distribution, Evidence, Proposal, Round

SCHEMA = json.loads(resources.files("minispec").joinpath("data/report.schema.json").read_text())
METHODS = ("autoregressive", "full", "frspec@40", "frspec@0.25", "frspec@0.5:mix")
STREAMS = {
    "law": ["The court shall decide.", "A party may appeal.", "This licence ends."],
    "code": ["def run():", "import this"],
}
VOCABULARY = 320
Row = dict[str, Any]


@pytest.fixture(scope="module")
def tiny(tiny: Tiny) -> Iterator[Tiny]:
    with tiny_model.rankings_shipped(tiny):
        yield tiny


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("prompts")
    for name, prompts in STREAMS.items():
        (folder / f"{name}.txt").write_text("\n\n".join(prompts) + "\n")
    return [str(folder / f"{name}.txt") for name in STREAMS]


def run(tiny: Tiny, files: list[str], out: Path, *options: str) -> dict[str, Any]:
    """Runs `minispec compare`; returns the report, which must have the promised form."""
    model = ["--model", str(tiny.folder), "--draft", str(tiny.draft_path)]
    length = ["--max-new-tokens", "14", "--threads", "1"]
    command = ["compare", *model, "--prompts", *files, *length, "--out", str(out), *options]
    assert main.main(command) == 0
    found = json.loads((out / "report.json").read_text())
    jsonschema.validate(found, SCHEMA)
    return found


@pytest.fixture(scope="module")
def several(tiny: Tiny, files: list[str], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A greedy comparison of several methods at several gammas, and where it was written."""
    out = tmp_path_factory.mktemp("several") / "new"
    options = ["--methods", ",".join(METHODS), "--gamma", "2,4", "--backend", "reference"]
    return SimpleNamespace(report=run(tiny, files, out, *options), out=out)


def rows(found: dict[str, Any], **wanted: Any) -> list[Row]:
    """The rows that agree with what is wanted; without ``best``, the ordinary ones."""
    wanted = {"best": False} | wanted
    return [row for row in found["results"] if all(row[key] == wanted[key] for key in wanted)]


def only(found: dict[str, Any], **wanted: Any) -> Row:
    (row,) = rows(found, **wanted)
    return row


# ------------------------------------------------------------------ the report


def test_the_schema_is_one_and_refuses_what_is_not_a_report(several: Any) -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(several.report, SCHEMA)
    for key in ("model", "dtype", "backend", "gamma", "sampling", "seed", "threads", "machine"):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({k: v for k, v in several.report.items() if k != key}, SCHEMA)
    row = several.report["results"][0]
    for key in row.keys() - {"lossless"}:
        spoilt = {k: v for k, v in row.items() if k != key}
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(several.report | {"results": [spoilt]}, SCHEMA)


def test_what_was_run_stands_above_the_results(tiny: Tiny, several: Any) -> None:
    found = several.report
    assert found["model"] == str(tiny.folder)
    assert (found["dtype"], found["backend"], found["gamma"]) == ("float32", "reference", [2, 4])
    assert found["sampling"] == {"temperature": 0.0, "top_k": 0, "top_p": 1.0}
    assert (found["seed"], found["threads"], found["max_new_tokens"]) == (0, 1, 14)
    assert found["machine"].keys() == {"processor", "cores", "system", "python", "torch"}


def test_each_method_has_a_row_for_each_stream_and_gamma(several: Any) -> None:
    found = [(r["stream"], r["method"], r["gamma"]) for r in rows(several.report)]
    expected = [
        (stream, method, gamma)
        for stream in ("law", "code", "all")
        for method in METHODS
        for gamma in ([None] if method == "autoregressive" else [2, 4])
    ]
    assert found == expected


def test_the_figures_of_each_row_agree_with_each_other(several: Any) -> None:
    sizes = {"full": VOCABULARY, "frspec@40": 40, "frspec@0.25": 80, "frspec@0.5:mix": 160}
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
    assert only(several.report, method="full", stream="all", gamma=4)["budget"] is None
    # Something was accepted, and at a later position not without an earlier one.
    accepted = only(several.report, method="full", stream="all", gamma=4)["accepted_by_position"]
    assert 0 < accepted[0] < 1


def test_all_pools_the_streams(several: Any) -> None:
    for row in rows(several.report, stream="all"):
        parts = [
            only(several.report, method=row["method"], gamma=row["gamma"], stream=stream)
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


def test_greedy_rows_are_lossless(several: Any) -> None:
    for row in several.report["results"]:
        assert row["lossless"] == {
            "checked": row["prompts"], "identical": row["prompts"], "near_ties": 0, "violations": 0,
        }  # fmt: skip


def test_without_plain_decoding_there_is_an_audit_all_the_same(
    tiny: Tiny, files: list[str], tmp_path: Path
) -> None:
    found = run(tiny, files, tmp_path, "--methods", "full")
    assert {row["method"] for row in found["results"]} == {"full"}
    for row in found["results"]:
        assert row["lossless"]["identical"] == row["lossless"]["checked"] == row["prompts"]
        assert row["ratio_to_autoregressive"] is None and row["ratio_to_frspec"] is None


def test_drawn_text_is_not_audited_and_follows_the_seed(
    tiny: Tiny, files: list[str], tmp_path: Path
) -> None:
    def drawn(seed: str) -> list[tuple[int, Any, Any]]:
        found = run(tiny, files, tmp_path, "--temperature", "1.5", "--seed", seed)
        assert found["sampling"]["temperature"] == 1.5 and found["seed"] == int(seed)
        assert not any("lossless" in row for row in found["results"])
        keys = ("target_passes", "accepted_by_position", "repeated_4gram_share")
        return [tuple(row[key] for key in keys) for row in found["results"]]

    assert drawn("1") == drawn("1") != drawn("2")


def test_the_verifier_is_said_and_used(tiny: Tiny, files: list[str], tmp_path: Path) -> None:
    options = ["--methods", "full", "--temperature", "2", "--verifier"]
    found = {v: run(tiny, files, tmp_path, *options, v) for v in ("token", "block")}
    assert {v: report["verifier"] for v, report in found.items()} == {v: v for v in found}
    # Coins are spent in another order, so other texts come of the same seed.
    assert found["token"]["samples"] != found["block"]["samples"]


def test_an_unknown_verifier_is_refused(tiny: Tiny) -> None:
    with pytest.raises(ArgumentError, match="unknown verifier 'tree': known are token, block"):
        compared(tiny, "full", verifier="tree")


def test_the_table_and_the_picture(several: Any, capsys: pytest.CaptureFixture[str]) -> None:
    lines = report.table(several.report).splitlines()
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


def test_violations_are_loud(several: Any) -> None:
    row = rows(several.report)[0]
    counts = {"checked": 9, "identical": 6, "near_ties": 2, "violations": 1}
    shown = report.table(several.report | {"results": [row | {"lossless": counts}]})
    assert shown.splitlines()[1].endswith("6/9 +2 near ties 1 VIOLATIONS")
    del row["lossless"]
    assert report.table(several.report | {"results": [row]}).splitlines()[1].endswith("-")


def test_names_with_dollars_are_no_formulas(several: Any, tmp_path: Path) -> None:
    row = {**rows(several.report, stream="all")[0], "method": "frspec:$x^$.pt"}
    report.write(several.report | {"model": "a$_$b", "results": [row]}, tmp_path)
    assert (tmp_path / "report.png").stat().st_size > 10_000


# ------------------------------------------------------------------ the streams


def test_streams_of_files_and_of_domains(files: list[str], tmp_path: Path) -> None:
    assert streams.streams_of(files) == [Stream(n, tuple(p)) for n, p in STREAMS.items()]
    (general,) = streams.streams_of(["general"])
    assert general.name == "general" and len(general.prompts) >= 24
    assert streams.streams_of(["general"], 3)[0].prompts == general.prompts[:3]
    bare = tmp_path / "bare"
    bare.write_bytes("\ufeffone\r\n\r\n  two \r\n".encode())
    assert streams.streams_of([str(bare)]) == [Stream("bare", ("one", "two"))]
    assert [s.name for s in streams.streams_of(corpus.DOMAINS)] == list(corpus.DOMAINS)


@pytest.mark.parametrize(
    ("names", "kind", "reason"),
    [
        (["nosuch"], ArgumentError, "neither a file nor one of general, code, law, medicine"),
        (["nosuch.txt"], FileError, "No such file"),
        (["law", "law"], ArgumentError, "must differ"),
    ],
)
def test_streams_that_are_refused(names: list[str], kind: type, reason: str) -> None:
    with pytest.raises(kind, match=reason):
        streams.streams_of(names)


def test_without_own_leaves_the_streams_domain_out(
    tiny: Tiny, files: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def shipped(model: str, name: str) -> Path:
        asked.append(name)
        return tiny.ranking(name)

    monkeypatch.setattr(ranking, "shipped", shipped)
    found = run(tiny, files, tmp_path, "--methods", "frspec@0.25:without-own,frspec@0.25")
    assert asked[:3] == ["without-law", "without-code", "general"]
    assert {row["method"] for row in found["results"]} == {
        "frspec@0.25:without-own", "frspec@0.25",
    }  # fmt: skip
    assert all(row["budget"] == row["shortlist_mean"] == 80 for row in found["results"])


# ------------------------------------------------------------------ fairness

Seconds = Callable[[str, int, Sequence[int]], float]


class FakeDecoders:
    """In the place of ``methods.decoder``: each prompt is one round of ``tokens`` that takes as
    long as ``seconds`` says; what was run, in which order and with which luck, is in ``log``."""

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


def compared(
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


def test_the_order_rotates_and_all_have_the_same_luck(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeDecoders()
    monkeypatch.setattr(compare, "decoder", fake)
    compared(tiny, "autoregressive,full,frspec", gammas=(2, 4))
    variants = [("autoregressive", 1), ("full", 2), ("full", 4), ("frspec", 2), ("frspec", 4)]
    assert [entry[:2] for entry in fake.log[:5]] == variants  # the warm-up
    prompts = [tuple(tiny.model.tokenizer.chat(t)) for texts in STREAMS.values() for t in texts]
    measured = fake.log[5:]
    assert len(measured) == len(variants) * len(prompts)
    luck = []
    for number, prompt in enumerate(prompts):
        turn = measured[number * 5 : number * 5 + 5]
        assert [entry[:2] for entry in turn] == variants[number:] + variants[:number]
        assert {entry[2] for entry in turn} == {prompt}
        luck += {entry[3] for entry in turn}
    assert len(set(luck)) == len(luck) == len(prompts)


class Learner:
    """A list that remembers all that it has observed, until it is reset."""

    name, budget, per_round = "learner", VOCABULARY, False

    def __init__(self, prompts: set[tuple[int, ...]]) -> None:
        self.prompts, self.seen, self.resets = prompts, 0, 0
        self.seen_at_start: list[int] = []

    def select(self, context: Context) -> Tensor:
        if context.tokens in self.prompts:  # nothing has been emitted or drafted yet
            self.seen_at_start.append(self.seen)
        return torch.arange(VOCABULARY)

    def observe(self, finished: Round) -> None:
        self.seen += 1

    def reset(self) -> None:
        self.resets += 1
        self.seen = 0


def test_every_prompt_begins_with_nothing_learnt(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = {tuple(tiny.model.tokenizer.chat(t)) for texts in STREAMS.values() for t in texts}
    learners = []

    def shortlist(method: Method, model: Any, domain: str | None) -> Learner:
        learners.append(Learner(prompts))
        return learners[-1]

    monkeypatch.setattr(methods, "shortlist", shortlist)
    found = compared(tiny, "full,frspec", temperature=0.0)
    # Two methods, each with one list for both streams; once a prompt, and once to warm up. A
    # list that was only asked whether it can explain itself was never reset.
    learners = [learner for learner in learners if learner.resets]
    assert [learner.resets for learner in learners] == [len(prompts) + 1] * 2
    assert all(learner.seen_at_start == [0] * learner.resets for learner in learners)
    assert all(learner.seen > 0 for learner in learners)  # it did observe, and kept it
    assert all(row["lossless"]["violations"] == 0 for row in found["results"])


def test_a_prompt_is_decoded_alike_whatever_came_before(tiny: Tiny) -> None:
    """Passes, not only tokens: something remembered would first show in what is accepted."""
    once = compared(tiny, "full,frspec", prompts={"law": ["The sea"]}, temperature=0.0)
    late = compared(
        tiny, "full,frspec", prompts={"code": ["The wind", "A tree"], "law": ["The sea"]},
        temperature=0.0,
    )  # fmt: skip
    for method in ("full", "frspec"):
        for key in ("target_passes", "accepted_by_position", "repeated_4gram_share"):
            first, second = (only(f, method=method, stream="law")[key] for f in (once, late))
            assert first == second


def test_everything_is_checked_before_anything_is_decoded(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*arguments: Any) -> None:
        raise AssertionError("it has begun to decode")

    monkeypatch.setattr(compare, "_decoded", never)
    good = ["The sea", "The wind"]
    for kind, words, change in [
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
        with pytest.raises(kind, match=words):
            compared(tiny, **{"names": "full", **change})
    with pytest.raises(AssertionError, match="begun to decode"):
        compared(tiny, "full")
    with pytest.raises(ArgumentError, match="full needs a draft"):
        settings = Settings((Method.parse("full"),), (4,), Sampling(), 8, 0)
        compare.compare(tiny.model, None, [Stream("law", ("a",))], settings)


# ------------------------------------------------------------------ ratios and the best gamma


def test_ratios_are_paired_prompt_by_prompt(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    def seconds(method: str, gamma: int, prompt: Sequence[int]) -> float:
        # A prompt takes as many seconds as it is long; speculation gains on each another factor.
        return len(prompt) / (len(prompt) % 7 + 1) if method == "full" else float(len(prompt))

    monkeypatch.setattr(compare, "decoder", FakeDecoders(seconds))
    found = compared(tiny, "autoregressive,full,frspec")
    everything = [text for texts in STREAMS.values() for text in texts]
    for stream, texts in [*STREAMS.items(), ("all", everything)]:
        places = [len(tiny.model.tokenizer.chat(text)) for text in texts]
        gains = [place % 7 + 1 for place in places]
        row = only(found, method="full", stream=stream)
        ratio = row["ratio_to_autoregressive"]
        assert ratio["value"] == pytest.approx(statistics.geometric_mean(gains))
        assert min(gains) - 1e-9 <= ratio["low"] < ratio["value"] < ratio["high"]
        assert ratio["high"] <= max(gains) + 1e-9
        assert row["ratio_to_frspec"] == ratio
        pooled = sum(p / g for p, g in zip(places, gains, strict=True))
        assert row["tokens_per_second"] == pytest.approx(2 * len(texts) / pooled)
        for method in ("autoregressive", "frspec"):
            same = only(found, method=method, stream=stream)
            assert same["ratio_to_autoregressive"] == {"value": 1, "low": 1, "high": 1}
            assert same["ratio_to_frspec"] == {"value": 1, "low": 1, "high": 1}


@pytest.mark.parametrize(
    ("names", "partner"),
    [
        ("frspec@40,frspec@0.25,frspec@0.5:mix", "frspec@0.25"),
        ("frspec@40,frspec", "frspec"),  # the same under another spelling
        ("frspec@0.25:mix,frspec@40", "frspec@0.25:mix"),
        ("full,frspec@0.5,frspec@40", "frspec@0.5"),
        ("autoregressive,full", None),
    ],
)
def test_whom_ratios_to_frspec_refer_to(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, names: str, partner: str | None
) -> None:
    speeds = {name: 2.0**place for place, name in enumerate(names.split(","))}
    fake = FakeDecoders(lambda method, gamma, prompt: 1 / speeds[method])
    monkeypatch.setattr(compare, "decoder", fake)
    for row in compared(tiny, names)["results"]:
        if partner is None:
            assert row["ratio_to_frspec"] is None
        else:
            value = pytest.approx(speeds[row["method"]] / speeds[partner])
            assert row["ratio_to_frspec"]["value"] == value
        plain = speeds.get("autoregressive")
        ratio = row["ratio_to_autoregressive"]
        assert ratio is None if plain is None else ratio["value"] == speeds[row["method"]] / plain


def test_each_method_has_a_row_at_its_own_best_gamma(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    speeds = {
        ("autoregressive", 1): 1.0,
        ("full", 1): 3.0, ("full", 2): 2.0, ("full", 4): 1.5,
        ("frspec", 1): 2.0, ("frspec", 2): 4.0, ("frspec", 4): 8.0,
    }  # fmt: skip
    fake = FakeDecoders(lambda method, gamma, prompt: 1 / speeds[method, gamma])
    monkeypatch.setattr(compare, "decoder", fake)
    found = compared(tiny, "autoregressive,full,frspec", gammas=(1, 2, 4))
    for stream in ("law", "code", "all"):
        best = {row["method"]: row for row in rows(found, best=True, stream=stream)}
        assert {method: row["gamma"] for method, row in best.items()} == {
            "autoregressive": None, "full": 1, "frspec": 4,
        }  # fmt: skip
        # Rivals meet at the best of both there, and else at the same gamma.
        assert best["full"]["ratio_to_frspec"]["value"] == pytest.approx(3 / 8)
        assert best["full"]["ratio_to_autoregressive"]["value"] == pytest.approx(3)
        assert best["frspec"]["ratio_to_frspec"]["value"] == 1
        assert best["autoregressive"]["ratio_to_frspec"]["value"] == pytest.approx(1 / 8)
        for gamma in (1, 2, 4):
            row = only(found, method="full", stream=stream, gamma=gamma)
            ratio = speeds["full", gamma] / speeds["frspec", gamma]
            assert row["ratio_to_frspec"]["value"] == pytest.approx(ratio)
        # Plain decoding has no gamma to meet at: its partner is at its best.
        plain = only(found, method="autoregressive", stream=stream)
        assert plain["ratio_to_frspec"]["value"] == pytest.approx(1 / 8)
        for method, row in best.items():
            ordinary = only(found, method=method, stream=stream, gamma=row["gamma"])
            changed = {"best", "ratio_to_frspec", "ratio_to_autoregressive"}
            assert {k: v for k, v in row.items() if k not in changed} == {
                k: v for k, v in ordinary.items() if k not in changed
            }
    assert rows(compared(tiny, "full,frspec", gammas=(2,)), best=True) == []


def figures(speed: float, tokens: int = 10) -> Figures:
    return Figures(
        tokens=tuple(range(tokens)), text="", stop=None, passes=tokens,
        seconds={"target": tokens / speed}, accepted_at=(), proposed_at=(),
        latencies=(1 / speed,) * tokens, shortlist_sizes=(), rows_probed=0,
    )  # fmt: skip


def test_the_interval_of_a_ratio() -> None:
    ours, theirs = [figures(s) for s in (2, 8, 1)], [figures(s) for s in (1, 2, 2)]
    there, back = measure.paired_ratio(ours, theirs), measure.paired_ratio(theirs, ours)
    assert there["value"] == pytest.approx((2 * 4 * 0.5) ** (1 / 3))
    assert there["low"] < there["value"] < there["high"]
    assert back["value"] == pytest.approx(1 / there["value"])
    assert measure.paired_ratio(ours, theirs) == there  # the resampling has a seed of its own
    alone = measure.paired_ratio(ours[:1], theirs[:1])
    assert alone == {"value": pytest.approx(2), "low": alone["value"], "high": alone["value"]}
    with pytest.raises(ValueError):
        measure.paired_ratio(ours, theirs[:2])


def test_the_interval_covers_what_it_should(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ratios drawn around a known mean: of 200 intervals about 95% should hold it. That of 20
    draws is a little narrow, as bootstrapped ones are: about 93%. Fewer than 170 or more than
    199 would happen once in a million runs, if luck were not fixed by the seed."""
    monkeypatch.setattr(measure, "_RESAMPLES", 200)
    draws, held = random.Random(0), 0
    for _ in range(200):
        ours = [figures(math.exp(draws.gauss(0.5, 0.3))) for _ in range(20)]
        ratio = measure.paired_ratio(ours, [figures(1.0)] * 20)
        assert ratio["low"] <= ratio["value"] <= ratio["high"]
        held += ratio["low"] <= math.exp(0.5) <= ratio["high"]
    assert 170 <= held <= 199


# ------------------------------------------------------------------ figures of a prompt


def test_figures_add_up_what_rounds_say() -> None:
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


def test_coverage_is_the_targets_mass_on_the_list() -> None:
    """At every draft step whose past the target agreed with: up to the first rejection, and no
    further; where all was accepted, the target's own last token had no list."""
    ids = torch.arange(4)

    def p(*probs: float) -> Distribution:
        return Distribution(ids, torch.tensor(probs))

    def q(*on: int) -> Distribution:
        return Distribution(torch.tensor(on), torch.ones(len(on)) / len(on))

    def round(tokens: tuple[int, ...], proposed: tuple[int, ...], p: Any, q: Any) -> Round:
        path = tuple(range(len(tokens) - 1))
        evidence = Evidence(Proposal(proposed, tuple(q)), tuple(p), (), None)
        return Round(tokens, "", path, proposed, (), {"target": 1.0}, None, evidence)

    distributions = [p(0.5, 0.25, 0.25, 0), p(0, 0, 0.125, 0.875), p(0.25, 0.25, 0.25, 0.25)]
    rejected = round((1, 3), (1, 2, 0), distributions[:2], [q(1, 2), q(2), q(0, 1)])
    accepted = round((0, 3, 1), (0, 3), distributions, [q(0), q(0, 3)])
    assert measure.measure([rejected]).covered == (0.5, 0.125)
    assert measure.measure([accepted]).covered == (0.5, 0.875)
    both = [measure.measure([each]) for each in (rejected, accepted)]
    assert measure.pool(both)["coverage"] == 0.5


def test_figures_of_nothing() -> None:
    got = measure.measure([])
    assert (got.tokens, got.stop, got.passes, got.tau) == ((), None, 0, 0)
    assert (got.tokens_per_second, got.acceptance, got.repeated_4gram_share) == (0, [], 0)


@pytest.mark.parametrize(
    ("tokens", "share"),
    [([], 0), ([1, 2, 3], 0), ([1, 2, 3, 4], 0), ([1] * 5, 1 / 2), ([1, 2] * 4, 3 / 5),
     (list(range(50)), 0)],
)  # fmt: skip
def test_share_of_repeated_4grams(tokens: list[int], share: float) -> None:
    finished = Round(tuple(tokens), "", (), (), (), {"target": 1.0}, None)
    got = measure.measure([finished] if tokens else [])
    assert got.repeated_4gram_share == pytest.approx(share)


def test_each_round_gives_its_own_token_and_those_accepted(tiny: Tiny) -> None:
    decode = methods.decoder(
        Method.parse("full"), tiny.model, tiny.draft, None,
        gamma=3, sampling=Sampling(1.0), stop=StopRule(60),
    )  # fmt: skip
    got = measure.measure(decode(tiny.model.tokenizer.chat("The sea"), SeededRandom(0)))
    assert len(got.tokens) == got.passes + sum(got.accepted_at) > got.passes
    assert sorted(got.accepted_at, reverse=True) == list(got.accepted_at)


def test_memory_is_the_most_that_was_held_since() -> None:
    measure.reset_peak()
    before = measure.peak_mb()
    # Much, since meanwhile the system may take back some of what a long run of tests left over.
    held = torch.ones(400 * 2**20, dtype=torch.uint8)
    assert measure.peak_mb() > before + 300
    del held


# ------------------------------------------------------------------ the audit


def toy(values: Sequence[float], dtype: torch.dtype = torch.float64) -> ToyTarget:
    """After the token 9 its logits are ``values``; after any other, they are sure of the 9."""

    def table(tokens: tuple[int, ...]) -> Tensor:
        sure = torch.zeros(10, dtype=torch.float64)
        sure[9] = 50.0
        given = torch.tensor([*values, *[-99.0] * (10 - len(values))], dtype=torch.float64)
        return given if tokens[-1] == 9 else sure

    target = ToyTarget(10, table)
    target.head.weight = target.head.weight.to(dtype)
    return target


PROMPT, PLAIN = [5, 6], [9, 1]  # after the 9, plain decoding finds id 1 the best
IDENTICAL, NEAR, VIOLATION = "identical", "near_tie", "violation"


@pytest.mark.parametrize(
    ("logits", "other", "verdict"),
    [
        ([0.0, 0.9], [9, 1], IDENTICAL),
        ([0.9, 0.9 + 1e-5], [9, 0], NEAR),
        ([0.9, 0.9 + 1e-5], [9, 0, 4], NEAR),  # what follows is no longer comparable
        ([0.9, 0.9 + 2e-4], [9, 0], VIOLATION),  # too far apart
        ([0.9, 0.9 + 1e-5], [9, 2], VIOLATION),  # not the runner-up
        ([0.9, 0.9 + 1e-5], [0, 1], VIOLATION),  # near there, but different before
        ([99.0, 99.0 + 5e-3], [9, 0], NEAR),  # the gap is relative to large logits
        ([99.0, 99.0 + 2e-2], [9, 0], VIOLATION),
        ([-0.5, -0.5 + 9e-5, -7], [9, 0], NEAR),
        ([-50.0, -50.0 + 4e-3], [9, 0], NEAR),
        ([0.0, 0.9], [9], VIOLATION),  # one stopped where the other went on
        ([0.0, 0.9], [9, 1, 1], VIOLATION),
        ([0.0, 0.9], [], VIOLATION),
    ],
)
def test_verdicts(logits: list[float], other: list[int], verdict: str) -> None:
    gap = audit.NEAR_TIE[torch.float32]
    assert audit.audit(toy(logits), PROMPT, PLAIN, other, gap) == verdict


def test_of_an_exact_tie_the_lower_id_is_first() -> None:
    # Plain decoding takes id 1 of the equals 1, 2 and 3: then 2 is the runner-up, 3 is not.
    tied = toy([0.0, 0.9, 0.9, 0.9])
    for other, verdict in ((1, IDENTICAL), (2, NEAR), (3, VIOLATION), (0, VIOLATION)):
        assert audit.audit(tied, PROMPT, PLAIN, [9, other], 1e-4) == verdict
    many = ToyTarget(2000, lambda tokens: torch.zeros(2000, dtype=torch.float64))
    for other, verdict in ((0, IDENTICAL), (1, NEAR), (2, VIOLATION), (1999, VIOLATION)):
        assert audit.audit(many, PROMPT, [0], [other], 1e-4) == verdict


@pytest.mark.parametrize(
    ("dtype", "near", "far"),
    [(torch.float64, 1e-11, 1e-9), (torch.float32, 1e-5, 1e-3), (torch.bfloat16, 1e-2, 1e-1)],
)
def test_what_counts_as_near_depends_on_the_precision(
    dtype: torch.dtype, near: float, far: float
) -> None:
    for step, verdict in ((near, NEAR), (far, VIOLATION)):
        target = toy([0.5, 0.5 + step])
        assert audit.audit(target, PROMPT, PLAIN, [9, 0], audit.NEAR_TIE[dtype]) == verdict


def test_first_difference() -> None:
    for plain, other, place in [
        ([], [], None), ([1, 2], [1, 2], None), ([1, 2], [1, 3], 1), ([1, 2], [0, 2], 0),
        ([1, 2], [1], 1), ([1], [1, 2], 1), ([], [1], 0),
    ]:  # fmt: skip
        assert audit.first_difference(plain, other) == place


def test_an_audit_repeats_what_plain_decoding_did() -> None:
    """Pass by pass, since a pass over other positions has other last bits."""
    passes: list[tuple[int, int]] = []

    class Watched(ToyTarget):
        def step(self, ids: Tensor, cache: Any) -> Any:
            passes.append((cache.length, len(ids)))
            return super().step(ids, cache)

    target = Watched(10, lambda tokens: torch.eye(10, dtype=torch.float64)[len(tokens) % 10], 2000)
    for length in (1, 2, 500, 513, 1200):
        prompt, rule = [3] * length, StopRule(6)
        rounds = autoregressive(target, prompt, sampling=Sampling(), rng=SeededRandom(0), stop=rule)
        plain = measure.measure(rounds).tokens
        decoding = list(passes)
        passes.clear()
        assert audit.audit(target, prompt, plain, [*plain[:5], 11], 1e-4) == VIOLATION
        assert passes == decoding
        passes.clear()


def test_verdicts_are_counted(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """One prompt of each stream is spoilt for one method, and a near tie is made of another."""
    fake = FakeDecoders()
    spoilt = [tuple(tiny.model.tokenizer.chat(texts[1])) for texts in STREAMS.values()]
    fake.tokens = lambda method, prompt: (
        (5, 7) if method == "full" and tuple(prompt) in spoilt else (5, 6)
    )
    monkeypatch.setattr(compare, "decoder", fake)
    found = compared(tiny, "autoregressive,full,frspec", temperature=0.0)
    for stream, prompts, bad in (("law", 3, 1), ("code", 2, 1), ("all", 5, 2)):
        assert only(found, method="full", stream=stream)["lossless"] == {
            "checked": prompts, "identical": prompts - bad, "near_ties": 0, "violations": bad,
        }  # fmt: skip
        assert only(found, method="frspec", stream=stream)["lossless"]["identical"] == prompts
    real = audit.audit
    monkeypatch.setattr(audit, "audit", lambda *a: NEAR if real(*a) == VIOLATION else IDENTICAL)
    found = compared(tiny, "autoregressive,full,frspec", temperature=0.0)
    counts = only(found, method="full", stream="all")["lossless"]
    assert counts == {"checked": 5, "identical": 3, "near_ties": 2, "violations": 0}


def test_a_planted_defect_is_a_violation(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """Real decoding by a verifier that accepts whatever is drafted."""

    def gullible(p: Any, q: Any, token: int) -> float:
        return 1.0

    assert isinstance(methods.shortlist(Method.parse("full"), tiny.model, None), FullShortlist)
    monkeypatch.setattr("minispec.verify.acceptance_probability", gullible)
    found = compared(tiny, "autoregressive,full", temperature=0.0)
    lossless = only(found, method="full", stream="all")["lossless"]
    assert lossless["violations"] > 0 == lossless["near_ties"]
    assert only(found, method="autoregressive", stream="all")["lossless"]["identical"] == 5
