"""``custom_generate`` for transformers: greedy output is its own, sampled output has its
distribution, and what is not supported is refused by name."""

from collections import Counter
from collections.abc import Hashable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, StoppingCriteria

import minispec
from helpers.tiny_model import Tiny
from minispec.certificate.toys import ChangingShortlist
from minispec.certificate.walker import enumerate_branches, total_variation
from minispec.errors import ArgumentError
from minispec.models.eagle_draft import init_draft
from minispec.tools.custom_generate import CustomGenerate
from minispec.types import RandomSource

SIZE, PROMPT = 4, torch.tensor([[3, 1]])


class Letters:
    """The tokenizer of a toy: four ids."""

    vocab_size, eos_ids, bos_id, leading_space, fingerprint = SIZE, (), None, False, "0" * 64

    def token_bytes(self, token: int) -> bytes:
        return b"abcd"[token : token + 1]


@pytest.fixture(scope="module")
def toy() -> minispec.Model:
    """A transformers Llama over four ids in float64, with an untrained draft."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=SIZE, hidden_size=8, intermediate_size=12, num_hidden_layers=3,
            num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=64,
            bos_token_id=None, eos_token_id=None, pad_token_id=0,
        )  # fmt: skip
        model = LlamaForCausalLM(config).double().eval()
        model.lm_head.weight.data *= 40  # uneven distributions
        loaded = minispec.load(model, tokenizer=Letters(), draft=False)
        draft = init_draft(loaded.pretrained.reference).requires_grad_(False)
    return minispec.load(model, tokenizer=Letters(), draft=draft)


def unwrap(model: minispec.Model) -> Any:
    return model.pretrained.reference.model  # type: ignore[attr-defined]


@torch.no_grad()
def plain_distribution(model: Any, length: int, process: Any) -> dict[Hashable, float]:
    """The distribution of ``length`` tokens after the prompt, by the model's logits."""
    found: dict[Hashable, float] = {(): 1.0}
    for _ in range(length):
        after: Counter[Hashable] = Counter()
        for text, mass in found.items():
            ids = torch.tensor([[*PROMPT[0].tolist(), *text]])  # type: ignore[misc]
            probs = process(model(ids).logits[0, -1]).softmax(-1)
            for token, share in enumerate(probs.tolist()):
                after[(*text, token)] += mass * share  # type: ignore[misc]
        found = after
    return {text: mass for text, mass in found.items() if mass}


def keep_three(logits: Tensor) -> Tensor:
    return (logits / 0.7).masked_fill(logits < logits.topk(3).values[-1], -torch.inf)


@pytest.mark.parametrize(
    ("options", "process"),
    [({"top_k": 0}, lambda logits: logits), ({"top_k": 3, "temperature": 0.7}, keep_three)],
)
@pytest.mark.parametrize("shortlist", ["full", ChangingShortlist])
def test_custom_generate_has_the_distribution_of_the_model(
    toy: minispec.Model, shortlist: Any, options: dict[str, Any], process: Any
) -> None:
    """Every branch of the production loop, called by ``generate`` itself."""
    model, length = unwrap(toy), 2

    def run(source: RandomSource) -> tuple[int, ...]:
        custom = CustomGenerate(toy, shortlist, gamma=2, rng=source)
        output = model.generate(
            PROMPT, max_new_tokens=length, do_sample=True, custom_generate=custom, **options
        )
        return tuple(output[0, PROMPT.shape[1] :].tolist())

    found: Counter[Hashable] = Counter()
    branches = 0
    for text, probability in enumerate_branches(run):
        found[text] += float(probability)
        branches += 1
    expected = plain_distribution(model, length, process)
    assert branches > len(expected) > 8
    assert total_variation(dict(found), expected) < 1e-12


def load_tiny(tiny: Tiny) -> minispec.Model:
    model = LlamaForCausalLM.from_pretrained(tiny.folder).eval()
    return minispec.load(model, tokenizer=tiny.model.tokenizer, draft=tiny.draft_path)


PROMPTS = 20


def test_custom_generate_leaves_greedy_output_unchanged(tiny: Tiny) -> None:
    loaded = load_tiny(tiny)
    model = unwrap(loaded)
    custom = CustomGenerate(loaded, f"frspec@99:{tiny.ranking('mix')}")
    for seed in range(PROMPTS):
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(300, (1, 5 + seed), generator=generator)
        expected = model.generate(ids, max_new_tokens=6)
        assert torch.equal(model.generate(ids, max_new_tokens=6, custom_generate=custom), expected)


