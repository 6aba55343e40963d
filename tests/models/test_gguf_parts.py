"""GGUF files in several parts: any of them opens the model; a missing or strange one is named."""

import os
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from helpers.gguf_files import TOKENS, write_gguf
from helpers.toys import toy_transformer
from minispec.errors import FileError
from minispec.io.gguf_header import read_header
from minispec.tools.models import gguf_file


def write_parts(folder: Path, stem: str = "x", tensors: int = 8) -> list[Path]:
    """A model with ``tensors`` in each part; 0: in one file."""
    shape = {"num_hidden_layers": 2, "aux_hidden_state_layer_ids": ()}
    model = toy_transformer(vocab_size=len(TOKENS), **shape).float()
    write_gguf(folder / f"{stem}.gguf", model, tensors_in_a_part=tensors)
    return sorted(folder.glob(f"{stem}*.gguf"))


def assert_refused(path: Path, *words: str) -> None:
    with pytest.raises(FileError) as caught:
        gguf_file.load(path)
    message = str(caught.value)
    assert "\n" not in message and all(word in message for word in words), message


def test_load_reads_a_model_from_any_of_its_parts(tmp_path):
    parts = write_parts(tmp_path)
    assert [path.name for path in parts] == [f"x-0000{n}-of-00003.gguf" for n in (1, 2, 3)]
    [whole] = write_parts(tmp_path, "y", tensors=0)
    state = gguf_file.load(whole)[0].state_dict()
    for path in parts:
        model, tokenizer = gguf_file.load(path)
        assert tokenizer.vocab_size == len(TOKENS) and model.state_dict().keys() == state.keys()
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_load_names_a_missing_part(tmp_path, lost):
    parts = write_parts(tmp_path)
    parts.pop(lost).unlink()
    for path in parts:
        assert_refused(path, f"x-0000{lost + 1}-of-00003.gguf is missing")


def test_load_refuses_a_part_under_another_name(tmp_path):
    part = write_parts(tmp_path)[1]
    part.rename(tmp_path / "model.gguf")
    assert_refused(tmp_path / "model.gguf", "part 2 of 3", "-00002-of-00003.gguf")


def test_load_refuses_a_part_in_the_place_of_another(tmp_path):
    parts = write_parts(tmp_path)
    os.replace(parts[2], parts[1])
    parts[2].write_bytes(parts[1].read_bytes())
    assert_refused(parts[0], parts[1].name, "part 3 of 3", "expected part 2")


def test_load_refuses_a_part_of_another_model(tmp_path):
    parts, others = write_parts(tmp_path), write_parts(tmp_path, "y", tensors=9)
    os.replace(others[1], parts[1])
    assert_refused(parts[0], parts[2].name, "is in an earlier part")


def test_load_refuses_a_part_that_is_cut_off(tmp_path):
    parts = write_parts(tmp_path)
    parts[1].write_bytes(parts[1].read_bytes()[:-40])
    assert_refused(parts[0], parts[1].name, "download complete")


def test_load_refuses_another_number_of_tensors_than_the_first_part_says(tmp_path):
    parts = write_parts(tmp_path)
    content = parts[0].read_bytes()
    at = content.index(b"split.tensors.count") + len(b"split.tensors.count") + 4
    parts[0].write_bytes(content[:at] + bytes([99]) + content[at + 1 :])
    assert_refused(parts[1], "hold 20 tensors, expected 99")


@pytest.mark.parametrize("kind", gguf.GGML_QUANT_SIZES, ids=lambda kind: kind.name)
def test_read_header_finds_the_bytes_of_every_type(tmp_path, kind):
    block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    generator = np.random.default_rng(1)
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    for name, rows in (("a", 3), ("b", 5)):
        values = generator.integers(0, 256, (rows, 2 * block_bytes), np.uint8)
        writer.add_tensor(name, values, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    header = read_header(tmp_path / "x.gguf")
    assert [entry.shape for entry in header.tensors.values()] == [(3, 2 * block), (5, 2 * block)]
    for tensor in gguf.GGUFReader(tmp_path / "x.gguf").tensors:
        assert header.tensors[tensor.name].kind == tensor.tensor_type == kind
        assert np.array_equal(header.read_bytes(tensor.name), tensor.data.view(np.uint8))
