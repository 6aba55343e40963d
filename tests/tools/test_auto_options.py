"""``--gamma auto`` and ``--tree auto``: how they are spelled, what they measure, and what they
decode."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers import tiny_model
from helpers.comparison import run_compare, select_row
from helpers.tiny_model import Tiny
from minispec.api.request import build_request, split_auto, to_tree
from minispec.auto_shape import AutoShape
from minispec.commit import StopRule
from minispec.errors import ArgumentError, FileWarning
from minispec.growth import TreeShape
from minispec.sampling import Sampling, SeededRandom
from minispec.shortlists.full import FullShortlist
from minispec.tools.cli import main
from minispec.tools.evaluation.assembly import build_decoder
from minispec.tools.evaluation.methods import Method
from minispec.tools.models import pass_costs

PROMPT = "the sea the sea the sea"


@pytest.fixture(scope="module")
def tiny(tiny: Tiny) -> Iterator[Tiny]:
    with tiny_model.replace_shipped_rankings(tiny):
        yield tiny


@pytest.fixture(autouse=True)
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(pass_costs, "cache_folder", lambda: tmp_path)
    return tmp_path / "pass-costs.json"


def test_to_tree_reads_auto() -> None:
    assert to_tree("auto") == AutoShape() and str(to_tree("auto")) == "auto"
    assert to_tree("auto:chain") == AutoShape(chains=True) == to_tree(AutoShape(True))
    assert str(AutoShape(True)) == "auto:chain"


def test_split_auto_makes_a_shape_of_a_length() -> None:
    chains, tree = AutoShape(chains=True), TreeShape(2, 2, 3)
    assert split_auto([4], [None]) == ([4], [None])
    assert split_auto(["auto"], [None]) == ([4], [chains])
    assert split_auto([2, "auto"], [None, tree]) == ([2], [None, tree, chains])
    assert split_auto(["auto"], [tree]) == ([4], [tree])  # trees have no gamma
    with pytest.raises(ArgumentError, match="gamma must be a whole number, not str 'many'"):
        split_auto(["many"], [None])
    request = build_request(gamma="auto")
    assert request.tree == chains


def test_load_costs_measures_once(tiny: Tiny, kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drafting = tiny.draft, FullShortlist(tiny.model.target.head.vocab_size)
    first = pass_costs.load_costs(tiny.model, Sampling(), drafting)
    assert [rows for rows, _ in first.target] == [1, 2, 3, 5, 9, 13, 17, 25]
    assert [rows for rows, _ in first.draft] == [1, 2, 4, 6]
    with monkeypatch.context() as patch:
        patch.setattr(pass_costs, "_measure", lambda *arguments: pytest.fail("measured again"))
        assert pass_costs.load_costs(tiny.model, Sampling(), drafting) == first
        with pytest.raises(pytest.fail.Exception):  # the logits of all ids are needed
            pass_costs.load_costs(tiny.model, Sampling(0.5), drafting)
    pass_costs.load_costs(tiny.model, Sampling(0.5), drafting)
    assert pass_costs.load_costs(tiny.model, Sampling(), None).draft == ()
    assert len(json.loads(kept.read_text())) == 3
    kept.write_text("[]")
    with pytest.warns(FileWarning, match="passes are measured again"):
        assert pass_costs.load_costs(tiny.model, Sampling(), drafting).target[0][0] == 1


@pytest.mark.parametrize("tree", [AutoShape(), AutoShape(chains=True)])
@pytest.mark.parametrize("method", ["full", "full+suffix", "full+adapt", "suffix"])
def test_auto_decodes_what_plain_decoding_does(tiny: Tiny, method: str, tree: AutoShape) -> None:
    ids = tiny.model.tokenizer.chat(PROMPT)

    def decode(name: str, **options: Any) -> list[int]:
        run = build_decoder(
            Method.parse(name), tiny.model, tiny.draft, None, gamma=3, sampling=Sampling(),
            stop=StopRule(60), **options,
        )  # fmt: skip
        return [token for each in run(ids, SeededRandom(0)) for token in each.tokens]

    assert decode(method, tree=tree) == decode("autoregressive")


def test_auto_is_exact_in_type_at_any_temperature(tiny: Tiny) -> None:
    """Candidates that branch are drawn above temperature 0; nothing breaks for want of mass."""
    run = build_decoder(
        Method.parse("full+suffix"), tiny.model, tiny.draft, None, gamma=3, tree=AutoShape(),
        sampling=Sampling(0.8, top_k=3), stop=StopRule(60),
    )  # fmt: skip
    ids = tiny.model.tokenizer.chat(PROMPT)
    assert sum(len(each.tokens) for each in run(ids, SeededRandom(0))) == 60


@pytest.mark.parametrize("tree", ["4x2x6", "auto"])
def test_suffix_takes_trees(tiny: Tiny, tree: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["generate", "--model", str(tiny.folder), "--method", "suffix", PROMPT, "--json"]
    assert main.main([*command, "--tree", tree, "--max-new-tokens", "20"]) == 0
    assert json.loads(capsys.readouterr().out)["tree"] == tree


def test_compare_and_generate_take_auto(tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    found = run_compare(
        tiny, "full", prompts={"law": [PROMPT]}, temperature=0.0, trees=(None, AutoShape())
    )
    row = select_row(found, method="full", stream="law", tree="auto")
    assert row["lossless"]["violations"] == 0 and row["gamma"] is None
    model = ["--model", str(tiny.folder), "--draft", str(tiny.draft_path), "--json"]
    command = ["generate", *model, "--method", "full", "--max-new-tokens", "9", PROMPT]
    assert main.main([*command, "--gamma", "auto"]) == 0
    assert json.loads(capsys.readouterr().out)["tree"] == "auto:chain"
    assert main.main([*command, "--gamma", "many"]) == 2
    assert "'many' is neither a number nor auto" in capsys.readouterr().err


def test_costs_need_no_cache(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> Path:
        raise pass_costs.FileError("no home folder")

    monkeypatch.setattr(pass_costs, "cache_folder", refuse)
    shortlist = FullShortlist(tiny.model.target.head.vocab_size)
    assert pass_costs.load_costs(tiny.model, Sampling(), (tiny.draft, shortlist)).rest >= 0
    assert torch.get_num_threads() >= 1
