import json

import pytest
import torch

from minispec.shortlists import hnsw
from minispec.tools.models import hnsw_cache

ROWS = torch.randn(300, 8, generator=torch.Generator().manual_seed(0))
FINGERPRINT = "a" * 64


@pytest.fixture
def builds(monkeypatch, tmp_path):
    """The number of indices built, with an empty cache folder."""
    monkeypatch.setattr(hnsw_cache, "cache_folder", lambda: tmp_path)
    built = []

    def build(rows, progress):
        built.append(len(rows))
        return hnsw.build_hnsw(rows, progress)

    monkeypatch.setattr(hnsw_cache, "build_hnsw", build)
    return built


def test_load_hnsw_builds_once_and_then_reads(builds, tmp_path):
    first = hnsw_cache.load_hnsw(ROWS, FINGERPRINT)
    again = hnsw_cache.load_hnsw(ROWS, FINGERPRINT)
    assert builds == [300]
    for hidden in ROWS[:20]:
        assert first.find_nearest(hidden, 5).tolist() == again.find_nearest(hidden, 5).tolist()
    hnsw_cache.load_hnsw(ROWS + 1, "b" * 64)  # another head
    assert builds == [300, 300]


@pytest.mark.parametrize("damage", ["index", "cut", "record", "library", "missing"])
def test_load_hnsw_builds_a_damaged_index_again(builds, tmp_path, damage):
    hnsw_cache.load_hnsw(ROWS, FINGERPRINT)
    [index], [record] = tmp_path.rglob("*.usearch"), tmp_path.rglob("*.json")
    data = bytearray(index.read_bytes())
    if damage == "index":
        data[len(data) // 2] ^= 1
        index.write_bytes(data)
    elif damage == "cut":
        index.write_bytes(data[:100])
    elif damage == "record":
        record.write_text("[]")
    elif damage == "library":
        record.write_text(json.dumps(json.loads(record.read_text()) | {"library": "0.0"}))
    else:
        index.unlink()
    hnsw_cache.load_hnsw(ROWS, FINGERPRINT)
    assert builds == [300, 300]
    hnsw_cache.load_hnsw(ROWS, FINGERPRINT)
    assert builds == [300, 300]


def test_load_hnsw_serves_without_a_writable_cache(builds, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(hnsw_cache, "cache_folder", lambda: tmp_path / "file")
    assert len(hnsw_cache.load_hnsw(ROWS, FINGERPRINT)) == 300
    assert "the HNSW index is not kept: " in capsys.readouterr().err
