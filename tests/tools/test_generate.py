"""`minispec generate`: text, traces, JSON, ends of answers, default methods, pipes and chats."""

import contextlib
import io
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from helpers import tiny_model
from helpers.tiny_model import Tiny
from minispec.commit import StopRule
from minispec.io import draft_file, index_file
from minispec.io.index_file import write_index
from minispec.sampling import Sampling, SeededRandom
from minispec.tools.cli import main
from minispec.tools.data import ranking
from minispec.tools.evaluation import assembly
from minispec.tools.evaluation.methods import Method
from minispec.tools.models import pretrained
from minispec.tools.reporting.colours import FATES
from minispec.tools.reporting.generate import trace_round, write_legend, write_rounds
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


def ask_json(ask: Ask, *options: str) -> dict:
    out, error = ask("--json", *options)
    assert error == "" and out.endswith("}\n") and out.count("\n") == 1
    return json.loads(out)


def method_names(tiny: Tiny) -> list[str]:
    frspec = [f"frspec@{budget}:{tiny.ranking('mix')}" for budget in (1, 100, 0.5, 1.0)]
    return ["autoregressive", "full", *frspec]


# ------------------------------------------------------------------ the answer


def test_generate_gives_the_same_greedy_text_with_all_methods(tiny: Tiny, ask: Ask) -> None:
    answers = [ask_json(ask, "--method", name) for name in method_names(tiny)]
    assert len(answers[0]["ids"]) == 40 and len(set(answers[0]["ids"])) > 10
    for answer in answers:
        assert (answer["ids"], answer["text"]) == (answers[0]["ids"], answers[0]["text"])
    # Not all of it was plain decoding.
    plain, full = answers[0], answers[1]
    assert plain["target_passes"] == 40 > full["target_passes"]


def test_generate_runs_in_the_chosen_dtype(ask: Ask) -> None:
    for dtype in ("float32", "bfloat16"):
        answer = ask_json(ask, "--method", "full", "--dtype", dtype)
        assert (answer["dtype"], answer["tokens"]) == (dtype, 40)


@pytest.mark.parametrize("gamma", ["1", "2", "16"])
def test_generate_gives_the_same_text_at_every_gamma(ask: Ask, gamma: str) -> None:
    plain = ask_json(ask, "--method", "autoregressive")
    answer = ask_json(ask, "--method", "full", "--gamma", gamma)
    assert answer["ids"] == plain["ids"]
    assert len(answer["accepted_by_position"]) == int(gamma)


