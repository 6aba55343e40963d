"""Target and draft of the CPU backend against the reference, and greedy decoding with both."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numba import get_num_threads, set_num_threads
from numba.core.config import NUMBA_NUM_THREADS

from fastpath.cpu import backend as cpu
from helpers.drafts import toy_draft
from helpers.kernel_checks import FORMATS, convert_rows
from helpers.toys import GEMMA, toy_transformer
from minispec.commit import StopRule
from minispec.decode import autoregressive, speculative
from minispec.errors import ContextError
from minispec.io import draft_file
from minispec.learning import lora
from minispec.models.eagle_draft import init_from_target
from minispec.models.int8 import quantize_rows, round_rows, row_scales
from minispec.sampling import Sampling, SeededRandom
from minispec.shortlists.frspec import FRSpecShortlist
from minispec.shortlists.full import FullShortlist
from minispec.tools.data.corpus import load_prompts
from minispec.tools.evaluation.audit import NEAR_TIE, audit
from minispec.tools.models import pretrained


def toy_pair(norms=False, **changes):
    target = toy_transformer(**changes).float().requires_grad_(False)
    draft = toy_draft(target, norms=True) if norms else init_from_target(target)
    return target, draft.requires_grad_(False)


@pytest.mark.parametrize("changes", [{}, GEMMA], ids=["llama", "gemma"])
@given(
    chunks=st.lists(st.integers(1, 12), min_size=1, max_size=5),
    seed=st.integers(0, 20),
    norms=st.booleans(),
)
def test_target_and_draft_equal_reference_in_any_chunks(changes, chunks, seed, norms):
    target, draft = toy_pair(norms, seed=seed, **changes)
    ids = torch.randint(0, 50, (sum(chunks),))
    expected = target.step(ids, target.new_cache(len(ids)))
    expected_aux = expected.aux_hidden_states
    expected_states = draft.step(ids, draft.fuse(expected_aux), draft.new_cache(len(ids)))
    expected_logits = draft.head.logits(draft.apply_final_norm(expected_states))

    cpu_target = cpu.build_target(target)
    cpu_draft = cpu.build_draft(draft, cpu_target)
    cache, draft_cache = cpu_target.new_cache(64), cpu_draft.new_cache(64)
    start = 0
    for chunk in chunks:
        part = slice(start, start + chunk)
        features = cpu_target.step(ids[part], cache)
        aux = features.aux_hidden_states
        assert torch.allclose(features.hidden, expected.hidden[part], rtol=1e-4, atol=1e-5)
        assert torch.allclose(aux, expected_aux[part], rtol=1e-4, atol=1e-5)
        states = cpu_draft.step(ids[part], cpu_draft.fuse(aux), draft_cache)
        assert torch.allclose(states, expected_states[part], rtol=1e-4, atol=1e-4)
        logits = cpu_draft.head.logits(cpu_draft.apply_final_norm(states))
        assert torch.allclose(logits, expected_logits[part], rtol=1e-4, atol=1e-4)
        # The last position is dropped and computed again, as after a rejection.
        cache.truncate(start + chunk - 1)
        again = cpu_target.step(ids[start + chunk - 1 : start + chunk], cache)
        assert torch.allclose(again.hidden[0], features.hidden[-1], rtol=1e-4, atol=1e-5)
        start += chunk


def test_build_target_keeps_threads_for_second_target():
    before, threads = get_num_threads(), min(2, NUMBA_NUM_THREADS)
    torch.set_num_threads(threads)
    for _ in range(2):  # torch has one thread after the first time
        cpu.build_target(toy_pair()[0])
        assert (get_num_threads(), torch.get_num_threads()) == (threads, 1)
    set_num_threads(before)


def test_with_weights_of_follows_adapter_changes():
    """Each change of an adapter is in the next output, and never in that of the frozen draft."""
    target, draft = toy_pair()
    frozen = cpu.build_draft(draft, cpu.build_target(target))
    adapted = lora.add_adapters(draft, lora.TARGETS, 2, seed=0)
    cpu_adapted = frozen.with_weights_of(adapted)
    ids, aux_hidden_states = torch.tensor([3, 4]), torch.randn(2, 72)

    def run(model):
        return model.step(ids, model.fuse(aux_hidden_states), model.new_cache(8))

    before, outputs = run(frozen), [run(cpu_adapted)]
    assert torch.equal(outputs[0], before)  # an untrained adapter changes no bit
    for _ in range(2):
        state = lora.get_adapter_state(adapted)
        changed = {name: torch.randn_like(value) / 4 for name, value in state.items()}
        lora.set_adapter_state(adapted, changed)
        outputs.append(run(cpu_adapted))
        assert torch.allclose(outputs[-1], run(adapted), rtol=1e-4, atol=1e-4)
        assert (outputs[-1] - outputs[-2]).abs().max() > 1e-2
    assert torch.equal(run(frozen), before)


def test_step_beyond_capacity_raises_and_changes_nothing():
    target, draft = toy_pair()
    cpu_target = cpu.build_target(target)
    cpu_draft = cpu.build_draft(draft, cpu_target)
    cache, draft_cache = cpu_target.new_cache(3), cpu_draft.new_cache(1)
    cpu_target.step(torch.tensor([1, 2]), cache)
    with pytest.raises(ContextError, match="2 \\+ 2 positions do not fit a cache of 3"):
        cpu_target.step(torch.tensor([1, 2]), cache)
    with pytest.raises(ContextError, match="do not fit"):
        cpu_draft.step(torch.tensor([1, 2]), torch.zeros(2, 24), draft_cache)
    assert (cache.length, draft_cache.length) == (2, 0)


@pytest.mark.parametrize("dtype", FORMATS)
def test_greedy_decoding_equals_reference_on_smollm2(smollm2, dtype):
    """Ids are equal, or the first difference is a near tie of the reference."""
    model = pretrained.load("smollm2", dtype)
    draft = draft_file.load_draft(
        draft_file.find_draft("smollm2"), model.reference, model.fingerprint
    )
    stop, sampling = StopRule(16), Sampling()

    def decode(target, ids, draft=None, shortlist=None):
        rng = SeededRandom(0)
        if draft is None:
            rounds = autoregressive(target, ids, sampling=sampling, rng=rng, stop=stop)
        else:
            rounds = speculative(
                target, draft, shortlist, ids, gamma=4, sampling=sampling, rng=rng, stop=stop
            )
        return [token for finished in rounds for token in finished.tokens]

    texts = [load_prompts("general")[0], load_prompts("code")[0]]
    prompts = [model.tokenizer.chat(text) for text in texts]
    plain = [decode(model.reference, ids) for ids in prompts]
    cpu_target = cpu.build_target(model.reference)
    cpu_draft = cpu.build_draft(draft, cpu_target)
    features = cpu_target.step(torch.tensor([1]), cpu_target.new_cache(1))
    assert features.hidden.dtype == torch.float32
    size = cpu_target.head.vocab_size
    half = FRSpecShortlist(torch.arange(size), size // 2, model.tokenizer.eos_ids)
    gap = NEAR_TIE[model.reference.embedding.weight.dtype]
    for ids, expected in zip(prompts, plain, strict=True):
        for shortlist in (None, FullShortlist(size), half):
            output = decode(cpu_target, ids, cpu_draft if shortlist else None, shortlist)
            assert audit(model.reference, ids, expected, output, gap) != "violation"


def test_int8_rows_equal_rounded_reference_weights():
    weight = torch.randn(9, 30)
    weight[4] = 0
    rows, _, exact = convert_rows(weight, "int8")
    rounded = round_rows(weight)
    assert (rounded - weight).abs().max() <= row_scales(weight).max() / 2 * 1.001
    assert torch.equal(quantize_rows(rounded), torch.from_numpy(rows))
    assert torch.allclose(rounded.double(), exact, rtol=1e-6)
