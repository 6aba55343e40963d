"""What the files of a Hugging Face folder say about its tokenizer, and which of them counts."""

import json

import pytest
from tokenizers.pre_tokenizers import ByteLevel

from helpers.chat_templates import CHATML
from helpers.small_tokenizers import (
    LOSSLESS,
    one_line,
    save_tokenizer,
    train_byte_level,
    train_sentencepiece,
)
from minispec.errors import ArgumentError, FileError, FileWarning, TextError
from minispec.text.tokenizer import encode_prompt
from minispec.tools.models.tokenizer_folder import read_settings, read_tokenizer

ADDED = {"<|im_start|>": 600, "<|im_end|>": 602}  # a gap at 601
DECODER = {str(i): {"content": name, "special": True} for name, i in ADDED.items()}


@pytest.fixture
def folder(tmp_path):
    """A folder with a SentencePiece model of 600 pieces."""
    train_sentencepiece(tmp_path, **LOSSLESS).rename(tmp_path / "tokenizer.model")
    return tmp_path


@pytest.fixture
def json_folder(tmp_path):
    """A folder with a byte-level `tokenizer.json` of 700 tokens; 0 to 2 are special."""
    save_tokenizer(train_byte_level(ByteLevel(add_prefix_space=False)), tmp_path)
    return tmp_path


def write(folder, **files):
    for name, data in files.items():
        path = folder / f"{name}.json"
        path.write_text(json.dumps(data))


@pytest.mark.parametrize("said", [True, False, None])
def test_read_tokenizer_puts_bos_before_text_unless_the_folder_says_no(folder, said):
    write(folder, tokenizer_config={"add_bos_token": said})
    tokenizer = read_tokenizer(folder)
    bos = [] if said is False else [1]
    assert encode_prompt(tokenizer, "as", True) == bos + tokenizer.encode("as")


@pytest.mark.parametrize(("prompt", "ids"), [("<s>", [1]), ("</s>", [1, 2]), ("<s></s>", [1, 2])])
def test_encode_prompt_reads_special_names_if_asked_and_does_not_double_bos(folder, prompt, ids):
    tokenizer = read_tokenizer(folder)
    assert encode_prompt(tokenizer, prompt, True, parse_special=True) == ids
    assert 2 not in encode_prompt(tokenizer, prompt, True)


def test_read_tokenizer_follows_the_post_processor_and_not_add_bos_token(json_folder):
    """As transformers 5: where there is a `tokenizer.json`, it decides."""
    write(json_folder, tokenizer_config={"add_bos_token": True, "bos_token": "<|im_start|>"})
    assert read_tokenizer(json_folder).bos_id is None


@pytest.mark.parametrize("source", ["added_tokens", "tokenizer_config"])
def test_read_tokenizer_reads_tokens_after_the_vocabulary(folder, source):
    if source == "added_tokens":
        write(folder, added_tokens=ADDED, special_tokens_map={"eos_token": "<|im_end|>",
              "additional_special_tokens": ["<|im_start|>"]})  # fmt: skip
    else:
        write(folder, tokenizer_config={"added_tokens_decoder": DECODER, "eos_token": "<|im_end|>"})
    tokenizer = read_tokenizer(folder)
    text = "<|im_start|>user\nas<|im_end|>\n"
    ids = tokenizer.encode(text, special=True)
    assert ids[0] == 600 and 602 in ids and tokenizer.decode(ids) == "user\nas\n"
    assert tokenizer.vocab_size == 603 and tokenizer.eos_ids == (602, 2)
    assert tokenizer.token_bytes(601) == b"" == tokenizer.token_bytes(602)
    assert not {600, 602} & set(tokenizer.encode(text))
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_read_tokenizer_reads_flags_of_added_tokens(folder):
    tokens = {
        "600": {"content": "<l>", "lstrip": True},
        "601": {"content": "<r>", "rstrip": True},
        "602": {"content": "word", "single_word": True, "special": False},
    }
    write(folder, tokenizer_config={"added_tokens_decoder": tokens})
    tokenizer = read_tokenizer(folder)
    assert tokenizer.encode("  <l><r>  ", special=True) == [600, 601]
    assert tokenizer.encode("word") == [602]
    assert 602 not in tokenizer.encode("words") + tokenizer.encode("sword")


@pytest.mark.parametrize("legacy", [True, False])
def test_read_tokenizer_puts_a_space_after_special_tokens_only_if_legacy(folder, legacy):
    write(folder, tokenizer_config={"legacy": legacy})
    tokenizer = read_tokenizer(folder)
    first = tokenizer._model.encode("as", out_type=str)[0]
    assert first.startswith("\u2581")
    ids = tokenizer.encode("as<s>as", special=True)
    assert (ids[ids.index(1) + 1 :] == tokenizer.encode("as")) == legacy
    assert tokenizer.decode(ids) == ("as as" if legacy else "asas")


def test_read_settings_prefers_tokenizer_config_to_older_files(folder):
    older = {"eos_token": "<old>", "bos_token": {"content": "<b>", "lstrip": True}}
    write(folder, special_tokens_map=older, added_tokens={"<old>": 600, "<b>": 601})
    settings = read_settings(folder)
    assert settings.variables == {"eos_token": "<old>", "bos_token": "<b>"}
    assert settings.added[600].special and settings.named["bos_token"].lstrip
    write(folder, tokenizer_config={"eos_token": "<new>", "added_tokens_decoder": DECODER})
    settings = read_settings(folder)
    assert settings.variables == {"eos_token": "<new>"} and set(settings.added) == {600, 602}
    write(folder, tokenizer_config={"eos_token": "<new>"})  # without that field, older files count
    assert read_settings(folder).variables["eos_token"] == "<old>"


