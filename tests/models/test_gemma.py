"""Gemma 3 is transformers' Gemma 3, reads any chunk alike, and is read from both kinds of file."""

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
from helpers.features import max_error
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


def random_config(seed: int) -> Gemma3TextConfig:
    """A shape drawn at random; windows so small that they hide most of the text."""
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


def saved(folder: Path, config: Gemma3TextConfig, **options: Any) -> Gemma3ForCausalLM:
    """A model with random weights, and in ``folder`` what transformers saves of it."""
    torch.manual_seed(0)
    model = Gemma3ForCausalLM(config).eval()
    for name, weight in model.named_parameters():
        if "norm" in name:  # all zeros from the start, where an error would not show
            weight.data.uniform_(-0.5, 0.5)
    model.save_pretrained(folder, **options)
    write_byte_tokenizer(folder)
    return model


@pytest.mark.parametrize("seed", range(16))
def test_logits_of_random_shapes_are_those_of_transformers(tmp_path, seed):
    model = saved(tmp_path, random_config(seed))
    assert relative_error(our_logits(tmp_path, IDS), model, IDS) < 1e-4


def test_random_shapes_cover_what_matters():
    configs = [random_config(seed) for seed in range(16)]
    assert {c.tie_word_embeddings for c in configs} == {True, False}
    assert {kind for c in configs for kind in c.layer_types} == {
        "sliding_attention",
        "full_attention",
    }
    assert any(len(set(c.layer_types)) == 2 and c.sliding_window < 20 for c in configs)
    assert any(c.query_pre_attn_scalar != c.head_dim for c in configs)


def tight() -> Gemma3TextConfig:
    """Seven layers, of which one is global, and a window of four."""
    config = random_config(1)
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
def test_each_setting_matters(tmp_path, change):
    config = tight()
    config.rope_parameters["full_attention"]["rope_theta"] = 500.0
    model = saved(tmp_path, config)
    assert relative_error(our_logits(tmp_path, IDS), model, IDS) < 1e-4
    edit_config(tmp_path, lambda data: data.update(change))
    assert relative_error(our_logits(tmp_path, IDS), model, IDS) > 1e-3


def test_older_files_say_ropes_and_layers_in_other_words(tmp_path):
    model = saved(tmp_path, tight())

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
        ({"architectures": ["Gemma2ForCausalLM"]}, ["Gemma2ForCausalLM", "Gemma 3's"]),
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
def test_what_is_beyond_the_model_is_refused_by_name(tmp_path, change, words):
    saved(tmp_path, tight())
    edit_config(tmp_path, lambda data: data.update(change))
    assert_refused(tmp_path, *words)


def test_settings_without_sense_are_refused():
    with pytest.raises(ArgumentError, match="unknown activation 'relu'"):
        replace(MODEL.config, activation="relu")
    with pytest.raises(ArgumentError, match="window"):
        replace(MODEL.config, sliding_window=None)


def test_only_a_gemma_is_said_to_be_more_than_a_llama():
    assert toy_transformer().config.beyond_llama == ()
    assert set(MODEL.config.beyond_llama) == GEMMA.keys() - {"sliding_window"}


# ------------------------------------------------------------------ chunks and rollback

ids = st.integers(0, MODEL.config.vocab_size - 1)
histories = st.lists(st.lists(ids, max_size=7) | st.integers(0, 20), min_size=1, max_size=8)


def naive(tokens: list[int]) -> Features:
    """One fresh pass, in which each token is read alone with just what its window shows: the
    caches of local layers hold nothing else."""
    cache = MODEL.new_cache(64)
    parts = []
    for place, token in enumerate(tokens):
        for layer in MODEL.config.local_layers:
            hidden = max(0, place + 1 - GEMMA["sliding_window"])
            cache.keys[layer - 1, :, :hidden] = float("nan")
            cache.values[layer - 1, :, :hidden] = float("nan")
        parts.append(MODEL.step(torch.tensor([token]), cache))
    hidden, aux_hidden_states = zip(*((f.hidden, f.aux_hidden_states) for f in parts), strict=True)
    return Features(torch.cat(hidden), torch.cat(aux_hidden_states))


