"""What a person sees of one prompt, and what a program reads of it."""

import contextlib
import io
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from helpers import tiny_model
from helpers.tiny_model import Tiny
from minispec.commit import StopRule
from minispec.io import draft_file
from minispec.sampling import Sampling, SeededRandom
from minispec.tools.cli import main
from minispec.tools.data import ranking
from minispec.tools.evaluation import methods
from minispec.tools.evaluation.methods import Method
from minispec.tools.models import pretrained
from minispec.tools.reporting import generate
from minispec.types import Round

PROMPT = "The wind and the sea"
RULE = StopRule(40)
Ask = Callable[..., tuple[str, str]]


@pytest.fixture
def ask(tiny: Tiny) -> Ask:
    """Runs `minispec generate` on the tiny model; returns what it wrote to stdout and stderr."""

    def run(*options: str, prompt: str = PROMPT) -> tuple[str, str]:
        command = ["generate", prompt, "--model", str(tiny.folder), "--max-new-tokens", "40"]
        if "--method" in options:
            command += ["--draft", str(tiny.draft_path)]
        out, error = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
            assert main.main([*command, *options]) == 0
        return out.getvalue(), error.getvalue()

    return run


def asked(ask: Ask, *options: str) -> dict:
    out, error = ask("--json", *options)
    assert error == "" and out.endswith("}\n") and out.count("\n") == 1
    return json.loads(out)


def spelled(tiny: Tiny) -> list[str]:
    frspec = [f"frspec@{budget}:{tiny.ranking('mix')}" for budget in (1, 100, 0.5, 1.0)]
    return ["autoregressive", "full", *frspec]


# ------------------------------------------------------------------ the answer


def test_greedy_text_is_the_same_from_all_methods(tiny: Tiny, ask: Ask) -> None:
    answers = [asked(ask, "--method", name) for name in spelled(tiny)]
    assert len(answers[0]["ids"]) == 40 and len(set(answers[0]["ids"])) > 10
    for answer in answers:
        assert (answer["ids"], answer["text"]) == (answers[0]["ids"], answers[0]["text"])
    # It was not plain decoding every time.
    plain, full = answers[0], answers[1]
    assert plain["target_passes"] == 40 > full["target_passes"]


def test_dtype_is_that_of_the_weights(ask: Ask) -> None:
    for dtype in ("float32", "bfloat16"):
        answer = asked(ask, "--method", "full", "--dtype", dtype)
        assert (answer["dtype"], answer["tokens"]) == (dtype, 40)


@pytest.mark.parametrize("gamma", ["1", "2", "16"])
def test_gamma_changes_the_passes_and_not_the_text(ask: Ask, gamma: str) -> None:
    plain = asked(ask, "--method", "autoregressive")
    answer = asked(ask, "--method", "full", "--gamma", gamma)
    assert answer["ids"] == plain["ids"]
    assert len(answer["accepted_by_position"]) == int(gamma)


def test_text_on_stdout_is_the_answer_and_figures_are_on_stderr(ask: Ask) -> None:
    out, error = ask("--method", "full")
    answer = asked(ask, "--method", "full")
    assert out == answer["text"] + "\n"
    assert error.count("\n") == 1
    figures = re.fullmatch(
        r"(\d+) tokens, [\d.]+ tokens/s, first token after [\d.]+ s, tau ([\d.]+), "
        r"stopped by (\w+)\n",
        error,
    )
    assert figures
    assert figures.groups() == ("40", f"{answer['tau']:.2f}", "length")


