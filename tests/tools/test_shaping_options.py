"""Biases, penalties, bad words and min-p through every interface: the same text from plain and
speculative greedy decoding, and the same names on the command line."""

import json
from typing import Any

import pytest
import torch

import minispec
from helpers.toys import toy_transformer
from minispec.api.request import build_request, build_sampling
from minispec.commit import StopRule
from minispec.decode import autoregressive
from minispec.errors import ArgumentError
from minispec.logits_processor import History
from minispec.sampling import Sampling, SeededRandom
from minispec.tools.cli import arguments
from minispec.tools.cli.main import main
from minispec.tools.cli.prepare import list_shaping
from minispec.tools.data.batched_decode import decode_batch
from minispec.tools.evaluation import audit

PROMPT = "The court held that the"
SHAPINGS: dict[str, dict[str, Any]] = {
    "repetition": {"repetition_penalty": 1.4},
    "presence": {"presence_penalty": 1.5},
    "frequency": {"frequency_penalty": 1.5},
    "bias": {"logit_bias": {849: -30, 424: -30.0}},
    "bad words": {"bad_words": ["same", "file", [424]]},
    "all": {
        "repetition_penalty": 1.2, "presence_penalty": 0.5, "frequency_penalty": 0.3,
        "logit_bias": {849: -3}, "bad_words": ["time"],
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def model() -> minispec.Model:
    return minispec.load("pocket", backend="reference")


@pytest.mark.parametrize("name", SHAPINGS)
def test_generate_with_a_shaping_gives_the_text_of_plain_decoding(
    model: minispec.Model, name: str
) -> None:
    options = SHAPINGS[name] | {"max_new_tokens": 24, "ignore_eos": True}
    plain = model.generate(PROMPT, shortlist="autoregressive", **options)
    assert plain.text != model.generate(PROMPT, max_new_tokens=24, ignore_eos=True).text
    for shortlist in ("frspec@0.5", "full"):
        assert model.generate(PROMPT, shortlist=shortlist, **options).text == plain.text
    streamed = model.stream(PROMPT, shortlist="full", **options)
    assert "".join(step.text for step in streamed) == plain.text
    assert model.chat(shortlist="full", **options).send(PROMPT).text == plain.text


def test_generate_with_bad_words_and_learning_never_generates_them(model: minispec.Model) -> None:
    banned = [[token] for token in range(3, 400, 2)]
    out = model.generate(
        PROMPT, shortlist="full", adapt=True, temperature=1.0, min_p=0.01, bad_words=banned,
        max_new_tokens=40,
    )  # fmt: skip
    assert not {token for (token,) in banned} & {*out.token_ids}


def test_resolve_reads_bad_words_with_and_without_a_space() -> None:
    class Words:
        """Every text of letters is one id, its length; a space before it makes another id."""

        def encode(self, text: str) -> list[int]:
            return [100 * text.startswith(" ") + len(text.strip())] if text.strip() else []

    sampling = build_sampling(bad_words=[" abc", (7, 8)]).resolve(Words())  # type: ignore[arg-type]
    assert sampling.bad_words == ((7, 8), (3,), (103,))
    with pytest.raises(ArgumentError, match="bad word ' ' has no tokens"):
        build_sampling(bad_words=" ").resolve(Words())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bad_words": [5]}, "bad word 5 is neither"),
        ({"logit_bias": [(1, 2.0)]}, "is not a mapping"),
        ({"min_p": 2.0}, "min-p"),
        ({"repetition_penalty": -1}, "repetition-penalty"),
    ],
    ids=str,
)
def test_build_request_refuses_invalid_shapings(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        build_request(**options)


@pytest.mark.parametrize("command", ["generate", "compare", "explore"])
def test_the_command_line_has_the_options_of_the_library(command: str) -> None:
    words = [command, *(["Hello"] if command != "compare" else [])]
    words += [
        "--min-p", "0.1", "--repetition-penalty", "1.2", "--presence-penalty", "0.3",
        "--frequency-penalty", "0.4", "--logit-bias", "5=-2.5", "--logit-bias", "6=1",
        "--bad-words", "the",
    ]  # fmt: skip
    found = build_sampling(**list_shaping(arguments.parse(words)))
    expected = Sampling(
        0.8 if command == "explore" else 0.0, min_p=0.1, repetition_penalty=1.2,
        presence_penalty=0.3, frequency_penalty=0.4, logit_bias=((5, -2.5), (6, 1.0)),
    )  # fmt: skip
    assert found.sampling == expected and found.texts == ("the",)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--logit-bias", "5"], "'5' is not ID=VALUE"),
        (["--logit-bias", "a=1"], "'a=1' is not ID=VALUE"),
        (["--logit-bias", "5=1", "--logit-bias", "5=2"], "names a token twice"),
        (["--logit-bias", "5=200"], "must lie in -100..100"),
        (["--min-p", "-1"], "min-p -1.0"),
        (["--bad-words", ""], "has no tokens"),
        (["--logit-bias", "9999999=1"], "token 9999999"),
    ],
    ids=str,
)
def test_the_command_line_refuses_invalid_shapings_in_one_line(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", "Hello", "--model", "pocket", *words]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_generate_reports_which_shapings_were_used(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--max-new-tokens", "3", "--json", "--presence-penalty", "0.5", "--bad-words", "the"]
    assert main(["generate", PROMPT, "--model", "pocket", *words]) == 0
    sampling = json.loads(capsys.readouterr().out)["sampling"]
    assert sampling["presence_penalty"] == 0.5 and len(sampling["bad_words"]) in (1, 2)
    assert "min_p" not in sampling


