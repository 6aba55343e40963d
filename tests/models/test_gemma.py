"""Gemma 3: as in transformers, the same for any chunks, and from both kinds of file."""

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

from fastpath.compiled import backend as compiled
from fastpath.cpu import backend as cpu
from helpers.conformity import (
    IDS,
    assert_refused,
    edit_config,
    our_logits,
    relative_error,
    write_byte_tokenizer,
)
from helpers.features import drop_positions, max_error
from helpers.tiny_model import gguf_writer
from helpers.toys import GEMMA, toy_transformer
from minispec.commit import StopRule
from minispec.decode import speculative
from minispec.errors import ArgumentError
from minispec.models.eagle_draft import init_from_target
from minispec.models.lm_head import LinearHead
from minispec.models.rope import Rope
from minispec.models.transformer import Transformer
from minispec.sampling import Sampling, SeededRandom
from minispec.shortlists.full import FullShortlist
from minispec.tools.models import gguf_file, hf_folder, pretrained
from minispec.types import Features

MODEL = toy_transformer(**GEMMA)


def draw_config(seed: int) -> Gemma3TextConfig:
    """A shape drawn at random, with windows much smaller than the text."""
    rng = random.Random(seed)
    num_key_value_heads, group = rng.choice([1, 2, 3]), rng.choice([1, 2, 4])
    layers = rng.choice([1, 2, 7])
    kinds = ["sliding_attention", "full_attention"]
    return Gemma3TextConfig(
        vocab_size=rng.choice([256, 301]),
        hidden_size=num_key_value_heads * group * rng.choice([6, 8, 16]),
        intermediate_size=rng.choice([17, 40]),
        num_hidden_layers=layers,
        num_attention_heads=num_key_value_heads * group,
        num_key_value_heads=num_key_value_heads,
        head_dim=rng.choice([8, 20]),
        max_position_embeddings=64,
        rms_norm_eps=rng.choice([1e-6, 1e-2]),
        query_pre_attn_scalar=rng.choice([3, 20, 100]),
        sliding_window=rng.choice([1, 4, 20, 100]),
        layer_types=None if seed % 2 else [rng.choice(kinds) for _ in range(layers)],
        rope_parameters={
            "full_attention": {"rope_type": "default", "rope_theta": rng.choice([500.0, 1e6])},
            "sliding_attention": {"rope_type": "default", "rope_theta": rng.choice([100.0, 1e4])},
        },
        tie_word_embeddings=rng.random() < 0.5,
        initializer_range=0.2,
        pad_token_id=0,
    )


def save_model(folder: Path, config: Gemma3TextConfig, **options: Any) -> Gemma3ForCausalLM:
    """A model with random weights, which transformers saves to ``folder``."""
    torch.manual_seed(0)
    model = Gemma3ForCausalLM(config).eval()
    for name, weight in model.named_parameters():
        if "norm" in name:  # initially all zeros, which would hide an error
            weight.data.uniform_(-0.5, 0.5)
    model.save_pretrained(folder, **options)
    write_byte_tokenizer(folder)
    return model


@pytest.mark.parametrize("seed", range(16))
def test_load_gives_the_logits_of_transformers(tmp_path, seed):
    model = save_model(tmp_path, draw_config(seed))
    assert relative_error(our_logits(tmp_path, IDS), model, IDS) < 1e-4


def test_draw_config_covers_what_matters():
    configs = [draw_config(seed) for seed in range(16)]
    assert {c.tie_word_embeddings for c in configs} == {True, False}
    assert {kind for c in configs for kind in c.layer_types} == {
        "sliding_attention",
        "full_attention",
    }
    assert any(len(set(c.layer_types)) == 2 and c.sliding_window < 20 for c in configs)
    assert any(c.query_pre_attn_scalar != c.head_dim for c in configs)


def build_config() -> Gemma3TextConfig:
    """Seven layers, one of them global, and a window of four."""
    config = draw_config(1)
    config.num_hidden_layers, config.sliding_window = 7, 4
    config.layer_types = ["sliding_attention"] * 5 + ["full_attention", "sliding_attention"]
    return config


