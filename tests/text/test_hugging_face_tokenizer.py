"""Files of the tokenizers library: the ids and the text are the library's, whatever the kind."""

import json

import pytest
import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers.pre_tokenizers import ByteLevel

from helpers.small_tokenizers import (
    LOSSLESS,
    convert_sentencepiece,
    save_tokenizer,
    to_gguf_fields,
    train_byte_level,
    train_sentencepiece,
)
from helpers.texts import varied_texts
from minispec.errors import FileError, FileWarning, TextError
from minispec.tools.models.gguf_tokenizer import from_gguf_fields
from minispec.tools.models.tokenizer_json import from_tokenizer_json

TEXTS = [
    "", " ", "  ", " a", "a ", "<s>a</s>", "a<s> b</s>c", "\n\n x", "a\u0301\u00e9", " <m> x<m>y",
    "w<w> <w>w<w>", "x  <r>  y", "        ",
]  # fmt: skip


def byte_level(normalizer=None, prefix=False, tokens=()) -> tokenizers.Tokenizer:
    library = train_byte_level(ByteLevel(add_prefix_space=prefix))
    if normalizer:
        library.normalizer = normalizer
    for token in tokens:
        (library.add_special_tokens if token.special else library.add_tokens)([token])
    library.decoder = decoders.ByteLevel()
    return library


def unigram(tmp_path) -> tokenizers.Tokenizer:
    path = train_sentencepiece(tmp_path, **LOSSLESS)
    import sentencepiece

    model = sentencepiece.SentencePieceProcessor(model_file=str(path))
    pieces = [(model.id_to_piece(i), model.get_score(i)) for i in range(model.get_piece_size())]
    library = tokenizers.Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=True))
    space = {"prepend_scheme": "always", "split": False}
    library.pre_tokenizer = pre_tokenizers.Metaspace(**space)
    steps = [decoders.ByteFallback(), decoders.Metaspace(**space)]
    library.decoder = decoders.Sequence(steps)
    library.add_special_tokens(["<s>", "</s>"])
    return library


def convert(scheme):
    def build(tmp_path):
        path = train_sentencepiece(tmp_path, **LOSSLESS, model_type="bpe")
        return convert_sentencepiece(path, scheme)

    return build


FLAGGED = (
    AddedToken("<m>", lstrip=True, special=True, normalized=False),
    AddedToken("<r>", rstrip=True, special=True),
    AddedToken("<w>", single_word=True, special=False),
    AddedToken("   ", special=False, normalized=False),
)
KINDS = {
    "sentencepiece, as transformers 5": convert("first"),
    "sentencepiece, as transformers 4": convert("prepend"),
    "sentencepiece, as Gemma": convert("never"),
    "unigram": unigram,
    "NFC": lambda _: byte_level(normalizers.NFC()),
    "lower case": lambda _: byte_level(normalizers.Lowercase()),
    "prefix space": lambda _: byte_level(prefix=True),
    "flags": lambda _: byte_level(tokens=FLAGGED),
}


@pytest.mark.parametrize("kind", KINDS)
def test_encode_and_decode_are_those_of_the_library(kind, tmp_path):
    path = save_tokenizer(KINDS[kind](tmp_path), tmp_path)
    ours, theirs = from_tokenizer_json(path), tokenizers.Tokenizer.from_file(str(path))
    for text in [*varied_texts(150), *TEXTS]:
        for special in (False, True):
            theirs.encode_special_tokens = not special
            ids = theirs.encode(text, add_special_tokens=False).ids
            assert ours.encode(text, special=special) == ids, text
            assert ours.decode(ids) == theirs.decode(ids), text


def test_encode_follows_the_merges_and_not_the_bytes_of_tokens(tmp_path):
    """Words added after training are reached by no merges; tiktoken would merge into them."""
    library = byte_level()

    def add(data):
        for word in ("\u0120parsing", "ers", "optio"):
            data["model"]["vocab"].setdefault(word, len(data["model"]["vocab"]))
        data["model"]["merges"].insert(0, ["a", "r"])

    path = save_tokenizer(library, tmp_path, add)
    theirs = tokenizers.Tokenizer.from_file(str(path))
    ours = from_tokenizer_json(path)
    fields = to_gguf_fields(theirs, "gpt-2")
    for text in [*varied_texts(100), " parsing parsers options"]:
        ids = theirs.encode(text).ids
        assert ours.encode(text) == from_gguf_fields(fields).encode(text) == ids


def test_encode_refuses_what_the_library_would_drop(tmp_path):
    def remove(data):
        data["model"]["vocab"].pop("\u00e9")  # byte 0xe9

    ours = from_tokenizer_json(save_tokenizer(byte_level(), tmp_path, remove))
    for special in (False, True):
        with pytest.raises(TextError, match=r"byte 0xe9 of '\\u9999' at character 2 has no token"):
            ours.encode("ab\u9999", special=special)
    library = convert("first")(tmp_path)
    data = json.loads(library.to_str())
    data["model"]["byte_fallback"] = False
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    with pytest.raises(TextError, match=r"'\\u4e2d' at character 3 has no token"):
        from_tokenizer_json(tmp_path / "tokenizer.json").encode("a b\u4e2d")


def test_from_tokenizer_json_reads_bos_from_the_post_processor(tmp_path):
    library = byte_level()
    template = tokenizers.processors.TemplateProcessing
    for single, bos in (("$A", None), ("<|im_start|> $A", 0), ("<|im_start|> $A <|im_end|>", 0)):
        library.post_processor = template(
            single=single, special_tokens=[("<|im_start|>", 0), ("<|im_end|>", 1)]
        )
        path = save_tokenizer(library, tmp_path)
        if single.endswith("<|im_end|>"):
            with pytest.warns(FileWarning, match="after every text is left out"):
                assert from_tokenizer_json(path).bos_id == bos
        else:
            assert from_tokenizer_json(path).bos_id == bos
    library.post_processor = template(
        single="<|im_start|> <|im_end|> $A", special_tokens=[("<|im_start|>", 0), ("<|im_end|>", 1)]
    )
    with pytest.raises(FileError, match="2 tokens before every text"):
        from_tokenizer_json(save_tokenizer(library, tmp_path))


def test_encode_refuses_a_pattern_that_takes_too_long(tmp_path, capfd):
    library = byte_level()
    library.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex("(a+)+$"), "isolated"),
            ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer = from_tokenizer_json(save_tokenizer(library, tmp_path))
    assert tokenizer.decode(tokenizer.encode("b")) == "b"
    with pytest.raises(TextError, match="own rules cannot split this text"):
        tokenizer.encode("a" * 40 + "b")
    capfd.readouterr()  # the library reports it on stderr too


def test_encode_refuses_the_reserved_characters(tmp_path):
    tokenizer = from_tokenizer_json(save_tokenizer(byte_level(), tmp_path))
    assert tokenizer.decode(tokenizer.encode("\ufdd0 \ufdd1")) == "\ufdd0 \ufdd1"
    for text in ("\ufdd0\ufdd1", "a\ufdd0\ufdd1b"):
        for special in (False, True):
            with pytest.raises(TextError, match="reserved"):
                tokenizer.encode(text, special=special)
