"""Checks of the properties of distributions and batches: 13 (ties), 14 (precision) and 15 (rows
of a batch). See ``round_checks.py``.
"""

from collections.abc import Sequence
from typing import Any

import torch

from helpers.toys import toy_transformer
from minispec import sampling as sampling_module
from minispec.certificate.exact_sampling import ExactSampling
from minispec.commit import StopRule
from minispec.decode import autoregressive
from minispec.sampling import Sampling, SeededRandom
from minispec.tools.data.batched_decode import decode_batch

# --- 13 and 14: ties and precision ----------------------------------------------------------


def tie_distance(weights: Sequence[int], sampling: Sampling) -> float:
    """The production distribution against the one in fractions, which ranks by (-weight, id)."""
    ids = torch.arange(len(weights))
    logits = torch.tensor(weights, dtype=torch.float64).log()  # (V,), -inf where the weight is 0
    ours = sampling_module.Sampling.distribution(sampling, logits, ids)
    exact = ExactSampling(sampling).distribution(torch.tensor(weights), ids)
    pairs = list(zip(ours.probs.tolist(), exact.probs, strict=True))
    distance = sum(abs(share - float(expected)) for share, expected in pairs) / 2
    # An excluded id has probability exactly 0.
    assert distance > 1e-12 or all((share == 0) == (expected == 0) for share, expected in pairs)
    return distance


def precision_distance(logits: Sequence[float], temperature: float, dtype: torch.dtype) -> float:
    """The distribution of low-precision logits against float64's for the same numbers."""
    low = torch.tensor(logits).to(dtype)
    ours = Sampling(temperature).distribution(low, torch.arange(len(logits)))
    exact = torch.softmax(low.double() / temperature, dim=0)
    return float((ours.probs.double() - exact).abs().sum() / 2)


# --- 15: rows of a batch --------------------------------------------------------------------

TARGET = toy_transformer()


def check_rows_independent(
    lengths: Sequence[int], rows: int, temperatures: Sequence[float], shared: bool = False
) -> None:
    """Each row of a batch emits the tokens that it emits alone, whatever the lengths, seeds and
    temperatures of the others; with ``shared`` the rows draw from one source."""
    prompts = [[(7 * i + j) % 50 for j in range(length)] for i, length in enumerate(lengths)]
    samplings = [Sampling(temperatures[i % len(temperatures)]) for i in range(len(lengths))]
    one = SeededRandom(0)
    sources = [one if shared else SeededRandom(i) for i in range(len(lengths))]
    options: Any = {"max_new_tokens": 6, "eos_ids": (0, 1, 2)}
    written = decode_batch(TARGET, prompts, samplings, sources, rows=rows, **options)
    batched = {row.index: row.tokens for row in written}
    for i, prompt in enumerate(prompts):
        source = SeededRandom(0 if shared else i)
        [alone] = decode_batch(TARGET, [prompt], [samplings[i]], [source], rows=1, **options)
        assert batched[i] == alone.tokens, f"row {i}: {batched[i]}, alone {alone.tokens}"
        stop = StopRule(options["max_new_tokens"], options["eos_ids"])
        plain = autoregressive(
            TARGET, prompt, sampling=samplings[i], rng=SeededRandom(0 if shared else i), stop=stop
        )
        assert batched[i] == tuple(t for finished in plain for t in finished.tokens)