def check(history: list[list[int] | int]) -> None:
    cache, held = MODEL.new_cache(64), []
    for event in history:
        if isinstance(event, int):
            cache.truncate(event)
            held = held[:event]
        elif event:
            features = MODEL.step(torch.tensor(event), cache)
            held = held + event
            expected = naive(held)
            start = len(held) - len(event)
            expected = Features(expected.hidden[start:], expected.aux_hidden_states[start:])
            assert torch.isfinite(expected.hidden).all(), "looks behind its window"
            assert max_error(features, expected) < 1e-10


@settings(max_examples=60)
@given(histories)
def test_any_chunking_and_any_rollback_sees_just_the_window(history):
    check(history)


def a_window_too_wide(self: Rope, cache: Any, new: int) -> Any:
    window, self.window = self.window, self.window and self.window + 1
    try:
        return _metadata(self, cache, new)
    finally:
        self.window = window


def no_window_in_chunks(self: Rope, cache: Any, new: int) -> Any:
    window, self.window = self.window, self.window if new == 1 else None
    try:
        return _metadata(self, cache, new)
    finally:
        self.window = window


_metadata = Rope.attention_metadata


@pytest.mark.parametrize("defect", [a_window_too_wide, no_window_in_chunks])
def test_a_planted_defect_is_found(monkeypatch, defect: Callable):
    monkeypatch.setattr(Rope, "attention_metadata", defect)
    with pytest.raises(AssertionError):
        check([list(range(9)), 6, [1, 2, 3]])


def test_rows_of_different_lengths_equal_each_row_alone():
    cache = MODEL.new_cache(20, 3)
    pasts = [[1, 2], [3] * 9, []]
    for row, past in enumerate(pasts):
        alone = cache.sequence(row)
        MODEL(torch.tensor([past], dtype=torch.int64), alone)
        cache.lengths[row] = alone.length
    new = torch.arange(12).reshape(3, 4)
    parts = [MODEL(part, cache) for part in (new[:, :1], new[:, 1:])]
    for row, past in enumerate(pasts):
        expected = naive(past + new[row].tolist())
        found = Features(
            torch.cat([part.hidden[row] for part in parts]),
            torch.cat([part.aux_hidden_states[row] for part in parts]),
        )
        assert (
            max_error(
                found,
                Features(expected.hidden[len(past) :], expected.aux_hidden_states[len(past) :]),
            )
            < 1e-10
        )


# ------------------------------------------------------------------ GGUF files


def small_target(**changes: Any) -> Transformer:
    sizes = dict(
        vocab_size=300, num_hidden_layers=7, aux_hidden_state_layer_ids=(1, 4, 7), sliding_window=4
    )
    settings = GEMMA | dict(local_layers=(1, 2, 3, 4, 5, 7), attention_scale=None) | sizes
    return toy_transformer(**settings | changes).float()


def write_gguf(path: Path, model: Transformer, **fields: Any) -> None:
    """Writes a model as llama.cpp's converter does: names, metadata, norms as 1 + w."""
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
        writer.add_tensor(file_name(name), np.ascontiguousarray(weight.numpy()))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


_FILE_NAMES = {
    new: old
    for old, new in (gguf_file._NAMES | gguf_file._LAYER_NAMES | gguf_file._GEMMA_NAMES).items()
}


def file_name(name: str) -> str:
    if name.startswith("layers."):
        _, index, part = name.removesuffix(".weight").split(".", 2)
        return f"blk.{index}.{_FILE_NAMES[part]}.weight"
    return f"{_FILE_NAMES[name.removesuffix('.weight')]}.weight"


