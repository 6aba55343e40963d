"""What must not matter: chunks, rollbacks, the numbering of the vocabulary, speculation itself."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from drawn import EXAMPLES, drawn
from helpers.drafts import DRAFT, TARGET, caches_equal
from helpers.toys import toy_transformer
from lists import LISTS, over_states
from minispec.certificate.certify import GRID, Backend, Case, Toys, output_distribution, plain
from minispec.certificate.walker import total_variation
from minispec.commit import StopRule
from minispec.decode import autoregressive, speculative
from minispec.models.transformer import Transformer
from minispec.sampling import Sampling, SeededRandom
from minispec.verify import VERIFIERS as CHAINS
from parts import VERIFIERS, decoding

tokens = st.integers(0, 49)


@drawn
@given(ids=st.lists(tokens, min_size=1, max_size=12), data=st.data())
def test_any_chunks_give_the_same_states(ids: list[int], data: st.DataObject) -> None:
    """Of the target and of the draft, whose chunks need not be the same."""
    row = torch.tensor(ids)
    whole = TARGET.step(row, TARGET.new_cache(16))
    cache, parts = TARGET.new_cache(16), []
    while cache.length < len(ids):
        end = cache.length + data.draw(st.integers(1, len(ids) - cache.length), label="chunk")
        parts.append(TARGET.step(row[cache.length : end], cache))
    for name in ("hidden", "aux_hidden_states"):
        joined = torch.cat([getattr(part, name) for part in parts])
        assert torch.allclose(joined, getattr(whole, name), rtol=0, atol=1e-10)
    states = DRAFT.fuse(whole.aux_hidden_states)
    own = DRAFT.step(row, states, DRAFT.new_cache(16))
    cache, parts = DRAFT.new_cache(16), []
    while cache.length < len(ids):
        start = cache.length
        end = start + data.draw(st.integers(1, len(ids) - start), label="chunk of the draft")
        parts.append(DRAFT.step(row[start:end], states[start:end], cache))
    assert torch.allclose(torch.cat(parts), own, rtol=0, atol=1e-10)


@drawn
@given(
    kept=st.lists(tokens, min_size=1, max_size=6),
    dropped=st.lists(tokens, min_size=1, max_size=6),
    again=st.lists(tokens, min_size=1, max_size=6),
)
def test_rollback_and_replay_equal_a_fresh_pass(
    kept: list[int], dropped: list[int], again: list[int]
) -> None:
    cache, fresh = TARGET.new_cache(20), TARGET.new_cache(20)
    TARGET.step(torch.tensor(kept + dropped), cache)
    cache.truncate(len(kept))
    replayed = TARGET.step(torch.tensor(again), cache)
    whole = TARGET.step(torch.tensor(kept + again), fresh)
    assert caches_equal(cache, fresh)
    assert torch.allclose(replayed.hidden, whole.hidden[len(kept) :], rtol=0, atol=1e-10)


@drawn
@given(order=st.permutations(range(50)), ids=st.lists(tokens, min_size=1, max_size=8))
def test_renumbered_ids_renumber_the_logits(order: list[int], ids: list[int]) -> None:
    """The model sees rows, not numbers."""
    twin: Transformer = toy_transformer()
    with torch.no_grad():  # id i becomes order[i]
        twin.embedding.weight[order] = TARGET.embedding.weight.clone()
        if twin.head.weight is not twin.embedding.weight:
            twin.head.weight[order] = TARGET.head.weight.clone()
    renamed = torch.tensor([order[i] for i in ids])
    found = twin.head.logits(twin.step(renamed, twin.new_cache(16)).hidden)
    expected = TARGET.head.logits(TARGET.step(torch.tensor(ids), TARGET.new_cache(16)).hidden)
    assert torch.allclose(found[:, order], expected, rtol=0, atol=1e-10)


class Renumbered(Case):
    """A case in which each id has another number."""

    order: tuple[int, ...] = ()

    def weights(self, tokens):  # type: ignore[no-untyped-def]
        back = [self.order.index(token) for token in tokens]
        return tuple([row[self.order.index(i)] for i in range(self.vocabulary)]
                     for row in super().weights(back))  # fmt: skip

    @property
    def prompt(self) -> list[int]:
        return [self.order[token] for token in super().prompt]

    @property
    def stop(self) -> StopRule:
        rule = super().stop
        return StopRule(rule.max_new_tokens, tuple(self.order[i] for i in rule.eos_ids))


@pytest.mark.parametrize("verifier", VERIFIERS)
@pytest.mark.parametrize("case", [GRID[i] for i in (2, 9, 13)], ids=str)
def test_renumbered_ids_renumber_the_law(case: Case, verifier: str) -> None:
    """Of whole outputs, by a list that lists by number: other ids, the same law."""
    twin = Renumbered(**vars(case))
    object.__setattr__(twin, "order", tuple(reversed(range(case.vocabulary))))
    sampling, decode = Sampling(0.5), decoding(verifier, "static")
    expected = output_distribution(plain, Toys.of(case, sampling, Backend()))
    renamed = {
        (tuple(twin.order[t] for t in said), stop): share
        for (said, stop), share in expected.items()  # type: ignore[misc]
    }
    assert (
        total_variation(output_distribution(decode, Toys.of(twin, sampling, Backend())), renamed)
        == 0
    )


def greedy_outputs_are_equal(prompt: list[int], gamma: int, name: str, verifier: str) -> None:
    options = {"sampling": Sampling(), "stop": StopRule(16, (7,))}
    model = toy_transformer()
    expected = autoregressive(model, prompt, rng=SeededRandom(0), **options)  # type: ignore[arg-type]
    found = speculative(
        model, DRAFT, over_states(name, 50, 24), prompt, gamma=gamma, rng=SeededRandom(1),
        verifier=CHAINS[verifier], **options,  # type: ignore[arg-type]
    )  # fmt: skip
    said = [
        tuple(t for finished in rounds for t in finished.tokens) for rounds in (expected, found)
    ]
    assert said[0] == said[1]


greedily = given(
    prompt=st.lists(tokens, min_size=1, max_size=8),
    gamma=st.integers(1, 6),
    name=st.sampled_from(list(LISTS)),
    verifier=st.sampled_from(list(CHAINS)),
)


@settings(max_examples=100)
@greedily
def test_greedy_speculation_is_plain_decoding(
    prompt: list[int], gamma: int, name: str, verifier: str
) -> None:
    """In float64, id for id."""
    greedy_outputs_are_equal(prompt, gamma, name, verifier)


@pytest.mark.slow
@settings(max_examples=max(2000, EXAMPLES))
@greedily
def test_greedy_speculation_is_plain_decoding_over_many_prompts(
    prompt: list[int], gamma: int, name: str, verifier: str
) -> None:
    greedy_outputs_are_equal(prompt, gamma, name, verifier)
