"""Llama, Mistral, Qwen 2, Qwen 3, SmolLM3 and Gemma 3: the logits and the text of transformers,
from any chunks and on the fast paths, or a refusal by name."""

from typing import Any

import pytest
import torch
from transformers.utils import logging

from fastpath.compiled import backend as compiled
from fastpath.cpu import backend as cpu
from helpers.conformity import IDS, assert_refused, edit_config, our_logits, relative_error
from helpers.families import (
    FAMILIES,
    decode_greedily,
    draw_settings,
    generate_greedily,
    save_model,
)
from helpers.features import max_error
from helpers.toys import toy_transformer
from minispec.models.eagle_draft import init_from_target
from minispec.models.rope import RopeScaling
from minispec.tools.models import hf_folder
from minispec.types import Features

logging.disable_progress_bar()

SEEDS = range(5)
CASES = [  # two of each family, and the others in `make slow`
    pytest.param(family, seed, marks=[pytest.mark.slow] if seed > 1 else [])
    for family in FAMILIES
    for seed in SEEDS
]
# The settings beyond a Llama's of these families, on a toy.
BEYOND: dict[str, dict[str, Any]] = {
    "biases": dict(attention_bias=True, output_bias=True),
    "norms": dict(query_key_norm=True, attention_bias=True),
    "no rope": dict(rope_free_layers=(2,)),
    "windows": dict(local_layers=(1, 2), sliding_window=5),
    "windows without rope": dict(
        local_layers=(2, 3), sliding_window=4, rope_free_layers=(3,), attention_bias=True,
        local_rope_theta=100.0, local_rope_scaling=RopeScaling(8.0, 1.0, 4.0, 16),
    ),
}  # fmt: skip


@pytest.mark.parametrize("family, seed", CASES)
def test_load_gives_the_logits_of_transformers(tmp_path, family, seed):
    model = save_model(tmp_path, family, draw_settings(family, seed))
    assert relative_error(our_logits(tmp_path, IDS), model, IDS) < 1e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_load_gives_the_greedy_text_of_transformers(tmp_path, family):
    model = save_model(tmp_path, family, draw_settings(family, 0))
    target, _ = hf_folder.load(tmp_path)
    prompt = IDS[:9].tolist()
    assert decode_greedily(target, prompt, 64) == generate_greedily(model, prompt, 64)


def test_draw_settings_covers_what_matters():
    drawn = {f: [draw_settings(f, seed) for seed in SEEDS] for f in FAMILIES}
    for family in ("llama", "qwen3", "smollm3"):
        assert {s["attention_bias"] for s in drawn[family]} == {True, False}
    for family in ("qwen2", "qwen3", "smollm3"):
        assert any("use_sliding_window" in s for s in drawn[family])
        assert not all("use_sliding_window" in s for s in drawn[family])
    windows = {s["sliding_window"] for s in drawn["mistral"]}
    assert None in windows and len(windows) > 1


@pytest.mark.parametrize(
    "family, change",
    [
        ("mistral", {"sliding_window": 6}),
        ("mistral", {"sliding_window": None}),
        ("qwen2", {"layer_types": ["full_attention"] * 4}),
        ("qwen2", {"use_sliding_window": False, "layer_types": None}),
        ("qwen3", {"rope_parameters": {"rope_type": "default", "rope_theta": 7.0}}),
        ("smollm3", {"no_rope_layers": [1, 1, 1, 1]}),
        ("smollm3", {"no_rope_layers": None, "no_rope_layer_interval": 3}),
        ("smollm3", {"rope_parameters": None}),
    ],
)
def test_load_uses_each_setting(tmp_path, family, change):
    settings = draw_settings(family, 0) | {"num_hidden_layers": 4, "sliding_window": 5}
    settings |= {"rope_parameters": {"rope_type": "default", "rope_theta": 100.0}}
    settings |= {"no_rope_layer_interval": 2} if family == "smollm3" else {}
    if family == "qwen2":
        settings |= {"use_sliding_window": True, "max_window_layers": 1}
    model = save_model(tmp_path, family, settings)
    assert relative_error(our_logits(tmp_path, IDS), model, IDS) < 1e-4
    edit_config(tmp_path, lambda data: data.update(change))
    assert relative_error(our_logits(tmp_path, IDS), model, IDS) > 1e-3