def test_read_tokenizer_adds_tokens_with_a_role_to_a_tokenizer_json(json_folder):
    roles = {"eos_token": "<end>", "extra_special_tokens": ["<x>"]}
    write(json_folder, tokenizer_config=roles)
    tokenizer = read_tokenizer(json_folder)
    assert tokenizer.eos_ids == (700, 1)
    assert tokenizer.encode("a<end><x>", special=True)[-2:] == [700, 701]
    roles["added_tokens_decoder"] = {"705": {"content": "<end>"}}
    write(json_folder, tokenizer_config=roles)
    with pytest.raises(FileError, match=r"'<end>' has id 700, tokenizer_config.json says"):
        read_tokenizer(json_folder)


TEMPLATES = {"default": CHATML, "tool_use": "{{ tools }}"}


@pytest.mark.parametrize(
    "template",
    [CHATML, TEMPLATES, [{"name": n, "template": t} for n, t in reversed(TEMPLATES.items())]],
    ids=["text", "by name", "list"],
)
def test_read_settings_takes_the_default_of_several_templates(folder, template):
    write(folder, tokenizer_config={"chat_template": template})
    assert read_settings(folder).chat_template == CHATML


def test_read_settings_prefers_template_files_to_tokenizer_config(folder):
    write(folder, tokenizer_config={"chat_template": "other"})
    (folder / "chat_template.jinja").write_text(CHATML)
    assert read_settings(folder).chat_template == CHATML
    (folder / "chat_templates").mkdir()
    (folder / "chat_templates" / "tool_use.jinja").write_text("tools")
    assert read_settings(folder).chat_template == CHATML
    (folder / "chat_template.jinja").unlink()
    assert read_settings(folder).chat_template is None
    (folder / "chat_templates" / "default.jinja").write_bytes(b"caf\xe9")
    with pytest.raises(FileError, match=r"default.jinja is not UTF-8: .* at byte 3"):
        read_settings(folder)


def test_drop_ids_leaves_special_ids_without_rows(json_folder):
    write(json_folder, tokenizer_config={"pad_token": "<pad>"})
    tokenizer = read_tokenizer(json_folder)
    assert tokenizer.vocab_size == 701
    tokenizer.drop_ids(700)
    assert tokenizer.vocab_size == 700
    assert tokenizer.decode(tokenizer.encode("<pad>")) == "<pad>"
    with pytest.raises(TextError, match="'<pad>' has id 700, for which the model has no row"):
        tokenizer.encode("a<pad>", special=True)
    with pytest.raises(ArgumentError, match="text becomes id 699, the model has 699 rows"):
        tokenizer.drop_ids(699)


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("tokenizer_config", [], "tokenizer_config.json: expected object, got array"),
        ("tokenizer_config", {"add_bos_token": "no"}, "add_bos_token: expected"),
        ("tokenizer_config", {"eos_token": 5}, "eos_token: expected"),
        ("tokenizer_config", {"chat_template": 5}, "chat_template: expected"),
        ("tokenizer_config", {"chat_template": [{"name": "x"}]}, "lacks the field template"),
        ("tokenizer_config", {"added_tokens_decoder": {"x": {"content": "y"}}}, "added_tokens_dec"),
        (
            "tokenizer_config",
            {"added_tokens_decoder": {"9" * 9: {"content": "y"}}},
            "65536 numbers",
        ),
        ("tokenizer_config", {"added_tokens_decoder": {"5": {"content": "y"}}}, "they must agree"),
        ("special_tokens_map", {"eos_token": [1]}, "special_tokens_map.json: eos_token: expected"),
        ("added_tokens", {"x": -1}, "added_tokens.json: "),
        ("added_tokens", {"x": 2**40}, "added_tokens.json: "),
        ("added_tokens", {"x": True}, "added_tokens.json: "),
    ],
)
def test_read_tokenizer_refuses_damaged_settings(folder, name, data, words):
    write(folder, **{name: data})
    with pytest.raises(FileError, match=words) as error:
        read_tokenizer(folder)
    one_line(error)


def test_read_tokenizer_warns_of_a_token_after_every_text(folder):
    write(folder, tokenizer_config={"add_eos_token": True})
    with pytest.warns(FileWarning, match="add_eos_token is left out"):
        read_tokenizer(folder)


def test_read_tokenizer_reads_tokenizer_model_for_a_refused_tokenizer_json(folder):
    (folder / "tokenizer.json").write_text('{"model": {"type": "WordPiece", "vocab": {}}}')
    with pytest.warns(FileWarning, match=r"'WordPiece' is not supported.*tokenizer.model is read"):
        tokenizer = read_tokenizer(folder)
    assert tokenizer.decode(tokenizer.encode("as")) == "as"
    (folder / "tokenizer.model").unlink()
    with pytest.raises(FileError, match="'WordPiece' is not supported"):
        read_tokenizer(folder)


def test_read_tokenizer_names_what_a_folder_lacks(tmp_path):
    with pytest.raises(FileError, match=r"expected tokenizer.json or tokenizer.model"):
        read_tokenizer(tmp_path)
