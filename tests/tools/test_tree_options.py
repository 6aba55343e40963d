"""Trees through every interface: the text of plain decoding, their figures, and bad input."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import minispec
from helpers.comparison import SCHEMA
from minispec.api.request import to_tree
from minispec.errors import ArgumentError
from minispec.growth import TreeShape
from minispec.tools.cli.main import main
from minispec.tools.evaluation.methods import Method
from minispec.tools.evaluation.results import list_variants
from minispec.tools.reporting import table

PROMPT = "The court held that the"
TREES = ("3x2x6", "2x3x5:static", "3x2x5:drawn", "3x2x6:static:distinct")
OPTIONS: dict[str, Any] = {"max_new_tokens": 24, "ignore_eos": True}


@pytest.fixture(scope="module")
def model() -> minispec.Model:
    return minispec.load("pocket", backend="reference")


@pytest.mark.parametrize("verifier", ["token", "block"])
@pytest.mark.parametrize("tree", TREES)
def test_generate_with_a_tree_gives_the_text_of_plain_decoding(
    model: minispec.Model, tree: str, verifier: str
) -> None:
    plain = model.generate(PROMPT, shortlist="autoregressive", **OPTIONS)
    for shortlist in ("frspec@0.5", "evospec"):
        options = OPTIONS | {"shortlist": shortlist, "verifier": verifier}
        assert model.generate(PROMPT, tree=tree, **options).text == plain.text
    rounds = list(model.stream(PROMPT, tree=TreeShape.parse(tree), **OPTIONS))
    assert "".join(step.text for step in rounds) == plain.text
    assert max(len(step.proposed) for step in rounds) == TreeShape.parse(tree).nodes
    assert model.chat(tree=tree, **OPTIONS).send(PROMPT).text == plain.text


def test_generate_with_a_wider_tree_accepts_more(model: minispec.Model) -> None:
    def count_passes(tree: str) -> float:
        prompts = ("Once upon a time", "def main(", "The patient was", "Section 1.")
        outputs = [model.generate(prompt, gamma=3, tree=tree, **OPTIONS) for prompt in prompts]
        return sum(len(output.token_ids) / output.tau for output in outputs)

    assert count_passes("3x3x12") < 0.95 * count_passes("chain")


def test_generate_with_a_tree_learns(model: minispec.Model) -> None:
    plain = model.generate(PROMPT, shortlist="autoregressive", **OPTIONS)
    assert model.generate(PROMPT, tree="3x2x6", adapt=True, **OPTIONS).text == plain.text


def test_generate_reports_the_drafted_tokens_of_a_pass(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "generate", PROMPT, "--model", "pocket", "--backend", "reference", "--json",
        "--max-new-tokens", "12", "--ignore-eos", "--threads", "1",
    ]  # fmt: skip
    assert main([*arguments, "--tree", "2x2x5"]) == 0
    tree = json.loads(capsys.readouterr().out)
    assert main([*arguments, "--gamma", "2"]) == 0
    chain = json.loads(capsys.readouterr().out)
    assert (tree["tree"], tree["gamma"]) == ("2x2x5", None)
    assert (chain["tree"], chain["gamma"]) == (None, 2)
    assert tree["text"] == chain["text"] and 4 < tree["drafted_per_pass"] <= 5
    assert 1 < chain["drafted_per_pass"] <= 2


def test_generate_traces_the_rejected_candidates(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([
        "generate", PROMPT, "--model", "pocket", "--backend", "reference", "--trace", "--tree",
        "2x2x5", "--max-new-tokens", "8", "--ignore-eos", "--threads", "1",
    ]) == 0  # fmt: skip
    assert "[-" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ("4x3", "tree '4x3' is not chain or DEPTHxBEAMxNODES"),
        ("0x3x8", "depth 0 of a tree must lie in 1..16"),
        ("4x99x8", "beam 99 of a tree must lie in 1..16"),
        ("4x3x999", "nodes 999 of a tree must lie in 1..64"),
        ("4x3x2", "a tree of depth 4 and beam 3 has 4 to 30 nodes, not 2"),
        ("2x1x9", "a tree of depth 2 and beam 1 has 2 to 2 nodes, not 9"),
        ("4x3x8:drawn:distinct", "names two ways of the same choice"),
    ],
)
@pytest.mark.parametrize("command", [["generate", "hi"], ["compare"]])
def test_bad_trees_are_refused_in_one_line(
    command: list[str], tree: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, "--model", "pocket", "--tree", tree]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_a_draft_without_trees_is_refused_by_name(model: minispec.Model) -> None:
    class Chains:
        """A draft of one's own, whose step has no parents."""

        head = model.target.head

        def __getattr__(self, name: str) -> Any:
            return getattr(model.draft, name)

        def fuse(self, aux_hidden_states: Any) -> Any:
            return model.draft and model.draft.fuse(aux_hidden_states)

        def new_cache(self, capacity: int) -> Any:
            return model.draft and model.draft.new_cache(capacity)

        def step(self, ids: Any, states: Any, cache: Any) -> Any:
            return model.draft and model.draft.step(ids, states, cache)

        def with_own_head(self) -> Any:
            return self

    own = minispec.Model(model.pretrained, Chains())
    assert own.generate(PROMPT, **OPTIONS).text == model.generate(PROMPT, **OPTIONS).text
    with pytest.raises(ArgumentError, match="runs chains, no trees: its step takes no parents"):
        own.generate(PROMPT, tree="2x2x4", **OPTIONS)


