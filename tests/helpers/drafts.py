"""An untrained draft for the toy target, and a check that the caches of both are those of a fresh
pass over the emitted tokens."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from helpers.toys import toy_transformer
from minispec.commit import StopRule
from minispec.decode import speculative
from minispec.models.eagle_draft import EagleDraft, build_draft, init_from_target
from minispec.models.kv_cache import KVCache
from minispec.models.transformer import Transformer
from minispec.types import Shortlist


def toy_draft(target: Transformer, seed: int = 0, norms: bool = False) -> EagleDraft:
    """An untrained draft whose output depends on all of its inputs."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        draft = init_from_target(target)
        if norms:
            plain, draft = draft, build_draft(target, norms)
            draft.load_state_dict(plain.state_dict(), strict=False)
        draft.requires_grad_(False)
        for weight in draft.parameters():
            weight += 0.1 * torch.randn_like(weight)
    return draft


TARGET = toy_transformer()
DRAFT = toy_draft(TARGET)


def record_caches(model: Any, monkeypatch: pytest.MonkeyPatch) -> list[KVCache]:
    """Patch the model to append each new cache to the returned list."""
    made: list[KVCache] = []
    original = model.new_cache

    def record(*arguments: Any) -> KVCache:
        made.append(original(*arguments))
        return made[-1]

    monkeypatch.setattr(model, "new_cache", record)
    return made


def caches_equal(cache: KVCache, fresh: KVCache) -> bool:
    """Whether two caches have the same length, and the same keys and values up to it."""
    length = cache.length
    return length == fresh.length and all(
        torch.allclose(a[:, :, :length], b[:, :, :length], rtol=0, atol=1e-10)
        for a, b in ((cache.keys, fresh.keys), (cache.values, fresh.values))
    )


def assert_caches_fresh(
    prompt: Sequence[int], shortlist: Shortlist, draft: EagleDraft = DRAFT, **options: Any
) -> None:
    """Decodes twelve tokens; after every round compares both caches with those of a fresh pass."""
    with pytest.MonkeyPatch.context() as patch:
        target_caches, draft_caches = record_caches(TARGET, patch), record_caches(draft, patch)
        tokens = list(prompt)
        for finished in speculative(TARGET, draft, shortlist, prompt, stop=StopRule(12), **options):
            tokens += finished.tokens
            if finished.stop:
                break
            fresh_target, fresh_draft = TARGET.new_cache(64), draft.new_cache(64)
            ids = torch.tensor(tokens)
            features = TARGET.step(ids[:-1], fresh_target)
            draft.step(ids[1:], draft.fuse(features.aux_hidden_states), fresh_draft)
            assert caches_equal(target_caches[0], fresh_target), "the target's cache"
            assert caches_equal(draft_caches[0], fresh_draft), "the draft's cache"
