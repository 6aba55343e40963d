"""SentencePiece models against the library."""

from pathlib import Path

import pytest
import sentencepiece

from helpers.small_tokenizers import (
    LOSSLESS,
    train_sentencepiece,
)
from helpers.texts import varied_texts
from minispec.errors import TextError
from minispec.tools.models.tokenizer_files import from_sentencepiece


@pytest.mark.parametrize(
    "options",
    [
        LOSSLESS,
        LOSSLESS | {"model_type": "bpe"},
        LOSSLESS | {"add_dummy_prefix": False},
        {"vocab_size": 400, "byte_fallback": True},  # normalises, removes extra white space
        {"vocab_size": 600, "byte_fallback": True, "user_defined_symbols": ["<code>"]},
    ],
    ids=["unigram", "bpe", "no-dummy-prefix", "normalising", "user-defined"],
)
def test_sentencepiece_encodes_as_the_library(tmp_path, options):
    path = train_sentencepiece(tmp_path, **options)
    ours = from_sentencepiece(path)
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(path))
    for text in [*varied_texts(300), "", " ", "  ", " a", "a ", "<s>a</s>", "<code>\n<code>"]:
        ids = ours.encode(text)
        assert ids == theirs.encode(text)
        assert ours.decode(ids) == theirs.decode(ids)
        if options.get("normalization_rule_name") == "identity":
            assert ours.decode(ids) == text
    assert ours.vocab_size == theirs.vocab_size()
    assert (ours.bos_id, ours.eos_ids) == (1, (2,))
    assert not set(ours.encode("<s></s><unk>")) & {0, 1, 2}
    assert ours.encode("<s></s>", special=True) == [1, 2]
    assert ours.decode([1, *ours.encode("a"), 2]) == "a"


@pytest.mark.parametrize(
    "name", ["tokenizer.model.v1", "mistral_instruct_tokenizer_240323.model.v3"]
)
def test_sentencepiece_encodes_with_published_models(name):
    common = pytest.importorskip("mistral_common")
    path = Path(common.__file__).parent / "data" / name
    ours = from_sentencepiece(path)
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(path))
    for text in varied_texts(1000):
        ids = ours.encode(text)
        assert ids == theirs.encode(text)
        assert ours.decode(ids) == theirs.decode(ids) == text
    assert ours.vocab_size == theirs.vocab_size()


@pytest.mark.parametrize(("text", "position"), [("中", 0), ("ab  cd 中中", 7), ("a def 😀", 6)])
def test_sentencepiece_refuses_a_character_without_a_piece_with_its_position(
    tmp_path, text, position
):
    options = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}
    path = train_sentencepiece(tmp_path, vocab_size=300, **options)
    tokenizer = from_sentencepiece(path)
    with pytest.raises(TextError, match=f"at character {position} has no piece") as error:
        tokenizer.encode(text)
    assert str(error.value).isascii() and "\n" not in str(error.value)
    assert tokenizer.decode(tokenizer.encode("plain text")) == "plain text"


def test_sentencepiece_has_no_chat_template(pieces):
    with pytest.raises(TextError, match="use --raw"):
        pieces.chat("hi")
