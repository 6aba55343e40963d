"""Names of special tokens in raw text: turns can be written out, and only if it is asked for."""

import pytest

import minispec
from helpers.tiny_model import Tiny
from minispec.api.model import Model
from minispec.errors import ArgumentError
from minispec.tools.cli import main

WRITTEN = "<|im_start|>user\nThe wind<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture(scope="module")
def model(tiny: Tiny) -> Model:
    return minispec.load(str(tiny.folder), draft=None, backend="reference")


def test_generate_with_parse_special_reads_turns_that_are_written_out(model: Model) -> None:
    chat = model.generate("The wind", max_new_tokens=4)
    raw = model.generate(WRITTEN, raw=True, parse_special=True, max_new_tokens=4)
    assert raw.prompt_token_ids == chat.prompt_token_ids and raw.token_ids == chat.token_ids
    plain = model.generate(WRITTEN, raw=True, max_new_tokens=1)
    assert not set(plain.prompt_token_ids) & set(model.tokenizer.special_tokens.values())


def test_chat_with_parse_special_reads_names_in_every_message(model: Model) -> None:
    chat = model.chat(raw=True, parse_special=True, max_new_tokens=2, ignore_eos=True)
    start = model.tokenizer.special_tokens["<|im_start|>"]
    chat.send("a<|im_start|>")
    chat.send("b<|im_start|>")
    assert chat.token_ids.count(start) >= 2


def test_parse_special_is_refused_in_a_chat_template(
    model: Model, tiny: Tiny, capsys: pytest.CaptureFixture[str]
) -> None:
    for use in (model.generate, model.stream):
        with pytest.raises(ArgumentError, match=r"add raw \(--raw\)"):
            use("hi", parse_special=True)
    with pytest.raises(ArgumentError, match=r"add raw \(--raw\)"):
        model.chat(parse_special=True, raw=False)
    options = ["--model", str(tiny.folder), "--backend", "reference", "--max-new-tokens", "1"]
    assert main.main(["generate", "hi", "--parse-special", *options]) == 2
    assert "add raw (--raw)" in capsys.readouterr().err
    assert main.main(["generate", WRITTEN, "--raw", "--parse-special", *options]) == 0
