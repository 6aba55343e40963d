"""The LM head on a GPU: dense, gathered and packed rows, ours beside PyTorch's, and whole rounds.

Physics: K rows of D numbers are read once and little is computed with them, so memory bandwidth
is the bound; each figure comes with the share of the bandwidth that a plain sum over 1 GiB
reaches in the same run. Useful bytes are K * D * itemsize, nothing else. Two times are told:
``device_us``, between two events around work that was queued while the GPU was kept busy, so
that launches are free, and ``wall_us``, from call to result, launches and the upkeep of the list
included. The second-level cache is flushed before each call, and lists take turns. Every side's
logits are checked against float64 before it is timed, and sides take turns.

The last part decodes with the real model, if it was fetched, and counts how often the host
waits for the device in a round.

Run: make bench-gpu
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import torch
import torch.nn.functional as F
from torch import Tensor

from fastpath.cuda import backend as cuda
from fastpath.cuda import device
from fastpath.cuda import device_round as cuda_round
from fastpath.cuda.head import DeviceRows, PackedRows
from minispec.commit import StopRule
from minispec.io import draft_file
from minispec.io.files import write_aside
from minispec.sampling import Sampling, SeededRandom
from minispec.shortlists.frspec import FRSpecShortlist
from minispec.tools.models import known_models, pretrained

RESULTS = Path(__file__).parent / "results"
SHAPES = [  # name, V, D, dtype, list sizes; the whole vocabulary comes by itself
    ("smollm2", 49_152, 576, torch.float32, [1_024, 1_536, 4_096, 12_288]),
    ("smollm2", 49_152, 576, torch.bfloat16, [1_024, 1_536, 4_096, 12_288]),
    ("large", 128_256, 4_096, torch.bfloat16, [1_024, 4_096, 16_384, 65_536]),
]
STATES = (1, 5)
LISTS = 8  # that take turns
CHURN = 0.05  # of a list's ids that are new in the next one
Side = Callable[[int], Tensor]  # the number of a list -> logits


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path, help="where the figures go; default: results/")
    parser.add_argument("--rounds", type=int, default=30, help="calls of each side")
    arguments = parser.parse_args()
    if device.SIMULATED or not device.is_available():
        print("bench-gpu: no GPU that PyTorch and Numba see, so nothing was run", file=sys.stderr)
        return 2
    report: dict[str, Any] = {"machine": machine()}
    bandwidth = probe()
    report["bandwidth_gb_per_s"] = bandwidth / 1e9
    report["heads"] = [
        row
        for name, size, width, dtype, counts in SHAPES
        for count in [*counts, size]
        for states in STATES
        for row in heads(name, size, width, dtype, count, states, bandwidth, arguments.rounds)
    ]
    report["rounds"] = whole_rounds()
    gpu = torch.cuda.get_device_name().lower().replace(" ", "-")
    path = arguments.json or RESULTS / f"gpu-{gpu}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    with write_aside(path) as aside:
        aside.write_text(json.dumps(report, indent=1) + "\n")
    print(path)
    return 0


def machine() -> dict[str, Any]:
    """The device, its driver and the versions that were measured."""
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, check=True)
        driver = done.stdout.split("\n")[0].strip()
    except (OSError, subprocess.CalledProcessError):
        driver = "unknown"
    properties = torch.cuda.get_device_properties(0)
    return {
        "device": properties.name,
        "multiprocessors": properties.multi_processor_count,
        "memory_gb": properties.total_memory / 1e9,
        "driver": driver,
        "cuda": torch.version.cuda,
        "torch": torch.__version__,
        "numba": numba.__version__,
    }


def probe() -> float:
    """Bytes per second of a plain sum over 1 GiB: the fastest of three."""
    data = torch.ones(1 << 28, device=device.get_device())
    data.sum()
    return data.numel() * 4 / min(on_device(data.sum) for _ in range(3))


def on_device(call: Callable[[], Any]) -> float:
    """Seconds that the GPU spends on a call, its launches not waited for."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(2_000_000)  # a millisecond or so, in which the call is queued
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000