def test_compare_refuses_a_study_with_penalties(model: minispec.Model) -> None:
    words = ["compare", "--model", "pocket", "--study", "--presence-penalty", "1"]
    with pytest.raises(ArgumentError, match="a study replays"):
        from minispec.tools.cli import commands_run

        commands_run.compare(arguments.parse(words))


def test_compare_audits_greedy_text_with_penalties(model: minispec.Model) -> None:
    found = minispec.compare(
        model, ["autoregressive", "frspec@0.5"], prompts=[PROMPT], max_new_tokens=12,
        repetition_penalty=1.3, bad_words=["the"],
    )  # fmt: skip
    assert found.report["sampling"]["repetition_penalty"] == 1.3
    for row in found.report["results"]:
        assert row["lossless"]["identical"] + row["lossless"]["near_ties"] == 1


def test_audit_finds_near_ties_of_the_changed_logits() -> None:
    """Two ids that a bias makes equal may change places; without it they may not."""
    target = toy_transformer()
    cache = target.new_cache(4)
    logits = target.head.logits(target.step(torch.tensor([3, 4]), cache).hidden)[-1]
    first, second = (int(i) for i in logits.topk(2).indices)
    bias = float(logits[first] - logits[second]) - 1e-12
    sampling = Sampling(0.0, logit_bias=((second, bias),))
    gap = 1e-9
    assert audit.audit(target, [3, 4], [first], [second], gap, sampling) == "near_tie"
    assert audit.audit(target, [3, 4], [first], [second], gap) == "violation"


def test_decode_batch_with_penalties_decodes_each_prompt_as_alone() -> None:
    target = toy_transformer()
    prompts = [[3, 4, 5], [7], [9, 9]]
    sampling = Sampling(
        1.0, min_p=0.02, repetition_penalty=1.3, frequency_penalty=0.8, bad_words=((3,), (5, 6))
    )
    done = decode_batch(
        target, prompts, [sampling] * 3, [SeededRandom(i) for i in range(3)], rows=2,
        max_new_tokens=8, eos_ids=(),
    )  # fmt: skip
    for completion in done:
        rng = SeededRandom(completion.index)
        rounds = autoregressive(
            target, prompts[completion.index], sampling=sampling, rng=rng, stop=StopRule(8)
        )
        assert completion.tokens == tuple(t for finished in rounds for t in finished.tokens)
        assert 3 not in completion.tokens


def test_the_history_ends_before_the_token_that_is_drawn() -> None:
    history = History((1, 2, 3), 1)
    assert history.output == (2, 3) and history.without_last(1) == History((1, 2), 1)