def test_custom_generate_stops_and_penalizes_as_generate_does(tiny: Tiny) -> None:
    loaded = load_tiny(tiny)
    model = unwrap(loaded)
    custom = CustomGenerate(loaded, "full")
    ids = torch.tensor([[5, 9, 200, 31]])
    free = model.generate(ids, max_new_tokens=12)[0, 4:].tolist()
    for options in (
        {"eos_token_id": [free[4], 7]}, {"max_length": 9}, {"repetition_penalty": 1.4},
        {"renormalize_logits": True}, {"attention_mask": torch.ones_like(ids)},
    ):  # fmt: skip
        expected = model.generate(ids, **{"max_new_tokens": 12, **options})
        given = model.generate(ids, **{"max_new_tokens": 12, **options}, custom_generate=custom)
        assert torch.equal(given, expected), options


def test_custom_generate_draws_from_torchs_generator(tiny: Tiny) -> None:
    loaded = load_tiny(tiny)
    custom = CustomGenerate(loaded, "full")
    texts = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        options = dict(max_new_tokens=12, do_sample=True, custom_generate=custom)
        texts.append(unwrap(loaded).generate(torch.tensor([[5, 9]]), **options).tolist())
    assert texts[0] == texts[1] != texts[2]


class Own(StoppingCriteria):
    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Any:
        return False


class Streamer:
    def put(self, value: Tensor) -> None: ...

    def end(self) -> None: ...


REFUSED: dict[str, dict[str, Any]] = {
    "num_beams=2": {"num_beams": 2},
    "num_return_sequences=2": {"num_return_sequences": 2, "do_sample": True},
    "output_scores=True": {"output_scores": True},
    "return_dict_in_generate=True": {"return_dict_in_generate": True},
    "use_cache=False": {"use_cache": False},
    "cache_implementation='static'": {"cache_implementation": "static"},
    "prompt_lookup_num_tokens=3": {"prompt_lookup_num_tokens": 3},
    "streamer": {"streamer": Streamer()},
    "the stopping criterion MaxTimeCriteria": {"max_time": 5.0},
    "the stopping criterion Own": {"stopping_criteria": [Own()]},
    "logits processor NoRepeatNGramLogitsProcessor": {"no_repeat_ngram_size": 2},
    "logits processor TypicalLogitsWarper": {"typical_p": 0.5, "do_sample": True},
    "logits processor PrefixConstrainedLogitsProcessor": {
        "prefix_allowed_tokens_fn": lambda batch, ids: [1, 2],
    },
    "min_p with top_p": {"min_p": 0.1, "top_p": 0.9, "do_sample": True},
    "padding (an attention_mask with zeros)": {"attention_mask": torch.tensor([[0, 1, 1]])},
    "position_ids other than 0, 1": {"position_ids": torch.tensor([[1, 2, 3]])},
    "batches (2 sequences)": {"inputs": torch.tensor([[1, 2, 3], [4, 5, 6]])},
}  # fmt: skip


def test_custom_generate_refuses_options_by_name(tiny: Tiny) -> None:
    loaded = load_tiny(tiny)
    custom = CustomGenerate(loaded, "full")
    for message, options in REFUSED.items():
        given = {"inputs": torch.tensor([[1, 2, 3]]), "max_new_tokens": 4, **options}
        with pytest.raises(ArgumentError) as caught:
            unwrap(loaded).generate(**given, custom_generate=custom)
        assert message in str(caught.value) and "\n" not in str(caught.value), message
    with pytest.raises(ArgumentError, match="does not support assistant_model"):
        unwrap(loaded).generate(
            torch.tensor([[1, 2]]), max_new_tokens=4, custom_generate=custom,
            assistant_model=unwrap(loaded),
        )  # fmt: skip


def test_custom_generate_runs_the_model_that_it_was_made_for(tiny: Tiny) -> None:
    custom = CustomGenerate(load_tiny(tiny), "full")
    other = LlamaForCausalLM.from_pretrained(tiny.folder).eval()
    with pytest.raises(ArgumentError, match="made for another model"):
        other.generate(torch.tensor([[1, 2]]), max_new_tokens=4, custom_generate=custom)
    ours = minispec.load(tiny.folder, draft=tiny.draft_path)
    with pytest.raises(ArgumentError, match="is not run by transformers: load the PreTrainedModel"):
        CustomGenerate(ours, "full")
