"""Files of byte-level BPE, against the libraries that wrote them."""

import base64
import json
import random
import re
from pathlib import Path

import pytest
import tiktoken
import tokenizers
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence, Split

from helpers.small_tokenizers import (
    save_tokenizer,
    to_gguf_fields,
    train_byte_level,
)
from helpers.texts import varied_texts
from minispec.errors import FileError, FileWarning, TextError
from minispec.tools.models import tokenizer_files
from minispec.tools.models.gguf_tokenizer import from_gguf_fields
from minispec.tools.models.patterns import LLAMA3, SPLITTINGS
from minispec.tools.models.tokenizer_folder import read_tokenizer
from minispec.tools.models.tokenizer_json import from_tokenizer_json


@pytest.mark.parametrize("pre", ["gpt-2", "smollm", "llama-bpe", "qwen2", "tekken", "dbrx"])
def test_from_gguf_fields_splits_like_the_tokenizers_library(pre):
    byte_level = ByteLevel(add_prefix_space=False)
    own = Split(tokenizers.Regex(SPLITTINGS[pre].patterns[0]), "isolated")
    pre_tokenizer = {
        "gpt-2": byte_level,
        "smollm": Sequence([Digits(individual_digits=True), byte_level]),
    }.get(pre, Sequence([own, ByteLevel(add_prefix_space=False, use_regex=False)]))
    theirs = train_byte_level(pre_tokenizer, ignore_merges=pre in ("llama-bpe", "tekken"))
    ours = from_gguf_fields(to_gguf_fields(theirs, pre))
    for text in varied_texts(300):
        assert ours.encode(text) == theirs.encode(text).ids, text


def test_from_gguf_fields_splits_as_llama_cpp_by_default_and_says_so(small_gguf):
    with pytest.warns(FileWarning, match="tokenizer.ggml.pre is 'default'"):
        tokenizer = from_gguf_fields(small_gguf | {"tokenizer.ggml.pre": "default"})
    # Three digits at a time, then what is left; punctuation apart from the space before it.
    texts = [tokenizer.decode([i]) for i in tokenizer.encode("12345 +=")]
    assert "".join(texts) == "12345 +=" and " +" not in texts and " " in texts


def test_splittings_are_the_patterns_of_published_tokenizers():
    tekken = pytest.importorskip("mistral_common")
    data = json.loads((Path(tekken.__file__).parent / "data" / "tekken_240911.json").read_bytes())
    assert SPLITTINGS["tekken"].patterns == (data["config"]["pattern"],)


def test_from_gguf_fields_gives_llama3_a_bos_id(small_gguf):
    fields = small_gguf | {"tokenizer.ggml.bos_token_id": 2}
    assert from_gguf_fields(fields).bos_id is None
    fields["tokenizer.ggml.pre"] = "llama-bpe"
    assert from_gguf_fields(fields).bos_id == 2
    fields["tokenizer.ggml.add_bos_token"] = False
    assert from_gguf_fields(fields).bos_id is None


@pytest.mark.parametrize("seed", range(3))
def test_from_tokenizer_json_accepts_ids_in_any_order(small, tmp_path, seed):
    """tiktoken's rank is only a merge priority here, never an id."""

    def shuffle(data):
        ids = list(range(len(data["model"]["vocab"])))
        random.Random(seed).shuffle(ids)
        data["model"]["vocab"] = {name: ids[i] for name, i in data["model"]["vocab"].items()}
        for token in data["added_tokens"]:
            token["id"] = ids[token["id"]]

    path = save_tokenizer(small, tmp_path, shuffle)
    ours, theirs = (
        from_tokenizer_json(path),
        tokenizers.Tokenizer.from_file(str(path)),
    )
    for text in varied_texts(200):
        assert ours.encode(text) == theirs.encode(text).ids
        assert ours.decode(ours.encode(text)) == text
    text = "<|im_start|>a<|im_end|> <|im<|im_"
    assert ours.encode(text, special=True) == theirs.encode(text).ids


def test_from_tokenizer_json_uses_tokens_without_merges_only_for_whole_pieces(tmp_path):
    theirs = train_byte_level(ByteLevel(add_prefix_space=False))

    def add(data, ignore):
        data["model"]["vocab"]["\u0120zqzq"] = len(data["model"]["vocab"])
        data["model"]["ignore_merges"] = ignore

    for ignore in (False, True):
        path = save_tokenizer(theirs, tmp_path, lambda data, ignore=ignore: add(data, ignore))
        ours = from_tokenizer_json(path)
        oracle = tokenizers.Tokenizer.from_file(str(path))
        for text in ("a zqzq b", "zqzq", " zqzqzq"):
            assert ours.encode(text) == oracle.encode(text).ids
        assert ours.decode([700]) == " zqzq"


