"""LM heads on a GPU (dense, gathered and packed rows, ours and PyTorch's) and whole rounds.

Physics: K rows of D numbers are read once and little is computed with them, so memory bandwidth
is the bound. Each figure comes with its fraction of the bandwidth that a plain sum over 1 GiB
reaches in the same run; useful bytes are K * D * itemsize, nothing else. Two times are measured:
``device_us``, between two events around work that was queued while the GPU was busy, so that
launches cost nothing, and ``wall_us``, from call to result, including launches and the update of
the packed rows. The second-level cache is flushed before each call, and shortlists alternate.
Every side's logits are checked against float64 before it is timed, and the sides alternate.

The last part decodes with the real model, if it was fetched, and counts how often the host
waits for the device in a round.

    python -m benchmarks gpu
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
from fastpath.cuda import device, device_round
from fastpath.cuda.head import DeviceRows, PackedRows
from minispec.commit import StopRule
from minispec.io import draft_file
from minispec.io.files import write_aside
from minispec.sampling import Sampling, SeededRandom
from minispec.shortlists.frspec import FRSpecShortlist
from minispec.tools.models import known_models, pretrained

RESULTS = Path(__file__).parent / "results"
SHAPES = [  # name, V, D, dtype, shortlist sizes (the whole vocabulary is always measured)
    ("smollm2", 49_152, 576, torch.float32, [1_024, 1_536, 4_096, 12_288]),
    ("smollm2", 49_152, 576, torch.bfloat16, [1_024, 1_536, 4_096, 12_288]),
    ("large", 128_256, 4_096, torch.bfloat16, [1_024, 4_096, 16_384, 65_536]),
]
STATES = (1, 5)
NUM_SHORTLISTS = 8  # alternating
CHURN = 0.05  # share of a shortlist's ids that are new in the next one
Side = Callable[[int], Tensor]  # the number of a shortlist -> logits


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path, help="output file (default: in benchmarks/results)")
    parser.add_argument("--rounds", type=int, default=30, help="calls of each side (default: 30)")
    arguments = parser.parse_args()
    if device.SIMULATED or not device.is_available():
        print(
            "gpu: no GPU that PyTorch and Numba can use, so nothing was measured", file=sys.stderr
        )
        return 2
    report: dict[str, Any] = {"machine": describe_gpu()}
    bandwidth = measure_bandwidth()
    report["bandwidth_gb_per_s"] = bandwidth / 1e9
    report["heads"] = [
        row
        for name, size, width, dtype, counts in SHAPES
        for count in [*counts, size]
        for states in STATES
        for row in measure_heads(
            name, size, width, dtype, count, states, bandwidth, arguments.rounds
        )
    ]
    report["rounds"] = measure_rounds()
    gpu = torch.cuda.get_device_name().lower().replace(" ", "-")
    path = arguments.json or RESULTS / f"gpu-{gpu}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    with write_aside(path) as aside:
        aside.write_text(json.dumps(report, indent=1) + "\n")
    print(path)
    return 0


def describe_gpu() -> dict[str, Any]:
    """The device, its driver and the versions of the libraries."""
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


def measure_bandwidth() -> float:
    """Bytes per second of a plain sum over 1 GiB, the fastest of three."""
    data = torch.ones(1 << 28, device=device.get_device())
    data.sum()
    return data.numel() * 4 / min(time_on_device(data.sum) for _ in range(3))


def time_on_device(call: Callable[[], Any]) -> float:
    """Seconds that the GPU spends on a call, without the launches."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(2_000_000)  # about a millisecond, during which the call is queued
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000


def time_on_wall(call: Callable[[], Any]) -> float:
    """Seconds from the call to its result."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def draw_shortlists(size: int, count: int) -> list[Tensor]:
    """Shortlists of ``count`` ids in which a share ``CHURN`` changes from one to the next."""
    rng = torch.Generator().manual_seed(0)
    shortlists = [torch.randperm(size, generator=rng)[:count].sort().values]
    num_new = min(round(CHURN * count), size - count)
    while len(shortlists) < NUM_SHORTLISTS:
        outside = torch.ones(size, dtype=torch.bool)
        outside[shortlists[-1]] = False
        others = outside.nonzero().flatten()
        kept = shortlists[-1][torch.randperm(count, generator=rng)[num_new:]]
        added = others[torch.randperm(len(others), generator=rng)[:num_new]]
        shortlists.append(torch.cat((kept, added)).sort().values)
    return shortlists


def build_sides(weight: Tensor, hidden: Tensor, ids: list[Tensor]) -> dict[str, Side]:
    """Implementations of the same logits, called with the number of a shortlist. Ids are on the
    host, where shortlists are num_tokens; copying them to the device is part of a side's time."""
    table = DeviceRows(weight)
    if len(ids[0]) == len(weight):
        return {
            "torch dense": lambda _: F.linear(hidden, weight),
            "ours dense": lambda _: table.scores(hidden).logits,
        }
    packed, copy = PackedRows(table), weight[ids[0].to(weight.device)]
    slots, current = torch.arange(len(ids[0])), ids[0]

    def torch_packed(number: int) -> Tensor:
        # Updated as ours is, with PyTorch operations: an id that stays keeps its slot.
        nonlocal slots, current
        kept = torch.isin(ids[number], current, assume_unique=True)
        kept_before = torch.isin(current, ids[number], assume_unique=True)
        new = torch.empty_like(slots)
        new[kept], new[~kept] = slots[kept_before], slots[~kept_before]
        if not kept.all():
            added = device.to_device(ids[number][~kept])
            copy.index_copy_(0, device.to_device(new[~kept]), weight.index_select(0, added))
        slots, current = new, ids[number]
        return F.linear(hidden, copy).index_select(1, device.to_device(slots))

    def ours_packed(number: int) -> Tensor:
        packed.update(ids[number])
        return packed.scores(hidden).logits

    return {
        "torch gathered": lambda n: F.linear(
            hidden, weight.index_select(0, device.to_device(ids[n]))
        ),
        "torch packed": torch_packed,
        "ours gathered": lambda n: table.scores(hidden, ids[n]).logits,
        "ours packed": ours_packed,
    }


