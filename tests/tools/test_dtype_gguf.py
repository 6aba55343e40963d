"""``--dtype gguf``: a file's blocks as they are, and what cannot be multiplied so."""

import gguf
import numpy as np
import pytest
import torch

from helpers.gguf_files import TOKENS, write_gguf
from helpers.toys import toy_transformer
from minispec.errors import ArgumentError, FileError
from minispec.io.artifacts import find_artifact
from minispec.models.quantized_modules import QuantizedLinear, is_quantized
from minispec.tools.models import backend, known_models, pretrained

WIDE = dict(
    hidden_size=64, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
    intermediate_size=96, vocab_size=len(TOKENS), tie_word_embeddings=True,
)  # fmt: skip
IDS = torch.tensor([5, 9, 2, 70])


def write(path, quantised=gguf.GGMLQuantizationType.Q8_0):
    model = toy_transformer(**WIDE).float()
    write_gguf(path, model, quantised=quantised)
    return path


@pytest.mark.parametrize("name", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_load_gguf_keeps_blocks_and_rows_in_order(tmp_path, name):
    path = write(tmp_path / "m.gguf", gguf.GGMLQuantizationType[name])
    loaded, plain = pretrained.load(str(path), "gguf"), pretrained.load(str(path), "float32")
    assert loaded.fingerprint == plain.fingerprint and loaded.dtype == "gguf"
    weights = dict(plain.reference.state_dict())
    matrices = {
        f"{n}.weight": m
        for n, m in loaded.reference.named_modules()
        if isinstance(m, QuantizedLinear)
    }
    assert len(matrices) == 3 * 7
    assert all(torch.equal(m.weight, weights[n]) for n, m in matrices.items())
    assert torch.equal(loaded.reference.embedding(IDS), plain.reference.embedding(IDS))
    hidden = [m.target.step(IDS, m.target.new_cache(8)).hidden for m in (loaded, plain)]
    assert not torch.equal(*hidden)
    assert (hidden[0] - hidden[1]).abs().mean() < 0.05 * hidden[1].abs().mean()


def test_load_gguf_runs_alike_on_reference_and_cpu(tmp_path):
    loaded = pretrained.load(str(write(tmp_path / "m.gguf")), "gguf")
    fast, _ = backend.place_on_backend(loaded, None, "cpu")
    hidden = [t.step(IDS, t.new_cache(8)).hidden for t in (loaded.target, fast.target)]
    assert (hidden[0] - hidden[1]).abs().mean() < 0.004 * hidden[0].abs().mean()


def test_load_gguf_refuses_other_types(tmp_path):
    path = write(tmp_path / "m.gguf", gguf.GGMLQuantizationType.F16)
    with pytest.raises(
        FileError, match="is of type F16, which dtype gguf does not multiply"
    ) as caught:
        pretrained.load(str(path), "gguf")
    assert "use float32, bfloat16 or int8" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_load_gguf_refuses_damaged_scales(tmp_path):
    path = write(tmp_path / "m.gguf")
    content = bytearray(path.read_bytes())
    reader = gguf.GGUFReader(path)
    tensor = next(t for t in reader.tensors if t.name == "blk.0.attn_q.weight")
    content[tensor.data_offset : tensor.data_offset + 2] = np.float16("nan").tobytes()
    path.write_bytes(content)
    with pytest.raises(FileError, match=r"attn_q\.weight contains NaN or infinity"):
        pretrained.load(str(path), "gguf")


def test_load_gguf_refuses_folders():
    with pytest.raises(ArgumentError, match="a GGUF file as they are, and pocket is a folder"):
        pretrained.load(known_models.POCKET, "gguf")


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_check_device_refuses_gguf_beside_the_cpu(device, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    with pytest.raises(ArgumentError, match="gguf runs on the CPU alone: use --device cpu"):
        pretrained.check_device(device, "gguf")


def test_compiled_refuses_gguf(tmp_path):
    loaded = pretrained.load(str(write(tmp_path / "m.gguf")), "gguf")
    with pytest.raises(ArgumentError, match="gguf runs on the backends reference and cpu alone"):
        backend.place_on_backend(loaded, None, "compiled")


@pytest.mark.parametrize("learns", [False, True])
def test_place_on_backend_quantizes_drafts_that_do_not_learn(smollm2, learns):
    del smollm2  # the file is there
    loaded = pretrained.load("smollm2", "gguf")
    path = find_artifact("smollm2", "draft")
    draft = pretrained.load_draft(path, loaded)
    _, placed = backend.place_on_backend(loaded, draft, "reference", learns=learns)
    assert is_quantized(placed) is not learns
