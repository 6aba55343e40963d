"""LM heads against the memory that they read: every layout, theirs and ours, in one run.

Physics: a hidden state times K rows of D numbers reads K * D * itemsize bytes once; that, and
nothing else, counts as useful. The bound is how fast memory can be read, which is probed at
the beginning and at the end of each round, with the same threads: the fastest of three reads of
256 MiB, by torch's sum or by our own kernel, whichever is faster. A figure is the fraction of
that bound.

What is timed is what a draft step pays: finding out which ids came and went, bringing the copy
of rows up to date where a layout has one, and the product: one call, from Python, into memory
that all layouts were given before. Lists wander: each differs from the last in a share ``churn``
of its ids. Cold means that something else was read before each step, as the target's pass does
between two rounds; hot, that the same list was just used.

A round is discarded, and counted, if the probe moved by 15% within it, if a fraction exceeds
1.05, or if cold is less than 1.3 times hot for rows of less than 8 MiB: then the caches were
not cold.

Run: python -m benchmarks.head --json FILE [--quick]
"""

import argparse
import itertools
import json
import statistics
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from timeit import repeat, timeit
from typing import Any

import numba
import numpy as np
import torch

from fastpath.kernels import product
from fastpath.packed import PackedRows
from fastpath.rows import gathered, home, runs
from minispec.checkpoint import write_json

MEBI = 2**20
NAMED = [(size, width) for size in (1_536, 4_096) for width in (576, 2_048)]  # of the claims
# Makes ready the step of some number, whose logits go to the tensor (1, K).
Layout = Callable[[int, torch.Tensor], Callable[[], Any]]


class Round:
    """Memory, lists and layouts of one shape; every layout sees the same lists."""

    def __init__(self, vocabulary: int, width: int, size: int, churn: float, threads: int) -> None:
        self.width, self.size, self.threads = width, size, threads
        random = np.random.default_rng(size + width)
        self.weight = home((vocabulary, width), torch.float32).normal_()  # for every layout
        self.hidden = torch.randn(width)
        self.lists = list(itertools.islice(_wandering(random, vocabulary, size, churn), 64))
        self.starts, self.lengths = _clusters(random, vocabulary, size)
        self.rubbish = torch.zeros(96 * MEBI // 4)

    def layouts(self) -> dict[str, Layout]:
        """Every layout by name; logits come in the order of the ids."""
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

    def rows(self, name: str) -> int:
        """How many rows a layout has to read."""
        return len(self.weight) if name.startswith("dense") else self.size

    def useful(self, name: str) -> int:
        """Bytes that a layout has to read."""
        return self.rows(name) * self.width * 4

    def probe(self) -> float:
        """Bytes a second."""
        block = home((64 * 1024, 1024), torch.float32).fill_(1)  # in large pages, as the rows are
        rows, scales = block.numpy(), np.ones(64 * 1024, np.float32)
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
    random: np.random.Generator, vocabulary: int, size: int, churn: float
) -> Iterator[np.ndarray]:
    ids = np.sort(random.choice(vocabulary, size, replace=False))
    while True:
        yield ids
        others = np.setdiff1d(np.arange(vocabulary), ids)
        keep = random.permutation(size)[round(churn * size) :]
        came = random.choice(others, size - len(keep), replace=False)
        ids = np.sort(np.concatenate((ids[keep], came)))


