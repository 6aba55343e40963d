"""llama.cpp through its Python binding, as published: plain, and with its prompt lookup.

The binding's loop is what people call from Python, so it is what is timed; the time that llama.cpp
itself gives its passes of one token is stated beside it.
"""

import time
from collections.abc import Sequence
from itertools import islice
from typing import Any

import llama_cpp
from llama_cpp import llama_speculative

from benchmarks.peers.sides import LLAMA_CPP, PLAIN, Answer, Engine, Run, Side, Skipped, Work
from minispec.io.gguf_header import read_header

LOOKUPS = (2, 10)  # drafted tokens: what the binding recommends for CPUs, and its default
_BATCH = 512  # positions of a pass in the prefill


class _Counting(llama_cpp.Llama):
    """Counts passes."""

    passes = 0

    def eval(self, tokens: Sequence[int]) -> None:
        self.passes += 1
        super().eval(tokens)


def build_sides(work: Work) -> Engine:
    """Plain decoding, and prompt lookup of several lengths."""
    tensors = read_header(work.path).tensors.values()
    kinds = sorted({tensor.kind.name for tensor in tensors if len(tensor.shape) > 1})
    described = {
        "engine": LLAMA_CPP,
        "dtype": "gguf",
        "weights": ", ".join(kinds),
        "activations": "8 bits in blocks in products, else float32; cache float16",
        "weight_bytes": sum(tensor.size for tensor in tensors),
    }
    sides = [Side(mode=PLAIN, run=_build_run(_load(work)), **described)]
    for count in LOOKUPS:
        lookup = llama_speculative.LlamaPromptLookupDecoding(num_pred_tokens=count)
        # The binding copies logits of every position of a pass into a buffer, which has rows for
        # the whole context only with ``logits_all``.
        llama = _load(work, draft_model=lookup, logits_all=True)
        sides.append(Side(mode=f"prompt lookup of {count}", run=_build_run(llama), **described))
    flags = llama_cpp.llama_print_system_info().decode().strip()
    notes = (
        f"llama-cpp-python {llama_cpp.__version__}, {work.threads} threads, flash attention off "
        "(the binding's default)",
        f"llama.cpp: {flags}",
    )
    return Engine(tuple(sides), (_explain_eagle(),), notes)


def _explain_eagle() -> Skipped:
    """Why EAGLE-3 does not run: what the binding has instead."""
    base = llama_speculative.LlamaDraftModel
    kinds = [
        name
        for name, kind in vars(llama_speculative).items()
        if isinstance(kind, type) and issubclass(kind, base) and kind is not base
    ]
    reason = (
        f"llama-cpp-python {llama_cpp.__version__} gives no access to llama.cpp's own speculative "
        f"loop, where EAGLE-3 is; its draft models: {', '.join(kinds)}"
    )
    return Skipped(f"{LLAMA_CPP}, EAGLE-3", reason)


def _load(work: Work, **options: Any) -> _Counting:
    drafted = max(LOOKUPS) + 1
    llama = _Counting(
        str(work.path), n_ctx=work.longest + work.max_new_tokens + drafted, n_batch=_BATCH,
        n_threads=work.threads, n_threads_batch=work.threads, verbose=False, **options,
    )  # fmt: skip
    llama.eval([1])  # a library that was built for another processor ends the process here
    return llama


def _build_run(llama: _Counting) -> Run:
    def run(ids: Sequence[int], temperature: float, seed: int, limit: int) -> Answer:
        llama.reset()
        if len(ids) > 1:
            llama.eval(list(ids[:-1]))
        llama.set_seed(seed)
        llama.passes = 0
        llama_cpp.llama_perf_context_reset(llama.ctx)
        start = time.perf_counter()
        # It finds all but the last token of the prompt in its cache.
        generated = llama.generate(
            list(ids), temp=temperature, top_k=0, top_p=1.0, min_p=0.0, typical_p=1.0
        )
        tokens = tuple(islice(generated, limit))
        seconds = time.perf_counter() - start
        clock = llama_cpp.llama_perf_context(llama.ctx)
        generated.close()
        # Its clock counts passes of one token apart from those of several.
        whole = llama.draft_model is None
        return Answer(
            tokens, len(tokens), llama.passes, seconds, clock.t_eval_ms / 1000 if whole else None
        )

    return run
