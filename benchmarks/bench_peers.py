"""The same sixteen tokens by every engine: minispec in each dtype, llama.cpp and transformers.

Physics: each token of plain decoding reads all weights once, so the time follows their bytes. All
sides continue one short prompt of the same ids, with two threads; its prefill, of ten positions,
counts here (``python -m benchmarks peers`` leaves it out, and has more prompts and sides).

    pytest benchmarks/bench_peers.py --benchmark-only
"""

from functools import cache

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.peers import minispec_sides
from benchmarks.peers.apart import build_apart
from benchmarks.peers.sides import LLAMA_CPP, MINISPEC, PLAIN, Engine, Side, Work
from minispec.tools.models import known_models

MODEL, TOKENS = "smollm2", 16
IDS = (504, 3299, 282, 260, 2591, 314, 260, 1216, 338, 314)
WORK = Work(MODEL, known_models.model_path(MODEL), (("general", IDS),), TOKENS, threads=2)
EVOLVING = "evospec@1536"
NAMES = [
    *((MINISPEC, dtype, mode) for dtype in minispec_sides.DTYPES for mode in (PLAIN, EVOLVING)),
    (LLAMA_CPP, "gguf", PLAIN),
    ("transformers", "float32", PLAIN),
]


@cache
def build_engine(engine: str, dtype: str) -> Engine:
    """An engine's sides. Skips the test where it or the model is not there."""
    if not WORK.path.exists():
        pytest.skip(f"run `minispec fetch {MODEL}` first")
    if engine == MINISPEC:
        return minispec_sides.build_sides(WORK, [dtype], ["autoregressive", EVOLVING])
    module = "llama_cpp" if engine == LLAMA_CPP else engine
    pytest.importorskip(module)
    return build_apart(f"{module}_sides", WORK)


def find_side(engine: str, dtype: str, mode: str) -> Side:
    built = build_engine(engine, dtype)
    for side in built.sides:
        if (side.dtype, side.mode) == (dtype, mode):
            return side
    pytest.skip("; ".join(skipped.reason for skipped in built.skipped))


@pytest.mark.parametrize("name", NAMES, ids=", ".join)
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def bench_sixteen_tokens(
    benchmark: BenchmarkFixture, temperature: float, name: tuple[str, str, str]
) -> None:
    side = find_side(*name)
    benchmark.group = f"{TOKENS} tokens at temperature {temperature:g}"
    answer = benchmark.pedantic(
        side.run, args=(IDS, temperature, 0, TOKENS), rounds=5, warmup_rounds=1
    )
    assert len(answer.tokens) == TOKENS
    benchmark.extra_info["megabytes_a_pass"] = (side.weight_bytes or 0) / 1e6
