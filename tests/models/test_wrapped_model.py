"""Models of transformers through the front door: loaded, in a folder, on the command line."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerFast
from transformers.utils import logging

import minispec
from helpers.conformity import edit_config, write_byte_tokenizer
from helpers.families import decode_greedily, generate_greedily, save_model
from helpers.tiny_model import write_tokenizer
from helpers.wrapped_models import build_model
from minispec.errors import ArgumentError, FileError
from minispec.io import draft_file
from minispec.models.eagle_draft import EagleDraft, init_draft
from minispec.tools.cli.main import main
from minispec.tools.data import distill
from minispec.tools.models import pretrained
from minispec.tools.training import recipe

logging.disable_progress_bar()

NEOX = ("GPTNeoXConfig", "GPTNeoXForCausalLM")
PROMPT = "Why is the sky blue?"


def save_folder(folder: Path, **changes: Any) -> Any:
    """A GPT-NeoX in a folder, with a tokenizer and a chat template; the model."""
    folder.mkdir(exist_ok=True)
    size = write_tokenizer(folder)
    changes = {
        "vocab_size": size,
        "max_position_embeddings": 512,
        "eos_token_id": size - 1,
    } | changes
    model = build_model(*NEOX, changes)
    model.save_pretrained(folder)
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("neox") / "model"
    save_folder(path)
    return path


def test_load_runs_a_folder_of_another_architecture_by_transformers(folder):
    model = minispec.load(folder)
    assert "transformers (GPTNeoXForCausalLM)" in repr(model)
    ids = model.tokenizer.encode(PROMPT)
    reference = model.pretrained.reference.model
    assert decode_greedily(model.target, ids, 20) == generate_greedily(reference, ids, 20)


def test_load_takes_a_loaded_model_with_its_tokenizer(folder):
    theirs = PreTrainedTokenizerFast.from_pretrained(folder)
    network = pretrained.load(str(folder), "float64").reference.model
    model = minispec.load(network, tokenizer=theirs, draft=False)
    assert model.pretrained.dtype == "float64" and model.name == "GPTNeoXForCausalLM"
    assert model.pretrained.fingerprint == minispec.load(folder, draft=False).pretrained.fingerprint
    assert model.tokenizer.encode(PROMPT) == theirs.encode(PROMPT)
    own = minispec.load(network, tokenizer=model.tokenizer)
    out = own.generate(PROMPT, max_new_tokens=12, raw=True)
    ids = own.tokenizer.encode(PROMPT)
    expected = generate_greedily(network, ids, 12)
    assert out.token_ids == tuple(expected[: len(out.token_ids)])


def make_draft(folder: Path, path: Path) -> EagleDraft:
    loaded = pretrained.load(str(folder))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        draft = init_draft(loaded.reference)
    draft_file.save_draft(path, draft, loaded.fingerprint)
    return draft


def test_methods_on_a_wrapped_model_keep_its_text(folder, tmp_path):
    make_draft(folder, tmp_path / "draft.safetensors")
    model = minispec.load(folder, draft=tmp_path / "draft.safetensors")
    options: dict[str, Any] = dict(max_new_tokens=24, ignore_eos=True)
    plain = model.generate(PROMPT, shortlist="autoregressive", **options)
    for method in ("full", "microspec@40", "full+adapt", "full+suffix", "suffix"):
        assert model.generate(PROMPT, shortlist=method, **options).token_ids == plain.token_ids, (
            method
        )
    tree = model.generate(PROMPT, shortlist="full", tree="3x2x5", **options)
    assert tree.token_ids == plain.token_ids and tree.tau > 1


@pytest.mark.slow
def test_make_draft_trains_a_draft_for_a_wrapped_model(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(distill, "write_shards", partial(distill.write_shards, shard_prompts=6))
    path = recipe.make_draft(str(folder), ["law"], 300, 0.5, 0, tmp_path)
    log = json.loads((tmp_path / "training.json").read_bytes())["log"]
    assert log[-1]["tau"] >= 1
    model = minispec.load(folder, draft=path)
    options: dict[str, Any] = dict(max_new_tokens=24, ignore_eos=True)
    plain = model.generate(PROMPT, shortlist="autoregressive", **options)
    assert model.generate(PROMPT, shortlist="full", **options).token_ids == plain.token_ids


def test_command_line_says_what_runs_the_model(folder, capsys):
    assert main(["generate", PROMPT, "--model", str(folder), "--max-new-tokens", "4"]) == 0
    line = f"minispec: {folder} is run by transformers (GPTNeoXForCausalLM)"
    assert line in capsys.readouterr().err.splitlines()


def test_fast_paths_refuse_a_wrapped_model_by_name(folder):
    for backend in ("cpu", "compiled"):
        with pytest.raises(ArgumentError, match=f"backend {backend} cannot run .*GPTNeoXForCausal"):
            minispec.load(folder, backend=backend)
    for dtype in ("int8", "gguf"):
        with pytest.raises(ArgumentError, match=f"dtype {dtype} needs"):
            minispec.load(folder, dtype=dtype)


def assert_refused(path: Path, *words: str) -> None:
    with pytest.raises(FileError) as caught:
        minispec.load(path)
    message = str(caught.value)
    assert str(path) in message and "\n" not in message
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    "change, words",
    [
        (
            {"auto_map": {"AutoModelForCausalLM": "own.Model"}},
            ["auto_map", "never run", "gpt_neox"],
        ),
        ({"model_type": "own", "architectures": ["OwnForCausalLM"]}, ["OwnForCausalLM", "neither"]),
        ({"architectures": ["GPTNeoXForSequenceClassification"]}, ["neither", "transformers 5"]),
        ({"model_type": "bert", "architectures": ["BertModel"]}, ["BertModel", "neither"]),
        ({"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]}, ["T5", "neither"]),
        ({"hidden_size": 64}, ["keys for GPTNeoX"]),
        ({"num_hidden_layers": 4}, ["missing keys"]),
        ({"num_hidden_layers": 2}, ["unexpected keys"]),
        ({"num_attention_heads": "many"}, ["transformers cannot load it"]),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_load_refuses_what_it_would_run_wrongly(tmp_path, change, words):
    save_folder(tmp_path)
    edit_config(tmp_path, lambda data: data.update(change))
    assert_refused(tmp_path, *words)


def test_load_never_runs_code_in_a_folder(tmp_path):
    save_folder(tmp_path)
    trap = "import pathlib\npathlib.Path(__file__).with_name('ran').touch()\n"
    for name in ("own.py", "modeling_gpt_neox.py", "tokenization_own.py"):
        (tmp_path / name).write_text(trap)
    edit_config(tmp_path, lambda data: data.update(auto_map={"AutoConfig": "own.Config"}))
    path = tmp_path / "tokenizer_config.json"
    settings = json.loads(path.read_text()) | {"auto_map": {"AutoTokenizer": ["own.T", None]}}
    path.write_text(json.dumps(settings))
    assert_refused(tmp_path, "auto_map")
    edit_config(tmp_path, lambda data: data.pop("auto_map"))
    minispec.load(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_load_refuses_a_recurrent_model_in_a_folder(tmp_path):
    size = write_tokenizer(tmp_path)
    build_model("MambaConfig", "MambaForCausalLM", {"vocab_size": size}).save_pretrained(tmp_path)
    assert_refused(tmp_path, "MambaForCausalLM cannot be a target", "recurrent state")


def test_load_refuses_weights_that_are_not_finite(tmp_path):
    save_folder(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights["embed_out.weight" if "embed_out.weight" in weights else "lm_head.weight"][3] = (
        torch.nan
    )
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    assert_refused(tmp_path, "NaN")


@pytest.mark.parametrize(
    "given, words",
    [
        (dict(tokenizer=None), "needs its tokenizer"),
        (dict(tokenizer=3), "tokenizer is int 3"),
        (dict(dtype="float32"), "its own"),
        (dict(device="cpu"), "its own"),
    ],
)
def test_load_refuses_wrong_parts_beside_a_loaded_model(folder, given, words):
    network = pretrained.load(str(folder)).reference.model
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    with pytest.raises(ArgumentError, match=words):
        minispec.load(network, **dict(tokenizer=tokenizer) | given)


def test_load_refuses_a_tokenizer_beside_a_name():
    with pytest.raises(ArgumentError, match="leave tokenizer out"):
        minispec.load("pocket", tokenizer=3)


def test_load_says_where_transformers_is_missing(folder, monkeypatch, tmp_path):
    monkeypatch.setattr("minispec.tools.extras.find_spec", lambda name: None)
    with pytest.raises(ArgumentError, match=r"transformers not installed: .*\[transformers\]"):
        minispec.load(folder)
    save_model(tmp_path, "llama", {"vocab_size": 256, "hidden_size": 16, "num_hidden_layers": 1,
                                   "num_attention_heads": 2, "intermediate_size": 8})  # fmt: skip
    write_byte_tokenizer(tmp_path)
    assert minispec.load(tmp_path).pretrained.implementation == "minispec"
