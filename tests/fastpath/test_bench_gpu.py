"""The GPU benchmark says when there is no GPU, and its sides compute the same."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import bench_gpu
from fastpath.cuda import device

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
@pytest.mark.parametrize("simulated", ["0", "1"])
def test_without_a_gpu_it_says_so_in_a_line(simulated, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.bench_gpu", "--json", str(tmp_path / "figures.json")],
        cwd=ROOT,
        env=os.environ | {"NUMBA_ENABLE_CUDASIM": simulated},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stdout == "" and len(done.stderr.splitlines()) == 1
    assert "no GPU" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("count", [7, 23])
def test_the_sides_compute_the_same_logits(count):
    weight = torch.randn(23, 12, generator=torch.Generator().manual_seed(0)).to(device.home())
    hidden = torch.randn(2, 12, generator=torch.Generator().manual_seed(1)).to(device.home())
    ids = bench_gpu.lists(23, count)
    every = bench_gpu.sides(weight, hidden, ids)
    assert len(every) == (2 if count == 23 else 4)
    for call in every.values():
        assert bench_gpu.error(call, weight, hidden, ids) < 1e-5
        for number in (3, 7, 2, 0):  # in another order than they were made
            exact = hidden @ weight[ids[number]].T
            assert torch.allclose(call(number), exact, atol=1e-4)


def test_a_side_that_computes_something_else_is_caught():
    weight, hidden = torch.randn(60, 12), torch.randn(1, 12)
    ids = bench_gpu.lists(60, 40)
    with pytest.raises(AssertionError, match="something else"):
        bench_gpu.error(lambda n: hidden @ weight[ids[1 - n]].T, weight, hidden, ids)


def test_lists_change_by_a_twentieth():
    ids = bench_gpu.lists(1000, 100)
    for before, after in itertools.pairwise(ids):
        assert len(set(after.tolist()) - set(before.tolist())) == 5
        assert (after[1:] > after[:-1]).all()


def test_heads_of_one_shape_make_a_row_for_each_side(monkeypatch):
    """All but the clocks, which need a GPU's events."""
    for clock in ("on_device", "on_the_wall"):

        def timed(call, seconds=2e-6):
            call()
            return seconds

        timed.__name__ = clock
        monkeypatch.setattr(bench_gpu, clock, timed)
    rows = bench_gpu.heads("toy", 9, 8, torch.float32, 4, 1, bandwidth=1e9, rounds=2)
    assert [row["side"] for row in rows] == [
        "torch gathered", "torch packed", "ours gathered", "ours packed",
    ]  # fmt: skip
    assert all(
        row["fraction_of_bandwidth"] == pytest.approx(4 * 8 * 4 / 2e-6 / 1e9) for row in rows
    )
