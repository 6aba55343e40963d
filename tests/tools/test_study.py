"""The study: its points, on a tiny model and with a shortlist that learns."""

import json
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch

from helpers import tiny_model
from helpers.follower import Follower
from helpers.tiny_model import Tiny
from minispec.errors import ArgumentError
from minispec.sampling import Sampling
from minispec.tools.cli import main
from minispec.tools.data import ranking
from minispec.tools.data.streams import Stream
from minispec.tools.evaluation import assembly, compare, study
from minispec.tools.evaluation.compare import Settings
from minispec.tools.evaluation.methods import Method
from minispec.types import Context

SCHEMA = json.loads(resources.files("minispec").joinpath("data/report.schema.json").read_text())
V = 320
STREAMS = [Stream("law", ("The court", "A party")), Stream("code", ("def run():", "import this"))]
Found = dict[str, Any]


@pytest.fixture(scope="module")
def tiny(tiny: Tiny) -> Iterator[Tiny]:
    with tiny_model.replace_shipped_rankings(tiny):
        yield tiny


@pytest.fixture
def use_follower(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """frspec with the ranking "mix" is a shortlist that learns and has parts."""
    real = assembly.build_shortlist

    def shortlist(method: Method, model: Any, domain: str) -> Any:
        if method.ranking != "mix":
            return real(method, model, domain)
        budget = method.ids(V)
        if budget == V:
            raise ArgumentError("this shortlist cannot have all ids")
        ids = ranking.read_ranking(tiny.ranking("mix"), model.tokenizer.fingerprint, V)
        return Follower(ids, budget or V)

    monkeypatch.setattr(assembly, "build_shortlist", shortlist)


def run_compare(tiny: Tiny, names: str, **options: Any) -> Found:
    options = {"max_new_tokens": 14, "seed": 0, "sampling": Sampling(), "study": True} | options
    chosen = tuple(Method.parse(name) for name in names.split(","))
    found = compare.compare(tiny.model, tiny.draft, STREAMS, Settings(chosen, (3,), **options))
    found = json.loads(json.dumps(found))
    jsonschema.validate(found, SCHEMA)
    return found


def select_points(found: Found, **wanted: Any) -> list[Found]:
    return [p for p in found["study"]["points"] if all(p[key] == wanted[key] for key in wanted)]


def rows(found: Found, **wanted: Any) -> list[Found]:
    return [r for r in found["results"] if all(r[key] == wanted[key] for key in wanted)]


def test_study_sweeps_budgets_up_to_the_vocabulary(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study, "_SMALLEST", 16)
    found = run_compare(tiny, "autoregressive,frspec@40,frspec@0.25,frspec@40:mix", switch=True)
    assert found["study"]["gamma"] == 3
    for curve in ("frspec:general", "frspec:mix"):
        for stream in ("law", "code", "switch", "all"):
            swept = [p["budget"] for p in select_points(found, curve=curve, stream=stream)]
            own = {"frspec:general": [40, 80], "frspec:mix": [40]}[curve]
            assert swept == sorted({16, 32, 64, 128, 256, V, *own})
    assert {p["budget"] for p in select_points(found, curve="full")} == {V}
    assert {p["altered"] for p in found["study"]["points"]} == {None}  # no parts, so no ablations


def test_study_points_equal_the_rows_of_their_methods(tiny: Tiny) -> None:
    """Greedy methods all decode the same text, so the replay equals the run."""
    found = run_compare(tiny, "full,frspec@40,frspec@0.25:without-own", switch=True)
    for row in found["results"]:
        assert row["lossless"]["identical"] == row["lossless"]["checked"]
        name, _, order = row["method"].partition(":")
        curve = "full" if row["method"] == "full" else f"{name.split('@')[0]}:{order or 'general'}"
        budget = row["budget"] or V
        (point,) = select_points(found, curve=curve, stream=row["stream"], budget=budget)
        assert (point["tau"], point["coverage"]) == (row["tau"], row["coverage"])
        (full,) = select_points(found, curve="full", stream=row["stream"])
        assert point["tau_to_full"] == point["tau"] / full["tau"]
        assert point["overlap_to_full"] == point["overlap"] / full["overlap"]
        assert 0 < point["overlap"] <= point["ceiling"] + 1e-6 <= 1 + 2e-6
        if row["method"] == "full":
            assert point["coverage"] == 1


def test_study_point_at_the_vocabulary_equals_full(tiny: Tiny) -> None:
    found = run_compare(tiny, "frspec@40")
    for stream in ("law", "code", "all"):
        (full,) = select_points(found, curve="full", stream=stream)
        assert full["ceiling"] == pytest.approx(1)
        (point,) = select_points(found, curve="frspec:general", stream=stream, budget=V)
        assert point | {"curve": "full"} == full


def test_study_replays_the_greedy_text_at_any_temperature(tiny: Tiny) -> None:
    """The study of a sampled comparison equals that of a greedy one."""
    greedy = run_compare(tiny, "full,frspec@40", switch=True)
    sampled = run_compare(tiny, "full,frspec@40", switch=True, sampling=Sampling(0.9))
    for each in (*greedy["study"]["points"], *sampled["study"]["points"]):
        each["gate"] = each["measured"] = None  # they depend on the time
    assert greedy["study"] == sampled["study"]
    assert greedy["results"][0]["target_passes"] != sampled["results"][0]["target_passes"]


def test_gate_is_the_speed_that_follows_from_tau_and_rows(tiny: Tiny) -> None:
    found = run_compare(tiny, "full,frspec@40", switch=True)
    for stream in ("law", "switch", "all"):
        (full_row,) = rows(found, method="full", stream=stream)
        head = full_row["seconds"]["draft_head"]
        others = sum(s for phase, s in full_row["seconds"].items() if phase != "prefill") - head
        kappa = head / others
        (full,) = select_points(found, curve="full", stream=stream)
        assert (full["gate"], full["measured"]) == (pytest.approx(1), pytest.approx(1))
        for point in select_points(found, curve="frspec:general", stream=stream):
            nu = point["budget"] / V
            assert point["rows_to_full"] == pytest.approx(nu)
            expected = point["tau_to_full"] * (1 + kappa) / (1 + nu * kappa)
            assert point["gate"] == pytest.approx(expected)
            (row,) = rows(found, method="frspec@40", stream=stream)
            speed = row["tokens_per_second"] / full_row["tokens_per_second"]
            assert point["measured"] == (pytest.approx(speed) if point["budget"] == 40 else None)
    untimed = run_compare(tiny, "frspec@40")
    assert {(p["gate"], p["measured"]) for p in untimed["study"]["points"]} == {(None, None)}


@pytest.mark.usefixtures("use_follower")
def test_study_ablates_parts(tiny: Tiny) -> None:
    found = run_compare(tiny, "frspec@40,frspec@64:mix", switch=True)
    names = {"core", "core + recency", "without online updates", "once a round", "at each step"}
    altered = [p for p in found["study"]["points"] if p["altered"]]
    assert {(p["curve"], p["budget"]) for p in altered} == {("frspec:mix", 64)}
    assert {p["altered"] for p in altered} == names
    for stream in ("law", "code", "switch", "all"):
        at = {
            p["altered"]: p
            for p in select_points(found, curve="frspec:mix", stream=stream, budget=64)
        }
        assert at.keys() == {None, *names}
        # Selected as often as it declares: the unchanged shortlist, which has parts and was timed.
        same = {key: at[None][key] for key in ("altered", "measured", "ceiling_by_part")}
        assert at["at each step"] | same == at[None]
        parts = at[None]["ceiling_by_part"]
        assert parts.keys() == {"core", "recency", "successor"}
        assert sum(parts.values()) == pytest.approx(at[None]["ceiling"])
        # The core alone, filled up from the ranking: FR-Spec at this budget.
        assert at["core"]["coverage"] != at[None]["coverage"]
    ids = ranking.read_ranking(tiny.ranking("mix"), tiny.model.tokenizer.fingerprint, V)
    changed = study._AlteredShortlist(Follower(ids, 64), ids[:64], parts=("core",))
    context = Context((1, 2, int(ids[200])), torch.zeros(4), 0)
    assert torch.equal(
        changed.select(context), ids[:33].sort().values
    )  # 32 of the core, 1 for the last token
    # A budget that the shortlist cannot have is skipped.
    assert V not in {p["budget"] for p in select_points(found, curve="frspec:mix")}


def test_altered_shortlist_keeps_its_parts_and_its_size(tiny: Tiny) -> None:
    ids = torch.arange(V)
    inner = Follower(ids, 10)
    inner.observed = [100, 101, 102]
    context = Context((1, 200), torch.zeros(4), 0)
    assert inner.select(context).tolist() == [0, 1, 2, 3, 4, 100, 101, 102, 200]
    two = study._AlteredShortlist(inner, ids[:10], parts=("core", "recency"))
    assert two.select(context).tolist() == [*range(8), 200]
    frozen = study._AlteredShortlist(inner, ids[:10], learns=False)
    frozen.observe(None)  # type: ignore[arg-type]
    assert inner.observed == [100, 101, 102]
    frozen.reset()
    assert inner.observed == []


@pytest.mark.usefixtures("use_follower")
def test_origin_is_reported_for_shortlists_with_parts(tiny: Tiny) -> None:
    found = run_compare(tiny, "full,frspec@40,frspec@64:mix", switch=True, study=False)
    assert found["study"] is None
    for row in found["results"]:
        if row["method"] != "frspec@64:mix":
            assert row["origin"] is None
        elif sum(row["accepted_by_position"]):
            assert sum(row["origin"].values()) == pytest.approx(1)
    assert any(row["origin"] for row in found["results"])
    sampled = run_compare(tiny, "frspec@64:mix", study=False, sampling=Sampling(0.9))
    assert [row["origin"] for row in sampled["results"]] == [None] * 3


def test_study_without_a_draft_is_refused(tiny: Tiny) -> None:
    settings = Settings((Method.parse("autoregressive"),), (3,), Sampling(), 8, 0, study=True)
    with pytest.raises(ArgumentError, match="a study needs a draft"):
        compare.compare(tiny.model, None, STREAMS, settings)


def test_study_from_the_command_line(tiny: Tiny, tmp_path: Path) -> None:
    for stream in STREAMS:
        (tmp_path / f"{stream.name}.txt").write_text("\n".join(stream.prompts))
    prompts = [str(tmp_path / f"{stream.name}.txt") for stream in STREAMS]
    model = ["--model", str(tiny.folder), "--draft", str(tiny.draft_path)]
    options = ["--methods", "autoregressive", "--max-new-tokens", "8", "--out", str(tmp_path)]
    line = ["compare", *model, "--prompts", *prompts, *options, "--switch", "--study"]
    assert main.main(line) == 0
    found = json.loads((tmp_path / "report.json").read_text())
    jsonschema.validate(found, SCHEMA)
    assert {row["stream"] for row in found["results"]} == {"law", "code", "switch", "all"}
    assert {point["curve"] for point in found["study"]["points"]} == {"full"}