def test_generate_writes_text_to_stdout_and_figures_to_stderr(ask: Ask) -> None:
    out, error = ask("--method", "full")
    answer = ask_json(ask, "--method", "full")
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
    """Keeps what had been written at each flush: what a reader has seen by then."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def flush(self) -> None:
        super().flush()
        self.seen.append(self.getvalue())


def decode(tiny: Tiny, method: str, rule: StopRule = RULE, seed: int = 0) -> list[Round]:
    run = assembly.build_decoder(
        Method.parse(method), tiny.model, tiny.draft, None,
        gamma=4, sampling=Sampling(1.0), stop=rule,
    )  # fmt: skip
    return list(run(tiny.model.tokenizer.chat(PROMPT), SeededRandom(seed)))


@pytest.mark.parametrize("name", ["autoregressive", "full"])
def test_write_rounds_flushes_the_text_of_each_round(tiny: Tiny, name: str) -> None:
    rounds, out = decode(tiny, name), Pieces()
    write_rounds(
        rounds, tiny.model.tokenizer, trace=False, as_json=False, details={},
        started=0.0, out=out, err=io.StringIO(),
    )  # fmt: skip
    texts = [finished.text for finished in rounds]
    assert out.seen[: len(rounds)] == ["".join(texts[: i + 1]) for i in range(len(texts))]
    ids = [token for finished in rounds for token in finished.tokens]
    assert out.getvalue() == "".join(texts) + "\n" == tiny.model.tokenizer.decode(ids) + "\n"
    assert len(set(out.seen)) > 10  # in pieces


# ------------------------------------------------------------------ --json

KEYS = {
    "text", "ids", "tokens", "stop", "target_passes", "tau", "tokens_per_second",
    "seconds_to_first_token", "seconds", "accepted_by_position", "repeated_4gram_share",
    "model", "method", "gamma", "budget", "sampling", "seed", "dtype", "backend", "prompt_tokens",
    "verifier", "learning", "tree", "drafted_per_pass",
}  # fmt: skip


def test_generate_reports_what_a_learning_draft_did(tiny: Tiny, ask: Ask) -> None:
    """The tokens are those of the frozen draft: greedy output depends on the target alone."""
    method = f"frspec@100:{tiny.ranking('mix')}"
    options = ("--ignore-eos", "--max-new-tokens", "200", "--backend", "reference")
    frozen = ask_json(ask, "--method", method, *options)
    ours = ask_json(ask, "--method", method, *options, "--adapt")
    assert ours["method"] == f"{method}+adapt" and ours["ids"] == frozen["ids"]
    assert ours["learning"]["changed"] >= 1 and ours["learning"]["positions"] >= 64


def test_generate_json_is_one_object_with_the_stated_keys(tiny: Tiny, ask: Ask) -> None:
    method = f"frspec@100:{tiny.ranking('mix')}"
    answer = ask_json(
        ask, "--method", method, "--gamma", "3", "--seed", "7", "--temperature", "0.8"
    )
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


def test_generate_speed_excludes_prefill(ask: Ask) -> None:
    answer = ask_json(ask, "--method", "full")
    decoding = sum(answer["seconds"].values()) - answer["seconds"]["prefill"]
    assert answer["tokens_per_second"] == pytest.approx(answer["tokens"] / decoding)
    assert answer["seconds_to_first_token"] > answer["seconds"]["prefill"] > 0


def test_generate_uses_the_chosen_verifier(ask: Ask) -> None:
    """With the same seed the two verifiers draw different tokens; greedily they agree."""
    drawn = ["--method", "full", "--temperature", "2", "--gamma", "4"]
    by = {v: ask_json(ask, *drawn, "--verifier", v) for v in ("token", "block")}
    assert {v: answer["verifier"] for v, answer in by.items()} == {v: v for v in by}
    assert ask_json(ask, *drawn)["ids"] == by["token"]["ids"] != by["block"]["ids"]
    greedy = [ask_json(ask, "--method", "full", "--verifier", v)["ids"] for v in by]
    assert greedy[0] == greedy[1]


def test_generate_json_has_no_gamma_or_budget_for_plain_decoding(ask: Ask) -> None:
    answer = ask_json(ask, "--method", "autoregressive", "--gamma", "3")
    assert answer["gamma"] is answer["budget"] is answer["verifier"] is None
    assert answer["accepted_by_position"] == [] and answer["tau"] == 1


def test_generate_with_no_new_tokens(ask: Ask) -> None:
    answer = ask_json(ask, "--method", "full", "--max-new-tokens", "0")
    assert (answer["text"], answer["ids"], answer["stop"]) == ("", [], "length")
    assert (answer["tau"], answer["tokens_per_second"]) == (0, 0)
    assert answer["seconds_to_first_token"] is None
    out, error = ask("--method", "full", "--max-new-tokens", "0")
    assert out == "\n" and error.startswith("0 tokens, ")


# ------------------------------------------------------------------ --trace

COLOURS = {fate.ansi: name for name, fate in FATES.items()}
COLOURED = re.compile(rf"({'|'.join(map(re.escape, COLOURS))})(.*?)\x1b\[0m", re.DOTALL)
MARKED = re.compile(r"\[([-+*])(.*?)\1\]", re.DOTALL)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def fates(text: str) -> list[tuple[str, str]]:
    """A coloured trace as (fate, text); all of it has a colour."""
    assert COLOURED.sub("", text) == ""
    return [(COLOURS[colour], shown) for colour, shown in COLOURED.findall(text)]


@pytest.fixture
def colour_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal with colours, whatever the environment of the tests."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")


def rounds_with_drafts(tiny: Tiny) -> list[Round]:
    """Rounds with a proposal, of several seeds, so that every fate occurs."""
    rounds = [finished for seed in range(8) for finished in decode(tiny, "full", seed=seed)]
    return [finished for finished in rounds if finished.proposed]


def trace(tiny: Tiny, rounds: Sequence[Round], out: io.StringIO) -> str:
    """What ``write_rounds`` writes of a trace."""
    write_rounds(
        rounds, tiny.model.tokenizer, trace=True, as_json=False, details={},
        started=0.0, out=out, err=io.StringIO(),
    )  # fmt: skip
    return out.getvalue()


def text_of(tiny: Tiny, rounds: Sequence[Round]) -> str:
    """The text of the tokens, each part of a trace decoded separately."""
    parts = (r.tokens[a:b] for r in rounds for a, b in ((0, len(r.path)), (len(r.path), None)))
    data = (b"".join(map(tiny.model.tokenizer.token_bytes, part)) for part in parts)
    return "".join(each.decode(errors="replace") for each in data)


def test_write_rounds_traces_every_fate_in_its_colour(tiny: Tiny, colour_terminal: None) -> None:
    rounds = rounds_with_drafts(tiny)
    out = trace(tiny, rounds, Terminal())
    assert out.endswith("\n")
    shown = fates(out[:-1])
    assert {fate for fate, _ in shown} == FATES.keys()
    # Without the rejected tokens, the trace is the text.
    kept = "".join(text for fate, text in shown if fate != "rejected")
    assert kept == text_of(tiny, rounds)


@pytest.mark.parametrize("reason", ["pipe", "NO_COLOR", "TERM"])
def test_write_rounds_marks_fates_without_colours(
    tiny: Tiny, colour_terminal: None, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    if reason != "pipe":
        monkeypatch.setenv(reason, "dumb")
    out = io.StringIO() if reason == "pipe" else Terminal()
    rounds = rounds_with_drafts(tiny)
    shown = trace(tiny, rounds, out)
    assert "\x1b" not in shown
    assert {mark for mark, _ in MARKED.findall(shown)} == {"-", "+", "*"}
    kept = MARKED.sub(lambda found: "" if found[1] == "-" else found[2], shown)
    assert kept == text_of(tiny, rounds) + "\n"


def test_write_rounds_leaves_plain_decoding_uncoloured(tiny: Tiny, colour_terminal: None) -> None:
    rounds = decode(tiny, "autoregressive")
    assert trace(tiny, rounds, Terminal()) == text_of(tiny, rounds) + "\n"


def test_write_legend_names_every_fate_in_its_colour(colour_terminal: None) -> None:
    out, pipe = Terminal(), io.StringIO()
    write_legend(out)
    assert [fate for fate, _ in fates(out.getvalue().strip().replace("m, ", "m"))] == [*FATES]
    write_legend(pipe)
    assert pipe.getvalue().startswith("accepted, [-rejected-], [+recovered")


def test_generate_writes_the_legend_before_the_trace(ask: Ask) -> None:
    out, error = ask("--method", "full", "--trace")
    legend = io.StringIO()
    write_legend(legend)
    assert out.startswith(legend.getvalue()) and out.count("accepted, [-rejected-]") == 1
    assert error.count("\n") == 1


def test_trace_round_splits_each_round_by_fate(tiny: Tiny) -> None:
    tokenizer = tiny.model.tokenizer
    rounds = decode(tiny, "full")
    assert {0, 1} < {len(finished.path) for finished in rounds}

    def text(tokens: Sequence[int]) -> str:
        return b"".join(map(tokenizer.token_bytes, tokens)).decode(errors="replace")

    for finished in rounds:
        n = len(finished.path)
        last = "recovered" if n < len(finished.proposed) else "bonus"
        expected = [
            ("accepted", text(finished.tokens[:n])),
            ("rejected", text(finished.proposed[n:]).replace("\n", "\\n")),
            (last if finished.proposed else "plain", text(finished.tokens[n:])),
        ]
        if not finished.proposed:
            assert trace_round(finished, tokenizer, True) == expected[2][1]
            continue
        assert fates(trace_round(finished, tokenizer, True)) == [e for e in expected if e[1]]


def test_trace_round_keeps_the_spaces_of_a_sentencepiece_model() -> None:
    class Spaced:
        """Like SentencePiece, ``decode`` would drop the first space of each text."""

        def token_bytes(self, token: int) -> bytes:
            return [b" one", b" two", b" three"][token]

    finished = Round((0, 1, 2), "", (0, 1), (0, 1), (3, 3), {}, None)
    assert fates(trace_round(finished, Spaced(), True)) == [
        ("accepted", " one two"),
        ("bonus", " three"),
    ]


# ------------------------------------------------------------------ the end of an answer, and seeds


@pytest.mark.parametrize("name", ["autoregressive", "full"])
def test_generate_ends_the_text_before_a_stop_string(ask: Ask, name: str) -> None:
    whole = ask_json(ask, "--method", name)["text"]
    # Three characters from the middle, across token boundaries too, at their first occurrence.
    marks = [whole[start : start + 3] for start in range(8, 30)]
    for mark in marks:
        answer = ask_json(ask, "--method", name, "--stop", "never", "--stop", mark)
        assert answer["stop"] == "stop_string"
        assert answer["text"] == whole[: whole.index(mark)]
        out, _ = ask("--method", name, "--stop", mark)
        assert out == answer["text"] + "\n"


def test_generate_answer_is_fixed_by_the_seed(ask: Ask) -> None:
    for name in ("autoregressive", "full"):
        options = ["--method", name, "--temperature", "1", "--seed"]
        answers = [ask_json(ask, *options, seed)["ids"] for seed in ("3", "3", "4")]
        assert answers[0] == answers[1] != answers[2]


def test_generate_stops_at_eos_unless_ignored(tiny: Tiny, ask: Ask) -> None:
    # At this temperature the distribution is almost uniform over the 320 ids: it soon draws EOS.
    options = ["--method", "full", "--temperature", "30", "--max-new-tokens", "1500"]
    answer = ask_json(ask, *options)
    ends = tiny.model.tokenizer.eos_ids
    assert answer["stop"] == "eos" and answer["tokens"] < 1500
    assert answer["ids"][-1] in ends and not set(answer["ids"][:-1]) & set(ends)
    longer = ask_json(ask, *options, "--ignore-eos")
    assert (longer["stop"], longer["tokens"]) == ("length", 1500)
    assert longer["ids"][: answer["tokens"]] == answer["ids"]
    assert set(longer["ids"]) & set(ends)


def test_generate_stops_at_the_end_of_the_context(ask: Ask) -> None:
    options = ["--method", "autoregressive", "--max-new-tokens", "9999", "--ignore-eos", "--raw"]
    prompt = "the" * (tiny_model.CONTEXT - 5)
    answer = json.loads(ask("--json", *options, prompt=prompt)[0])
    assert answer["stop"] == "context"
    assert answer["prompt_tokens"] + answer["tokens"] == tiny_model.CONTEXT


def test_generate_raw_uses_no_chat_template(tiny: Tiny, ask: Ask) -> None:
    raw, chat = (ask_json(ask, "--method", "full", *option) for option in (["--raw"], []))
    assert raw["prompt_tokens"] == len(tiny.model.tokenizer.encode(PROMPT))
    assert chat["prompt_tokens"] == len(tiny.model.tokenizer.chat(PROMPT))
    assert raw["ids"] != chat["ids"]


# ------------------------------------------------------------------ which method


def test_generate_reports_plain_decoding_without_a_draft(tiny: Tiny, ask: Ask) -> None:
    out, error = ask("--json")
    assert json.loads(out)["method"] == "autoregressive"
    assert error.count("\n") == 1 and f"model {tiny.folder} has no draft" in error
    # Asked for, it needs no remark.
    ask_json(ask, "--method", "autoregressive")


def test_generate_ignores_files_beside_a_model_folder(tmp_path: Path) -> None:
    tiny_model.write_model(tmp_path / "model")
    (tmp_path / "model.safetensors").write_text("something else")
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        command = ["generate", PROMPT, "--model", str(tmp_path / "model"), "--json"]
        assert main.main([*command, "--max-new-tokens", "2"]) == 0
    assert json.loads(out.getvalue())["method"] == "autoregressive"


def test_generate_defaults_to_full_with_a_draft_alone(tiny: Tiny, ask: Ask) -> None:
    assert ask_json(ask, "--draft", str(tiny.draft_path))["method"] == "full"


def test_generate_takes_a_budget_or_ranking_for_frspec(tiny: Tiny, ask: Ask) -> None:
    mix, given = str(tiny.ranking("mix")), ["--draft", str(tiny.draft_path)]
    answer = ask_json(ask, "--ranking", mix, *given)
    assert (answer["method"], answer["budget"]) == (f"frspec:{mix}", 80)
    answer = ask_json(ask, "--ranking", mix, "--budget", "7", *given)
    assert (answer["method"], answer["budget"]) == (f"frspec@7:{mix}", 7)
    answer = ask_json(ask, "--method", f"frspec:{mix}", "--budget", "0.5")
    assert (answer["method"], answer["budget"]) == (f"frspec@0.5:{mix}", 160)


def test_generate_defaults_to_the_best_method_that_the_model_has(
    tiny: Tiny, ask: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tiny model stands in for a known one, with draft, rankings and index."""
    index, model = tmp_path / "index.safetensors", tiny.model
    clusters = torch.arange(model.tokenizer.vocab_size) % 16
    write_index(index, clusters, {}, model.fingerprint, model.tokenizer.fingerprint)
    monkeypatch.setattr(pretrained, "load", lambda name, *options: replace(model, name=name))
    monkeypatch.setattr(draft_file, "find_draft", lambda model: tiny.draft_path)
    monkeypatch.setattr(ranking, "find_shipped_ranking", lambda model, name: tiny.ranking(name))
    monkeypatch.setattr(assembly, "find_artifact", lambda model, name: index)
    monkeypatch.setattr(index_file, "find_artifact", lambda model, name: index)
    answer = ask_json(ask, "--model", "smollm2")
    assert (answer["model"], answer["method"], answer["budget"]) == ("smollm2", "evospec", 10)
    assert answer["tau"] > 1
    assert ask_json(ask, "--model", "smollm2", "--adapt")["method"] == "evospec+adapt"
    # Without an index, without rankings too, and without a draft.
    monkeypatch.setattr(assembly, "find_artifact", lambda model, name: None)
    answer = ask_json(ask, "--model", "smollm2")
    assert (answer["method"], answer["budget"]) == ("frspec", 80)
    assert ask_json(ask, "--model", "smollm2", "--index", str(index))["method"] == "evospec"
    monkeypatch.setattr(ranking, "find_shipped_ranking", lambda model, name: None)
    assert ask_json(ask, "--model", "smollm2")["method"] == "full"
    monkeypatch.setattr(draft_file, "find_draft", lambda model: None)
    assert json.loads(ask("--json", "--model", "smollm2")[0])["method"] == "autoregressive"


