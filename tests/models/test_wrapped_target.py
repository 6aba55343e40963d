"""Models of transformers as targets: their own logits, rollback and trees, whatever the chunks."""

import pytest
import torch
from transformers.utils import logging

from helpers.families import decode_greedily, generate_greedily
from helpers.wrapped_models import (
    ARCHITECTURES,
    CHAINS_ONLY,
    CONTEXT,
    VOCAB_SIZE,
    build_model,
    wrap_model,
)
from minispec.errors import ArgumentError, ContextError
from minispec.sampling import Sampling, SeededRandom
from minispec.tools.data.batched_decode import decode_batch
from minispec.tools.models.wrapped_checks import wrap
from minispec.tools.models.wrapped_target import WrappedTarget
from minispec.tree import find_path
from minispec.types import Features

logging.disable_progress_bar()

IDS = torch.randint(3, VOCAB_SIZE, (24,), generator=torch.Generator().manual_seed(1))
PARENTS = (-1, -1, 0, 0, 1, 2, 5)
ALL = [*ARCHITECTURES, *CHAINS_ONLY]


def run_afresh(target: WrappedTarget, ids: torch.Tensor) -> Features:
    return target.step(ids, target.new_cache(len(ids)))


def bound(name: str) -> float:
    """1e-10, or more for models that compute a part of attention in float32 whatever their dtype:
    ALiBi's weights, and the softmax of Gemma 2."""
    return 1e-6 if name in CHAINS_ONLY or name.startswith("gemma2") else 1e-10


def largest_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    assert found.shape == expected.shape
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("name", ALL)
def test_step_gives_the_logits_and_hidden_states_of_the_model(name):
    target = wrap_model(name)
    features = run_afresh(target, IDS)
    with torch.inference_mode():
        output = target.model(IDS[None], output_hidden_states=True)
    assert largest_error(target.head.logits(features.hidden), output.logits[0]) < 1e-10
    some = torch.tensor([3, 7, 90])
    assert (
        largest_error(target.head.logits_of(features.hidden, some), output.logits[0][:, some])
        < 1e-10
    )
    chosen = [output.hidden_states[i][0] for i in target.config.aux_hidden_state_layer_ids]
    assert largest_error(features.aux_hidden_states, torch.cat(chosen, dim=-1)) < 1e-10


@pytest.mark.parametrize("name", ALL)
def test_step_after_a_rollback_equals_a_fresh_pass(name):
    target = wrap_model(name)
    cache, hidden = target.new_cache(40), []
    for part in IDS.split([1, 9, 3, 11]):
        start = cache.length
        target.step(IDS.flip(0)[:12], cache)
        cache.truncate(start)
        hidden.append(target.step(part, cache).hidden)
    assert largest_error(torch.cat(hidden), run_afresh(target, IDS).hidden) < bound(name)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_step_over_a_tree_equals_steps_over_its_paths(name):
    target = wrap_model(name)
    cache = target.new_cache(40)
    target.step(IDS[:11], cache)
    found = target.step(IDS[11:18], cache, PARENTS)
    for node in range(len(PARENTS)):
        path = [11 + i for i in find_path(PARENTS, node)]
        expected = run_afresh(target, torch.cat((IDS[:11], IDS[path])))
        assert largest_error(found.hidden[node], expected.hidden[-1]) < bound(name)
    kept = [0, 2, 5]
    cache.keep(11, kept)
    whole = torch.cat((IDS[:11], IDS[[11 + i for i in kept]], IDS[20:]))
    after = target.step(IDS[20:], cache)
    assert largest_error(after.hidden, run_afresh(target, whole).hidden[14:]) < bound(name)


@pytest.mark.parametrize("name", CHAINS_ONLY)
def test_step_refuses_trees_of_a_model_with_alibi(name):
    target = wrap_model(name)
    assert "ALiBi" in target.why_chains and not target.runs_batches
    with pytest.raises(ArgumentError, match="runs chains, no trees: ALiBi"):
        target.step(IDS[:7], target.new_cache(20), PARENTS)


@pytest.mark.parametrize("name", ALL)
def test_step_decodes_the_greedy_text_of_the_model(name):
    target = wrap_model(name)
    prompt = IDS[:5].tolist()
    assert decode_greedily(target, prompt, 40) == generate_greedily(target.model, prompt, 40)


@pytest.mark.parametrize("name", ["gpt2", "phi3", "falcon with ALiBi"])
def test_decode_batch_gives_each_prompt_its_own_text(name):
    target = wrap_model(name)
    prompts = [IDS[:n].tolist() for n in (3, 9, 5, 7)]
    done = decode_batch(
        target, prompts, [Sampling()] * 4, [SeededRandom(0) for _ in prompts],
        rows=3, max_new_tokens=12, eos_ids=(), keep_features=True,
    )  # fmt: skip
    for completion in done:
        prompt = prompts[completion.index]
        assert list(completion.tokens) == decode_greedily(target, prompt, 12)
        text = torch.tensor([*prompt, *completion.tokens])
        assert completion.features is not None
        expected = run_afresh(target, text[:-1])
        assert largest_error(completion.features.hidden, expected.hidden) < bound(name)


def test_step_refuses_positions_beyond_the_cache_and_the_context():
    target = wrap_model("gpt2")
    with pytest.raises(ContextError, match="cache of 4"):
        target.step(IDS[:5], target.new_cache(4))
    with pytest.raises(ContextError, match=f"context of {CONTEXT}"):
        target.step(torch.ones(CONTEXT + 1, dtype=torch.int64), target.new_cache(CONTEXT + 1))


def test_longrope_ends_the_context_where_its_angles_change():
    rope = {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "short_factor": [1.0] * 4,
        "long_factor": [2.0] * 4,
    }
    config = dict(original_max_position_embeddings=32, rope_parameters=rope)

    target = wrap(build_model("Phi3Config", "Phi3ForCausalLM", config))
    assert target.context_limit == 32