class Pieces(io.StringIO):
    """Keeps what had been written each time that it is flushed: what a reader has seen by then."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def flush(self) -> None:
        super().flush()
        self.seen.append(self.getvalue())


def decoded(tiny: Tiny, method: str, rule: StopRule = RULE, seed: int = 0) -> list[Round]:
    run = methods.decoder(
        Method.parse(method), tiny.model, tiny.draft, None,
        gamma=4, sampling=Sampling(1.0), stop=rule,
    )  # fmt: skip
    return list(run(tiny.model.tokenizer.chat(PROMPT), SeededRandom(seed)))


@pytest.mark.parametrize("name", ["autoregressive", "full"])
def test_text_is_streamed_round_by_round_and_adds_up(tiny: Tiny, name: str) -> None:
    rounds, out = decoded(tiny, name), Pieces()
    generate.generate(
        rounds, tiny.model.tokenizer, trace=False, as_json=False, details={},
        started=0.0, out=out, err=io.StringIO(),
    )  # fmt: skip
    texts = [finished.text for finished in rounds]
    assert out.seen[: len(rounds)] == ["".join(texts[: i + 1]) for i in range(len(texts))]
    ids = [token for finished in rounds for token in finished.tokens]
    assert out.getvalue() == "".join(texts) + "\n" == tiny.model.tokenizer.decode(ids) + "\n"
    assert len(set(out.seen)) > 10  # it came in pieces


# ------------------------------------------------------------------ --json

KEYS = {
    "text", "ids", "tokens", "stop", "target_passes", "tau", "tokens_per_second",
    "seconds_to_first_token", "seconds", "accepted_by_position", "repeated_4gram_share",
    "model", "method", "gamma", "budget", "sampling", "seed", "dtype", "backend", "prompt_tokens",
    "verifier", "learning",
}  # fmt: skip


def test_a_draft_that_learns_says_so(tiny: Tiny, ask: Ask) -> None:
    """The tokens are those of the frozen draft, since the target alone decides."""
    method = f"frspec@100:{tiny.ranking('mix')}"
    options = ("--ignore-eos", "--max-new-tokens", "200", "--backend", "reference")
    frozen = asked(ask, "--method", method, *options)
    ours = asked(ask, "--method", method, *options, "--adapt")
    assert ours["method"] == f"{method}+adapt" and ours["ids"] == frozen["ids"]
    assert ours["learning"]["changed"] >= 1 and ours["learning"]["positions"] >= 64


def test_json_is_one_object_with_the_stated_keys(tiny: Tiny, ask: Ask) -> None:
    method = f"frspec@100:{tiny.ranking('mix')}"
    answer = asked(ask, "--method", method, "--gamma", "3", "--seed", "7", "--temperature", "0.8")
    assert answer.keys() == KEYS
    assert answer["method"] == method and answer["model"] == str(tiny.folder)
    assert (answer["gamma"], answer["budget"], answer["seed"]) == (3, 100, 7)
    assert answer["sampling"] == {"temperature": 0.8, "top_k": 0, "top_p": 1.0}
    assert answer["dtype"] == "float32" and answer["learning"] == {}
    assert answer["prompt_tokens"] == len(tiny.model.tokenizer.chat(PROMPT))
    assert answer["tokens"] == len(answer["ids"]) == 40
    assert answer["text"] == tiny.model.tokenizer.decode(answer["ids"])
    assert answer["tau"] == answer["tokens"] / answer["target_passes"] > 1
    assert len(answer["accepted_by_position"]) == 3
    assert all(0 <= share <= 1 for share in answer["accepted_by_position"])


def test_speed_is_of_decoding_alone(ask: Ask) -> None:
    answer = asked(ask, "--method", "full")
    decoding = sum(answer["seconds"].values()) - answer["seconds"]["prefill"]
    assert answer["tokens_per_second"] == pytest.approx(answer["tokens"] / decoding)
    assert answer["seconds_to_first_token"] > answer["seconds"]["prefill"] > 0


def test_a_verifier_may_be_chosen(ask: Ask) -> None:
    """Drawn from the same seed, the two verifiers part; greedily they say the same."""
    drawn = ["--method", "full", "--temperature", "2", "--gamma", "4"]
    by = {v: asked(ask, *drawn, "--verifier", v) for v in ("token", "block")}
    assert {v: answer["verifier"] for v, answer in by.items()} == {v: v for v in by}
    assert asked(ask, *drawn)["ids"] == by["token"]["ids"] != by["block"]["ids"]
    greedy = [asked(ask, "--method", "full", "--verifier", v)["ids"] for v in by]
    assert greedy[0] == greedy[1]


def test_plain_decoding_has_neither_gamma_nor_budget(ask: Ask) -> None:
    answer = asked(ask, "--method", "autoregressive", "--gamma", "3")
    assert answer["gamma"] is answer["budget"] is answer["verifier"] is None
    assert answer["accepted_by_position"] == [] and answer["tau"] == 1


def test_no_tokens_at_all(ask: Ask) -> None:
    answer = asked(ask, "--method", "full", "--max-new-tokens", "0")
    assert (answer["text"], answer["ids"], answer["stop"]) == ("", [], "length")
    assert (answer["tau"], answer["tokens_per_second"]) == (0, 0)
    assert answer["seconds_to_first_token"] is None
    out, error = ask("--method", "full", "--max-new-tokens", "0")
    assert out == "\n" and error.startswith("0 tokens, ")


# ------------------------------------------------------------------ --trace

FATES = {"\x1b[32m": "accepted", "\x1b[9;31m": "rejected", "\x1b[1;34m": "own"}
COLOURED = re.compile(r"(\x1b\[32m|\x1b\[9;31m|\x1b\[1;34m)(.*?)\x1b\[0m", re.DOTALL)


def fates(text: str) -> list[tuple[str, str]]:
    """A trace as (fate, text); nothing in it is without a colour."""
    assert COLOURED.sub("", text) == ""
    return [(FATES[colour], shown) for colour, shown in COLOURED.findall(text)]


def test_trace_shows_what_became_of_each_token(tiny: Tiny, ask: Ask) -> None:
    out, error = ask("--method", "full", "--trace")
    assert out.endswith("\n")
    shown = fates(out[:-1])
    assert {fate for fate, _ in shown} == set(FATES.values())
    assert [fate for fate, _ in fates(error.splitlines()[0].replace("m ", "m"))] == [
        *FATES.values()
    ]
    # Without what was rejected, the trace is the text.
    kept = "".join(text for fate, text in shown if fate != "rejected")
    assert kept == asked(ask, "--method", "full")["text"]


def test_trace_of_each_round(tiny: Tiny) -> None:
    tokenizer = tiny.model.tokenizer
    rounds = decoded(tiny, "full")
    assert {0, 1} < {len(finished.path) for finished in rounds}

    def text(tokens: Sequence[int]) -> str:
        return b"".join(map(tokenizer.token_bytes, tokens)).decode(errors="replace")

    for finished in rounds:
        n = len(finished.path)
        expected = [
            ("accepted", text(finished.tokens[:n])),
            ("rejected", text(finished.proposed[n:]).replace("\n", "\\n")),
            ("own", text(finished.tokens[n:])),
        ]
        assert fates(generate.coloured(finished, tokenizer)) == [e for e in expected if e[1]]


def test_a_trace_keeps_the_spaces_of_a_sentencepiece_model() -> None:
    class Spaced:
        """As SentencePiece does, it takes the first space of whatever it decodes away."""

        def token_bytes(self, token: int) -> bytes:
            return [b" one", b" two", b" three"][token]

    finished = Round((0, 1, 2), "", (0, 1), (0, 1), (3, 3), {}, None)
    assert fates(generate.coloured(finished, Spaced())) == [
        ("accepted", " one two"),
        ("own", " three"),
    ]


# ------------------------------------------------------------------ how it ends, and luck


@pytest.mark.parametrize("name", ["autoregressive", "full"])
def test_stop_strings_end_the_text_before_them(ask: Ask, name: str) -> None:
    whole = asked(ask, "--method", name)["text"]
    # Three characters from the middle, so across tokens' borders too, where they first occur.
    marks = [whole[place : place + 3] for place in range(8, 30)]
    for mark in marks:
        answer = asked(ask, "--method", name, "--stop", "never", "--stop", mark)
        assert answer["stop"] == "stop_string"
        assert answer["text"] == whole[: whole.index(mark)]
        out, _ = ask("--method", name, "--stop", mark)
        assert out == answer["text"] + "\n"


def test_a_seed_fixes_an_answer_and_another_one_changes_it(ask: Ask) -> None:
    for name in ("autoregressive", "full"):
        options = ["--method", name, "--temperature", "1", "--seed"]
        answers = [asked(ask, *options, seed)["ids"] for seed in ("3", "3", "4")]
        assert answers[0] == answers[1] != answers[2]


def test_the_end_of_an_answer_and_going_on_past_it(tiny: Tiny, ask: Ask) -> None:
    # A hot law is almost uniform: it comes upon the end within some hundred of the 320 ids.
    options = ["--method", "full", "--temperature", "30", "--max-new-tokens", "1500"]
    answer = asked(ask, *options)
    ends = tiny.model.tokenizer.eos_ids
    assert answer["stop"] == "eos" and answer["tokens"] < 1500
    assert answer["ids"][-1] in ends and not set(answer["ids"][:-1]) & set(ends)
    longer = asked(ask, *options, "--ignore-eos")
    assert (longer["stop"], longer["tokens"]) == ("length", 1500)
    assert longer["ids"][: answer["tokens"]] == answer["ids"]
    assert set(longer["ids"]) & set(ends)


def test_the_end_of_the_context(ask: Ask) -> None:
    options = ["--method", "autoregressive", "--max-new-tokens", "9999", "--ignore-eos", "--raw"]
    prompt = "the" * (tiny_model.CONTEXT - 5)
    answer = json.loads(ask("--json", *options, prompt=prompt)[0])
    assert answer["stop"] == "context"
    assert answer["prompt_tokens"] + answer["tokens"] == tiny_model.CONTEXT


def test_raw_continues_the_text_itself(tiny: Tiny, ask: Ask) -> None:
    raw, chat = (asked(ask, "--method", "full", *option) for option in (["--raw"], []))
    assert raw["prompt_tokens"] == len(tiny.model.tokenizer.encode(PROMPT))
    assert chat["prompt_tokens"] == len(tiny.model.tokenizer.chat(PROMPT))
    assert raw["ids"] != chat["ids"]


# ------------------------------------------------------------------ which method


def test_without_a_draft_it_decodes_plainly_and_says_so(tiny: Tiny, ask: Ask) -> None:
    out, error = ask("--json")
    assert json.loads(out)["method"] == "autoregressive"
    assert error.count("\n") == 1 and f"no draft is known for {tiny.folder}" in error
    # Asked for, it is nothing to be remarked.
    asked(ask, "--method", "autoregressive")


def test_a_file_that_lies_beside_a_model_is_not_its_draft(tmp_path: Path) -> None:
    tiny_model.write_model(tmp_path / "model")
    (tmp_path / "model.safetensors").write_text("something else")
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        command = ["generate", PROMPT, "--model", str(tmp_path / "model"), "--json"]
        assert main.main([*command, "--max-new-tokens", "2"]) == 0
    assert json.loads(out.getvalue())["method"] == "autoregressive"


def test_a_draft_alone_serves_full_speculation(tiny: Tiny, ask: Ask) -> None:
    assert asked(ask, "--draft", str(tiny.draft_path))["method"] == "full"


def test_a_budget_or_a_ranking_asks_for_frspec(tiny: Tiny, ask: Ask) -> None:
    mix, given = str(tiny.ranking("mix")), ["--draft", str(tiny.draft_path)]
    answer = asked(ask, "--ranking", mix, *given)
    assert (answer["method"], answer["budget"]) == (f"frspec:{mix}", 80)
    answer = asked(ask, "--ranking", mix, "--budget", "7", *given)
    assert (answer["method"], answer["budget"]) == (f"frspec@7:{mix}", 7)
    answer = asked(ask, "--method", f"frspec:{mix}", "--budget", "0.5")
    assert (answer["method"], answer["budget"]) == (f"frspec@0.5:{mix}", 160)


def test_a_model_with_a_draft_and_rankings_speculates_with_them(
    tiny: Tiny, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tiny model takes the place of the known one, draft and rankings included."""
    monkeypatch.setattr(pretrained, "load", lambda name, dtype: replace(tiny.model, name=name))
    monkeypatch.setattr(draft_file, "find_draft", lambda model: tiny.draft_path)
    monkeypatch.setattr(ranking, "shipped", lambda model, name: tiny.ranking(name))
    answer = asked(ask, "--model", "smollm2")
    assert (answer["model"], answer["method"], answer["budget"]) == ("smollm2", "frspec", 80)
    assert answer["tau"] > 1
    # Where the rankings are missing, the draft still serves.
    monkeypatch.setattr(ranking, "shipped", lambda model, name: None)
    assert asked(ask, "--model", "smollm2")["method"] == "full"
