"""Hugging Face transformers: ``generate``, plain and with prompt lookup, on the weights of the GGUF
file, dequantised."""

import time
from collections.abc import Sequence
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.generation.streamers import BaseStreamer
from transformers.utils import logging

from benchmarks.peers.sides import PLAIN, Answer, Engine, Run, Side, Skipped, Work

ENGINE = "transformers"
DTYPES = ("float32", "bfloat16")
LOOKUP = 10  # drafted tokens


class _Clock(BaseStreamer):
    """Notes when tokens come, and how many at a time: first the prompt, then those of the prefill's
    pass, then those of each pass.

    A cache that was filled before would leave the prefill out altogether, but assisted generation
    processes the whole prompt again on top of it, and answers wrongly (transformers 5.24).
    """

    def __init__(self) -> None:
        self.counts: list[int] = []
        self.times: list[float] = []

    def put(self, value: torch.Tensor) -> None:
        self.times.append(time.perf_counter())
        self.counts.append(value.numel())

    def end(self) -> None:
        pass


def build_sides(work: Work) -> Engine:
    """Plain decoding and prompt lookup, in float32 and bfloat16."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    sides = []
    for dtype in DTYPES:
        model = AutoModelForCausalLM.from_pretrained(
            work.path.parent, gguf_file=work.path.name, dtype=getattr(torch, dtype)
        ).eval()
        model.generation_config.eos_token_id = None  # all sides continue past the end of turn
        described = {
            "engine": ENGINE,
            "dtype": dtype,
            "weights": dtype,
            "activations": dtype,
            "weight_bytes": sum(w.numel() * w.element_size() for w in model.parameters()),
        }
        sides.append(Side(mode=PLAIN, run=_build_run(model, work.threads), **described))
        run = _build_run(model, work.threads, prompt_lookup_num_tokens=LOOKUP)
        sides.append(Side(mode=f"prompt lookup of {LOOKUP}", run=run, **described))
    assisted = Skipped(
        f"{ENGINE}, assisted",
        f"it needs a smaller model with the same tokenizer; {work.model} is its family's smallest",
    )
    return Engine(tuple(sides), (assisted,), (f"transformers {transformers.__version__}",))


def _build_run(model: PreTrainedModel, threads: int, **options: Any) -> Run:
    def run(ids: Sequence[int], temperature: float, seed: int, limit: int) -> Answer:
        torch.set_num_threads(threads)
        torch.manual_seed(seed)
        sampling: dict[str, Any] = {"do_sample": False}
        if temperature > 0:
            sampling = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
        prompt, clock = torch.tensor([list(ids)]), _Clock()
        output = model.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=limit, pad_token_id=0,
            streamer=clock, **sampling, **options,
        )  # fmt: skip
        tokens = tuple(output[0, len(ids) :].tolist())
        timed = clock.counts[2:]
        return Answer(tokens, sum(timed), len(timed), clock.times[-1] - clock.times[1])

    return run
