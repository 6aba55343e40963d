"""Layouts of LM head rows, ours and PyTorch's, as fractions of memory bandwidth.

Physics: a hidden state times K rows of D numbers reads K * D * itemsize bytes once; that, and
nothing else, counts as useful. The bound is memory bandwidth. A round is one step of every layout
between two probes of the bandwidth, with the same threads. A probe is the fastest of three
reads of 256 MiB, by torch's sum or by our kernel, whichever is faster. A step's figure is its
fraction of the faster probe, and a layout's figure the median of its rounds: what slows memory for
some seconds then mostly slows the bound next to a step as well.

What is timed is what a draft step costs: finding the added and removed ids, updating the copied
rows where a layout has them, and the product; one call from Python, into memory allocated
beforehand for all layouts. A share ``churn`` of the shortlist's ids changes at each step. Cold
means that other memory was read before each step, as the target's pass does between two rounds;
hot, that the same shortlist was just used.

A round is discarded, and counted, if the probe changed by 15% within it, if a fraction exceeds
1.05, or if cold is less than 1.3 times hot for packed rows below 8 MiB: then the caches were not
cold. A shape of which at least half of the rounds are discarded has no figures.

    python -m benchmarks head --json FILE [--quick]
"""

import argparse
import itertools
import json
import statistics
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from timeit import repeat, timeit
from typing import Any

import numba
import numpy as np
import torch

from fastpath.cpu.kernels import multiply
from fastpath.cpu.packed import PackedRows
from fastpath.cpu.rows import allocate_rows, multiply_gathered, multiply_runs
from minispec.io.files import write_json

MEBI = 2**20
ROUNDS = 48
NAMED = [(size, width) for size in (1_536, 4_096) for width in (576, 2_048)]  # summarised
# Prepares the step of a given number, whose logits go to the tensor (1, K).
Layout = Callable[[int, torch.Tensor], Callable[[], Any]]