def on_the_wall(call: Callable[[], Any]) -> float:
    """Seconds until the call's result is there."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def lists(size: int, count: int) -> list[Tensor]:
    """Lists that follow one another: each has ``CHURN`` of its ids anew."""
    draws = torch.Generator().manual_seed(0)
    found = [torch.randperm(size, generator=draws)[:count].sort().values]
    fresh = min(round(CHURN * count), size - count)
    while len(found) < LISTS:
        outside = torch.ones(size, dtype=torch.bool)
        outside[found[-1]] = False
        others = outside.nonzero().flatten()
        kept = found[-1][torch.randperm(count, generator=draws)[fresh:]]
        came = others[torch.randperm(len(others), generator=draws)[:fresh]]
        found.append(torch.cat((kept, came)).sort().values)
    return found


def sides(weight: Tensor, hidden: Tensor, ids: list[Tensor]) -> dict[str, Side]:
    """Ways to the same logits. Each gets the list's number, and ids on the host, as lists are
    made there; what it does to bring them to the device is part of its time."""
    table = DeviceRows(weight)
    if len(ids[0]) == len(weight):
        return {
            "torch dense": lambda _: F.linear(hidden, weight),
            "ours dense": lambda _: table.scores(hidden).logits,
        }
    packed, copy = PackedRows(table), weight[ids[0].to(weight.device)]
    slots, held = torch.arange(len(ids[0])), ids[0]

    def torch_packed(number: int) -> Tensor:
        # The same upkeep as ours, by PyTorch's own means: what stays keeps its slot.
        nonlocal slots, held
        stays = torch.isin(ids[number], held, assume_unique=True)
        kept = torch.isin(held, ids[number], assume_unique=True)
        new = torch.empty_like(slots)
        new[stays], new[~stays] = slots[kept], slots[~kept]
        if not stays.all():
            came = device.to_device(ids[number][~stays])
            copy.index_copy_(0, device.to_device(new[~stays]), weight.index_select(0, came))
        slots, held = new, ids[number]
        return F.linear(hidden, copy).index_select(1, device.to_device(slots))

    def ours_packed(number: int) -> Tensor:
        packed.update(ids[number])
        return packed.scores(hidden).logits

    return {
        "torch gathered": lambda n: F.linear(hidden, weight.index_select(0, device.to_device(ids[n]))),
        "torch packed": torch_packed,
        "ours gathered": lambda n: table.scores(hidden, ids[n]).logits,
        "ours packed": ours_packed,
    }


def heads(
    name: str, size: int, width: int, dtype: torch.dtype, count: int, states: int,
    bandwidth: float, rounds: int,
) -> list[dict[str, Any]]:  # fmt: skip
    """All sides at one shape, in turns."""
    draws = torch.Generator(device=device.get_device()).manual_seed(0)
    weight = torch.randn(size, width, generator=draws, device=device.get_device(), dtype=dtype)
    hidden = torch.randn(states, width, generator=draws, device=device.get_device(), dtype=dtype)
    ids = lists(size, count)
    every = sides(weight, hidden, ids)
    errors = {side: error(call, weight, hidden, ids) for side, call in every.items()}
    flush = torch.empty(1 << 26, device=device.get_device())  # 256 MiB
    times: dict[tuple[str, str], list[float]] = {}
    for number in range(rounds):
        for side, call in every.items():
            for clock in (on_device, on_the_wall):
                flush.zero_()
                # Both clocks need the list to be one that the side has not just seen.
                turn = (2 * number + (clock is on_the_wall)) % LISTS
                seconds = clock(lambda call=call, turn=turn: call(turn))
                times.setdefault((side, clock.__name__), []).append(seconds)
    useful = count * width * dtype.itemsize
    rows = []
    for side in every:
        on_it, wall = (
            statistics.median(times[side, clock.__name__]) for clock in (on_device, on_the_wall)
        )
        rows.append({
            "shape": name, "V": size, "D": width, "dtype": str(dtype).removeprefix("torch."),
            "K": count, "states": states, "side": side,
            "device_us": 1e6 * on_it, "wall_us": 1e6 * wall,
            "fraction_of_bandwidth": useful / on_it / bandwidth,
            "relative_error": errors[side],
        })  # fmt: skip
    return rows


def error(call: Side, weight: Tensor, hidden: Tensor, ids: list[Tensor]) -> float:
    """The largest error of a side's logits over two lists, as a share of the largest logit."""
    worst = 0.0
    for number in (0, 1):
        exact = hidden.double() @ weight[ids[number].to(weight.device)].double().T
        off = (call(number).double() - exact).abs().max() / exact.abs().max()
        worst = max(worst, float(off))
    # A bfloat16 logit has eight bits; an id in another's place would be off by about 1.
    assert worst < 2e-2, f"a side computes something else: {worst}"
    return worst


def whole_rounds() -> dict[str, Any] | None:
    """Speculative decoding with SmolLM2 on the device: speed, and waits counted by PyTorch."""
    path = draft_file.find_draft("smollm2")
    if path is None or not known_models.model_path("smollm2").exists():
        return None
    model = pretrained.load("smollm2")
    guesser = draft_file.load_draft(path, model.target, model.fingerprint)
    target = cuda.build_target(model.target)
    draft = cuda.build_draft(guesser, target)
    size = model.target.config.vocab_size
    shortlist = FRSpecShortlist(torch.arange(size), size // 4, model.tokenizer.eos_ids)
    prompt = model.tokenizer.chat("Explain how a steam engine works.")

    def run() -> tuple[int, int, float]:
        made, seconds, count = 0, 0.0, 0
        for finished in cuda_round.speculative(
            target, draft, shortlist, prompt, gamma=4, sampling=Sampling(1.0),
            rng=SeededRandom(0), stop=StopRule(128),
        ):  # fmt: skip
            made, count = made + len(finished.tokens), count + 1
            seconds += sum(s for phase, s in finished.seconds.items() if phase != "prefill")
        return made, count, seconds

    run()  # compiles
    made, count, seconds = run()
    torch.cuda.set_sync_debug_mode("warn")
    with warnings.catch_warnings(record=True) as waits:
        warnings.simplefilter("always")
        run()
    torch.cuda.set_sync_debug_mode("default")
    told = [w for w in waits if "synchroniz" in str(w.message).lower()]
    return {
        "tokens_per_second": made / seconds,
        "tau": made / count,
        "waits_per_round": len(told) / count,
    }


if __name__ == "__main__":
    sys.exit(main())
