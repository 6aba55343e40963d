"""The same weights give the same logits and the same text as in transformers."""

import base64
import io
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

from helpers.conformity import (
    IDS,
    assert_refused,
    edit_config,
    our_logits,
    relative_error,
    write_byte_tokenizer,
)
from minispec.commit import StopRule
from minispec.decode import autoregressive
from minispec.sampling import Sampling, SeededRandom
from minispec.text.sentencepiece_tokenizer import SentencePieceTokenizer
from minispec.text.tiktoken_tokenizer import TiktokenTokenizer
from minispec.tools.data import corpus
from minispec.tools.models import hf_folder, known_models, pretrained

logging.disable_progress_bar()

LLAMA3 = {  # so tight that all three kinds of wavelength occur within a toy's context
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


def draw_config(seed: int) -> LlamaConfig:
    """A shape drawn at random; every third has Llama 3's rope scaling."""
    rng = random.Random(seed)
    num_key_value_heads, group = rng.choice([1, 2, 3]), rng.choice([1, 2, 3, 4])
    rope = {"rope_type": "default"} if seed % 3 else dict(LLAMA3)
    return LlamaConfig(
        vocab_size=rng.choice([256, 301]),
        hidden_size=num_key_value_heads * group * rng.choice([6, 8, 16]),
        intermediate_size=rng.choice([17, 40]),
        num_hidden_layers=rng.choice([1, 2, 4]),
        num_attention_heads=num_key_value_heads * group,
        num_key_value_heads=num_key_value_heads,
        head_dim=rng.choice([None, 8, 20]),
        max_position_embeddings=64,
        rms_norm_eps=rng.choice([1e-6, 1e-2]),
        rope_parameters=rope | {"rope_theta": rng.choice([100.0, 10_000.0, 500_000.0])},
        tie_word_embeddings=rng.random() < 0.5,
        initializer_range=0.2,
    )


def build_config() -> LlamaConfig:
    """A plain shape."""
    return LlamaConfig(
        vocab_size=300,
        hidden_size=96,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )


def save_model(folder: Path, config: LlamaConfig, **options: Any) -> LlamaForCausalLM:
    """A model with random weights, which transformers saves to ``folder``."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).eval()
    for name, weight in model.named_parameters():
        if "norm" in name:  # initially all ones, which would hide an error
            weight.data.uniform_(0.5, 1.5)
    model.save_pretrained(folder, **options)
    write_byte_tokenizer(folder)
    return model


@pytest.mark.parametrize("seed", range(12))
def test_load_gives_the_logits_of_transformers(tmp_path, seed):
    model = save_model(tmp_path, draw_config(seed))
    assert relative_error(our_logits(tmp_path, IDS), model, IDS) < 1e-4


def test_draw_config_covers_what_matters():
    configs = [draw_config(seed) for seed in range(12)]
    assert {c.tie_word_embeddings for c in configs} == {True, False}
    assert {c.rope_parameters["rope_type"] for c in configs} == {"default", "llama3"}
    assert {c.num_attention_heads // c.num_key_value_heads for c in configs} >= {1, 2, 3, 4}
    assert any(c.head_dim * c.num_attention_heads != c.hidden_size for c in configs)


@pytest.mark.parametrize(
    "change",
    [
        {"rope_theta": 101.0},
        {"factor": 7.0},
        {"low_freq_factor": 1.5},
        {"high_freq_factor": 3.0},
        {"original_max_position_embeddings": 40},
        {"rope_type": "default"},
    ],
)
def test_load_uses_each_number_of_the_rope(tmp_path, change):
    config = draw_config(0)
    config.rope_parameters["rope_theta"] = 100.0
    model = save_model(tmp_path, config)
    edit_config(tmp_path, lambda data: data["rope_parameters"].update(change))
    assert relative_error(our_logits(tmp_path, IDS), model, IDS) > 1e-3


@pytest.mark.parametrize("tied", [True, False])
def test_load_reads_sharded_folders(tmp_path, tied):
    config = draw_config(3)
    config.tie_word_embeddings = tied
    model = save_model(tmp_path, config, max_shard_size="40KB")
    assert len(list(tmp_path.glob("model-*-of-*.safetensors"))) > 2
    assert not (tmp_path / "model.safetensors").exists()
    assert relative_error(our_logits(tmp_path, IDS), model, IDS) < 1e-4
    next(tmp_path.glob("model-00002-of-*")).unlink()
    assert_refused(tmp_path, "model-00002-of-")


@pytest.mark.parametrize("seed, key", [(0, "type"), (0, "rope_type"), (1, None)])
def test_load_reads_the_rope_settings_of_older_files(tmp_path, seed, key):
    model = save_model(tmp_path, draw_config(seed))

    def older(data: dict[str, Any]) -> None:
        rope = data.pop("rope_parameters")
        data["rope_theta"] = rope.pop("rope_theta")
        kind = rope.pop("rope_type")
        data["rope_scaling"] = {key: kind, **rope} if key else None

    edit_config(tmp_path, older)
    assert relative_error(our_logits(tmp_path, IDS), model, IDS) < 1e-4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_load_converts_weights_to_float32(tmp_path, dtype):
    save_model(tmp_path, draw_config(1)).to(dtype).save_pretrained(tmp_path)
    model = LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    target, tokenizer = hf_folder.load(tmp_path)
    assert {weight.dtype for weight in target.parameters()} == {torch.float32}
    assert tokenizer.decode(tokenizer.encode("naïve")) == "naïve"
    assert relative_error(our_logits(tmp_path, IDS), model, IDS) < 1e-4


def test_load_ignores_tensors_of_older_versions(tmp_path):
    config = draw_config(1)
    config.tie_word_embeddings = True
    model = save_model(tmp_path, config)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    save_file(tensors, tmp_path / "model.safetensors")
    assert relative_error(our_logits(tmp_path, IDS), model, IDS) < 1e-4


def test_load_chooses_the_auxiliary_layers(tmp_path):
    config = draw_config(1)
    config.num_hidden_layers = 10
    save_model(tmp_path, config)
    assert hf_folder.load(tmp_path)[0].config.aux_hidden_state_layer_ids == (2, 4, 6)


# ------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    "change, words",
    [
        ({"architectures": ["MistralForCausalLM"]}, ["MistralForCausalLM", "disagree"]),
        ({"architectures": ["OPTForCausalLM"]}, ["OPTForCausalLM", "not supported"]),
        ({"architectures": None, "model_type": "gemma3"}, ["gemma3", "not supported"]),
        ({"attention_bias": True}, ["lacks 8 tensors", "self_attn.k_proj.bias"]),
        ({"mlp_bias": True}, ["down_proj.bias"]),
        ({"auto_map": {"AutoModel": "mine.Model"}}, ["auto_map", "never run"]),
        ({"hidden_act": "gelu"}, ["hidden_act", "gelu", "silu"]),
        ({"quantization_config": {"quant_method": "awq"}}, ["quantization_config", "awq"]),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, ["yarn", "llama3"]),
        ({"rope_parameters": None, "rope_scaling": {"type": "linear"}}, ["linear", "factor"]),
        ({"rope_parameters": {"rope_type": "llama3"}}, ["factor"]),
        ({"rope_parameters": [1]}, ["config.json"]),
        ({"hidden_size": None}, ["config.json", "hidden_size"]),
        ({"hidden_size": "96"}, ["config.json"]),
        ({"num_attention_heads": 0}, ["config.json"]),
        ({"num_key_value_heads": 5}, ["5", "config.json"]),
        ({"num_hidden_layers": 10**9}, ["1000000000"]),
        ({"num_hidden_layers": 3}, ["lacks"]),
        ({"vocab_size": 200}, ["256", "200"]),
        ({"intermediate_size": 18}, ["mlp.", "shape"]),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_load_refuses_unsupported_settings_by_name(tmp_path, change, words):
    save_model(tmp_path, build_config())
    edit_config(tmp_path, lambda data: data.update(change))
    assert_refused(tmp_path, *words)


@pytest.mark.parametrize(
    "name, content, word",
    [
        ("config.json", None, "config.json"),
        ("config.json", b"{", "JSON"),
        ("config.json", b"[]", "config.json"),
        ("config.json", b"\xff", "JSON"),
        ("model.safetensors", None, "model.safetensors"),
        ("model.safetensors", b"version https://git-lfs.github.com/spec/v1\n", "model.safetensors"),
        ("model.safetensors", b"", "model.safetensors"),
        ("tokenizer.json", None, "no tokenizer"),
        ("tokenizer.json", b"{}", "tokenizer.json"),
    ],
)
def test_load_names_missing_and_damaged_files(tmp_path, name, content, word):
    save_model(tmp_path, build_config())
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_bytes(content)
    assert_refused(tmp_path, word)


@pytest.mark.parametrize(
    "name, value, word",
    [
        ("model.layers.0.self_attn.q_proj.bias", torch.ones(3), "q_proj.bias"),
        ("model.layers.0.mlp.experts.gate", torch.ones(3), "experts"),
        ("score.weight", torch.ones(3), "score"),
        ("model.norm.weight", torch.ones(96, dtype=torch.int8), "int8"),
        ("model.norm.weight", torch.ones(96).to(torch.float8_e4m3fn), "float8"),
        ("model.norm.weight", torch.full((96,), float("nan")), "NaN"),
    ],
)
def test_load_refuses_unexpected_tensors(tmp_path, name, value, word):
    save_model(tmp_path, build_config())
    tensors = load_file(tmp_path / "model.safetensors")
    save_file(tensors | {name: value}, tmp_path / "model.safetensors")
    assert_refused(tmp_path, word)


def test_load_refuses_a_damaged_index_of_shards(tmp_path):
    save_model(tmp_path, build_config(), max_shard_size="40KB")
    (tmp_path / "model.safetensors.index.json").write_text('{"metadata": {}}')
    assert_refused(tmp_path, "index")


# ------------------------------------------------------------------ tokenizers


def train_sentencepiece() -> bytes:
    content = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["as it was in the beginning, so it is at the end"] * 9),
        model_writer=content,
        model_type="bpe",
        vocab_size=290,
        byte_fallback=True,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return content.getvalue()


def write_llama3_ranks() -> bytes:
    return b"\n".join(b"%s %d" % (base64.b64encode(bytes([i])), i) for i in range(256))


@pytest.mark.parametrize(
    "content, kind",
    [(train_sentencepiece, SentencePieceTokenizer), (write_llama3_ranks, TiktokenTokenizer)],
)
def test_load_reads_tokenizer_model_where_there_is_no_json(tmp_path, content, kind):
    config = build_config()
    config.vocab_size = 600
    save_model(tmp_path, config)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "tokenizer.model").write_bytes(content())
    tokenizer = hf_folder.load(tmp_path)[1]
    assert type(tokenizer) is kind
    assert tokenizer.decode(tokenizer.encode("in the end, naïve")) == "in the end, naïve"


def test_load_reports_a_tokenizer_that_cannot_be_read(tmp_path):
    save_model(tmp_path, build_config())
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "tokenizer.model").write_bytes(b"neither of the two")
    assert_refused(tmp_path, "tokenizer.model")


# ------------------------------------------------------------------ the real target


@pytest.fixture(scope="module")
def oracle(smollm2: pretrained.Pretrained) -> LlamaForCausalLM:
    """transformers' own reading of the same GGUF file."""
    path = known_models.model_path(smollm2.name)
    return LlamaForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    ).eval()


