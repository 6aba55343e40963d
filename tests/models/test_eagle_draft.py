"""The draft's caches must be those of a fresh pass: exactness would hide any error in them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from helpers.drafts import DRAFT, TARGET, assert_caches_fresh, caches_equal, toy_draft
from helpers.toys import GEMMA, toy_transformer
from minispec.errors import FileError, FingerprintError
from minispec.io import draft_file
from minispec.io.files import write_tensors
from minispec.models import eagle_draft as drafts
from minispec.models.eagle_draft import EagleDraft
from minispec.sampling import Sampling, SeededRandom
from minispec.shortlists.frspec import FRSpecShortlist
from minispec.shortlists.full import FullShortlist
from minispec.types import Shortlist

NORMED = toy_draft(TARGET, norms=True)
SHORTLISTS: dict[str, Callable[[], Shortlist]] = {
    "full": lambda: FullShortlist(50),
    "static": lambda: FRSpecShortlist(torch.arange(49, -1, -1), 12, (0,)),
}


@settings(max_examples=25)
@given(
    prompt=st.lists(st.integers(0, 49), min_size=1, max_size=6),
    gamma=st.integers(1, 5),
    temperature=st.sampled_from([0.0, 1.0, 3.0]),
    seed=st.integers(0, 1000),
    name=st.sampled_from(sorted(SHORTLISTS)),
    draft=st.sampled_from([DRAFT, NORMED]),
)
def test_speculative_leaves_both_caches_as_after_a_fresh_pass(
    prompt: list[int], gamma: int, temperature: float, seed: int, name: str, draft: EagleDraft
) -> None:
    assert_caches_fresh(
        prompt, SHORTLISTS[name](), draft, gamma=gamma, sampling=Sampling(temperature),
        rng=SeededRandom(seed),
    )  # fmt: skip


def test_caches_equal_detects_a_cache_that_was_not_rebuilt() -> None:
    """The planted defect: the draft keeps the keys of its own states."""
    fresh = DRAFT.new_cache(8)
    ids = torch.tensor([1, 2, 3])
    aux_hidden_states = TARGET.step(ids, TARGET.new_cache(8)).aux_hidden_states
    states = DRAFT.fuse(aux_hidden_states)
    DRAFT.step(ids, states, fresh)
    stale = DRAFT.new_cache(8)
    own = DRAFT.step(ids[:2], states[:2], stale)
    DRAFT.step(ids[2:], own[1:], stale)  # its own state although the target's is known
    assert not caches_equal(stale, fresh)


@given(cuts=st.lists(st.integers(1, 4), min_size=1, max_size=6))
def test_step_gives_the_same_states_for_any_chunks(cuts: list[int]) -> None:
    ids = torch.arange(sum(cuts)) * 7 % 50
    states = torch.sin(torch.arange(len(ids) * 24, dtype=torch.float64)).reshape(-1, 24)
    at_once = DRAFT.step(ids, states, DRAFT.new_cache(32))
    cache, parts, start = DRAFT.new_cache(32), [], 0
    for cut in cuts:
        parts.append(
            DRAFT.step(
                ids[start : start + cut],
                states[start : start + cut],
                cache,
            )
        )
        start += cut
    assert torch.allclose(torch.cat(parts), at_once, rtol=0, atol=1e-10)


@pytest.mark.parametrize("changes", [{}, GEMMA], ids=["Llama", "Gemma"])
def test_init_from_target_repeats_the_last_layer(changes: dict[str, Any]) -> None:
    target = toy_transformer(**changes)
    draft = drafts.init_from_target(target).requires_grad_(False)
    hidden_size, scale = target.config.hidden_size, target.config.embedding_scale
    for projection in (draft.attention.query, draft.attention.key, draft.attention.value):
        toward_embedding = projection.weight[:, :hidden_size]
        assert 0 < toward_embedding.abs().max() < 0.1
        toward_embedding.zero_()
    ids = torch.arange(6) * 7 % 50
    aux_hidden_states = target.step(ids, target.new_cache(6)).aux_hidden_states
    got = draft.apply_final_norm(draft.step(ids, draft.fuse(aux_hidden_states), draft.new_cache(6)))
    cache = target.new_cache(6)
    states, metadata = (
        scale * aux_hidden_states[None, :, -hidden_size:],
        target.rope.attention_metadata(cache, 6),
    )
    expected = target.norm(target.last_layer(states, metadata, cache, 2))[0]
    # A norm's epsilon weighs more where states are in smaller units.
    assert torch.allclose(got, expected, rtol=0, atol=1e-4 if changes else 1e-10)


def test_draft_shares_the_targets_head_unless_asked() -> None:
    draft = drafts.init_from_target(TARGET)
    assert draft.version == 0 and draft.new_cache(5).keys.shape == (1, 1, 5, 2, 6)
    assert not [name for name, _ in draft.named_parameters() if "bias" in name]
    twin = draft.with_own_head()
    assert twin.head is not draft.head and torch.equal(twin.head.weight, draft.head.weight)
    assert twin.fusion is draft.fusion
    for name in ("smollm2", "pocket"):
        assert (file := draft_file.find_draft(name)) and file.is_file()
    assert draft_file.find_draft("another") is None


@pytest.mark.parametrize("draft", [DRAFT, NORMED], ids=["EAGLE-3", "EAGLE-3.1"])
def test_load_draft_reads_bfloat16_and_refuses_other_targets(
    draft: EagleDraft, tmp_path: Path
) -> None:
    path, fingerprint = tmp_path / "draft.safetensors", TARGET.head.fingerprint()
    draft_file.save_draft(path, draft, fingerprint)
    loaded = draft_file.load_draft(path, TARGET, fingerprint)
    assert loaded.norms == draft.norms
    assert not any(weight.requires_grad for weight in loaded.parameters())
    for name, value in draft.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value.bfloat16().double())
    other = toy_transformer(seed=1).head.fingerprint()
    with pytest.raises(FingerprintError, match="made for model"):
        draft_file.load_draft(path, TARGET, other)


@pytest.mark.parametrize(
    ("tensors", "kind"),
    [
        (
            {"d2t": torch.arange(3), "fc.weight": torch.ones(2)},
            "an EAGLE-3 draft with a vocabulary",
        ),
        ({"t2d": torch.ones(3, dtype=torch.bool)}, "an EAGLE-3 draft with a vocabulary"),
        ({"midlayer.mlp.up_proj.weight": torch.ones(2)}, "an EAGLE draft of another project"),
        (None, "a PyTorch checkpoint"),
    ],
)
def test_load_draft_names_the_drafts_of_other_projects(
    tmp_path: Path, tensors: dict[str, torch.Tensor] | None, kind: str
) -> None:
    path = tmp_path / "model.safetensors"
    if tensors is None:
        torch.save({"fc.weight": torch.ones(2)}, path)
    else:
        write_tensors(path, tensors, {"format": "pt"})
    with pytest.raises(FileError, match=f"is {kind}") as error:
        draft_file.load_draft(path, TARGET, TARGET.head.fingerprint())
    assert "give a file made by `minispec train draft`" in str(error.value)


def test_load_draft_refuses_norms_that_it_does_not_know(tmp_path: Path) -> None:
    path, fingerprint = tmp_path / "draft.safetensors", TARGET.head.fingerprint()
    metadata = {"model": fingerprint, "tap_layers": "(1, 2, 3)", "norms": "eagle4"}
    write_tensors(path, DRAFT.state_dict(), metadata)
    with pytest.raises(FileError, match="norms"):
        draft_file.load_draft(path, TARGET, fingerprint)


def test_norms_hold_states_at_one_scale() -> None:
    """Whatever the scale of the hidden states, and however far ahead the draft runs."""
    ids = torch.arange(6) * 7 % 50
    features = TARGET.step(ids, TARGET.new_cache(6)).aux_hidden_states
    states = NORMED.fuse(features)
    assert torch.allclose(NORMED.fuse(features * 8), states, rtol=1e-4)
    cache = NORMED.new_cache(8)
    for _ in range(8):
        states = NORMED.step(ids[:1], states[-1:], cache)
        scale = (states / NORMED.output_norm.weight).square().mean().sqrt()
        assert abs(float(scale) - 1) < 1e-3
        assert torch.equal(NORMED.apply_final_norm(states), states)


def test_load_draft_refuses_other_shapes(tmp_path: Path) -> None:
    path, fingerprint = tmp_path / "draft.safetensors", TARGET.head.fingerprint()
    narrow = toy_transformer(intermediate_size=16)
    draft_file.save_draft(path, drafts.init_from_target(narrow), fingerprint)
    with pytest.raises(FileError, match="has shape"):
        draft_file.load_draft(path, TARGET, fingerprint)


def test_load_draft_refuses_a_model_with_other_auxiliary_layers(tmp_path: Path) -> None:
    path, fingerprint = tmp_path / "draft.safetensors", TARGET.head.fingerprint()
    draft_file.save_draft(path, DRAFT, fingerprint)
    other = toy_transformer(aux_hidden_state_layer_ids=(3,))
    with pytest.raises(FingerprintError, match=r"of layers 1, 2, 3, but this model exports 3$"):
        draft_file.load_draft(path, other, fingerprint)