@pytest.mark.parametrize(
    "change",
    [
        {"sliding_window": 5},
        {"query_pre_attn_scalar": 21},
        {"layer_types": ["sliding_attention"] * 7},
        {"rms_norm_eps": 0.1},
        {"hidden_activation": "gelu_pytorch_tanh", "rope_parameters": {}},
    ],
    ids=lambda change: ",".join(change),
)
def test_load_uses_each_setting(tmp_path, change):
    config = build_config()
    config.rope_parameters["full_attention"]["rope_theta"] = 500.0
    model = save_model(tmp_path, config)
    assert relative_error(our_logits(tmp_path, IDS), model, IDS) < 1e-4
    edit_config(tmp_path, lambda data: data.update(change))
    assert relative_error(our_logits(tmp_path, IDS), model, IDS) > 1e-3


def test_load_reads_the_settings_of_older_files(tmp_path):
    model = save_model(tmp_path, build_config())

    def older(data: dict[str, Any]) -> None:
        ropes = data.pop("rope_parameters")
        data["rope_theta"] = ropes["full_attention"]["rope_theta"]
        data["rope_local_base_freq"] = ropes["sliding_attention"]["rope_theta"]
        del data["layer_types"]
        data["sliding_window_pattern"] = 6

    edit_config(tmp_path, older)
    assert relative_error(our_logits(tmp_path, IDS), model, IDS) < 1e-4