@pytest.mark.parametrize(
    "family, change, words",
    [
        ("mistral", {"layer_types": ["sliding_attention"] * 2}, ["layer_types", "Ministral"]),
        ("mistral", {"attention_bias": True}, ["attention_bias", "False"]),
        ("qwen2", {"attention_bias": False}, ["attention_bias", "True"]),
        ("qwen2", {"layer_types": ["sliding_attention"] * 2}, ["use_sliding_window"]),
        ("qwen3", {"layer_types": ["full_attention"]}, ["layer_types must be 2 times"]),
        ("qwen3", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, ["yarn"]),
        ("qwen3", {"num_experts": 4, "model_type": "qwen3_moe"}, ["qwen3_moe"]),
        ("smollm3", {"no_rope_layers": [1]}, ["no_rope_layers must be 2 numbers"]),
        ("smollm3", {"no_rope_layers": [2, 2]}, ["no_rope_layers"]),
        ("smollm3", {"attention_bias": True}, ["bias"]),
        ("llama", {"auto_map": {"AutoModelForCausalLM": "own.Model"}}, ["auto_map", "never run"]),
    ],
)
def test_load_refuses_what_is_not_supported_by_name(tmp_path, family, change, words):
    plain = {"num_hidden_layers": 2, "attention_bias": False, "mlp_bias": False}
    settings = draw_settings(family, 1) | plain | {"sliding_window": None, "layer_types": None}
    del settings["attention_bias" if family in ("mistral", "qwen2") else "layer_types"]
    save_model(tmp_path, family, settings | {"use_sliding_window": False})
    edit_config(tmp_path, lambda data: data.pop("layer_types", None))
    edit_config(tmp_path, lambda data: data.update(change))
    assert_refused(tmp_path, *words)


@pytest.mark.parametrize("name", BEYOND)
def test_step_gives_the_same_features_for_any_chunks(name):
    model, ids = toy_transformer(**BEYOND[name]), torch.arange(20)
    whole = model.step(ids, model.new_cache(20))
    cache = model.new_cache(20)
    parts = [model.step(part, cache) for part in ids.split([1, 7, 4, 8])]
    found = Features(*(torch.cat([getattr(p, side) for p in parts]) for side in vars(whole)))
    assert max_error(found, whole) < 1e-10


@pytest.mark.parametrize("name", BEYOND)
def test_cpu_backend_runs_the_settings_of_these_families(name):
    model = toy_transformer(**BEYOND[name]).float()
    draft = init_from_target(model)
    ids, states = torch.arange(20), torch.randn(20, 24, generator=torch.Generator().manual_seed(0))
    expected = model.step(ids, model.new_cache(20))
    expected_states = draft.step(ids, states, draft.new_cache(20))
    assert cpu.why_unsupported(model) is None
    target = cpu.build_target(model)
    found = target.step(ids, target.new_cache(20))
    assert max_error(found, expected) < 1e-4
    fast = cpu.build_draft(draft, target)
    assert torch.allclose(fast.step(ids, states, fast.new_cache(20)), expected_states, atol=1e-4)


@pytest.mark.parametrize("name", ["biases", "norms"])
def test_fixed_shapes_run_biases_and_norms(name):
    model = toy_transformer(**BEYOND[name])
    target = compiled.build_target(model, budget=0)  # runs its passes without torch.compile
    cache = target.new_cache(20)
    with pytest.warns(RuntimeWarning, match="without torch.compile"):
        target.step(torch.arange(12), cache)
    found = target.step(torch.arange(5), cache, (-1, -1, 0, 1, 2))
    own = model.new_cache(20)
    model.step(torch.arange(12), own)
    assert max_error(found, model.step(torch.arange(5), own, (-1, -1, 0, 1, 2))) < 1e-10


def test_fast_paths_refuse_other_settings_by_name():
    assert compiled.why_unsupported(toy_transformer(**BEYOND["biases"])) is None
    assert compiled.why_unsupported(toy_transformer(query_key_norm=True)) is None
    for name, setting in [("no rope", "rope_free_layers"), ("windows", "local_layers")]:
        assert setting in str(compiled.why_unsupported(toy_transformer(**BEYOND[name])))
    assert "mlp_bias" in str(cpu.why_unsupported(toy_transformer(mlp_bias=True).float()))