def test_list_variants_has_each_gamma_and_each_tree() -> None:
    methods = [Method("autoregressive"), Method("full")]
    tree = TreeShape.parse("2x2x4")
    found = [(str(v.method), v.gamma, v.tree) for v in list_variants(methods, (2, 4), (None, tree))]
    assert found == [
        ("autoregressive", None, None), ("full", 2, None), ("full", 4, None), ("full", None, tree),
    ]  # fmt: skip


def test_to_tree_reads_every_spelling() -> None:
    shape = TreeShape(3, 2, 5, "static", "drawn")
    assert to_tree(None) is None and to_tree(" chain") is None and to_tree(shape) is shape
    assert to_tree("3x2x5:static:drawn") == to_tree("3x2x5:drawn:static") == shape
    with pytest.raises(ArgumentError, match="tree must be a text"):
        to_tree(4)  # type: ignore[arg-type]


def test_compare_has_a_row_for_each_tree(model: minispec.Model, tmp_path: Path) -> None:
    found = minispec.compare(
        model, ["autoregressive", "full"], prompts=[PROMPT, "Once upon a time"], gamma=2,
        tree=["chain", "2x2x5", "2x2x4:drawn"], max_new_tokens=10, ignore_eos=True,
    )  # fmt: skip
    jsonschema.validate(found.report, SCHEMA)
    settings = [(result.method, result.gamma, result.tree) for result in found.results]
    assert settings == [
        ("autoregressive", None, None), ("full", 2, None), ("full", None, "2x2x5"),
        ("full", None, "2x2x4:drawn"),
    ]  # fmt: skip
    assert all(result.identical for result in found.results)
    text = str(found)
    assert "nodes" in text and "chain of 2" in text and "2x2x5" in text
    rows = [row for row in found.report["results"] if row["stream"] == "all" and not row["best"]]
    assert rows[0]["drafted_per_pass"] == 0
    assert rows[1]["drafted_per_pass"] <= 2 < rows[2]["drafted_per_pass"] <= 5
    assert table.format_label(rows[2]) == "full, tree 2x2x5"
    assert table.format_label(rows[1]) == "full, gamma 2"
    assert table.format_label(rows[0]) == "autoregressive"
    found.save(tmp_path)
    assert "2x2x5" in (tmp_path / "report.html").read_text("utf-8")


def test_compare_refuses_a_tree_that_is_named_twice(model: minispec.Model) -> None:
    with pytest.raises(ArgumentError, match="a tree is named twice"):
        minispec.compare(model, ["full"], prompts=["hi"], tree=["2x2x4", "2x2x4"])
