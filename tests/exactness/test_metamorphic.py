"""Metamorphic tests: chunks, rollbacks, the numbering of the vocabulary and speculation itself do
not change the result."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from helpers.drafts import DRAFT, TARGET, caches_equal
from helpers.exactness.combinations import CHAIN_VERIFIERS, VERIFIERS, build_decoding
from helpers.exactness.shortlists import SHORTLISTS, build_shortlist
from helpers.exactness.strategies import EXAMPLES, property_settings
from helpers.toys import toy_transformer
from minispec.certificate.cases import GRID, Case
from minispec.certificate.decodings import Backend, ToyModels, decode_plain
from minispec.certificate.enumeration import output_distribution
from minispec.certificate.walker import total_variation
from minispec.commit import StopRule
from minispec.decode import autoregressive, speculative
from minispec.models.transformer import Transformer
from minispec.sampling import Sampling, SeededRandom

tokens = st.integers(0, 49)


@property_settings
@given(ids=st.lists(tokens, min_size=1, max_size=12), data=st.data())
def test_step_gives_the_same_states_for_any_chunks(ids: list[int], data: st.DataObject) -> None:
    """Of the target and of the draft, each with chunks of its own."""
    row = torch.tensor(ids)
    single_pass = TARGET.step(row, TARGET.new_cache(16))
    cache, parts = TARGET.new_cache(16), []
    while cache.length < len(ids):
        end = cache.length + data.draw(st.integers(1, len(ids) - cache.length), label="chunk")
        parts.append(TARGET.step(row[cache.length : end], cache))
    for name in ("hidden", "aux_hidden_states"):
        joined = torch.cat([getattr(part, name) for part in parts])
        assert torch.allclose(joined, getattr(single_pass, name), rtol=0, atol=1e-10)
    states = DRAFT.fuse(single_pass.aux_hidden_states)
    expected = DRAFT.step(row, states, DRAFT.new_cache(16))
    cache, parts = DRAFT.new_cache(16), []
    while cache.length < len(ids):
        start = cache.length
        end = start + data.draw(st.integers(1, len(ids) - start), label="draft chunk")
        parts.append(DRAFT.step(row[start:end], states[start:end], cache))
    assert torch.allclose(torch.cat(parts), expected, rtol=0, atol=1e-10)


@property_settings
@given(
    kept=st.lists(tokens, min_size=1, max_size=6),
    dropped=st.lists(tokens, min_size=1, max_size=6),
    added=st.lists(tokens, min_size=1, max_size=6),
)
def test_step_after_truncate_equals_a_fresh_pass(
    kept: list[int], dropped: list[int], added: list[int]
) -> None:
    cache, fresh_cache = TARGET.new_cache(20), TARGET.new_cache(20)
    TARGET.step(torch.tensor(kept + dropped), cache)
    cache.truncate(len(kept))
    continued = TARGET.step(torch.tensor(added), cache)
    fresh = TARGET.step(torch.tensor(kept + added), fresh_cache)
    assert caches_equal(cache, fresh_cache)
    assert torch.allclose(continued.hidden, fresh.hidden[len(kept) :], rtol=0, atol=1e-10)


@property_settings
@given(order=st.permutations(range(50)), ids=st.lists(tokens, min_size=1, max_size=8))
def test_logits_follow_a_renumbering_of_the_ids(order: list[int], ids: list[int]) -> None:
    """The model depends on the rows of its ids, not on their numbers."""
    renumbered: Transformer = toy_transformer()
    with torch.no_grad():  # id i becomes order[i]
        renumbered.embedding.weight[order] = TARGET.embedding.weight.clone()
        if renumbered.head.weight is not renumbered.embedding.weight:
            renumbered.head.weight[order] = TARGET.head.weight.clone()
    new_ids = torch.tensor([order[i] for i in ids])
    features = renumbered.step(new_ids, renumbered.new_cache(16))
    logits = renumbered.head.logits(features.hidden)  # (T, V)
    expected = TARGET.head.logits(TARGET.step(torch.tensor(ids), TARGET.new_cache(16)).hidden)
    assert torch.allclose(logits[:, order], expected, rtol=0, atol=1e-10)


class RenumberedCase(Case):
    """A case whose id i is called ``order[i]``."""

    order: tuple[int, ...] = ()

    def weights(self, tokens):  # type: ignore[no-untyped-def]
        original = [self.order.index(token) for token in tokens]
        return tuple([row[self.order.index(i)] for i in range(self.vocab_size)]
                     for row in super().weights(original))  # fmt: skip

    @property
    def prompt(self) -> list[int]:
        return [self.order[token] for token in super().prompt]

    @property
    def stop(self) -> StopRule:
        rule = super().stop
        return StopRule(rule.max_new_tokens, tuple(self.order[i] for i in rule.eos_ids))


@pytest.mark.parametrize("verifier", VERIFIERS)
@pytest.mark.parametrize("case", [GRID[i] for i in (2, 9, 13)], ids=str)
def test_output_distribution_follows_a_renumbering_of_the_ids(case: Case, verifier: str) -> None:
    """With a shortlist that selects ids by their number."""
    renumbered = RenumberedCase(**vars(case))
    object.__setattr__(renumbered, "order", tuple(reversed(range(case.vocab_size))))
    sampling, decode = Sampling(0.5), build_decoding(verifier, "frspec")
    original = output_distribution(decode_plain, ToyModels.build(case, sampling, Backend()))
    expected = {
        (tuple(renumbered.order[t] for t in emitted), stop): share
        for (emitted, stop), share in original.items()  # type: ignore[misc]
    }
    models = ToyModels.build(renumbered, sampling, Backend())
    assert total_variation(output_distribution(decode, models), expected) == 0


def assert_greedy_outputs_equal(prompt: list[int], gamma: int, name: str, verifier: str) -> None:
    options = {"sampling": Sampling(), "stop": StopRule(16, (7,))}
    model = toy_transformer()
    expected = autoregressive(model, prompt, rng=SeededRandom(0), **options)  # type: ignore[arg-type]
    speculated = speculative(
        model, DRAFT, build_shortlist(name, 50, 24), prompt, gamma=gamma, rng=SeededRandom(1),
        verifier=CHAIN_VERIFIERS[verifier], **options,  # type: ignore[arg-type]
    )  # fmt: skip
    outputs = [
        [t for finished in rounds for t in finished.tokens] for rounds in (expected, speculated)
    ]
    assert outputs[0] == outputs[1]


given_greedy_options = given(
    prompt=st.lists(tokens, min_size=1, max_size=8),
    gamma=st.integers(1, 6),
    name=st.sampled_from(list(SHORTLISTS)),
    verifier=st.sampled_from(list(CHAIN_VERIFIERS)),
)


@settings(max_examples=100)
@given_greedy_options
def test_greedy_speculative_equals_autoregressive(
    prompt: list[int], gamma: int, name: str, verifier: str
) -> None:
    """In float64, id for id."""
    assert_greedy_outputs_equal(prompt, gamma, name, verifier)


@pytest.mark.slow
@settings(max_examples=max(2000, EXAMPLES))
@given_greedy_options
def test_greedy_speculative_equals_autoregressive_over_many_prompts(
    prompt: list[int], gamma: int, name: str, verifier: str
) -> None:
    assert_greedy_outputs_equal(prompt, gamma, name, verifier)
