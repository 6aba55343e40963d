"""The LM head of a draft step: all rows, a packed shortlist, a gathered shortlist.

Physics: one hidden state times K rows of D float32 numbers reads K * D * 4 bytes and does two
operations on each number, far fewer than a processor can: memory bandwidth is the bound, so the
time should be proportional to K. All sides compute logits from the same weights; in the gathered
case the shortlist changes between calls, as an evolving one does.

    pytest benchmarks --benchmark-only
"""

import numpy as np
import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from fastpath.cpu.head import CpuHead
from minispec.models.lm_head import LinearHead, PackedHead

VOCAB_SIZE, HIDDEN_SIZE = 49_152, 576  # of SmolLM2-135M
WEIGHT = torch.randn(VOCAB_SIZE, HIDDEN_SIZE, generator=torch.Generator().manual_seed(0))
HIDDEN = torch.randn(HIDDEN_SIZE, generator=torch.Generator().manual_seed(1))


def draw_ids(size: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(VOCAB_SIZE, generator=generator)[:size].sort().values


@pytest.mark.benchmark(group="head")
def bench_full(benchmark: BenchmarkFixture) -> None:
    head = LinearHead(WEIGHT)
    benchmark(head.logits, HIDDEN)


@pytest.mark.benchmark(group="head")
@pytest.mark.parametrize("size", [12_288, 4_096, 1_536])
def bench_packed(benchmark: BenchmarkFixture, size: int) -> None:
    head, ids = PackedHead(WEIGHT), draw_ids(size, 0)
    head.logits_of(HIDDEN, ids)
    benchmark(head.logits_of, HIDDEN, ids)


@pytest.mark.benchmark(group="head")
@pytest.mark.parametrize("size", [12_288, 4_096, 1_536])
def bench_gathered(benchmark: BenchmarkFixture, size: int) -> None:
    head = LinearHead(WEIGHT)
    shortlists = iter([draw_ids(size, seed) for seed in range(32)] * 10_000)
    benchmark.pedantic(
        lambda ids: head.logits_of(HIDDEN, ids),
        setup=lambda: ((next(shortlists),), {}),
        rounds=200,
        warmup_rounds=10,
    )


@pytest.mark.benchmark(group="top-8 and log-sum-exp over the vocabulary")
@pytest.mark.parametrize("states", [1, 5])
@pytest.mark.parametrize("method", ["torch", "logits, then torch", "fused"])
def bench_scores(benchmark: BenchmarkFixture, states: int, method: str) -> None:
    """Ranking fused with the product, after the product, and all of it in torch."""
    cpu_head = CpuHead(WEIGHT.numpy(), np.ones(VOCAB_SIZE, np.float32))
    head = LinearHead(WEIGHT) if method == "torch" else cpu_head
    hidden = HIDDEN.expand(states, -1).contiguous()

    def rank_afterwards() -> tuple[torch.Tensor, torch.Tensor]:
        logits = head.logits(hidden)
        return logits.topk(8).indices, logits.logsumexp(-1)

    def rank_fused() -> tuple[torch.Tensor, torch.Tensor]:
        scores = cpu_head.scores(hidden, top=8)
        return scores.top_indices, scores.log_sum_exp()

    benchmark(rank_fused if method == "fused" else rank_afterwards)