class LayoutBenchmark:
    """Memory, shortlists and layouts of one shape; every layout gets the same shortlists."""

    def __init__(self, vocab_size: int, width: int, size: int, churn: float, threads: int) -> None:
        self.width, self.size, self.threads = width, size, threads
        rng = np.random.default_rng(size + width)
        self.weight = allocate_rows((vocab_size, width), torch.float32).normal_()
        self.hidden = torch.randn(width)
        shortlists = _draw_shortlists(rng, vocab_size, size, churn)
        self.shortlists = list(itertools.islice(shortlists, ROUNDS + 1))
        self.starts, self.lengths = _draw_clusters(rng, vocab_size, size)
        self._flush_buffer = torch.zeros(96 * MEBI // 4)
        # Read by the probes: in huge pages, as the rows are.
        self._block = allocate_rows((64 * 1024, 1024), torch.float32).fill_(1)
        self._layouts = self._build_layouts()
        self.names = list(self._layouts)

    def step(self, name: str, number: int) -> tuple[torch.Tensor, Callable[[], Any]]:
        """Prepares a layout's step with the shortlist of a given number. Returns the logits (1, K)
        that the step will fill, in the order of the ids, and the call to be timed."""
        logits = torch.full((1, self._rows(name)), torch.nan)
        return logits, self._layouts[name](number, logits)

    def check(self) -> None:
        """Runs the first step of every layout and checks its logits."""
        expected = self.weight.double() @ self.hidden.double()
        pairs = zip(self.starts, self.lengths, strict=True)
        special = {
            "clusters ours": np.concatenate([np.arange(at, at + count) for at, count in pairs]),
            "contiguous ours": np.arange(self.size),
        }
        for name in self.names:
            logits, call = self.step(name, 0)
            call()
            dense = name.startswith("dense")
            ids = special.get(name, np.arange(len(self.weight)) if dense else self.shortlists[0])
            wanted = expected[torch.from_numpy(ids)]
            assert torch.allclose(logits[0].double(), wanted, atol=1e-3), name

    def _build_layouts(self) -> dict[str, Layout]:
        weight, hidden, shortlists = self.weight, self.hidden, self.shortlists
        rows, scales = weight.numpy(), np.ones(len(weight), np.float32)
        states, threads = hidden[None].numpy(), self.threads
        first_rows, first_scales, starts, lengths = (
            rows[: self.size], scales[: self.size], self.starts, self.lengths
        )  # fmt: skip
        ids = [torch.from_numpy(numbers) for numbers in shortlists]
        buffer = torch.empty(self.size, self.width)
        packed, torch_packed = PackedRows(rows, scales), TorchPacked(weight, ids[0])

        def torch_gathered(step: int, out: torch.Tensor) -> Callable[[], Any]:
            def call() -> None:
                torch.mv(torch.index_select(weight, 0, ids[step], out=buffer), hidden, out=out[0])

            return call

        return {
            "dense torch": lambda _, out: partial(torch.mv, weight, hidden, out=out[0]),
            "dense torch linear": lambda _, out: partial(torch.mm, hidden[None], weight.T, out=out),
            "dense ours": lambda _, out: partial(
                multiply, rows, scales, states, out.numpy(), threads
            ),
            "index_select torch": torch_gathered,
            "packed torch": lambda step, out: partial(torch_packed.step, ids[step], hidden, out[0]),
            "gathered ours": lambda step, out: partial(
                multiply_gathered, rows, scales, shortlists[step], states, out.numpy(), threads
            ),
            "packed ours": lambda step, out: partial(
                packed.update, shortlists[step], states, out.numpy()
            ),
            # What packed rows cost without updates.
            "contiguous ours": lambda _, out: partial(
                multiply, first_rows, first_scales, states, out.numpy(), threads
            ),
            "clusters ours": lambda _, out: partial(
                multiply_runs, rows, scales, starts, lengths, states, out.numpy(), threads
            ),
        }

    def _rows(self, name: str) -> int:
        return len(self.weight) if name.startswith("dense") else self.size

    def useful(self, name: str) -> int:
        """Bytes that a layout has to read."""
        return self._rows(name) * self.width * 4

    def measure_bandwidth(self) -> float:
        """Bytes per second of the fastest of six reads of 256 MiB."""
        block, scales = self._block, np.ones(64 * 1024, np.float32)
        rows = block.numpy()
        states, out = np.ones((1, 1024), np.float32), np.empty((1, 64 * 1024), np.float32)
        reads = block.sum, lambda: multiply(rows, scales, states, out, self.threads)
        return block.nbytes / min(min(repeat(read, number=1, repeat=3)) for read in reads)

    def flush_caches(self) -> None:
        """Fills the caches with other memory, by reading: written lines would have to be written
        back while the step is timed."""
        self._flush_buffer.sum()


class TorchPacked:
    """The fastest layout in torch for a shortlist that changes: a copy of its rows, in which
    ``index_copy_`` overwrites removed ones, and a product in the order of the slots."""

    def __init__(self, weight: torch.Tensor, ids: torch.Tensor) -> None:
        self._weight, self._ids, self._slots = weight, ids, torch.arange(len(ids))
        self._rows = weight[ids]

    def step(self, ids: torch.Tensor, hidden: torch.Tensor, out: torch.Tensor) -> None:
        kept, kept_before = torch.isin(ids, self._ids), torch.isin(self._ids, ids)
        slots = torch.empty_like(self._slots)
        slots[kept] = self._slots[kept_before]
        slots[~kept] = self._slots[~kept_before]
        self._rows.index_copy_(0, slots[~kept], self._weight[ids[~kept]])
        self._ids, self._slots = ids, slots
        torch.index_select(torch.mv(self._rows, hidden), 0, slots, out=out)


def _draw_shortlists(
    rng: np.random.Generator, vocab_size: int, size: int, churn: float
) -> Iterator[np.ndarray]:
    """Yields sorted ids (size,), of which a share ``churn`` changes each time."""
    ids = np.sort(rng.choice(vocab_size, size, replace=False))
    while True:
        yield ids
        others = np.setdiff1d(np.arange(vocab_size), ids)
        kept = rng.permutation(size)[round(churn * size) :]
        added = rng.choice(others, size - len(kept), replace=False)
        ids = np.sort(np.concatenate((ids[kept], added)))


def _draw_clusters(
    rng: np.random.Generator, vocab_size: int, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Starts and lengths of runs of 24 rows, like clusters of an index, ``size`` rows in all."""
    lengths = np.full(-(-size // 24), 24)
    lengths[-1] -= lengths.sum() - size
    starts = 24 * np.sort(rng.choice(vocab_size // 24 - 1, len(lengths), replace=False))
    return starts, lengths


def measure(vocab_size: int, width: int, size: int, churn: float, threads: int) -> dict[str, Any]:
    """Measures a shape: seconds of each layout, cold and hot, and fractions of the probes, as
    medians and for each valid round; and the number of discarded rounds by reason."""
    torch.set_num_threads(threads)
    numba.set_num_threads(threads)
    benchmark = LayoutBenchmark(vocab_size, width, size, churn, threads)
    benchmark.check()
    small = benchmark.useful("packed ours") < 8 * MEBI
    kept, discarded = [], Counter[str]()
    after = benchmark.measure_bandwidth()
    for number in range(1, ROUNDS + 1):
        cold, hot = {}, {}
        first = number % len(benchmark.names)
        for name in benchmark.names[first:] + benchmark.names[:first]:
            _, step = benchmark.step(name, number)
            benchmark.flush_caches()
            cold[name] = timeit(step, number=1)
            _, again = benchmark.step(name, number)
            hot[name] = timeit(again, number=1)
        before, after = after, benchmark.measure_bandwidth()
        both = [before, after]
        fraction = {name: benchmark.useful(name) / cold[name] / max(both) for name in cold}
        if abs(after / before - 1) > 0.15:
            discarded["the probe moved"] += 1
        elif max(fraction.values()) > 1.05:
            discarded["a fraction above 1.05"] += 1
        elif small and cold["packed ours"] < 1.3 * hot["packed ours"]:
            discarded["caches not cold"] += 1
        else:
            kept.append({"bandwidth": both, "seconds": cold, "hot": hot, "fraction": fraction})
    if 2 * len(kept) <= ROUNDS:
        raise SystemExit(
            f"head: only {len(kept)} of {ROUNDS} rounds are valid, the others were discarded "
            f"({dict(discarded)}): run this on an idle machine"
        )
    return {
        "vocabulary": vocab_size, "width": width, "size": size, "churn": churn,
        "threads": threads, "discarded": discarded, "rounds": kept,
        "layouts": {
            name: {
                kind: statistics.median(finished[kind][name] for finished in kept)
                for kind in ("seconds", "hot", "fraction")
            }
            for name in benchmark.names
        },
    }  # fmt: skip


def summarize(shapes: list[dict[str, Any]]) -> dict[str, float]:
    """Minima over the ``NAMED`` shapes at 5% churn on one thread."""
    named = [
        s for s in shapes
        if (s["size"], s["width"]) in NAMED and s["churn"] == 0.05 and s["threads"] == 1
    ]  # fmt: skip

    def fraction(name: str, width: int | None = None) -> float:
        some = [s for s in named if width in (None, s["width"])]
        return min(s["layouts"][name]["fraction"] for s in some)

    def over_torch(layouts: dict[str, Any]) -> float:
        sparse = ("index_select torch", "packed torch")
        return min(layouts[name]["seconds"] for name in sparse) / layouts["packed ours"]["seconds"]

    return {
        "packed_fraction_of_bandwidth": fraction("packed ours"),
        "packed_fraction_d2048": fraction("packed ours", 2_048),
        "dense_fraction_of_bandwidth": fraction("dense ours"),
        "packed_over_best_torch": min(over_torch(s["layouts"]) for s in named),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, required=True, help="write the figures to this file")
    parser.add_argument("--quick", action="store_true", help="only the shapes that are summarised")
    options = parser.parse_args()
    shapes = [(49_152, width, size, 0.05, 1) for size, width in NAMED]
    if not options.quick:
        cores = numba.config.NUMBA_NUM_THREADS
        shapes += [(49_152, 576, 1_536, churn, 1) for churn in (0.0, 0.1, 0.2, 0.5)]
        shapes += [(49_152, width, size, 0.05, cores) for size, width in NAMED]
        shapes += [(262_144, 576, 1_536, 0.05, 1), (32_768, 4_096, 4_096, 0.05, 1)]
    results = []
    for shape in shapes:
        results.append(measure(*shape))
        fractions = {n: round(x["fraction"], 2) for n, x in results[-1]["layouts"].items()}
        print(f"V, D, K, churn, threads {shape}: {json.dumps(fractions)}")
    discarded = sum((result["discarded"] for result in results), Counter())
    figures = summarize(results) | {"discarded": discarded}
    write_json(options.json, figures | {"shapes": results})
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