def _clusters(
    random: np.random.Generator, vocabulary: int, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Runs of 24 rows, as clusters of an index would be, with ``size`` rows in all."""
    lengths = np.full(-(-size // 24), 24)
    lengths[-1] -= lengths.sum() - size
    starts = 24 * np.sort(random.choice(vocabulary // 24 - 1, len(lengths), replace=False))
    return starts, lengths


def measured(
    vocabulary: int, width: int, size: int, churn: float, threads: int, steps: int
) -> dict[str, Any]:
    """One round: seconds and fraction of the probe for each layout, cold and hot."""
    torch.set_num_threads(threads)
    numba.set_num_threads(threads)
    round = Round(vocabulary, width, size, churn, threads)
    layouts = round.layouts()

    def ready(name: str, step: int) -> tuple[torch.Tensor, Callable[[], Any]]:
        out = torch.full((1, round.rows(name)), torch.nan)
        return out, layouts[name](step, out)

    expected = round.weight.double() @ round.hidden.double()
    for name in layouts:
        logits, step = ready(name, 0)
        step()
        if name == "clusters ours":
            pairs = zip(round.starts, round.lengths, strict=True)
            ids = np.concatenate([np.arange(start, start + length) for start, length in pairs])
        elif name == "contiguous ours":
            ids = np.arange(size)
        else:
            ids = np.arange(vocabulary) if name.startswith("dense") else round.lists[0]
        assert torch.allclose(logits[0].double(), expected[torch.from_numpy(ids)], atol=1e-3), name
    before, cold, hot = (
        round.probe(),
        {name: [] for name in layouts},
        {name: [] for name in layouts},
    )
    for number in range(1, steps):
        order = list(layouts)
        for name in order[number % len(order) :] + order[: number % len(order)]:
            _, step = ready(name, number)
            round.cold()
            cold[name].append(timeit(step, number=1))
            _, again = ready(name, number)
            hot[name].append(timeit(again, number=1))
    after = round.probe()
    result: dict[str, Any] = {
        "vocabulary": vocabulary, "width": width, "size": size, "churn": churn,
        "threads": threads, "bandwidth": [before, after], "layouts": {},
    }  # fmt: skip
    for name in layouts:
        seconds, hot_seconds = statistics.median(cold[name]), statistics.median(hot[name])
        fraction = round.useful(name) / seconds / max(before, after)
        result["layouts"][name] = {"seconds": seconds, "hot": hot_seconds, "fraction": fraction}
    small = round.size * width * 4 < 8 * MEBI
    fractions = [layout["fraction"] for layout in result["layouts"].values()]
    ours = result["layouts"]["packed ours"]
    result["discarded"] = (
        "the probe moved" if abs(after / before - 1) > 0.15
        else "a fraction above 1.05" if max(fractions) > 1.05
        else "caches not cold" if small and ours["seconds"] < 1.3 * ours["hot"]
        else None
    )  # fmt: skip
    return result


def kept(shape: tuple[Any, ...], steps: int, tries: int = 24) -> tuple[dict[str, Any] | None, list]:
    """The first round of a shape that is not discarded, and why others were."""
    reasons = []
    for _ in range(tries):
        result = measured(*shape, steps)
        if result["discarded"] is None:
            return result, reasons
        reasons.append(result["discarded"])
    return None, reasons


def summary(rounds: list[dict[str, Any]]) -> dict[str, float]:
    """The claims: minima over the named shapes at 5% churn on one thread."""
    named = [
        r for r in rounds
        if (r["size"], r["width"]) in NAMED and r["churn"] == 0.05 and r["threads"] == 1
    ]  # fmt: skip

    def fraction(name: str, width: int | None = None) -> float:
        rows = [r for r in named if width in (None, r["width"])]
        return min(r["layouts"][name]["fraction"] for r in rows)

    def over_torch(layouts: dict[str, Any]) -> float:
        sparse = ("index_select torch", "packed torch")
        return min(layouts[name]["seconds"] for name in sparse) / layouts["packed ours"]["seconds"]

    return {
        "packed_fraction_of_bandwidth": fraction("packed ours"),
        "packed_fraction_d2048": fraction("packed ours", 2_048),
        "dense_fraction_of_bandwidth": fraction("dense ours"),
        "packed_over_best_torch": min(over_torch(r["layouts"]) for r in named),
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
    rounds, discarded = [], []
    for shape in shapes:
        result, reasons = kept(shape, 24 if options.quick else 48)
        discarded += [{"shape": shape, "reason": reason} for reason in reasons]
        if result is None:
            raise SystemExit(f"every round of {shape} was discarded: is the machine busy?")
        rounds.append(result)
        fractions = {n: round(x["fraction"], 2) for n, x in result["layouts"].items()}
        print(f"V, D, K, churn, threads {shape}: {json.dumps(fractions)}")
    figures = summary(rounds) | {"discarded": discarded, "rounds": rounds}
    write_json(options.json, figures)
    print(json.dumps(summary(rounds), indent=1))


if __name__ == "__main__":
    main()
