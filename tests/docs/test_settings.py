"""The page on settings says of every setting what the readers do with it."""

import dataclasses
import re
from collections.abc import Iterator
from typing import Any

import gguf
import pytest
from transformers import (
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
)

from helpers.pages import DOCS
from minispec.tools.models import gguf_config
from minispec.tools.models.hf_families import FAMILIES
from minispec.tools.models.hf_settings import COMMON

PAGE = (DOCS / "settings.md").read_text()
CONFIGS = [
    LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config, SmolLM3Config, Gemma3TextConfig
]  # fmt: skip
_VALUES = {"true": True, "false": False, "none": None, "{}": {}}


def read_values(title: str) -> dict[str, tuple[Any, ...]]:
    """The table with this title in its first column: the values of each setting."""
    table = PAGE.split(f"| {title} | values |\n| --- | --- |\n")[1].split("\n\n")[0]
    found = {}
    for row in table.splitlines():
        name, values = (re.findall(r"`([^`]*)`", cell) for cell in row.strip("| ").split(" | "))
        found[name[0]] = tuple(map(parse_value, values))
    return found


def parse_value(text: str) -> Any:
    if text in _VALUES:
        return _VALUES[text]
    return float(text) if re.fullmatch(r"-?[\d.]+", text) else text


def test_page_has_the_values_that_a_folder_may_have():
    assert read_values("setting in a folder") == COMMON
    own, free = dict[str, tuple[Any, ...]](), set[str]()
    for kind, family in FAMILIES.items():
        changed = {n: values for n, values in family.only.items() if COMMON.get(n) != values}
        own |= {f"{kind}.{name}": values for name, values in changed.items()}
        free |= {f"{kind}.{name}" for name in COMMON.keys() - family.only.keys()}
    assert read_values("setting of a family in a folder") == own
    listed = PAGE.split("Any value: ")[1].split("\n\n")[0]
    assert {*re.findall("`([^`]*)`", listed)} == free


def test_page_has_the_values_that_a_gguf_file_may_have():
    assert read_values("setting in a GGUF file") == gguf_config._NEUTRAL


@pytest.mark.parametrize("config", CONFIGS)
def test_page_names_every_setting_of_transformers(config):
    missing = {f.name for f in dataclasses.fields(config) if f"`{f.name}`" not in PAGE}
    assert not missing


def test_page_names_every_setting_that_is_read():
    read = {*gguf_config._READ, *gguf_config._IRRELEVANT}
    for family in FAMILIES.values():
        read |= {*family.settings.__struct_fields__}
    assert {name for name in read if f"`{name}`" not in PAGE and f"`{name}." not in PAGE} == set()


def list_keys(keys: type) -> Iterator[str]:
    for value in vars(keys).values():
        if isinstance(value, type):
            yield from list_keys(value)
        elif isinstance(value, str) and value.startswith("{arch}."):
            yield value.removeprefix("{arch}.")


@pytest.mark.parametrize("key", sorted({*list_keys(gguf.Keys)}))
def test_read_config_reads_or_refuses_every_setting_that_gguf_has(key):
    metadata = {
        "general.architecture": "llama", "tokenizer.ggml.tokens": ["a"],
        "llama.block_count": 2, "llama.context_length": 9, "llama.embedding_length": 8,
        "llama.feed_forward_length": 9, "llama.attention.head_count": 2,
        "llama.attention.layer_norm_rms_epsilon": 0.1,
    }  # fmt: skip
    metadata[f"llama.{key}"] = "strange"
    try:
        gguf_config.read_config(metadata, tied=True, rope_factors=None)
    except ValueError as error:
        assert key in str(error)
    else:
        assert key in gguf_config._IRRELEVANT
