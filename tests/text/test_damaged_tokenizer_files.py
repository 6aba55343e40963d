"""Damaged tokenizer files, other formats and unsupported settings: each is refused by name."""

import base64
import json
import os
import pickle
import re

import pytest

from helpers.small_tokenizers import (
    LOSSLESS,
    one_line,
    save_tokenizer,
    train_sentencepiece,
)
from minispec.errors import FileError
from minispec.tools.models import tokenizer_files
from minispec.tools.models.gguf_tokenizer import from_gguf_fields
from minispec.tools.models.tokenizer_files import from_sentencepiece
from minispec.tools.models.tokenizer_json import from_tokenizer_json

LOADERS = {
    "sentencepiece": from_sentencepiece,
    "llama3": tokenizer_files.from_llama3_model,
    "tekken": tokenizer_files.from_tekken,
    "hugging face": from_tokenizer_json,
}


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("unpickled",)


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize(
    "content",
    [b"", b"\0\xff\xfe garbage", b"{", b"[]", b"null", b"{}", b'{"model": {}}', b"[" * 10**5]
    + [b'{"config": {}, "vocab": 3}', b"YQ== 0\nYg== 2\n", b"YQ== 0\nYQ== 1\n", b"YQ= 0\n"]
    + [b"YQ== x\n", pickle.dumps(Bomb())],
)
def test_loaders_refuse_other_formats(loader, content, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(FileError) as error:
        LOADERS[loader](path)
    assert str(path) in one_line(error)
    assert not (tmp_path / "unpickled").exists()


@pytest.mark.parametrize("loader", LOADERS)
def test_loaders_refuse_missing_files_and_folders(loader, tmp_path):
    for path in (tmp_path, tmp_path / "missing", tmp_path / "file\0name"):
        with pytest.raises(FileError) as error:
            LOADERS[loader](path)
        assert str(path).replace("\0", "\\x00") in one_line(error)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_loaders_refuse_truncated_files(share, small, tmp_path):
    files = {
        from_sentencepiece: train_sentencepiece(tmp_path, **LOSSLESS),
        from_tokenizer_json: save_tokenizer(small, tmp_path),
    }
    for load, path in files.items():
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * share)])
        with pytest.raises(FileError) as error:
            load(path)
        assert str(path) in one_line(error)


