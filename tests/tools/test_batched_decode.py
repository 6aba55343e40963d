"""Batched decoding: each row emits what decoding its prompt alone emits."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from helpers.toys import TOY, toy_transformer
from minispec.errors import ArgumentError, ContextError
from minispec.models.kv_cache import KVCache
from minispec.sampling import Sampling, SeededRandom
from minispec.tools.data import batched_decode as module
from minispec.tools.data.batched_decode import Completion, decode_batch

MODEL = toy_transformer(seed=1)
EOS = (7, 11, 30)
VOCABULARY = torch.arange(TOY.vocab_size)

ids = st.integers(0, TOY.vocab_size - 1)
samplings = st.sampled_from(
    [
        Sampling(),
        Sampling(temperature=1.0),
        Sampling(temperature=8.0),
        Sampling(temperature=5.0, top_k=9),
        Sampling(temperature=5.0, top_p=0.8),
    ]
)


@dataclass(frozen=True)
class Job:
    """A batch: prompts, each with its sampling and seed, and the number of rows."""

    prompts: list[list[int]]
    samplings: list[Sampling]
    rows: int
    max_new_tokens: int

    def run(self, **changes: Any) -> dict[int, Completion]:
        options: dict[str, Any] = {
            "rows": self.rows,
            "max_new_tokens": self.max_new_tokens,
            "eos_ids": EOS,
            "keep_features": True,
        }
        rngs = [SeededRandom(seed) for seed in range(len(self.prompts))]
        completions = list(
            decode_batch(MODEL, self.prompts, self.samplings, rngs, **options | changes)
        )
        assert sorted(each.index for each in completions) == list(range(len(self.prompts)))
        return {each.index: each for each in completions}


@st.composite
def jobs(draw: st.DrawFn) -> Job:
    shared = draw(st.lists(ids, max_size=4))
    own = draw(st.lists(st.lists(ids, min_size=1, max_size=6), min_size=1, max_size=6))
    count = len(own)
    return Job(
        [shared + prompt for prompt in own],
        draw(st.lists(samplings, min_size=count, max_size=count)),
        draw(st.integers(1, 4)),
        draw(st.integers(1, 8)),
    )


def decode_alone(prompt: Sequence[int], sampling: Sampling, seed: int, new: int) -> tuple[int, ...]:
    """Plain decoding: one prompt, one token at a time."""
    cache, rng = MODEL.new_cache(len(prompt) + new), SeededRandom(seed)
    tokens: list[int] = []
    step = list(prompt)
    while len(tokens) < new and not (tokens and tokens[-1] in EOS):
        hidden = MODEL.step(torch.tensor(step), cache).hidden[-1]
        distribution = sampling.distribution(MODEL.head.logits(hidden), VOCABULARY)
        step = [int(distribution.ids[rng.choose(distribution.probs)])]
        tokens += step
    return tuple(tokens)


def check(job: Job) -> None:
    """Tokens equal those of plain decoding, features those of one pass over all of them."""
    for index, completion in job.run().items():
        prompt, sampling = job.prompts[index], job.samplings[index]
        assert completion.tokens == decode_alone(prompt, sampling, index, job.max_new_tokens)
        read = torch.tensor([*prompt, *completion.tokens[:-1]])
        expected = MODEL.step(read, MODEL.new_cache(len(read)))
        assert completion.features is not None
        for ours, theirs in (
            (completion.features.hidden, expected.hidden),
            (completion.features.aux_hidden_states, expected.aux_hidden_states),
        ):
            assert ours.shape == theirs.shape
            assert float((ours - theirs).abs().max()) < 1e-10


@settings(max_examples=100, deadline=None)
@given(jobs())
def test_decode_batch_equals_decoding_each_prompt_alone(job):
    check(job)


def ragged_job(rows: int) -> Job:
    """Twelve prompts of 3 to 14 tokens with a shared prefix; most completions end early."""
    prompts = [[5, 6, 8] + [(3 * i + j) % 50 for j in range(i)] for i in range(12)]
    return Job(prompts, [Sampling(temperature=8.0)] * 12, rows, 20)


@pytest.mark.parametrize("rows", [1, 3, 12, 100])
def test_decode_batch_refills_rows_that_ended(rows):
    job = ragged_job(rows)
    check(job)
    completions = job.run()
    lengths = {len(each.tokens) for each in completions.values()}
    ended = [each for each in completions.values() if each.tokens[-1] in EOS]
    # The job covers its case: rows end at many different steps, most of them with EOS.
    assert len(lengths) > 4 and len(ended) > 5 and max(lengths) > 10


def test_decode_batch_ends_at_eos_or_the_token_limit():
    for completion in ragged_job(3).run(max_new_tokens=5).values():
        assert not set(completion.tokens[:-1]) & set(EOS)
        assert completion.tokens[-1] in EOS or len(completion.tokens) == 5


def test_decode_batch_yields_in_order_of_completion():
    job = ragged_job(12)
    order = list(job.run().values())
    assert [len(each.tokens) for each in order] == sorted(len(each.tokens) for each in order)


def test_decode_batch_keeps_features_only_if_asked():
    kept, bare = ragged_job(3).run(), ragged_job(3).run(keep_features=False)
    assert all(each.features is None for each in bare.values())
    assert {i: each.tokens for i, each in bare.items()} == {
        i: each.tokens for i, each in kept.items()
    }


def test_decode_batch_depends_on_each_rows_seed_only():
    job = Job([[1, 2, 3]] * 8, [Sampling(temperature=8.0)] * 8, 3, 12)
    first, again = job.run(), job.run(rows=8)
    assert [first[i].tokens for i in range(8)] == [again[i].tokens for i in range(8)]
    assert len({each.tokens for each in first.values()}) > 4


# ------------------------------------------------------------------ planted defects


def test_property_detects_a_prefix_that_is_not_shared(monkeypatch):
    shared = module._shared_prefix

    def include_one_more(prompts: Sequence[Sequence[int]]) -> Sequence[int]:
        known = len(shared(prompts))
        return list(prompts[0][: min(known + 1, min(map(len, prompts)) - 1)])

    monkeypatch.setattr(module, "_shared_prefix", include_one_more)
    assert does_the_property_fail()


def test_property_detects_a_row_without_its_prompt(monkeypatch):
    sequence = KVCache.sequence

    def copy_sequence(self: KVCache, index: int) -> KVCache:
        view = sequence(self, index)
        view.values = view.values.clone()  # the batch does not see what is written there
        return view

    monkeypatch.setattr(KVCache, "sequence", copy_sequence)
    assert does_the_property_fail()


def does_the_property_fail() -> bool:
    @settings(
        max_examples=100, deadline=None, database=None, derandomize=True, phases=[Phase.generate]
    )
    @given(jobs())
    def run(job: Job) -> None:
        check(job)

    try:
        run()
    except AssertionError:
        return True
    return False


# ------------------------------------------------------------------ what is refused


def test_decode_batch_of_nothing_yields_nothing():
    options = {"rows": 2, "eos_ids": EOS}
    assert list(decode_batch(MODEL, [], [], [], max_new_tokens=4, **options)) == []
    one = [[1, 2]], [Sampling()], [SeededRandom(0)]
    assert list(decode_batch(MODEL, *one, max_new_tokens=0, **options)) == []


@pytest.mark.parametrize(
    "prompts, changes, kind, problem",
    [
        ([[1], []], {}, ArgumentError, "no tokens"),
        ([[1], [2]], {"rows": 0}, ArgumentError, "0 rows"),
        ([[1], [2]], {"max_new_tokens": -1}, ArgumentError, "-1 new tokens"),
        ([[1], [2], [3]], {}, ArgumentError, "3 prompts .* 2 and 2"),
        ([[1], [2] * 60], {"max_new_tokens": 5}, ContextError, "65 .* 64"),
    ],
)
def test_decode_batch_refuses_bad_arguments_before_decoding(
    monkeypatch, prompts, changes, kind, problem
):
    monkeypatch.setattr(type(MODEL), "forward", lambda *_: pytest.fail("it decoded something"))
    options: dict[str, Any] = {"rows": 2, "max_new_tokens": 4, "eos_ids": EOS} | changes
    rngs = [SeededRandom(0), SeededRandom(1)]
    with pytest.raises(kind, match=problem):
        list(decode_batch(MODEL, prompts, [Sampling()] * 2, rngs, **options))


def test_decode_batch_accepts_a_prompt_that_just_fits():
    job = Job([[2] * 60, [1]], [Sampling(temperature=5.0)] * 2, 2, 4)
    check(job)
