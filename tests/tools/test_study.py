"""The study: that its points are what they say, on a tiny model and with a list that learns."""

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
from minispec.tools.evaluation import compare, methods, study
from minispec.tools.evaluation.compare import Settings
from minispec.tools.evaluation.methods import Method
from minispec.types import Context

SCHEMA = json.loads(resources.files("minispec").joinpath("data/report.schema.json").read_text())
V = 320
STREAMS = [Stream("law", ("The court", "A party")), Stream("code", ("def run():", "import this"))]
Found = dict[str, Any]


@pytest.fixture(scope="module")
def tiny(tiny: Tiny) -> Iterator[Tiny]:
    with tiny_model.rankings_shipped(tiny):
        yield tiny


@pytest.fixture
def followed(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """frspec with the ranking "mix" is a list that learns and explains itself."""
    real = methods.shortlist

    def shortlist(method: Method, model: Any, domain: str) -> Any:
        if method.ranking != "mix":
            return real(method, model, domain)
        budget = method.ids(V)
        if budget == V:
            raise ArgumentError("this list has to leave something out")
        ids = ranking.read_ranking(tiny.ranking("mix"), model.tokenizer.fingerprint, V)
        return Follower(ids, budget or V)

    monkeypatch.setattr(methods, "shortlist", shortlist)


def compared(tiny: Tiny, names: str, **options: Any) -> Found:
    options = {"max_new_tokens": 14, "seed": 0, "sampling": Sampling(), "study": True} | options
    chosen = tuple(Method.parse(name) for name in names.split(","))
    found = compare.compare(tiny.model, tiny.draft, STREAMS, Settings(chosen, (3,), **options))
    found = json.loads(json.dumps(found))
    jsonschema.validate(found, SCHEMA)
    return found


def points(found: Found, **wanted: Any) -> list[Found]:
    return [p for p in found["study"]["points"] if all(p[key] == wanted[key] for key in wanted)]


def rows(found: Found, **wanted: Any) -> list[Found]:
    return [r for r in found["results"] if all(r[key] == wanted[key] for key in wanted)]


def test_budgets_are_swept_from_256_to_the_vocabulary(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study, "_SMALLEST", 16)
    found = compared(tiny, "autoregressive,frspec@40,frspec@0.25,frspec@40:mix", switch=True)
    assert found["study"]["gamma"] == 3
    for curve in ("frspec:general", "frspec:mix"):
        for stream in ("law", "code", "switch", "all"):
            swept = [p["budget"] for p in points(found, curve=curve, stream=stream)]
            own = {"frspec:general": [40, 80], "frspec:mix": [40]}[curve]
            assert swept == sorted({16, 32, 64, 128, 256, V, *own})
    assert {p["budget"] for p in points(found, curve="full")} == {V}
    assert {p["altered"] for p in found["study"]["points"]} == {None}  # nothing to take away


def test_points_say_of_the_methods_what_their_rows_say(tiny: Tiny) -> None:
    """Greedy, and all decode the same text: what is replayed is what was run."""
    found = compared(tiny, "full,frspec@40,frspec@0.25:without-own", switch=True)
    for row in found["results"]:
        assert row["lossless"]["identical"] == row["lossless"]["checked"]
        name, _, order = row["method"].partition(":")
        curve = "full" if row["method"] == "full" else f"{name.split('@')[0]}:{order or 'general'}"
        budget = row["budget"] or V
        (point,) = points(found, curve=curve, stream=row["stream"], budget=budget)
        assert (point["tau"], point["coverage"]) == (row["tau"], row["coverage"])
        (full,) = points(found, curve="full", stream=row["stream"])
        assert point["tau_to_full"] == point["tau"] / full["tau"]
        assert point["overlap_to_full"] == point["overlap"] / full["overlap"]
        assert 0 < point["overlap"] <= 1
        if row["method"] == "full":
            assert point["coverage"] == 1


def test_at_the_vocabulary_every_list_is_full(tiny: Tiny) -> None:
    found = compared(tiny, "frspec@40")
    for stream in ("law", "code", "all"):
        (full,) = points(found, curve="full", stream=stream)
        (point,) = points(found, curve="frspec:general", stream=stream, budget=V)
        assert point | {"curve": "full"} == full


def test_the_text_is_plain_decodings_greedy_one_at_any_temperature(tiny: Tiny) -> None:
    """A study beside drawn text: its texts, and so all of it, are those of a greedy run."""
    greedy = compared(tiny, "full,frspec@40", switch=True)
    drawn = compared(tiny, "full,frspec@40", switch=True, sampling=Sampling(0.9))
    assert greedy["study"] == drawn["study"]
    assert greedy["results"][0]["target_passes"] != drawn["results"][0]["target_passes"]


@pytest.mark.usefixtures("followed")
def test_parts_are_taken_away_one_by_one(tiny: Tiny) -> None:
    found = compared(tiny, "frspec@40,frspec@64:mix", switch=True)
    names = {"core", "core + recency", "core + recency + successor",
             "without online updates", "once a round", "at each step"}  # fmt: skip
    altered = [p for p in found["study"]["points"] if p["altered"]]
    assert {(p["curve"], p["budget"]) for p in altered} == {("frspec:mix", 64)}
    assert {p["altered"] for p in altered} == names
    for stream in ("law", "code", "switch", "all"):
        at = {p["altered"]: p for p in points(found, curve="frspec:mix", stream=stream, budget=64)}
        assert at.keys() == {None, *names}
        # All parts there are, and asked as it wants to be: the list itself.
        for same in ("core + recency + successor", "at each step"):
            assert at[same] | {"altered": None} == at[None]
        # The core alone, the others' places given to the ranking: FR-Spec at this budget.
        assert at["core"]["coverage"] != at[None]["coverage"]
    ids = ranking.read_ranking(tiny.ranking("mix"), tiny.model.tokenizer.fingerprint, V)
    changed = study._Altered(Follower(ids, 64), ids[:64], parts=("core",))
    context = Context((1, 2, int(ids[200])), torch.zeros(4), 0)
    assert torch.equal(changed.select(context), ids[:33].sort().values)  # 32 and the last token's
    # A budget that the list cannot have is passed over.
    assert V not in {p["budget"] for p in points(found, curve="frspec:mix")}


def test_a_part_that_stays_keeps_its_ids_and_the_budget_holds(tiny: Tiny) -> None:
    ids = torch.arange(V)
    inner = Follower(ids, 10)
    inner.seen = [100, 101, 102]
    context = Context((1, 200), torch.zeros(4), 0)
    assert inner.select(context).tolist() == [0, 1, 2, 3, 4, 100, 101, 102, 200]
    two = study._Altered(inner, ids[:10], parts=("core", "recency"))
    assert two.select(context).tolist() == [*range(8), 200]
    still = study._Altered(inner, ids[:10], learns=False)
    still.observe(None)  # type: ignore[arg-type]
    assert inner.seen == [100, 101, 102]
    still.reset()
    assert inner.seen == []


@pytest.mark.usefixtures("followed")
def test_origin_is_told_of_lists_that_explain_themselves(tiny: Tiny) -> None:
    found = compared(tiny, "full,frspec@40,frspec@64:mix", switch=True, study=False)
    assert found["study"] is None
    for row in found["results"]:
        if row["method"] != "frspec@64:mix":
            assert row["origin"] is None
        elif sum(row["accepted_by_position"]):
            assert sum(row["origin"].values()) == pytest.approx(1)
    assert any(row["origin"] for row in found["results"])
    drawn = compared(tiny, "frspec@64:mix", study=False, sampling=Sampling(0.9))
    assert [row["origin"] for row in drawn["results"]] == [None] * 3


def test_a_study_without_a_draft_is_refused(tiny: Tiny) -> None:
    settings = Settings((Method.parse("autoregressive"),), (3,), Sampling(), 8, 0, study=True)
    with pytest.raises(ArgumentError, match="a study needs a draft"):
        compare.compare(tiny.model, None, STREAMS, settings)


def test_from_the_command_line(tiny: Tiny, tmp_path: Path) -> None:
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
