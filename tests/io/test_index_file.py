"""Index files: what is refused, by the reader and by the command that writes them."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from helpers.shortlists import build_index
from helpers.tiny_model import Tiny
from minispec.errors import FileError, FingerprintError
from minispec.io.files import read_metadata, write_tensors
from minispec.io.index_file import build_router, read_index, write_index
from minispec.shortlists.dynaspec import Router
from minispec.tools.cli import main


def write_damaged(index: Path, tmp_path: Path, clusters: Tensor) -> Path:
    """An index with the metadata of another and these clusters."""
    path = tmp_path / "damaged.safetensors"
    write_tensors(path, {"clusters": clusters}, read_metadata(index, dict[str, str]))
    return path


def test_read_index_refuses_damaged_files_and_those_of_other_models(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    index, model = build_index(tiny), tiny.model
    size = model.tokenizer.vocab_size
    fingerprints = (model.fingerprint, model.tokenizer.fingerprint)
    clusters, router = read_index(index, size, *fingerprints)
    assert len(clusters) == size and router == {}
    with pytest.raises(FingerprintError, match="made for model"):
        read_index(index, size, "f" * 64, fingerprints[1])
    with pytest.raises(FingerprintError, match="made for tokenizer"):
        read_index(index, size, fingerprints[0], "f" * 64)
    for wrong in (clusters, clusters.int() - 1, clusters[:-1].int()):
        with pytest.raises(FileError, match=r"damaged\.safetensors"):
            read_index(write_damaged(index, tmp_path, wrong), size, *fingerprints)
    half = tmp_path / "half.safetensors"
    half.write_bytes(index.read_bytes()[:-50])
    command = ["generate", "hi", "--model", str(tiny.folder), "--draft", str(tiny.draft_path)]
    command += ["--method", f"evospec:{tiny.ranking('general')}"]
    for file, reason in [(half, "half.safetensors"), (tmp_path / "none", "No such file")]:
        assert main.main([*command, "--index", str(file)]) == 2
        assert reason in capsys.readouterr().err
    assert main.main(command) == 2
    assert "minispec index build" in capsys.readouterr().err
    command[-1] = f"dynaspec:{tiny.ranking('general')}"
    assert main.main([*command, "--index", str(index)]) == 2
    assert "minispec train router" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("clusters", "reason"),
    [
        (torch.ones(9), "clusters has dtype F32, expected I32 or I16"),
        (torch.ones(9, dtype=torch.bool), "clusters has dtype BOOL"),
        (torch.ones(9, dtype=torch.complex64), "has dtype C64"),
        (torch.ones(9, dtype=torch.int64), "clusters has dtype I64"),
        (torch.full((9,), 9, dtype=torch.int32), r"clusters 9\.\.9, expected numbers within 0..8"),
        (torch.full((9,), 2**31 - 1, dtype=torch.int32), "clusters 2147483647"),
        (torch.full((9,), -1, dtype=torch.int16), r"clusters -1\.\.-1"),
        (torch.ones((3, 3), dtype=torch.int16), r"clusters has shape \(3, 3\)"),
    ],
)
def test_read_index_refuses_other_clusters(tmp_path: Path, clusters: Tensor, reason: str) -> None:
    path, fingerprints = tmp_path / "x.safetensors", {"model": "a" * 64, "tokenizer": "b" * 64}
    write_tensors(path, {"clusters": clusters}, fingerprints)
    with pytest.raises(FileError, match=reason):
        read_index(path, 9, *fingerprints.values())
    write_tensors(path, {"clusters": torch.ones(9, dtype=torch.int16), "x": torch.ones(1)}, {})
    with pytest.raises(FingerprintError, match="does not say which model it was made for"):
        read_index(path, 9, *fingerprints.values())
    write_tensors(path, {"clusters": clusters, "x": torch.ones(1)}, fingerprints)
    with pytest.raises(
        FileError, match=r"lacks 4 tensors, router\.inner\.bias first|has dtype C64"
    ):
        read_index(path, 9, *fingerprints.values())


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ("--clusters 0 --out OUT/x.safetensors", "clusters 0 must lie in 1..320"),
        ("--clusters 321 --out OUT/x.safetensors", "clusters 321"),
        ("--out OUT/x.bin", "must end in .safetensors"),
        ("--out /proc/none/x.safetensors", "cannot write into"),
    ],
)
def test_index_build_refuses_bad_options(
    tiny: Tiny, tmp_path: Path, options: str, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["index", "build", "--model", str(tiny.folder)]
    assert main.main([*command, *options.replace("OUT", str(tmp_path)).split()]) == 2
    assert reason in capsys.readouterr().err
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(("last", "item_size"), [(2**15 - 1, 2), (2**15, 4), (40_000, 4)])
def test_write_index_uses_the_smallest_integers(last: int, item_size: int, tmp_path: Path) -> None:
    path, clusters = tmp_path / "index.safetensors", torch.arange(last + 1)
    write_index(path, clusters, {}, "a" * 64, "b" * 64)
    read, _ = read_index(path, last + 1, "a" * 64, "b" * 64)
    assert torch.equal(read, clusters) and read.dtype == torch.int64
    assert 0 < path.stat().st_size - item_size * (last + 1) < 1000


def test_build_router_freezes_the_weights_and_refuses_other_shapes() -> None:
    weights = Router(4, 3).state_dict()
    assert not any(p.requires_grad for p in build_router(weights, 4, 3, "file").parameters())
    with pytest.raises(FileError, match="file"):
        build_router(weights, 4, 5, "file")
    with pytest.raises(FileError, match="no router"):
        build_router({}, 4, 3, "file")