def load_prompts(smollm2: pretrained.Pretrained) -> list[list[int]]:
    """Two prompts of each domain, as chats."""
    domains = ("general", "code", "law", "medicine")
    texts = [text for domain in domains for text in corpus.load_prompts(domain)[:2]]
    return [smollm2.tokenizer.chat(text) for text in texts]


def test_smollm2_has_the_logits_of_transformers(smollm2, oracle):
    prompts = load_prompts(smollm2)
    ids = torch.tensor([token for prompt in prompts[::3] for token in prompt])
    assert len(ids) > 100
    target = smollm2.target
    logits = target.head.logits(target.step(ids, target.new_cache(len(ids))).hidden)
    assert relative_error(logits, oracle, ids) < 1e-4


def check_greedy(
    ours: Sequence[int], theirs: Sequence[int], logits_at: Callable[[int], Tensor]
) -> None:
    """Two greedy texts are equal, or first differ at a near tie of the reference logits, where ours
    took the runner-up."""
    for position, (a, b) in enumerate(zip(ours, theirs, strict=False)):
        if a != b:
            (top, second), ids = logits_at(position).topk(2)
            assert top - second <= 1e-4 * max(1, abs(top)), f"no tie at {position}"
            assert a == ids[1], f"{a} is not the runner-up at {position}"
            return
    assert len(ours) == len(theirs)


