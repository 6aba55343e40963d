"""What a draft step pays for its LM head: all rows, a packed list, a gathered list.

Physics: one hidden state times K rows of D float32 numbers reads K * D * 4 bytes and does two
operations on each number, far fewer than a processor could: memory bandwidth is the bound, so
time should follow K. All sides compute the same kind of logits from the same weights; the
lists change between calls in the gathered case, as an evolving list would.

Run: make bench
"""

import numpy as np
import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from fastpath.cpu.head import CpuHead
from minispec.models.lm_head import LinearHead, PackedHead

V, D = 49_152, 576  # SmolLM2-135M's
WEIGHT = torch.randn(V, D, generator=torch.Generator().manual_seed(0))
HIDDEN = torch.randn(D, generator=torch.Generator().manual_seed(1))


def some_ids(size: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(V, generator=generator)[:size].sort().values


@pytest.mark.benchmark(group="head")
def bench_full(benchmark: BenchmarkFixture) -> None:
    head = LinearHead(WEIGHT)
    benchmark(head.full, HIDDEN)


@pytest.mark.benchmark(group="head")
@pytest.mark.parametrize("size", [12_288, 4_096, 1_536])
def bench_packed(benchmark: BenchmarkFixture, size: int) -> None:
    head, ids = PackedHead(WEIGHT), some_ids(size, 0)
    head.logits_of(HIDDEN, ids)
    benchmark(head.rows, HIDDEN, ids)


@pytest.mark.benchmark(group="head")
@pytest.mark.parametrize("size", [12_288, 4_096, 1_536])
def bench_gathered(benchmark: BenchmarkFixture, size: int) -> None:
    head = LinearHead(WEIGHT)
    lists = iter([some_ids(size, seed) for seed in range(32)] * 10_000)
    benchmark.pedantic(
        lambda ids: head.logits_of(HIDDEN, ids),
        setup=lambda: ((next(lists),), {}),
        rounds=200,
        warmup_rounds=10,
    )


@pytest.mark.benchmark(group="the best eight and the law's sum, over the vocabulary")
@pytest.mark.parametrize("states", [1, 5])
@pytest.mark.parametrize("way", ["torch", "ours, then torch", "ours, on the way"])
def bench_scores(benchmark: BenchmarkFixture, states: int, way: str) -> None:
    """Whether looking on the way is worth it, and what torch takes for all of it."""
    theirs, ours = LinearHead(WEIGHT), CpuHead(WEIGHT.numpy(), np.ones(V, np.float32))
    head = theirs if way == "torch" else ours
    hidden = HIDDEN.expand(states, -1).contiguous()

    def afterwards() -> tuple[torch.Tensor, torch.Tensor]:
        logits = head.logits(hidden)
        return logits.topk(8).indices, logits.logsumexp(-1)

    def on_the_way() -> tuple[torch.Tensor, torch.Tensor]:
        found = ours.scores(hidden, top=8)
        return found.places, found.log_sum_exp()

    benchmark(on_the_way if way == "ours, on the way" else afterwards)
