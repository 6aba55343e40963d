"""The CPU backend with quantised matrices, against the reference with the same arithmetic."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastpath.cpu import backend as cpu
from helpers.quantized import quantized_transformer
from helpers.toys import GEMMA
from minispec.commit import StopRule
from minispec.decode import autoregressive, speculative
from minispec.learning import lora
from minispec.models.eagle_draft import init_from_target
from minispec.models.quantized_modules import copy_dequantized, is_quantized, quantize_linears
from minispec.sampling import Sampling, SeededRandom
from minispec.shortlists.frspec import FRSpecShortlist
from minispec.shortlists.full import FullShortlist

GEMMA_WIDE = GEMMA | {"embedding_scale": 8.0}


def build_pair(seed: int = 0, **changes: object):
    target = quantized_transformer(seed, **changes)
    draft = init_from_target(target).requires_grad_(False)
    quantize_linears(draft)
    return target, draft


@pytest.mark.parametrize("changes", [{}, GEMMA_WIDE], ids=["llama", "gemma"])
@given(chunks=st.lists(st.integers(1, 12), min_size=1, max_size=4), seed=st.integers(0, 20))
def test_target_and_draft_equal_reference_in_any_chunks(changes, chunks, seed):
    """A number that lies between two steps may be rounded to either: one in some thousands, and
    what it changes is bounded by a step of one column."""
    target, draft = build_pair(seed, **changes)
    ids = torch.randint(0, 130, (sum(chunks),))
    expected = target.step(ids, target.new_cache(len(ids)))
    fast_target = cpu.build_target(target)
    fast_draft = cpu.build_draft(draft, fast_target)
    cache = fast_target.new_cache(64)
    parts = [fast_target.step(part, cache) for part in ids.split(chunks)]
    hidden = torch.cat([part.hidden for part in parts])
    aux = torch.cat([part.aux_hidden_states for part in parts])
    assert (hidden - expected.hidden).abs().max() < 0.05 * expected.hidden.abs().max()
    assert (hidden - expected.hidden).abs().mean() < 0.004 * expected.hidden.abs().mean()
    states = fast_draft.step(ids, fast_draft.fuse(aux), fast_draft.new_cache(64))
    expected_states = draft.step(ids, draft.fuse(aux), draft.new_cache(64))
    assert (states - expected_states).abs().mean() < 0.004 * expected_states.abs().mean()
    head, own = fast_target.head, target.head
    logits = own.logits(hidden)
    shortlist = torch.arange(3, 120, 2)
    assert torch.allclose(head.logits(hidden), logits, rtol=1e-4, atol=1e-4)
    assert torch.allclose(head.logits_of(hidden, shortlist), logits[:, shortlist], atol=1e-4)
    best, largest = head.argmax(hidden)
    assert torch.equal(largest, head.logits(hidden).max(-1).values)
    assert torch.equal(head.logits(hidden).gather(-1, best[:, None])[:, 0], largest)


def test_step_gives_the_same_bits_for_any_chunks():
    """So a verify pass sees what plain decoding sees."""
    target = cpu.build_target(quantized_transformer())
    ids = torch.randint(0, 130, (12,))
    cache, together = target.new_cache(16), target.new_cache(16)
    one_by_one = torch.cat([target.step(ids[i : i + 1], cache).hidden for i in range(12)])
    at_once = target.step(ids, together).hidden
    assert torch.equal(one_by_one, at_once)
    assert torch.equal(cache.keys[:, :, :12], together.keys[:, :, :12])


@pytest.mark.parametrize("fast", [False, True], ids=["reference", "cpu"])
@pytest.mark.parametrize("budget", [20, None])
def test_greedy_speculation_equals_plain_decoding(fast, budget):
    target, draft = build_pair(seed=3)
    if fast:
        target = cpu.build_target(target)
        draft = cpu.build_draft(draft, target)
    shortlist = (
        FullShortlist(130) if budget is None else FRSpecShortlist(torch.arange(130), budget, ())
    )
    prompt, options = (
        [5, 9, 2],
        dict(sampling=Sampling(0.0), rng=SeededRandom(0), stop=StopRule(40)),
    )
    rounds = list(speculative(target, draft, shortlist, prompt, gamma=3, **options))
    plain = list(autoregressive(target, prompt, **options))
    assert [t for r in rounds for t in r.tokens] == [t for r in plain for t in r.tokens]
    assert len(rounds) < len(plain)


def test_draft_that_learns_is_dequantized():
    target, draft = build_pair()
    adapted = lora.add_adapters(copy_dequantized(draft), lora.TARGETS, 2, seed=0)
    assert is_quantized(draft) and not is_quantized(adapted)
    assert copy_dequantized(adapted) is adapted
    fast = cpu.build_draft(draft, cpu.build_target(target)).with_weights_of(adapted)
    ids, aux = torch.tensor([3, 4]), torch.randn(2, 3 * 64)
    expected = adapted.step(ids, adapted.fuse(aux), adapted.new_cache(8))
    assert torch.allclose(fast.step(ids, fast.fuse(aux), fast.new_cache(8)), expected, atol=1e-3)