# ------------------------------------------------------------------ pipes and chats


def command(tiny: Tiny, *options: str) -> list[str]:
    """`minispec generate` without a prompt, as a program."""
    program = [sys.executable, "-m", "minispec", "generate", "--model", str(tiny.folder)]
    drafts = ["--draft", str(tiny.draft_path), "--method", "full", "--threads", "1"]
    return [*program, *drafts, "--max-new-tokens", "12", *options]


def test_generate_reads_the_prompt_from_a_pipe(tiny: Tiny, ask: Ask) -> None:
    done = subprocess.run(
        command(tiny, "--json"), input="The wind\nand the sea\n", capture_output=True, text=True
    )
    answer = json.loads(done.stdout)
    prompt = "The wind\nand the sea"
    expected = ask("--json", "--method", "full", "--max-new-tokens", "12", prompt=prompt)[0]
    assert answer["ids"] == json.loads(expected)["ids"] and answer["tokens"] == 12


@pytest.mark.parametrize(("piped", "words"), [(b"", "prompt is empty"), (b"caf\xe9", "not UTF-8")])
def test_generate_refuses_a_bad_prompt_from_a_pipe(tiny: Tiny, piped: bytes, words: str) -> None:
    utf8 = {**os.environ, "PYTHONUTF8": "1", "PYTHONIOENCODING": "utf-8:strict"}
    done = subprocess.run(command(tiny), input=piped, capture_output=True, env=utf8)
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.count(b"\n") == 1 and words in done.stderr.decode()


