"""minispec itself, in every dtype of the project, on the CPU backend; and plain decoding on the
backend ``compiled``, which is gpt-fast's loop: ``torch.compile`` over a static cache."""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch

import minispec
from benchmarks.peers.sides import MINISPEC, PLAIN, Answer, Engine, Run, Side, Skipped, Work
from minispec.auto_shape import AutoShape
from minispec.commit import StopRule
from minispec.errors import ArgumentError
from minispec.io.draft_file import find_draft
from minispec.io.gguf_header import read_header
from minispec.models.transformer import Transformer
from minispec.sampling import Sampling, SeededRandom
from minispec.tools.evaluation.assembly import Decoder, build_decoder
from minispec.tools.evaluation.measure import measure
from minispec.tools.evaluation.methods import Method
from minispec.tools.models.pretrained import DTYPES as ALL_DTYPES

LOOP = "torch.compile loop"
DTYPES = tuple(name for name in ALL_DTYPES if name != "float64")  # which no fast path has
COMPILED_DTYPES = ("float32", "bfloat16")
AUTO = "/auto"  # after a method: with --tree auto
DRAFTED = 4  # tokens of a chain
# How a dtype's weights are stored, and what they are multiplied with.
_ACTIVATIONS = {
    "float32": "float32",
    "bfloat16": "bfloat16 in products, else float32",
    "int8": "float32",
    "gguf": "int8 in blocks in products, else float32",
}


def build_sides(work: Work, dtypes: Sequence[str], methods: Sequence[str]) -> Engine:
    """Each method in each dtype, methods spelled as for ``compare``, with ``/auto`` for ``--tree
    auto``. Raises ArgumentError and FileError for a method that lacks its parts."""
    models, skipped = _load(work, MINISPEC, dtypes, backend="cpu")
    sides = tuple(_build_side(work, model, spelled) for model in models for spelled in methods)
    notes = [f"minispec {minispec.__version__}, backend cpu, chains of {DRAFTED} tokens"]
    if file := find_draft(work.model):
        notes.append(
            f"its draft: {file.stat().st_size / 1e6:.0f} MB in bfloat16, beside its head rows"
        )
    return Engine(sides, skipped, tuple(notes))


def build_loops(work: Work, dtypes: Sequence[str]) -> Engine:
    """Plain decoding on the backend ``compiled``, in those dtypes that it has."""
    able = [dtype for dtype in dtypes if dtype in COMPILED_DTYPES]
    models, skipped = _load(work, LOOP, able, backend="compiled", draft=False)
    note = (
        f"{LOOP}: plain decoding of minispec's backend compiled, a loop like gpt-fast's: a frozen "
        "graph for the target's pass over a static cache, with head and draw outside it"
    )
    sides = tuple(_build_side(work, model, "autoregressive") for model in models)
    return Engine(sides, skipped, (note,) if sides else ())


def _load(
    work: Work, engine: str, dtypes: Sequence[str], **options: Any
) -> tuple[list[minispec.Model], tuple[Skipped, ...]]:
    """The model in each dtype; those that do not run here, with the reason."""
    models, skipped = [], []
    for dtype in dtypes:
        try:
            models.append(minispec.load(work.model, dtype=dtype, threads=work.threads, **options))
        except ArgumentError as error:
            skipped.append(Skipped(f"{engine} {dtype}", str(error)))
    return models, tuple(skipped)


def check_names(dtypes: Sequence[str], methods: Sequence[str]) -> None:
    """Raises ArgumentError for a dtype or method that is unknown or named twice."""
    for dtype in dtypes:
        if dtype not in DTYPES:
            raise ArgumentError(f"unknown dtype {dtype!r}: choose from {', '.join(DTYPES)}")
    for spelled in methods:
        Method.parse(spelled.removesuffix(AUTO))
    for kind, names in (("dtype", dtypes), ("method", methods)):
        if len(set(names)) < len(names):
            raise ArgumentError(f"a {kind} is named twice")


def _build_side(work: Work, model: minispec.Model, spelled: str) -> Side:
    method = Method.parse(spelled.removesuffix(AUTO))
    auto = spelled.endswith(AUTO)
    stop = StopRule(work.max_new_tokens)

    @cache
    def decoder_at(temperature: float) -> Decoder:
        # What "auto" learns in greedy text would not hold for drawn text.
        return build_decoder(
            method, model.pretrained, model.draft, None, gamma=DRAFTED,
            sampling=Sampling(temperature), stop=stop, tree=AutoShape() if auto else None,
        )  # fmt: skip

    compiled = model.pretrained.backend == "compiled"
    # The CPU backend has threads of its own, beside which torch's would spin.
    run = _build_run(decoder_at, work.threads if compiled else 1)
    run(work.prompts[0][1], 0.0, 0, 1)  # refuses what a method lacks before anything is timed
    dtype, mode = model.pretrained.dtype, f"{method}{' --tree auto' if auto else ''}"
    return Side(
        engine=LOOP if compiled else MINISPEC,
        dtype=dtype,
        mode=PLAIN if method.name == "autoregressive" else mode,
        weights=dtype,
        activations=dtype if compiled else _ACTIVATIONS.get(dtype, "not stated"),
        weight_bytes=count_weight_bytes(model.pretrained.reference, dtype, work),
        run=run,
    )


def _build_run(decoder_at: Callable[[float], Decoder], torch_threads: int) -> Run:
    def run(ids: Sequence[int], temperature: float, seed: int, limit: int) -> Answer:
        torch.set_num_threads(torch_threads)
        rounds, taken = [], 0
        for finished in decoder_at(temperature)(ids, SeededRandom(seed)):
            rounds.append(finished)
            taken += len(finished.tokens)
            if taken >= limit:
                break
        figures = measure(rounds)
        return Answer(figures.tokens, taken, figures.passes, figures.decode_seconds)

    return run


def count_weight_bytes(model: Transformer, dtype: str, work: Work) -> int:
    """Bytes of the weights that a target pass reads: a tied head once, the embedding's rows as
    none. In ``int8`` each row of a matrix has a float32 scale; ``gguf`` is as in the file."""
    if dtype == "gguf":
        return sum(tensor.size for tensor in read_header(work.path).tensors.values())
    weights = list(model.parameters())
    if dtype != "int8":
        return sum(weight.numel() * weight.element_size() for weight in weights)
    return sum(
        weight.numel() + 4 * len(weight) if weight.dim() == 2 else 4 * weight.numel()
        for weight in weights
    )
