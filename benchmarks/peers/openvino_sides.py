"""OpenVINO GenAI, which reads GGUF files of some architectures itself: plain, and with its prompt
lookup. It is optional: where it is missing or refuses the file, its sides are skipped by name."""

import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.sides import PLAIN, Answer, Engine, Run, Side, Skipped, Work

ENGINE = "OpenVINO GenAI"
LOOKUP, _NGRAM = 5, 2  # drafted tokens, and the longest n-gram to look up


def build_sides(work: Work) -> Engine:
    """Plain decoding and prompt lookup; or the reason why they cannot run."""
    if find_spec("openvino_genai") is None:
        return Engine(skipped=(Skipped(ENGINE, "not installed: pip install openvino-genai"),))
    import openvino
    import openvino_genai

    try:
        plain, kinds, size = _load_and_describe(work)
        lookup = openvino_genai.LLMPipeline(
            str(work.path), "CPU", INFERENCE_NUM_THREADS=work.threads, prompt_lookup=True
        )
    except RuntimeError as error:  # of all its refusals
        reason = (str(error).strip().splitlines() or ["without a reason"])[-1]
        return Engine(skipped=(Skipped(ENGINE, f"it refuses {work.path.name}: {reason}"),))
    core = openvino.Core()
    settings = [
        f"{name} {_format(core.get_property('CPU', name))}"
        for name in ("INFERENCE_PRECISION_HINT", "DYNAMIC_QUANTIZATION_GROUP_SIZE",
                     "KV_CACHE_PRECISION")
    ]  # fmt: skip
    described = {
        "engine": ENGINE,
        "dtype": "gguf",
        "weights": ", ".join(kinds),
        "activations": ", ".join(settings),
        "weight_bytes": size,
    }
    drafting = {"num_assistant_tokens": LOOKUP, "max_ngram_size": _NGRAM}
    sides = (
        Side(mode=PLAIN, run=_build_run(plain), **described),
        Side(mode=f"prompt lookup of {LOOKUP}", run=_build_run(lookup, **drafting), **described),
    )
    note = f"OpenVINO GenAI {openvino_genai.__version__}, {work.threads} threads"
    return Engine(sides, notes=(note,))


def _load_and_describe(work: Work) -> tuple[Any, list[str], int]:
    """A pipeline, the dtypes of its large weights, and the bytes of all of them, read from the
    model that it makes of the GGUF file."""
    import openvino
    import openvino_genai

    with tempfile.TemporaryDirectory() as folder:
        linked = Path(folder) / work.path.name  # it writes its model beside the file
        linked.symlink_to(work.path)
        pipeline = openvino_genai.LLMPipeline(
            str(linked), "CPU", INFERENCE_NUM_THREADS=work.threads, enable_save_ov_model=True
        )
        model = openvino.Core().read_model(str(Path(folder) / "openvino_model.xml"))
        sizes: dict[str, int] = {}
        for op in model.get_ops():
            if op.get_type_name() == "Constant":
                kind = _format(op.get_element_type())
                sizes[kind] = sizes.get(kind, 0) + op.get_byte_size()
        del op, model  # they hold the file that is about to be removed
    total = sum(sizes.values())
    return pipeline, sorted(kind for kind, size in sizes.items() if size > total / 100), total


def _format(value: Any) -> str:
    """A value of OpenVINO's without its wrapping: "<Type: 'uint8_t'>" is uint8."""
    text = str(value)
    return text.split("'")[1].removesuffix("_t") if "'" in text else text


def _build_run(pipeline: Any, **options: int) -> Run:
    import openvino
    import openvino_genai

    def run(ids: Sequence[int], temperature: float, seed: int, limit: int) -> Answer:
        config = openvino_genai.GenerationConfig(
            max_new_tokens=limit, ignore_eos=True, do_sample=temperature > 0, rng_seed=seed,
            apply_chat_template=False, **options,
        )  # fmt: skip
        if temperature > 0:
            config.temperature = temperature  # top-k and top-p keep all ids by default
        found = pipeline.generate(openvino.Tensor(np.array([ids], dtype=np.int64)), config)
        clock = found.perf_metrics.raw_metrics
        times, counts = clock.m_new_token_times, clock.m_batch_sizes
        # The first entry is of the prefill's own pass; milliseconds.
        seconds = (times[-1] - times[0]) / 1000
        return Answer(tuple(found.tokens[0]), sum(counts[1:]), len(counts) - 1, seconds)

    return run