class Session:
    """A program that runs on a terminal of its own."""

    def __init__(self, arguments: Sequence[str]) -> None:
        self.terminal, inner = pty.openpty()
        settings = termios.tcgetattr(inner)
        settings[3] &= ~termios.ECHO
        termios.tcsetattr(inner, termios.TCSANOW, settings)
        environment = {**os.environ, "TERM": "dumb"}
        self.run = subprocess.Popen(
            arguments, stdin=inner, stdout=inner, stderr=inner, start_new_session=True,
            env=environment,
        )  # fmt: skip
        os.close(inner)

    def read_until(self, words: str) -> str:
        """The output up to these words, or all of it at the program's exit."""
        text = b""
        while words.encode() not in text and select.select([self.terminal], [], [], 120)[0]:
            try:
                text += os.read(self.terminal, 4096)
            except OSError:  # the other end is closed
                break
        return text.decode(errors="replace").replace("\r\n", "\n")

    def write(self, text: str) -> None:
        os.write(self.terminal, text.encode())


def test_generate_chats_on_a_terminal_until_ctrl_d(tiny: Tiny) -> None:
    session = Session(command(tiny, "--json"))
    greeting = session.read_until("> ")
    assert "full; Ctrl-D ends the chat" in greeting
    answers = []
    for message in ("The wind", "and the sea"):
        session.write(f"{message}\n")
        answers.append(json.loads(session.read_until("\n> ").strip("> \n").splitlines()[-1]))
    session.write("\x04")
    session.read_until("never")
    assert session.run.wait() == 0
    # The second turn continues the first: both models read all of it.
    tokenizer = tiny.model.tokenizer
    first, second = answers
    later = len(tokenizer.chat("and the sea", later=True))
    assert first["prompt_tokens"] == len(tokenizer.chat("The wind"))
    assert second["prompt_tokens"] == first["prompt_tokens"] + 12 + later


