"""The explore page of trees: its nodes are those that were drafted, and it shows them all."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers.tiny_model import Tiny
from minispec.commit import StopRule
from minispec.growth import TreeShape
from minispec.sampling import Sampling, SeededRandom
from minispec.text.tokenizer import encode_prompt
from minispec.tools.cli import main
from minispec.tools.evaluation import assembly
from minispec.tools.evaluation.compare import Settings
from minispec.tools.evaluation.methods import Method
from minispec.tools.reporting import explore
from minispec.types import Round

Show = Callable[..., Any]
PROMPT, LENGTH = "to be or not to be, to be or not to be, to", 40
NAMES = ("full", "full+suffix", "suffix")
TREE = TreeShape.parse("3x2x6")


def _settings(verifier: str = "token") -> Settings:
    methods = tuple(map(Method.parse, NAMES))
    return Settings(
        methods, (4,), Sampling(1.5), LENGTH, 1, verifier=verifier, trees=(TREE,), raw=True
    )


@pytest.fixture(scope="module")
def page_data(tiny: Tiny) -> dict[str, Any]:
    return explore.explore(tiny.model, tiny.draft, PROMPT, _settings())


def _decode(tiny: Tiny, name: str) -> list[Round]:
    run = assembly.build_decoder(
        Method.parse(name), tiny.model, tiny.draft, None, gamma=4, trace=True,
        sampling=Sampling(1.5), stop=StopRule(LENGTH, tiny.model.tokenizer.eos_ids), tree=TREE,
    )  # fmt: skip
    return list(run(encode_prompt(tiny.model.tokenizer, PROMPT, True), SeededRandom(1)))


@pytest.mark.parametrize("number", range(len(NAMES)), ids=NAMES)
def test_explore_records_the_nodes_of_each_tree(
    tiny: Tiny, page_data: dict[str, Any], number: int
) -> None:
    run, rounds = page_data["runs"][number], _decode(tiny, NAMES[number])
    assert len(run["rounds"]) == len(rounds)
    proposers = set()
    trees = 0
    for recorded, finished in zip(run["rounds"], rounds, strict=True):
        assert [token for token, _ in recorded["tokens"]] == list(finished.tokens)
        if not (nodes := recorded["nodes"]):
            continue  # a chain
        trees += 1
        assert [node[0] for node in nodes] == list(finished.proposed)
        assert [node[1] for node in nodes] == list(finished.parents)
        assert [i for i, node in enumerate(nodes) if node[5]] == list(finished.path)
        assert all(node[4] is not None for node in nodes if node[5])  # accepted, so tested
        drafted = len(finished.shortlist_sizes)
        assert [node[3] for node in nodes] == [
            "draft" if i < drafted else "suffix" for i in range(len(nodes))
        ]
        proposers |= {node[3] for node in nodes}
        path = [nodes[node][0] for node in finished.path]
        assert [token for token, _ in recorded["drafted"]][: len(path)] == path
    assert trees > 2
    assert proposers == {
        "full": {"draft"}, "full+suffix": {"draft", "suffix"}, "suffix": {"suffix"},
    }[NAMES[number]]  # fmt: skip


def test_explore_rejects_at_the_first_candidate_after_the_path(page_data: dict[str, Any]) -> None:
    rejected = 0
    for run in page_data["runs"]:
        for finished in (each for each in run["rounds"] if each["nodes"]):
            nodes, kept = finished["nodes"], finished["kept"]
            last = max((i for i, node in enumerate(nodes) if node[5]), default=-1)
            children = [node for node in nodes if node[1] == last]
            assert len(finished["drafted"]) == kept + bool(children)
            if children and len(finished["tokens"]) > kept:
                assert finished["drafted"][kept][0] == children[0][0]
                assert all(node[4] is not None for node in children)  # all were tested
                rejected += 1
    assert rejected > 3


@pytest.mark.parametrize("verifier", ["token", "block"])
def test_page_shows_every_node(tiny: Tiny, show: Show, tmp_path: Path, verifier: str) -> None:
    data = explore.explore(tiny.model, tiny.draft, PROMPT, _settings(verifier))
    explore.write(data, tmp_path / "trees.html")
    seen = show(tmp_path / "trees.html", viewport={"width": 375, "height": 800})
    tab = seen.tab
    for number, run in enumerate(data["runs"]):
        section = tab.locator("section").nth(number)
        for at, finished in enumerate(run["rounds"], 1):
            if not finished["nodes"]:
                continue
            tab.evaluate(f"show({at})")
            table = section.locator("table").first
            own = len(finished["tokens"]) > finished["kept"]
            assert table.locator("tbody tr").count() == len(finished["nodes"]) + own
            marks = "".join(table.locator("tbody tr td:first-child").all_inner_texts())
            assert marks.count("✓") == finished["kept"]
            assert table.locator("input").count() == len(finished["positions"])
            assert tab.evaluate("document.documentElement.scrollWidth") == 375
    assert seen.errors == []


def test_explore_command_takes_a_tree(tiny: Tiny, tmp_path: Path) -> None:
    out = tmp_path / "trees.html"
    command = ["explore", PROMPT, "--model", str(tiny.folder), "--draft", str(tiny.draft_path)]
    options = ["--methods", "full", "--tree", "3x2x6", "--max-new-tokens", "8", "--out", str(out)]
    assert main.main([*command, *options]) == 0
    assert '"tree":"3x2x6"' in out.read_text("utf-8")
    assert main.main([*command, *options[:3], "3x2", *options[4:]]) == 2
