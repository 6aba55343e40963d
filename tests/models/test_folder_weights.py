"""Weights, end ids and the head of a folder: taken from all of its files, or refused by name."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from helpers.conformity import (
    IDS,
    assert_refused,
    edit_config,
    our_logits,
    relative_error,
    write_byte_tokenizer,
)
from minispec.errors import FileWarning, TextError
from minispec.tools.models import hf_folder

SHAPE = dict(
    vocab_size=258,
    hidden_size=32,
    intermediate_size=24,
    num_hidden_layers=1,
    num_attention_heads=4,
    max_position_embeddings=64,
    initializer_range=0.4,
    eos_token_id=None,
    bos_token_id=None,
)
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


def save_model(folder: Path, **changes: Any) -> None:
    torch.manual_seed(0)
    options = {"max_shard_size": changes.pop("max_shard_size", "50GB")}
    LlamaForCausalLM(LlamaConfig(**SHAPE | changes)).save_pretrained(folder, **options)
    write_byte_tokenizer(folder)


def change_tensors(folder: Path, changes: dict[str, Any], name: str = "model.safetensors") -> None:
    """Replace tensors of a file; None removes one."""
    tensors = load_file(folder / name) | changes
    kept = {key: value for key, value in tensors.items() if value is not None}
    save_file(kept, folder / name, {"format": "pt"})


def tie(folder: Path, tied: bool | None) -> None:
    edit_config(folder, lambda data: data.update(tie_word_embeddings=tied))


# ------------------------------------------------------------------ the head


def test_load_keeps_a_head_that_differs_from_the_embedding_and_warns(tmp_path):
    save_model(tmp_path, tie_word_embeddings=False)
    tie(tmp_path, True)
    with pytest.warns(FileWarning, match="tie_word_embeddings is true, but lm_head.weight"):
        logits = our_logits(tmp_path, IDS)
    assert relative_error(logits, LlamaForCausalLM.from_pretrained(tmp_path), IDS) < 1e-4
    with pytest.warns(FileWarning):
        assert not hf_folder.load(tmp_path)[0].config.tie_word_embeddings


@pytest.mark.parametrize("kept", [(HEAD,), (EMBEDDING,), (EMBEDDING, HEAD)], ids=",".join)
def test_load_ties_a_head_that_is_the_embedding(tmp_path, kept):
    save_model(tmp_path, tie_word_embeddings=True)
    rows = load_file(tmp_path / "model.safetensors")[EMBEDDING]
    change_tensors(tmp_path, {n: rows.clone() if n in kept else None for n in (HEAD, EMBEDDING)})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model, _ = hf_folder.load(tmp_path)
    assert model.config.tie_word_embeddings and torch.equal(model.embedding.weight, rows)
    theirs = LlamaForCausalLM.from_pretrained(tmp_path)
    assert relative_error(our_logits(tmp_path, IDS), theirs, IDS) < 1e-4


@pytest.mark.parametrize("tied", [False, None])
def test_load_refuses_a_missing_head_by_its_name_in_the_file(tmp_path, tied):
    save_model(tmp_path, tie_word_embeddings=True)
    tie(tmp_path, tied)
    assert_refused(tmp_path, "lm_head.weight", "tie_word_embeddings", "config.json", "true")


def test_load_names_missing_tensors_as_the_file_does(tmp_path):
    save_model(tmp_path)
    change_tensors(tmp_path, {"model.layers.0.mlp.up_proj.weight": None})
    assert_refused(tmp_path, "lacks 1 tensors", "model.layers.0.mlp.up_proj.weight")


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.00.mlp.up_proj.weight",
        "model.layers.-1.mlp.up_proj.weight",
        "model.layers.0.lm_head.weight",
        "model.norm",
    ],
)
def test_load_refuses_tensors_with_other_names(tmp_path, name):
    save_model(tmp_path)
    change_tensors(tmp_path, {name: torch.ones(2)})
    assert_refused(tmp_path, "unexpected tensor", name)


# ------------------------------------------------------------------ end ids


def write_ends(folder: Path, generation: Any, config: Any) -> None:
    edit_config(folder, lambda data: data.update(eos_token_id=config))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": generation}))


@pytest.mark.parametrize(
    "generation, config, ends",
    [
        (None, None, ()),
        (5, None, (5,)),
        (None, 6, (6,)),
        ([5, 7], 6, (5, 7, 6)),
        ([5, 7], [7, 8], (5, 7, 8)),
        (-1, [257], (257,)),
    ],
)
def test_load_unites_the_end_ids_of_all_files(tmp_path, generation, config, ends):
    save_model(tmp_path)
    write_ends(tmp_path, generation, config)
    assert hf_folder.load(tmp_path)[1].eos_ids == ends


def test_load_reads_end_ids_without_a_generation_config(tmp_path):
    save_model(tmp_path, eos_token_id=[3, 4])
    (tmp_path / "generation_config.json").unlink()
    assert hf_folder.load(tmp_path)[1].eos_ids == (3, 4)


def test_load_warns_of_an_end_id_that_the_model_lacks(tmp_path):
    save_model(tmp_path)
    write_ends(tmp_path, [3, 400], None)
    with pytest.warns(FileWarning, match="400 is outside the model's 258 ids"):
        assert hf_folder.load(tmp_path)[1].eos_ids == (3,)


@pytest.mark.parametrize("content", ["[]", '{"eos_token_id": "3"}', '{"eos_token_id": 3.5}', "{"])
def test_load_refuses_a_damaged_generation_config(tmp_path, content):
    save_model(tmp_path)
    (tmp_path / "generation_config.json").write_text(content)
    assert_refused(tmp_path, "generation_config.json")


def add_token(folder: Path, name: str, special: bool) -> int:
    """Add one token to the tokenizer; returns its id."""
    path = folder / "tokenizer.json"
    data = json.loads(path.read_text())
    plain = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": False}
    token = {"id": 256 + len(data["added_tokens"]), "content": name, "special": special}
    data["added_tokens"].append(token | plain)
    path.write_text(json.dumps(data))
    return token["id"]


def test_load_drops_special_ids_without_rows(tmp_path):
    save_model(tmp_path, vocab_size=257)
    kept, lost = add_token(tmp_path, "<end>", True), add_token(tmp_path, "<pad>", True)
    write_ends(tmp_path, kept, None)
    model, tokenizer = hf_folder.load(tmp_path)
    assert model.config.vocab_size == tokenizer.vocab_size == 257 == lost
    assert tokenizer.encode("<end>", special=True) == [kept] and tokenizer.eos_ids == (kept,)
    with pytest.raises(TextError, match="'<pad>' has id 257"):
        tokenizer.encode("a <pad>", special=True)


def test_load_refuses_ids_of_text_without_rows(tmp_path):
    save_model(tmp_path, vocab_size=256)
    add_token(tmp_path, "<word>", False)
    assert_refused(tmp_path, "257 ids", "256 rows")


# ------------------------------------------------------------------ files


def read_index(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "model.safetensors.index.json").read_text())


def write_index(folder: Path, weight_map: Any) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def save_shards(folder: Path) -> dict[str, str]:
    save_model(folder, max_shard_size="20KB", tie_word_embeddings=False)
    weight_map: dict[str, str] = read_index(folder)["weight_map"]
    assert len(set(weight_map.values())) > 2
    return weight_map


@pytest.mark.parametrize(
    "name",
    [
        "../x.safetensors",
        "/etc/x.safetensors",
        "a/b.safetensors",
        "x.bin",
        "",
        "..",
        "a\0.safetensors",
    ],
)
def test_load_refuses_shards_outside_the_folder(tmp_path, name):
    weight_map = save_shards(tmp_path)
    write_index(tmp_path, weight_map | {HEAD: name})
    assert_refused(tmp_path, "index.json", "beside it")


@pytest.mark.parametrize("weight_map", [None, [], {"a": 1}, {"a": ["b"]}, "x"])
def test_load_refuses_an_index_of_another_form(tmp_path, weight_map):
    save_shards(tmp_path)
    write_index(tmp_path, weight_map)
    assert_refused(tmp_path, "index.json", "weight_map")


def test_load_refuses_a_shard_without_the_tensor_that_the_index_names(tmp_path):
    weight_map = save_shards(tmp_path)
    other = next(name for name in weight_map.values() if name != weight_map[HEAD])
    write_index(tmp_path, weight_map | {HEAD: other})
    assert_refused(tmp_path, other, "lm_head.weight", "index")


@pytest.mark.parametrize("change", [0, 1])
def test_load_refuses_a_tensor_in_two_shards_with_different_content(tmp_path, change):
    weight_map = save_shards(tmp_path)
    other = next(name for name in weight_map.values() if name != weight_map[HEAD])
    again = load_file(tmp_path / weight_map[HEAD])[HEAD]
    again[3, 4] += change
    change_tensors(tmp_path, {HEAD: again}, other)
    if change:
        assert_refused(tmp_path, "lm_head.weight", "differs")
    else:
        hf_folder.load(tmp_path)


def test_load_refuses_pickled_weights_by_name(tmp_path):
    save_model(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    assert_refused(tmp_path, ".bin", "save_pretrained")


def test_load_refuses_other_shapes_before_it_reads(tmp_path, monkeypatch):
    save_model(tmp_path)
    edit_config(tmp_path, lambda data: data.update(intermediate_size=2**19))
    monkeypatch.setattr(hf_folder, "_read", lambda *_: pytest.fail("read"))
    assert_refused(tmp_path, "model.safetensors", "mlp", "(24, 32)", "(524288, 32)")


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "model.safetensors"])
def test_load_refuses_devices_and_folders(tmp_path, name):
    save_model(tmp_path)
    (tmp_path / name).unlink()
    (tmp_path / name).symlink_to("/dev/zero")
    assert_refused(tmp_path, name, "a device")
    (tmp_path / name).unlink()
    (tmp_path / name).mkdir()
    assert_refused(tmp_path, name, "a folder")


@pytest.mark.parametrize(
    "name", ["config.json", "generation_config.json", "model.safetensors.index.json"]
)
def test_load_refuses_files_beyond_their_size(tmp_path, name):
    save_shards(tmp_path)
    with (tmp_path / name).open("ab") as file:
        file.truncate(2**27)
    assert_refused(tmp_path, name, "134,217,728 bytes, expected at most")


def test_load_refuses_an_adapter_beside_the_weights(tmp_path):
    save_model(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    assert_refused(tmp_path, "adapter_config.json", "merge")