def test_generate_chat_ends_with_130_on_ctrl_c(tiny: Tiny) -> None:
    session = Session(command(tiny))
    session.read_until("> ")
    # Between printing its prompt and waiting for input, readline misses a signal: press again.
    for _ in range(60):
        session.run.send_signal(signal.SIGINT)
        if select.select([session.terminal], [], [], 1)[0]:
            break
    assert "minispec: interrupted" in session.read_until("interrupted\n")
    assert session.run.wait() == 130


def test_generate_chat_continues_the_text_of_a_base_model() -> None:
    pocket = [sys.executable, "-m", "minispec", "generate", "--model", "pocket", "--threads", "1"]
    session = Session([*pocket, "--max-new-tokens", "4"])
    greeting = session.read_until("> ")
    assert "pocket is a base model without a chat template: it continues your text" in greeting
    session.write("The sea\n")
    assert "4 tokens, " in session.read_until("\n> ")
    session.write("\x04")
    session.read_until("never")
    assert session.run.wait() == 0


def test_generate_chat_refuses_an_unknown_chat_template(tiny: Tiny, tmp_path: Path) -> None:
    tiny_model.write_model(tmp_path / "model")
    (tmp_path / "model" / "tokenizer_config.json").unlink()
    session = Session([*command(tiny)[:4], "--model", str(tmp_path / "model")])
    assert "--raw" in session.read_until("never")
    assert session.run.wait() == 2