def test_from_tokenizer_json_keeps_added_tokens_as_text(tmp_path):
    theirs = train_byte_level(ByteLevel(add_prefix_space=False))
    theirs.add_tokens(["    ", "<tool>"])
    ours = from_tokenizer_json(save_tokenizer(theirs, tmp_path))
    for text in ("a     b<tool>c", "<tool", "        "):
        assert ours.encode(text) == theirs.encode(text).ids
        assert ours.decode(ours.encode(text)) == text


def test_read_tokenizer_reads_the_files_beside_it(small, smollm2, metadata, tmp_path):
    small.post_processor = tokenizers.processors.TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", 0)]
    )
    save_tokenizer(small, tmp_path)
    small.post_processor = tokenizers.processors.ByteLevel()
    alone = read_tokenizer(tmp_path)
    assert alone.bos_id == 0 and alone.eos_ids == (1,)
    with pytest.raises(TextError, match="no chat template; use --raw"):
        alone.chat("hi")
    template = metadata["tokenizer.chat_template"]
    config = {"eos_token": {"content": "<|im"}, "chat_template": template}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = read_tokenizer(tmp_path)
    assert tokenizer.eos_ids == (2, 1)
    assert tokenizer.decode(tokenizer.chat("hi")) == smollm2.decode(smollm2.chat("hi"))
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    with pytest.raises(TextError, match="leaves out this message"):
        read_tokenizer(tmp_path).chat("hi'")
    (tmp_path / "tokenizer_config.json").write_text("[]")
    with pytest.raises(FileError, match=r"tokenizer_config\.json: expected object, got array"):
        read_tokenizer(tmp_path)


def test_fingerprint_is_the_same_for_any_file_format(
    smollm2, oracle, small, small_tokenizer, tmp_path
):
    for backend, ours in ((oracle.backend_tokenizer, smollm2), (small, small_tokenizer)):
        other = from_tokenizer_json(save_tokenizer(backend, tmp_path))
        assert other.fingerprint == ours.fingerprint
        assert re.fullmatch("[0-9a-f]{64}", ours.fingerprint)
    assert small_tokenizer.fingerprint != smollm2.fingerprint


def test_from_llama3_model_encodes_as_tiktoken(small_tokenizer, small_gguf, tmp_path):
    tokens = [small_tokenizer.token_bytes(i) for i in range(3, 700)]
    ranks = {token: rank for rank, token in enumerate(tokens)}
    path = tmp_path / "tokenizer.model"
    path.write_bytes(b"".join(b"%s %d\n" % (base64.b64encode(t), r) for t, r in ranks.items()))
    ours, count = tokenizer_files.from_llama3_model(path), len(ranks)
    theirs = tiktoken.Encoding("llama", pat_str=LLAMA3, mergeable_ranks=ranks, special_tokens={})
    for text in varied_texts(200):
        assert ours.encode(text) == theirs.encode_ordinary(text)
        assert ours.decode(ours.encode(text)) == text
    assert ours.vocab_size == count + 256 and ours.bos_id == count
    # The ids that Llama 3.1 publishes, counted from 128,000 on.
    for offset, name in {0: "begin_of_text", 5: "reserved_special_token_2", 9: "eot_id"}.items():
        assert ours.special_tokens[f"<|{name}|>"] == count + offset
    assert ours.special_tokens["<|reserved_special_token_247|>"] == count + 255
    assert set(ours.eos_ids) == {count + 1, count + 8, count + 9}
    assert ours.encode("a<|eot_id|>", special=True) == [*ours.encode("a"), count + 9]
    with pytest.raises(TextError, match="--raw"):
        ours.chat("hi")


def test_from_tekken_encodes_as_mistral_common(tmp_path):
    tekken = pytest.importorskip("mistral_common.tokens.tokenizers.tekken")
    path = Path(tekken.__file__).parents[2] / "data" / "tekken_240911.json"
    ours, theirs = tokenizer_files.from_tekken(path), tekken.Tekkenizer.from_file(path)
    for text in varied_texts(1000):
        ids = ours.encode(text)
        assert ids == theirs.encode(text, bos=False, eos=False)
        assert ours.decode(ids) == text
    assert ours.vocab_size == theirs.n_words == 131_072
    assert ours.eos_ids == (theirs.eos_id,) and ours.bos_id == theirs.bos_id
    for i in [*range(1000, 131_072, 997), 131_071]:
        assert ours.token_bytes(i) == theirs.id_to_byte_piece(i, tekken.SpecialTokenPolicy.RAISE)
    assert ours.decode([1, *ours.encode("a"), 2]) == "a"