def logits(model: Transformer) -> Tensor:
    ids = torch.arange(0, 250, 5)
    return model.head.logits(model.step(ids, model.new_cache(len(ids))).hidden)


def test_a_gguf_file_is_the_model_that_was_written(tmp_path):
    path, model = tmp_path / "x.gguf", small_target()
    write_gguf(path, model)
    loaded = pretrained.load(str(path))
    assert torch.equal(logits(loaded.target), logits(model))
    tokenizer = loaded.tokenizer
    assert (tokenizer.bos_id, tokenizer.eos_ids, tokenizer.vocab_size) == (2, (1,), 300)
    for text in ("abc ab", "", " a  b\n\nc", "naïve ☃\x00"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    names = [tokenizer.token_bytes(i) for i in tokenizer.encode("abc ab  \n\nc")]
    assert names == [b"abc", b" ab", b"  ", b"\n\n", b"c"]


def test_the_files_of_both_kinds_are_one_model(tmp_path):
    """A folder's norms are w, a GGUF file's 1 + w; neither's rotary pairs are neighbours."""
    config = tight()
    config.query_pre_attn_scalar = config.head_dim
    config.tie_word_embeddings = True
    config.rope_parameters["sliding_attention"]["rope_theta"] = 1e4
    config.vocab_size = 300
    saved(tmp_path, config)
    folder, _ = hf_folder.load(tmp_path)
    write_gguf(tmp_path / "x.gguf", folder)
    assert torch.equal(logits(gguf_file.load(tmp_path / "x.gguf")[0]), logits(folder))


# ------------------------------------------------------------------ backends and the head


def test_a_backend_that_does_not_know_gemma_says_what_it_misses():
    model = toy_transformer(**GEMMA).float()
    assert cpu.why_unsupported(model) is None
    reason = compiled.why_unsupported(model)
    assert reason is not None and "query_key_norm, post_norms, local_layers" in reason
    assert compiled.why_unsupported(toy_transformer().float()) is None


@pytest.mark.parametrize("shape", [Sampling(), Sampling(0.8, top_p=0.9)])
def test_a_pass_takes_no_more_of_the_head_than_its_laws_need(shape):
    """Never the prompt's rows; the laws hold no ids that the target rules out."""
    model = toy_transformer(**GEMMA)
    asked = []

    class Counted(LinearHead):
        def logits(self, hidden: Tensor) -> Tensor:
            asked.append(len(hidden))
            return super().logits(hidden)

    class Target(Transformer):
        head = property(lambda self: Counted(self.embedding.weight))

    model.__class__ = Target
    with torch.random.fork_rng():
        torch.manual_seed(0)
        guesser = init_from_target(toy_transformer(**GEMMA)).requires_grad_(False)
    rounds = list(
        speculative(
            model,
            guesser,
            FullShortlist(50),
            list(range(40)),
            gamma=4,
            sampling=shape,
            rng=SeededRandom(0),
            stop=StopRule(12),
            trace=True,
        )
    )
    assert asked == [1 + len(finished.proposed) for finished in rounds]
    for finished in rounds:
        assert finished.evidence is not None
        assert all(
            (distribution.probs > 0).all()
            for distribution in finished.evidence.target_distributions
        )


def test_the_untrained_draft_is_the_last_layer_in_the_units_of_its_states():
    """Fed by a tap of the layer before, and with its own embedding half silent, it computes
    what the target's last layer does."""
    model = toy_transformer(**GEMMA | dict(local_layers=(1, 2)), aux_hidden_state_layer_ids=(1, 2))
    guesser = init_from_target(model)
    for name in ("query", "key", "value"):
        getattr(guesser.attention, name).weight.data[:, :24] = 0
    ids = torch.arange(12)
    features = model.step(ids, model.new_cache(12))
    output = guesser.step(ids, guesser.fuse(features.aux_hidden_states), guesser.new_cache(12))
    assert torch.allclose(guesser.apply_final_norm(output), features.hidden, atol=1e-4)
