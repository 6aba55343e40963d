"""The GPU benchmark: its sides compute the same logits, and without a GPU it exits with one line.

The benchmark's functions run in a process of their own, on a GPU or in Numba's simulator.
"""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parent.parent.parent

# Prints the results of the benchmark's functions on small shapes as JSON.
SCRIPT = """
import json, sys
import torch
from benchmarks import gpu
from fastpath.cuda import device

results = {"sides": {}}
on = device.get_device()
weight = torch.randn(23, 12, generator=torch.Generator().manual_seed(0)).to(on)
hidden = torch.randn(2, 12, generator=torch.Generator().manual_seed(1)).to(on)
for count in (7, 23):
    ids = gpu.draw_shortlists(23, count)
    results["sides"][count] = {
        name: {
            "error": gpu.measure_error(call, weight, hidden, ids),
            # In another order than the shortlists were drawn in.
            "differences": [
                float((call(n) - hidden @ weight[ids[n]].T).abs().max()) for n in (3, 7, 2, 0)
            ],
        }
        for name, call in gpu.build_sides(weight, hidden, ids).items()
    }

weight, hidden = torch.randn(60, 12, device=on), torch.randn(1, 12, device=on)
ids = gpu.draw_shortlists(60, 40)
try:
    gpu.measure_error(lambda n: hidden @ weight[ids[1 - n]].T, weight, hidden, ids)
except AssertionError as error:
    results["wrong side"] = str(error)

results["shortlists"] = [ids.tolist() for ids in gpu.draw_shortlists(1000, 100)]

def time_constant(call):
    call()
    return 2e-6

def time_on_device(call):
    return time_constant(call)

def time_on_wall(call):
    return time_constant(call)

gpu.time_on_device, gpu.time_on_wall = time_on_device, time_on_wall  # clocks need a GPU's events
results["rows"] = gpu.measure_heads("toy", 9, 8, torch.float32, 4, 1, bandwidth=1e9, rounds=2)
json.dump(results, sys.stdout)
"""


def run_python(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT, env=os.environ | env, capture_output=True, text=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    result = run_python("-c", SCRIPT)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
@pytest.mark.parametrize("simulated", ["0", "1"])
def test_gpu_without_gpu_exits_with_one_line(simulated, tmp_path):
    result = run_python(
        "-m", "benchmarks", "gpu", "--json", str(tmp_path / "figures.json"),
        NUMBA_ENABLE_CUDASIM=simulated,
    )  # fmt: skip
    assert result.returncode == 2
    assert result.stdout == "" and len(result.stderr.splitlines()) == 1
    assert "no GPU" in result.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("count", [7, 23])
def test_build_sides_compute_same_logits(count, results):
    sides = results["sides"][str(count)]
    assert len(sides) == (2 if count == 23 else 4)
    for side in sides.values():
        assert side["error"] < 1e-5
        assert len(side["differences"]) == 4 and max(side["differences"]) < 1e-4


def test_measure_error_detects_wrong_logits(results):
    assert "wrong logits" in results["wrong side"]


def test_draw_shortlists_changes_a_twentieth(results):
    shortlists = results["shortlists"]
    assert len(shortlists) == 8
    for before, after in itertools.pairwise(shortlists):
        assert len(set(after) - set(before)) == 5
        assert sorted(set(after)) == after


def test_measure_heads_returns_a_row_for_each_side(results):
    rows = results["rows"]
    assert [row["side"] for row in rows] == [
        "torch gathered", "torch packed", "ours gathered", "ours packed",
    ]  # fmt: skip
    for row in rows:
        assert row["fraction_of_bandwidth"] == pytest.approx(4 * 8 * 4 / 2e-6 / 1e9)