def measure_heads(
    name: str, size: int, width: int, dtype: torch.dtype, count: int, states: int,
    bandwidth: float, rounds: int,
) -> list[dict[str, Any]]:  # fmt: skip
    """Times all sides at one shape, alternating; one row of figures for each."""
    rng = torch.Generator(device=device.get_device()).manual_seed(0)
    weight = torch.randn(size, width, generator=rng, device=device.get_device(), dtype=dtype)
    hidden = torch.randn(states, width, generator=rng, device=device.get_device(), dtype=dtype)
    ids = draw_shortlists(size, count)
    sides = build_sides(weight, hidden, ids)
    errors = {side: measure_error(call, weight, hidden, ids) for side, call in sides.items()}
    flush = torch.empty(1 << 26, device=device.get_device())  # 256 MiB
    times: dict[tuple[str, str], list[float]] = {}
    for number in range(rounds):
        for side, call in sides.items():
            for clock in (time_on_device, time_on_wall):
                flush.zero_()
                # Both clocks need a shortlist that differs from the side's last one.
                turn = (2 * number + (clock is time_on_wall)) % NUM_SHORTLISTS
                seconds = clock(lambda call=call, turn=turn: call(turn))
                times.setdefault((side, clock.__name__), []).append(seconds)
    useful = count * width * dtype.itemsize
    rows = []
    for side in sides:
        on_device, on_wall = (
            statistics.median(times[side, clock.__name__])
            for clock in (time_on_device, time_on_wall)
        )
        rows.append({
            "shape": name, "V": size, "D": width, "dtype": str(dtype).removeprefix("torch."),
            "K": count, "states": states, "side": side,
            "device_us": 1e6 * on_device, "wall_us": 1e6 * on_wall,
            "fraction_of_bandwidth": useful / on_device / bandwidth,
            "relative_error": errors[side],
        })  # fmt: skip
    return rows


def measure_error(call: Side, weight: Tensor, hidden: Tensor, ids: list[Tensor]) -> float:
    """The largest error of a side's logits for two shortlists, relative to the largest logit.

    Raises AssertionError above 2%.
    """
    worst = 0.0
    for number in (0, 1):
        exact = hidden.double() @ weight[ids[number].to(weight.device)].double().T
        off = (call(number).double() - exact).abs().max() / exact.abs().max()
        worst = max(worst, float(off))
    # bfloat16 logits have 8 bits; the logit of another id would be off by about 1.
    assert worst < 2e-2, f"wrong logits: relative error {worst}"
    return worst


def measure_rounds() -> dict[str, Any] | None:
    """Speculative decoding with SmolLM2 on the device: speed, tau and waits per round as counted by
    PyTorch. None if the model was not fetched."""
    path = draft_file.find_draft("smollm2")
    if path is None or not known_models.model_path("smollm2").exists():
        return None
    model = pretrained.load("smollm2")
    loaded_draft = draft_file.load_draft(path, model.target, model.fingerprint)
    target = cuda.build_target(model.target)
    draft = cuda.build_draft(loaded_draft, target)
    size = model.target.config.vocab_size
    shortlist = FRSpecShortlist(torch.arange(size), size // 4, model.tokenizer.eos_ids)
    prompt = model.tokenizer.chat("Explain how a steam engine works.")

    def run() -> tuple[int, int, float]:
        num_tokens, seconds, num_rounds = 0, 0.0, 0
        for finished in device_round.speculative(
            target, draft, shortlist, prompt, gamma=4, sampling=Sampling(1.0),
            rng=SeededRandom(0), stop=StopRule(128),
        ):  # fmt: skip
            num_tokens, num_rounds = num_tokens + len(finished.tokens), num_rounds + 1
            seconds += sum(s for phase, s in finished.seconds.items() if phase != "prefill")
        return num_tokens, num_rounds, seconds

    run()  # compiles
    num_tokens, num_rounds, seconds = run()
    torch.cuda.set_sync_debug_mode("warn")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run()
    torch.cuda.set_sync_debug_mode("default")
    waits = [w for w in caught if "synchroniz" in str(w.message).lower()]
    return {
        "tokens_per_second": num_tokens / seconds,
        "tau": num_tokens / num_rounds,
        "waits_per_round": len(waits) / num_rounds,
    }


if __name__ == "__main__":
    sys.exit(main())
