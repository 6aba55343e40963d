"""Gemma-3-270M itself, if it is in the cache: a test does not fetch it, since it is large and has
terms of its own."""

import gc

import pytest
import torch
from hypothesis import given, settings
from tokenizers import AddedToken
from transformers import AutoTokenizer, Gemma3ForCausalLM

from helpers.texts import varied_texts, whole_characters
from minispec.commit import StopRule
from minispec.decode import autoregressive
from minispec.errors import TextError
from minispec.sampling import Sampling, SeededRandom
from minispec.text.sentencepiece_tokenizer import SentencePieceTokenizer
from minispec.text.tokenizer import encode_prompt
from minispec.tools.data import corpus
from minispec.tools.models import known_models, pretrained
from minispec.tools.models.pretrained import Pretrained

pytestmark = pytest.mark.slow
NAME = "gemma3-270m"


@pytest.fixture(scope="module")
def gemma() -> Pretrained:
    if not known_models.model_path(NAME).exists():
        pytest.skip(f"needs the model: minispec fetch {NAME} --accept-licence")
    return pretrained.load(NAME)


@pytest.fixture(scope="module")
def oracle(gemma: Pretrained):
    """The tokenizer of transformers. Its reader of GGUF files omits that runs of spaces are
    user-defined pieces, which are matched before any merging."""
    path = known_models.model_path(NAME)
    oracle = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    runs = ["\u2581" * count for count in range(2, 32)]
    oracle.backend_tokenizer.add_tokens([AddedToken(run, normalized=True) for run in runs])
    return oracle


def test_encode_gives_the_ids_of_transformers(gemma, oracle):
    tokenizer, texts = gemma.tokenizer, varied_texts(1000)
    assert isinstance(tokenizer, SentencePieceTokenizer)
    wrong = [
        text
        for text in texts
        if tokenizer.encode(text) != oracle.encode(text, add_special_tokens=False)
    ]
    assert not wrong
    assert all(tokenizer.decode(tokenizer.encode(text)) == text for text in texts)


@settings(max_examples=300)
@given(text=whole_characters)
def test_decode_inverts_encode(gemma, text):
    """Characters without a piece become bytes. (U+2581 is the library's sign for a space.)"""
    ids = gemma.tokenizer.encode(text)
    assert gemma.tokenizer.decode(ids) == text.replace("\u2581", " ")


def test_load_gives_the_expected_base_model(gemma):
    config, tokenizer = gemma.target.config, gemma.tokenizer
    assert (config.vocab_size, config.hidden_size, config.num_hidden_layers) == (262_144, 640, 18)
    assert config.sliding_window == 512 and set(range(1, 19)) - {*config.local_layers} == {
        6,
        12,
        18,
    }
    assert config.tie_word_embeddings and config.aux_hidden_state_layer_ids == (8, 14)
    assert tokenizer.vocab_size == config.vocab_size
    assert (tokenizer.bos_id, tokenizer.eos_ids) == (2, (1, 106))
    assert known_models.is_base(gemma.name)
    with pytest.raises(TextError, match="--raw"):
        tokenizer.chat("hello")


def decode_greedily(gemma: Pretrained, text: str, new: int) -> str:
    ids = encode_prompt(gemma.tokenizer, text, raw=True)
    rounds = autoregressive(
        gemma.target, ids, sampling=Sampling(), rng=SeededRandom(0), stop=StopRule(new)
    )
    return gemma.tokenizer.decode([token for finished in rounds for token in finished.tokens])


def test_generate_continues_sensibly(gemma):
    ids = torch.tensor(encode_prompt(gemma.tokenizer, "The capital of France is", raw=True))
    target = gemma.target
    logits = target.head.logits(target.step(ids, target.new_cache(len(ids))).hidden[-1])
    assert b" Paris" in [gemma.tokenizer.token_bytes(int(i)) for i in logits.topk(3).indices]
    assert "France" in decode_greedily(gemma, "The capital of France is", 16)
    counted = decode_greedily(gemma, "One, two, three, four, five, six,", 12)
    assert counted.startswith(" seven, eight, nine, ten")


def test_step_gives_the_logits_of_transformers_beyond_the_window(gemma):
    """Ours in chunks, theirs at once; one model is in memory at a time."""
    text = "\n\n".join(
        text for domain in corpus.DOMAINS for text in corpus.load_prompts(domain, True)
    )
    ids = torch.tensor(encode_prompt(gemma.tokenizer, text, raw=True)[:700])
    assert len(ids) == 700 > gemma.target.config.sliding_window
    positions = torch.tensor([*range(0, 700, 50), 511, 512, 513, 514, 699])
    cache = gemma.target.new_cache(700)
    parts = [gemma.target.step(part, cache).hidden for part in ids.split([500, 30, 1, 5, 164])]
    logits = gemma.target.head.logits(torch.cat(parts)[positions])
    gc.collect()
    path = known_models.model_path(NAME)
    theirs = Gemma3ForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    ).eval()
    with torch.inference_mode():
        expected = theirs.lm_head(theirs.model(ids[None]).last_hidden_state[0, positions])
    errors = (logits - expected).abs().amax(-1) / expected.abs().amax(-1)
    assert float(errors.max()) < 1e-4
