"""LM heads against the memory that they read: every layout, theirs and ours, in one run.

Physics: a hidden state times K rows of D numbers reads K * D * itemsize bytes once; that, and
nothing else, counts as useful. The bound is how fast memory can be read. A round is a step of
every layout between two probes of that, with the same threads: each the fastest of three reads of
256 MiB, by torch's sum or by our own kernel, whichever is faster. A step's figure is its fraction
of the faster probe, and a layout's the median of its rounds: what slows memory for some seconds
then mostly slows the bound beside a step as well.

What is timed is what a draft step pays: finding out which ids came and went, bringing the copy
of rows up to date where a layout has one, and the product: one call, from Python, into memory
that all layouts were given before. Lists wander: each differs from the last in a share ``churn``
of its ids. Cold means that something else was read before each step, as the target's pass does
between two rounds; hot, that the same list was just used.

A round is discarded, and counted, if the probe moved by 15% within it, if a fraction exceeds
1.05, or if cold is less than 1.3 times hot for packed rows of less than 8 MiB: then the caches were
not cold. A shape of whose rounds half are discarded has no figures.

Run: python -m benchmarks.head --json FILE [--quick]
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

from fastpath.cpu.kernels import product
from fastpath.cpu.packed import PackedRows
from fastpath.cpu.rows import gathered, home, runs
from minispec.io.files import write_json

MEBI = 2**20
ROUNDS = 48
NAMED = [(size, width) for size in (1_536, 4_096) for width in (576, 2_048)]  # of the claims
# Makes ready the step of some number, whose logits go to the tensor (1, K).
Layout = Callable[[int, torch.Tensor], Callable[[], Any]]


class Setting:
    """Memory, lists and layouts of one shape; every layout sees the same lists."""

    def __init__(self, vocabulary: int, width: int, size: int, churn: float, threads: int) -> None:
        self.width, self.size, self.threads = width, size, threads
        rng = np.random.default_rng(size + width)
        self.weight = home((vocabulary, width), torch.float32).normal_()  # for every layout
        self.hidden = torch.randn(width)
        lists = _wandering(rng, vocabulary, size, churn)
        self.lists = list(itertools.islice(lists, ROUNDS + 1))
        self.starts, self.lengths = _clusters(rng, vocabulary, size)
        self.rubbish = torch.zeros(96 * MEBI // 4)
        # What is probed: in large pages, as the rows are.
        self._block = home((64 * 1024, 1024), torch.float32).fill_(1)
        self._layouts = self._all_layouts()
        self.names = list(self._layouts)

    def step(self, name: str, number: int) -> tuple[torch.Tensor, Callable[[], Any]]:
        """The step of a layout with the list of some number, made ready: its logits (1, K) to
        be, in the order of the ids, and what is timed."""
        logits = torch.full((1, self._rows(name)), torch.nan)
        return logits, self._layouts[name](number, logits)

    def check(self) -> None:
        """Has every layout take its first step, whose logits must be right."""
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
            ids = special.get(name, np.arange(len(self.weight)) if dense else self.lists[0])
            wanted = expected[torch.from_numpy(ids)]
            assert torch.allclose(logits[0].double(), wanted, atol=1e-3), name

    def _all_layouts(self) -> dict[str, Layout]:
        weight, hidden, lists = self.weight, self.hidden, self.lists
        rows, scales = weight.numpy(), np.ones(len(weight), np.float32)
        states, threads = hidden[None].numpy(), self.threads
        some, some_scales, starts, lengths = (
            rows[: self.size], scales[: self.size], self.starts, self.lengths
        )  # fmt: skip
        ids = [torch.from_numpy(numbers) for numbers in lists]
        room = torch.empty(self.size, self.width)
        packed, theirs = PackedRows(rows, scales), TorchPacked(weight, ids[0])

        def torch_gathered(step: int, out: torch.Tensor) -> Callable[[], Any]:
            def call() -> None:
                torch.mv(torch.index_select(weight, 0, ids[step], out=room), hidden, out=out[0])

            return call

        return {
            "dense torch": lambda _, out: partial(torch.mv, weight, hidden, out=out[0]),
            "dense torch linear": lambda _, out: partial(torch.mm, hidden[None], weight.T, out=out),
            "dense ours": lambda _, out: partial(
                product, rows, scales, states, out.numpy(), threads
            ),
            "index_select torch": torch_gathered,
            "packed torch": lambda step, out: partial(theirs.step, ids[step], hidden, out[0]),
            "gathered ours": lambda step, out: partial(
                gathered, rows, scales, lists[step], states, out.numpy(), threads
            ),
            "packed ours": lambda step, out: partial(
                packed.follow, lists[step], states, out.numpy()
            ),
            # What packed rows cost without their upkeep.
            "contiguous ours": lambda _, out: partial(
                product, some, some_scales, states, out.numpy(), threads
            ),
            "clusters ours": lambda _, out: partial(
                runs, rows, scales, starts, lengths, states, out.numpy(), threads
            ),
        }

    def _rows(self, name: str) -> int:
        return len(self.weight) if name.startswith("dense") else self.size

    def useful(self, name: str) -> int:
        """Bytes that a layout has to read."""
        return self._rows(name) * self.width * 4

    def probe(self) -> float:
        """Bytes a second."""
        block, scales = self._block, np.ones(64 * 1024, np.float32)
        rows = block.numpy()
        states, out = np.ones((1, 1024), np.float32), np.empty((1, 64 * 1024), np.float32)
        reads = block.sum, lambda: product(rows, scales, states, out, self.threads)
        return block.nbytes / min(min(repeat(read, number=1, repeat=3)) for read in reads)

    def cold(self) -> None:
        """Fills the caches with something else: by reading, since what was written would have
        to be written back while the step is timed."""
        self.rubbish.sum()


class TorchPacked:
    """The best that torch does for a list that wanders: its own copy of rows, of which those
    that came are overwritten by ``index_copy_``, and a product in the order of the slots."""

    def __init__(self, weight: torch.Tensor, ids: torch.Tensor) -> None:
        self._weight, self._ids, self._slots = weight, ids, torch.arange(len(ids))
        self._rows = weight[ids]

    def step(self, ids: torch.Tensor, hidden: torch.Tensor, out: torch.Tensor) -> None:
        stays, old = torch.isin(ids, self._ids), torch.isin(self._ids, ids)
        slots = torch.empty_like(self._slots)
        slots[stays] = self._slots[old]
        slots[~stays] = self._slots[~old]
        self._rows.index_copy_(0, slots[~stays], self._weight[ids[~stays]])
        self._ids, self._slots = ids, slots
        torch.index_select(torch.mv(self._rows, hidden), 0, slots, out=out)


def _wandering(
    rng: np.random.Generator, vocabulary: int, size: int, churn: float
) -> Iterator[np.ndarray]:
    ids = np.sort(rng.choice(vocabulary, size, replace=False))
    while True:
        yield ids
        others = np.setdiff1d(np.arange(vocabulary), ids)
        keep = rng.permutation(size)[round(churn * size) :]
        came = rng.choice(others, size - len(keep), replace=False)
        ids = np.sort(np.concatenate((ids[keep], came)))


def _clusters(
    rng: np.random.Generator, vocabulary: int, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Runs of 24 rows, as clusters of an index would be, with ``size`` rows in all."""
    lengths = np.full(-(-size // 24), 24)
    lengths[-1] -= lengths.sum() - size
    starts = 24 * np.sort(rng.choice(vocabulary // 24 - 1, len(lengths), replace=False))
    return starts, lengths


def measured(vocabulary: int, width: int, size: int, churn: float, threads: int) -> dict[str, Any]:
    """Each layout's seconds, cold and hot, and fractions of the probes: medians of the rounds that
    count, and all of those; and how many others were discarded for which reason."""
    torch.set_num_threads(threads)
    numba.set_num_threads(threads)
    setting = Setting(vocabulary, width, size, churn, threads)
    setting.check()
    small = setting.useful("packed ours") < 8 * MEBI
    kept, discarded = [], Counter[str]()
    after = setting.probe()
    for number in range(1, ROUNDS + 1):
        cold, hot = {}, {}
        first = number % len(setting.names)
        for name in setting.names[first:] + setting.names[:first]:
            _, step = setting.step(name, number)
            setting.cold()
            cold[name] = timeit(step, number=1)
            _, again = setting.step(name, number)
            hot[name] = timeit(again, number=1)
        before, after = after, setting.probe()
        both = [before, after]
        fraction = {name: setting.useful(name) / cold[name] / max(both) for name in cold}
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
            f"Only {len(kept)} of {ROUNDS} rounds count, since others were discarded "
            f"({dict(discarded)}): run this where nothing else runs."
        )
    return {
        "vocabulary": vocabulary, "width": width, "size": size, "churn": churn,
        "threads": threads, "discarded": discarded, "rounds": kept,
        "layouts": {
            name: {
                kind: statistics.median(finished[kind][name] for finished in kept)
                for kind in ("seconds", "hot", "fraction")
            }
            for name in setting.names
        },
    }  # fmt: skip


def summary(shapes: list[dict[str, Any]]) -> dict[str, float]:
    """The claims: minima over the named shapes at 5% churn on one thread."""
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
    parser.add_argument("--json", type=Path, required=True, help="where the figures go")
    parser.add_argument("--quick", action="store_true", help="only the shapes of the claims")
    options = parser.parse_args()
    shapes = [(49_152, width, size, 0.05, 1) for size, width in NAMED]
    if not options.quick:
        cores = numba.config.NUMBA_NUM_THREADS
        shapes += [(49_152, 576, 1_536, churn, 1) for churn in (0.0, 0.1, 0.2, 0.5)]
        shapes += [(49_152, width, size, 0.05, cores) for size, width in NAMED]
        shapes += [(262_144, 576, 1_536, 0.05, 1), (32_768, 4_096, 4_096, 0.05, 1)]
    results = []
    for shape in shapes:
        results.append(measured(*shape))
        fractions = {n: round(x["fraction"], 2) for n, x in results[-1]["layouts"].items()}
        print(f"V, D, K, churn, threads {shape}: {json.dumps(fractions)}")
    discarded = sum((result["discarded"] for result in results), Counter())
    figures = summary(results) | {"discarded": discarded}
    write_json(options.json, figures | {"shapes": results})
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
