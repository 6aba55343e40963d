"""The methods ``suffix`` and ``METHOD+suffix`` by name, on a tiny model."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import minispec
from helpers.comparison import run_compare, select_row
from helpers.tiny_model import Tiny
from minispec.commit import StopRule
from minispec.errors import ArgumentError
from minispec.sampling import Sampling, SeededRandom
from minispec.tools.cli import main
from minispec.tools.evaluation.assembly import build_decoder
from minispec.tools.evaluation.compare import Settings
from minispec.tools.evaluation.methods import Method
from minispec.tools.reporting import explore

PROMPT = "the sea the sea the sea"


@pytest.mark.parametrize(
    ("text", "adapt", "suffix"),
    [
        ("suffix", "", False),
        ("full+suffix", "", True),
        ("frspec@0.5:mix+adapt+suffix", "+adapt", True),
        ("frspec@0.5+suffix+adapt:paper", "+adapt:paper", True),
    ],
)
def test_method_parse_reads_suffix(text: str, adapt: str, suffix: bool) -> None:
    method = Method.parse(text)
    assert (method.adapt, method.suffix, str(method)) == (adapt, suffix, text)
    assert method.needs_draft == (text != "suffix")
    assert method != replace(method, suffix=not suffix)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("suffix@4", "suffix takes neither a budget nor a ranking"),
        ("suffix+adapt", "suffix has no draft that could learn"),
        ("suffix+suffix", "suffix takes no \\+suffix"),
        ("full+suffix+suffix", "full\\+suffix takes no \\+suffix"),
        ("autoregressive+suffix", "autoregressive takes no \\+suffix"),
        ("+suffix", "unknown method ''"),
    ],
)
def test_method_parse_refuses_suffix(text: str, reason: str) -> None:
    with pytest.raises(ArgumentError, match=reason):
        Method.parse(text)


def test_build_decoder_decodes_a_suffix_without_a_draft(tiny: Tiny) -> None:
    ids = tiny.model.tokenizer.chat(PROMPT)

    def decode(method: str) -> list[Any]:
        run = build_decoder(
            Method.parse(method), tiny.model, None, None, gamma=3, sampling=Sampling(),
            stop=StopRule(40),
        )  # fmt: skip
        return list(run(ids, SeededRandom(0)))

    rounds = decode("suffix")
    tokens = [token for finished in rounds for token in finished.tokens]
    assert tokens == [token for finished in decode("autoregressive") for token in finished.tokens]
    assert any(finished.proposed for finished in rounds)
    with pytest.raises(ArgumentError, match="use autoregressive or suffix"):
        decode("full")


def test_generate_and_chat_take_suffix(tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["generate", "--model", str(tiny.folder), "--method", "suffix", "--json"]
    assert main.main([*command, "--max-new-tokens", "9", PROMPT]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["method"], found["gamma"], found["tokens"]) == ("suffix", 4, 9)
    assert main.main([*command, "--budget", "4", PROMPT]) == 2
    assert "suffix takes neither a budget" in capsys.readouterr().err
    chat = minispec.load(tiny.folder).chat(shortlist="suffix", max_new_tokens=5)
    first, second = (chat.send(PROMPT) for _ in range(2))
    assert len(second.token_ids) == 5 and second.prompt_token_ids > first.prompt_token_ids


def test_compare_and_explore_show_suffix(tiny: Tiny, tmp_path: Path) -> None:
    found = run_compare(tiny, "suffix", prompts={"law": [PROMPT]}, temperature=0.0)
    row = select_row(found, method="suffix", stream="law")
    assert row["lossless"]["violations"] == 0 and row["origin"] is None
    assert row["coverage"] is row["shortlist_mean"] is row["budget"] is None
    chosen = Settings((Method.parse("suffix"),), (3,), Sampling(), 60, 0)
    page = explore.explore(tiny.model, None, PROMPT, chosen)
    drafted = [token for each in page["runs"][0]["rounds"] for token in each["drafted"]]
    assert drafted and all(q == 1 for _, q in drafted)
    explore.write(page, tmp_path / "page.html")
