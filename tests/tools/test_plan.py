"""``minispec plan``: what it predicts, measures, writes and refuses."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers import tiny_model
from helpers.tiny_model import Tiny
from minispec.tools.cli import main
from minispec.tools.evaluation import plan as planning
from minispec.tools.models import pass_costs
from minispec.tools.reporting.plan_report import format_plan


@pytest.fixture(scope="module")
def tiny(tiny: Tiny) -> Iterator[Tiny]:
    with tiny_model.replace_shipped_rankings(tiny):
        yield tiny


@pytest.fixture
def command(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(pass_costs, "cache_folder", lambda: tmp_path)
    prompts = tmp_path / "two.txt"
    prompts.write_text("the sea the sea\nOnce upon a time\n", "utf-8")
    return [
        "plan", "--model", str(tiny.folder), "--draft", str(tiny.draft_path), "--prompts",
        str(prompts), "--limit", "2", "--max-new-tokens", "9", "--out", str(tmp_path / "plan"),
    ]  # fmt: skip


def test_plan_measures_every_setting_beside_what_it_predicted(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main([*command, "--methods", "full,frspec@0.5"]) == 0
    found = json.loads((tmp_path / "plan" / "plan.json").read_text())
    assert (tmp_path / "plan" / "plan.png").stat().st_size > 10_000
    settings = [*(f"chain of {gamma}" for gamma in planning.GAMMAS), *map(str, planning.TREES)]
    rows = {(row["method"], row["setting"]): row for row in found["rows"]}
    expected = {(m, s) for m in ("full", "frspec@0.5") for s in [*settings, "auto"]}
    assert {*rows} == expected | {("autoregressive", None)}
    for (_, setting), row in rows.items():
        assert row["tokens_per_second"] > 0 and row["over_plain"] > 0
        if setting == "auto":  # it is chosen round by round, so there is nothing to predict
            assert row["predicted_over_plain"] is None
        else:
            assert row["predicted_tokens_per_second"] > 0 and row["predicted_over_plain"] > 0
    assert rows["autoregressive", None]["predicted_over_plain"] == 1
    speeds = [row["tokens_per_second"] for row in found["rows"]]
    assert speeds == sorted(speeds, reverse=True)
    nodes = [rows["full", f"chain of {n}"]["drafted_per_pass"] for n in planning.GAMMAS]
    assert nodes == sorted(nodes) and nodes[0] <= 1 < 3 < nodes[-1]
    printed = capsys.readouterr().out
    assert f"fastest here: --method {found['rows'][0]['method']}" in printed
    assert "wrote plan.json and plan.png" in printed


def test_plan_chooses_budgets_by_what_the_model_has(command: list[str], tmp_path: Path) -> None:
    assert main.main(command) == 0
    rows = json.loads((tmp_path / "plan" / "plan.json").read_text())["rows"]
    methods = {row["method"] for row in rows} - {"autoregressive"}
    assert methods == {"frspec@0.125", "frspec@0.25", "frspec@0.5"}  # it has no index


def test_format_plan_names_the_options_of_the_fastest() -> None:
    row = {
        "method": "evospec@64", "tau": 2.0, "drafted_per_pass": 4.0, "tokens_per_second": 9.0,
        "over_plain": 1.5, "predicted_over_plain": None,
    }  # fmt: skip
    for setting, option in (
        ("chain of 4", "--method evospec@64 --gamma 4"),
        ("4x3x8", "--method evospec@64 --tree 4x3x8"),
        (None, "--method evospec@64"),
    ):  # fmt: skip
        lines = format_plan({"rows": [row | {"setting": setting}]}).splitlines()
        assert lines[-1] == f"fastest here: {option}"
        assert lines[1].split()[-1] == "-" and "1.50" in lines[1]


@pytest.mark.parametrize("method", ["full+suffix", "suffix", "autoregressive", "full+adapt"])
def test_plan_refuses_what_it_cannot_predict(
    command: list[str], method: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main([*command, "--methods", method]) == 2
    error = capsys.readouterr().err
    assert f"method {method} cannot be planned" in error and error.count("\n") == 1


def test_plan_refuses_a_model_without_a_draft(
    tiny: Tiny, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    at = command.index("--draft")
    assert main.main(command[:at] + command[at + 2 :]) == 2
    error = capsys.readouterr().err
    assert "has no draft; give one with --draft" in error and error.count("\n") == 1