@pytest.mark.parametrize(
    "ours, theirs, equal",
    [
        ([3, 1], [3, 1], True),
        ([3, 2, 0], [3, 1, 5, 5], True),  # a near tie at position 1
        ([3, 0], [3, 1], False),  # a near tie there, but of other ids
        ([2, 1], [3, 1], False),  # no tie at position 0
        ([3], [3, 1], False),
    ],
)
def test_check_greedy_can_fail(ours, theirs, equal):
    logits = torch.tensor([[0.0, 1.0, 2.0, 9.0], [0.0, 7.0, 6.9999, 2.0]])
    if equal:
        check_greedy(ours, theirs, logits.__getitem__)
    else:
        with pytest.raises(AssertionError):
            check_greedy(ours, theirs, logits.__getitem__)


def compare_greedy(
    smollm2: pretrained.Pretrained, oracle: LlamaForCausalLM, prompts: list[list[int]], new: int
) -> None:
    """Decode each prompt with our loop and with ``generate``."""
    stop = StopRule(new, smollm2.tokenizer.eos_ids)
    for prompt in prompts:
        rounds = autoregressive(
            smollm2.target, prompt, sampling=Sampling(), rng=SeededRandom(0), stop=stop
        )
        ours = [token for finished in rounds for token in finished.tokens]
        ids = torch.tensor([prompt])
        theirs = oracle.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=new,
            eos_token_id=list(smollm2.tokenizer.eos_ids),
            pad_token_id=0,
        )[0].tolist()
        assert theirs[: len(prompt)] == prompt and len(theirs) > len(prompt)

        def logits_at(position: int, text: list[int] = theirs, start: int = len(prompt)) -> Tensor:
            with torch.inference_mode():
                return oracle(torch.tensor([text[: start + position]])).logits[0, -1]

        check_greedy(ours, theirs[len(prompt) :], logits_at)


def test_smollm2_gives_the_greedy_text_of_transformers(smollm2, oracle):
    compare_greedy(smollm2, oracle, load_prompts(smollm2)[::4], 32)


@pytest.mark.slow
def test_smollm2_gives_the_long_greedy_text_of_transformers(smollm2, oracle):
    compare_greedy(smollm2, oracle, load_prompts(smollm2), 128)