def test_sentencepiece_refuses_a_damaged_piece(tmp_path):
    path = train_sentencepiece(tmp_path, **LOSSLESS)
    path.write_bytes(path.read_bytes().replace(b"parser", b"p\xffrser"))
    with pytest.raises(FileError) as error:
        from_sentencepiece(path)
    assert str(path) in one_line(error)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model": "bert"}, "'bert' is not supported: must be 'gpt2'"),
        ({"model": None}, "tokenizer.ggml.model: expected str, got null"),
        ({"pre": "viking"}, "'viking' is not supported: must be one of .* smollm"),
        ({"pre": None}, "tokenizer.ggml.pre is missing: .* --pre-tokenizer NAME"),
        ({"tokens": None}, "tokenizer.ggml.tokens: expected array, got null"),
        ({"tokens": []}, "token_type has 700 values for 0 tokens"),
        ({"merges": ["x"]}, "merge 'x' must be two tokens"),
        ({"merges": ["t  a"]}, "must be two tokens"),
        ({"merges": ["t \u0160\u0160"]}, "out of vocabulary"),
        ({"merges": [["t", "a"]]}, r"merges\[0\]: expected str, got array"),
        ({"token_type": [1]}, "token_type has 1 values for 700 tokens"),
        ({"token_type": ["1"] * 700}, r"token_type\[0\]: expected int, got str"),
        ({"token_type": [7] * 700}, r"token_type\[0\]: expected int <= 6"),
        ({"token_type": [6] * 700}, "none of kind 6"),
        ({"eos_token_id": 700}, "eos_token_id 700 is outside its 700 tokens"),
        ({"eom_token_id": 2**40}, "eom_token_id: expected int <= 2147483647"),
        ({"eos_token_id": "two"}, "eos_token_id: expected int.*, got str"),
        ({"bos_token_id": -1, "add_bos_token": True}, "bos_token_id: expected int >= 0"),
        ({"add_bos_token": True}, "add_bos_token is true, bos_token_id is missing"),
        ({"suppress_tokens": [3]}, "changes the model's distribution"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_from_gguf_fields_refuses_damaged_metadata(small_gguf, change, words):
    changed = small_gguf | {f"tokenizer.ggml.{key}": value for key, value in change.items()}
    with pytest.raises(FileError, match=words) as error:
        from_gguf_fields(changed)
    one_line(error)


@pytest.mark.parametrize(
    ("name", "words"),
    [("two words", "KeyError: ' '"), ("!", "must differ"), ("\ud800", "KeyError")],
)
def test_from_gguf_fields_refuses_damaged_tokens(small_gguf, name, words):
    tokens = small_gguf["tokenizer.ggml.tokens"]
    changed = {"tokenizer.ggml.tokens": [*tokens[:300], name, *tokens[301:]]}
    with pytest.raises(FileError, match=words) as error:
        from_gguf_fields(small_gguf | changed)
    one_line(error)


@pytest.mark.parametrize("key", ["model", "tokens", "merges"])
def test_from_gguf_fields_names_what_is_missing(small_gguf, key):
    lacking = {k: v for k, v in small_gguf.items() if k != f"tokenizer.ggml.{key}"}
    with pytest.raises(FileError, match=key):
        from_gguf_fields(lacking)


def set_in(*path_and_value):
    """A change of a tokenizer.json: a path of keys, then the value to set there."""
    *path, last, value = path_and_value

    def change(data):
        for key in path:
            data = data[key]
        data[last] = value

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (set_in("model", "type", "WordPiece"), "model 'WordPiece' is not supported"),
        (set_in("model", "dropout", 0.1), "model.dropout"),
        (set_in("model", "end_of_word_suffix", "</w>"), "model.end_of_word_suffix"),
        (set_in("decoder", {"type": "WordPiece", "prefix": "##"}), "not a Hugging Face"),
        (set_in("decoder", {"type": "BPEDecoder", "suffix": "</w>"}), "decoder 'BPEDecoder'"),
        (set_in("decoder", {"type": "Sequence", "decoders": 3}), "decoder.decoders: expected"),
        (set_in("pre_tokenizer", None), "not supported: decoder None"),
        (set_in("added_tokens", 0, "id", 10**12), "added_tokens[0].id: expected int <= 2147483647"),
        (set_in("added_tokens", 0, "id", 10**9), "the tokenizers library gives it 0"),
        (set_in("added_tokens", 0, "id", -1), "added_tokens[0].id: expected int >= 0"),
        (set_in("added_tokens", 0, "content", 5), "added_tokens[0].content: expected str"),
        (set_in("added_tokens", 0, "content", "\ud800"), "not a JSON file, or is damaged"),
        (set_in("pre_tokenizer", "pretokenizers", 0, "type", "\ud800"), "not a JSON file"),
        (set_in("model", "vocab", "a", 0), "two tokens have the same id"),
        (set_in("model", "vocab", "a", 10**9), "leave at most 65536 numbers out"),
        (set_in("model", "merges", [["a"]]), "not a Hugging Face"),
    ],
)
def test_from_tokenizer_json_refuses_what_it_would_encode_differently(
    small, tmp_path, change, words
):
    with pytest.raises(FileError, match=re.escape(words)) as error:
        from_tokenizer_json(save_tokenizer(small, tmp_path, change))
    assert str(tmp_path) in one_line(error)


@pytest.mark.parametrize(
    "config",
    [{"default_vocab_size": 10**13}, {"default_num_special_tokens": -1}, {"pattern": "("}]
    + [
        {"default_num_special_tokens": 0},
        {"pattern": None},
        {"pattern": ""},
        {"default_vocab_size": "5"},
    ],
    ids=str,
)
def test_from_tekken_refuses_damaged_settings(tmp_path, config):
    vocab = [{"rank": i, "token_bytes": base64.b64encode(b"%c" % i).decode()} for i in range(256)]
    good = {"pattern": ".", "default_vocab_size": 259, "default_num_special_tokens": 3}
    path = tmp_path / "tekken.json"
    path.write_text(json.dumps({"config": good, "vocab": vocab}))
    assert tokenizer_files.from_tekken(path).encode("a") == [3 + 97]
    path.write_text(json.dumps({"config": good | config, "vocab": vocab}))
    with pytest.raises(FileError) as error:
        tokenizer_files.from_tekken(path)
    assert str(path) in one_line(error)