@pytest.mark.parametrize(
    "change, words",
    [
        (
            {"architectures": ["Gemma2ForCausalLM"]},
            ["Gemma2ForCausalLM", "must be one of LlamaForCausalLM"],
        ),
        ({"final_logit_softcapping": 30.0}, ["final_logit_softcapping", "30.0"]),
        ({"attn_logit_softcapping": 50.0}, ["attn_logit_softcapping"]),
        ({"use_bidirectional_attention": True}, ["use_bidirectional_attention"]),
        ({"hidden_activation": "relu"}, ["hidden_activation", "relu"]),
        ({"attention_bias": True}, ["attention_bias"]),
        ({"layer_types": ["full_attention"]}, ["layer_types"]),
        ({"layer_types": ["chunked_attention"] * 7}, ["chunked_attention"]),
        ({"rope_parameters": {"full_attention": {"rope_type": "linear"}}}, ["linear"]),
        ({"sliding_window": -3}, ["window", "-3"]),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_load_refuses_unsupported_settings_by_name(tmp_path, change, words):
    save_model(tmp_path, build_config())
    edit_config(tmp_path, lambda data: data.update(change))
    assert_refused(tmp_path, *words)


def test_model_config_refuses_invalid_settings():
    with pytest.raises(ArgumentError, match="unknown activation 'relu'"):
        replace(MODEL.config, activation="relu")
    with pytest.raises(ArgumentError, match="window"):
        replace(MODEL.config, sliding_window=None)


def test_beyond_llama_names_the_settings_of_gemma():
    assert toy_transformer().config.beyond_llama == ()
    assert set(MODEL.config.beyond_llama) == GEMMA.keys() - {"sliding_window"}


# ------------------------------------------------------------------ chunks and rollback

ids = st.integers(0, MODEL.config.vocab_size - 1)
histories = st.lists(st.lists(ids, max_size=7) | st.integers(0, 20), min_size=1, max_size=8)


def run_naively(tokens: list[int]) -> Features:
    """One fresh pass, token by token, in which the caches of local layers hold the window alone:
    all other keys and values are NaN."""
    cache = MODEL.new_cache(64)
    parts = []
    for position, token in enumerate(tokens):
        for layer in MODEL.config.local_layers:
            hidden = max(0, position + 1 - GEMMA["sliding_window"])
            cache.keys[layer - 1, :, :hidden] = float("nan")
            cache.values[layer - 1, :, :hidden] = float("nan")
        parts.append(MODEL.step(torch.tensor([token]), cache))
    hidden, aux_hidden_states = zip(*((f.hidden, f.aux_hidden_states) for f in parts), strict=True)
    return Features(torch.cat(hidden), torch.cat(aux_hidden_states))


def check(history: list[list[int] | int]) -> None:
    """Every pass gives the features of a naive pass over all tokens."""
    cache, tokens = MODEL.new_cache(64), []
    for event in history:
        if isinstance(event, int):
            cache.truncate(event)
            tokens = tokens[:event]
        elif event:
            features = MODEL.step(torch.tensor(event), cache)
            expected = drop_positions(run_naively(tokens + event), len(tokens))
            tokens = tokens + event
            assert torch.isfinite(expected.hidden).all(), "attends to positions before its window"
            assert max_error(features, expected) < 1e-10


@settings(max_examples=60)
@given(histories)
def test_step_attends_to_the_window_for_any_chunks_and_rollbacks(history):
    check(history)


def widen_window(self: Rope, cache: Any, new: int, *tree: Any) -> Any:
    window, self.window = self.window, self.window and self.window + 1
    try:
        return _metadata(self, cache, new, *tree)
    finally:
        self.window = window


def drop_window_in_chunks(self: Rope, cache: Any, new: int, *tree: Any) -> Any:
    window, self.window = self.window, self.window if new == 1 else None
    try:
        return _metadata(self, cache, new, *tree)
    finally:
        self.window = window


_metadata = Rope.attention_metadata


@pytest.mark.parametrize("defect", [widen_window, drop_window_in_chunks])
def test_check_finds_planted_defects(monkeypatch, defect: Callable):
    monkeypatch.setattr(Rope, "attention_metadata", defect)
    with pytest.raises(AssertionError):
        check([list(range(9)), 6, [1, 2, 3]])


def test_forward_treats_each_sequence_of_a_batch_as_if_alone():
    cache = MODEL.new_cache(20, 3)
    pasts = [[1, 2], [3] * 9, []]
    for index, past in enumerate(pasts):
        alone = cache.sequence(index)
        MODEL(torch.tensor([past], dtype=torch.int64), alone)
        cache.lengths[index] = alone.length
    new = torch.arange(12).reshape(3, 4)
    parts = [MODEL(part, cache) for part in (new[:, :1], new[:, 1:])]
    for index, past in enumerate(pasts):
        features = Features(
            torch.cat([part.hidden[index] for part in parts]),
            torch.cat([part.aux_hidden_states[index] for part in parts]),
        )
        expected = drop_positions(run_naively(past + new[index].tolist()), len(past))
        assert max_error(features, expected) < 1e-10


# ------------------------------------------------------------------ GGUF files


def build_target(**changes: Any) -> Transformer:
    sizes = dict(
        vocab_size=300, num_hidden_layers=7, aux_hidden_state_layer_ids=(1, 4, 7), sliding_window=4
    )
    settings = GEMMA | dict(local_layers=(1, 2, 3, 4, 5, 7), attention_scale=None) | sizes
    return toy_transformer(**settings | changes).float()


def write_gguf(path: Path, model: Transformer, **fields: Any) -> None:
    """Write a model as llama.cpp's converter does: names, metadata, norms as 1 + w."""
    config = model.config
    fields = {"attention.sliding_window": config.sliding_window} | fields
    writer = gguf_writer(path, "gemma3", config, **fields)
    pieces = ["<pad>", "<eos>", "<bos>", "<unk>", *[f"<0x{b:02X}>" for b in range(256)]]
    words = ["\n\n", "  ", *"\u2581abcdef", "ab", "\u2581ab", "abc"]
    words += [f"{a}{b}" for a in "abcdef" for b in "abcdef"][: 300 - len(pieces) - len(words)]
    words = [*dict.fromkeys(words), *"ghijklmn"][: 300 - len(pieces)]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(pieces + words)
    writer.add_token_scores([0.0] * len(pieces) + [-float(i) for i in range(len(words))])
    writer.add_token_types([3] * 4 + [6] * 256 + [4, 4] + [1] * (len(words) - 2))
    for key, value in (("bos", 2), ("eos", 1), ("unk", 3)):
        getattr(writer, f"add_{key}_token_id")(value)
    writer.add_add_space_prefix(False)
    for name, weight in model.state_dict().items():
        writer.add_tensor(name_in_file(name), np.ascontiguousarray(weight.numpy()))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


_FILE_NAMES = {
    new: old
    for old, new in (
        gguf_file._NAMES
        | gguf_file._LAYER_NAMES
        | gguf_file._NORM_NAMES
        | gguf_file._POST_NORM_NAMES
    ).items()
}


def name_in_file(name: str) -> str:
    """The GGUF name of a tensor of ours."""
    if name.startswith("layers."):
        _, index, part = name.removesuffix(".weight").split(".", 2)
        return f"blk.{index}.{_FILE_NAMES[part]}.weight"
    return f"{_FILE_NAMES[name.removesuffix('.weight')]}.weight"


def compute_logits(model: Transformer) -> Tensor:
    ids = torch.arange(0, 250, 5)
    return model.head.logits(model.step(ids, model.new_cache(len(ids))).hidden)


def test_load_reads_back_a_gguf_file(tmp_path):
    path, model = tmp_path / "x.gguf", build_target()
    write_gguf(path, model)
    loaded = pretrained.load(str(path))
    assert torch.equal(compute_logits(loaded.target), compute_logits(model))
    tokenizer = loaded.tokenizer
    assert (tokenizer.bos_id, tokenizer.eos_ids, tokenizer.vocab_size) == (2, (1,), 300)
    for text in ("abc ab", "", " a  b\n\nc", "naïve ☃\x00"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    names = [tokenizer.token_bytes(i) for i in tokenizer.encode("abc ab  \n\nc")]
    assert names == [b"abc", b" ab", b"  ", b"\n\n", b"c"]


def test_folder_and_gguf_file_give_the_same_model(tmp_path):
    """A folder has norms w, a GGUF file 1 + w; in both, rotary pairs lie head_dim / 2 apart."""
    config = build_config()
    config.query_pre_attn_scalar = config.head_dim
    config.tie_word_embeddings = True
    config.rope_parameters["sliding_attention"]["rope_theta"] = 1e4
    config.vocab_size = 300
    save_model(tmp_path, config)
    folder, _ = hf_folder.load(tmp_path)
    write_gguf(tmp_path / "x.gguf", folder)
    assert torch.equal(
        compute_logits(gguf_file.load(tmp_path / "x.gguf")[0]), compute_logits(folder)
    )


# ------------------------------------------------------------------ backends and the head


def test_backend_names_the_settings_that_it_does_not_support():
    model = toy_transformer(**GEMMA).float()
    assert cpu.why_unsupported(model) is None
    reason = compiled.why_unsupported(model)
    assert reason is not None and "attention_scale, post_norms, local_layers" in reason
    assert compiled.why_unsupported(toy_transformer().float()) is None


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(0.8, top_p=0.9)])
def test_speculative_computes_only_the_logits_it_needs(sampling):
    """None for the prompt; target distributions omit the ids of probability zero."""
    model = toy_transformer(**GEMMA)
    positions = []

    class CountingHead(LinearHead):
        def logits(self, hidden: Tensor) -> Tensor:
            positions.append(len(hidden))
            return super().logits(hidden)

    class Target(Transformer):
        head = property(lambda self: CountingHead(self.embedding.weight))

    model.__class__ = Target
    with torch.random.fork_rng():
        torch.manual_seed(0)
        draft = init_from_target(toy_transformer(**GEMMA)).requires_grad_(False)
    rounds = list(
        speculative(
            model,
            draft,
            FullShortlist(50),
            list(range(40)),
            gamma=4,
            sampling=sampling,
            rng=SeededRandom(0),
            stop=StopRule(12),
            trace=True,
        )
    )
    assert positions == [1 + len(finished.proposed) for finished in rounds]
    for finished in rounds:
        assert finished.evidence is not None
        assert all(
            (distribution.probs > 0).all()
            for distribution in finished.evidence.target_distributions
        )


def test_init_from_target_repeats_the_last_layer_in_the_units_of_its_states():
    """Given the output of the layer before, and with zero weights for the embedding, the draft
    computes what the target's last layer does."""
    model = toy_transformer(**GEMMA | dict(local_layers=(1, 2)), aux_hidden_state_layer_ids=(1, 2))
    draft = init_from_target(model)
    for name in ("query", "key", "value"):
        getattr(draft.attention, name).weight.data[:, :24] = 0
    ids = torch.arange(12)
    features = model.step(ids, model.new_cache(12))
    output = draft.step(ids, draft.fuse(features.aux_hidden_states), draft.new_cache(12))
    assert torch.allclose(draft.apply_final_norm(output), features.hidden, atol=1e-4)
