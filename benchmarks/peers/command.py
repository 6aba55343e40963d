"""The command: checks its options, builds all sides, lets them take turns, and reports.

Engines are imported once the options are known to be good.
"""

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from minispec.errors import ArgumentError
from minispec.tools.cli.options import Parser
from minispec.tools.cli.prepare import check_out, check_writable
from minispec.tools.extras import check_extra
from minispec.tools.models import known_models

if TYPE_CHECKING:
    from benchmarks.peers.sides import Engine, Work
    from minispec.api.model import Model

METHODS = {
    "smollm2": "autoregressive,frspec@0.25,evospec@1536,evospec@1536/auto,evospec@1536+suffix/auto",
    "gemma3-270m": (
        "autoregressive,frspec@0.25,evospec@2621,evospec@2621/auto,evospec@2621+suffix/auto"
    ),
}
LEAST_TOKENS = 16  # more than the prefill's pass brings with any prompt lookup
_ONNX = (
    "it runs models that were exported to ONNX, and its exporter takes the configuration and the "
    "tokenizer of a GGUF file's model from the Hugging Face hub"
)


def main() -> int:
    """Runs the comparison. Raises MinispecError for bad input and for engines that are missing."""
    options = parse()
    from benchmarks.peers import minispec_sides

    dtypes = options.dtypes.split(",") if options.dtypes else minispec_sides.DTYPES
    methods = (options.methods or METHODS[options.model]).split(",")
    minispec_sides.check_names(dtypes, methods)
    model, work = load(options)
    engines = build_engines(work, dtypes, methods)
    measure_all(options, model, work, engines)
    return 0


def parse(arguments: Sequence[str] | None = None) -> Namespace:
    """The options, checked as far as that needs no model. Raises ArgumentError, FileError."""
    parser = Parser(description="minispec beside llama.cpp, transformers and OpenVINO GenAI")
    add = parser.add_argument
    add("--model", choices=known_models.SOURCES, default="smollm2", help="(default: smollm2)")
    add("--limit", type=int, default=4, help="prompts of each of the four domains (default: 4)")
    add("--max-new-tokens", type=int, default=128, metavar="N", help="(default: 128)")
    add("--threads", type=int, default=2, help="of every side (default: 2)")
    add("--temperatures", type=float, nargs="+", default=[0.0, 0.8], help="(default: 0 0.8)")
    add("--dtypes", metavar="DTYPE[,DTYPE...]", help="of minispec (default: all of the project's)")
    add(
        "--methods", metavar="METHOD[,METHOD...]",
        help="of minispec, as for `minispec compare`, with /auto for --tree auto (default: plain "
        "decoding, frspec@0.25, evospec, evospec with auto, and with suffix and auto)",
    )  # fmt: skip
    add("--seed", type=int, default=0, help="of all draws (default: 0)")
    add("--json", type=Path, metavar="FILE", help="write the whole report to this file")
    add("--out", type=Path, metavar="FILE.png", help="draw a picture")
    options = parser.parse_args(arguments)
    if options.limit < 1:
        raise ArgumentError(f"--limit {options.limit} must be 1 or above")
    if options.max_new_tokens < LEAST_TOKENS:
        raise ArgumentError(
            f"--max-new-tokens {options.max_new_tokens} must be {LEAST_TOKENS} or above"
        )
    if not all(0 <= temperature <= 100 for temperature in options.temperatures):
        raise ArgumentError("--temperatures must lie in 0..100")
    if len({*options.temperatures}) < len(options.temperatures):
        raise ArgumentError("--temperatures names one twice")
    if options.out:
        check_out(options.out, ".png")
        check_extra("peers", "matplotlib")
    if options.json:
        check_writable(options.json.parent)
    check_extra("peers", "llama_cpp", "transformers")
    return options


def load(options: Namespace) -> "tuple[Model, Work]":
    """minispec's model in float32, with which ids are compared, and what all sides do. Raises
    MinispecError."""
    import minispec
    from benchmarks.peers.sides import Work
    from minispec.tools.data.corpus import DOMAINS
    from minispec.tools.data.streams import load_streams, plan_streams

    model = minispec.load(options.model, backend="cpu", draft=False, threads=options.threads)
    if model.target.threads != options.threads:
        raise ArgumentError(
            f"backend cpu has {model.target.threads} threads here, not {options.threads}: change "
            "NUMBA_NUM_THREADS, or give --threads"
        )
    plan = plan_streams(
        model.pretrained, load_streams(DOMAINS, options.limit, model.is_base), switching=False,
        max_new_tokens=options.max_new_tokens, seed=options.seed, raw=model.is_base,
    )  # fmt: skip
    prompts = tuple((name, turns[0].ids) for name in plan for turns in plan[name])
    path = known_models.model_path(options.model)
    return model, Work(options.model, path, prompts, options.max_new_tokens, options.threads)


def build_engines(
    work: "Work", dtypes: Sequence[str], methods: Sequence[str]
) -> "tuple[Engine, ...]":
    """All engines with their sides. Raises MinispecError."""
    from benchmarks.peers import minispec_sides
    from benchmarks.peers.apart import build_apart
    from benchmarks.peers.sides import Engine, Skipped

    modules = ("llama_cpp_sides", "transformers_sides", "openvino_sides")
    others = [build_apart(module, work) for module in modules]  # first: they may not run here
    return (
        minispec_sides.build_sides(work, dtypes, methods),
        minispec_sides.build_loops(work, dtypes),
        *others,
        Engine(skipped=(Skipped("onnxruntime", _ONNX),)),
    )


def measure_all(
    options: Namespace, model: "Model", work: "Work", engines: "Sequence[Engine]"
) -> None:
    """Measures, prints and writes one temperature after the other. Raises FileError."""
    from benchmarks.peers import report
    from benchmarks.peers.minispec_sides import DRAFTED
    from benchmarks.peers.picture import write_picture
    from benchmarks.peers.turns import answer_all, compare_ids
    from minispec.io.files import write_json

    sides = [side for engine in engines for side in engine.sides]
    found = report.build_report(work, engines, {"seed": options.seed, "gamma": DRAFTED})
    print(report.format_sides(found), flush=True)
    for temperature in options.temperatures:
        answers = answer_all(sides, work, temperature, options.seed)
        differences = compare_ids(model.target, answers, work) if temperature == 0 else {}
        found["runs"].append(report.build_run(answers, work, temperature, differences))
        print("\n" + report.format_run(found["runs"][-1]), flush=True)
        if options.json:
            write_json(options.json, found)
    if options.out:
        write_picture(found, options.out)
