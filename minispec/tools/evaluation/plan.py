"""Which shortlist, how many tokens and which tree pay on this machine: predicted, then measured.

Passes are timed (``pass_costs``), and acceptance is estimated while each method decodes the prompts
with shapes that are chosen round by round. From both follows the speed of every shape
(``auto_shape``). The same shapes are then measured, in a comparison on the same prompts.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from tqdm import tqdm

from minispec.auto_shape import AutoShape
from minispec.commit import StopRule
from minispec.errors import ArgumentError
from minispec.growth import TreeShape
from minispec.sampling import SeededRandom
from minispec.tools.data.streams import Stream, plan_streams
from minispec.tools.evaluation.assembly import build_chooser, build_decoder, build_shortlist
from minispec.tools.evaluation.compare import Settings, compare
from minispec.tools.evaluation.measure import measure
from minispec.tools.evaluation.methods import Method
from minispec.tools.models.pretrained import Pretrained
from minispec.types import Draft

GAMMAS = (1, 2, 4, 8)
TREES = tuple(map(TreeShape.parse, ("3x2x5", "4x3x8", "6x4x16")))


def make_plan(
    model: Pretrained, draft: Draft | None, streams: Sequence[Stream], settings: Settings
) -> dict[str, Any]:
    """Compare the methods of ``settings`` with the shapes of this module, with those that are
    chosen round by round, and with plain decoding. The report: machine, model, and ``rows``, a
    method, its setting, tau, nodes a round, and tokens a second as measured and as predicted, both
    also over plain decoding; the fastest first. Raises as ``compare``, and ArgumentError for a
    method that drafts nothing or learns."""
    if draft is None:
        raise ArgumentError(
            f"there is nothing to plan: model {model.name} has no draft; give one with --draft"
        )
    for method in settings.methods:
        if not method.needs_draft or method.suffix or method.adapt:
            raise ArgumentError(
                f"method {method} cannot be planned: name methods with a draft, without +suffix "
                "and +adapt"
            )
    predicted: dict[tuple[str, str], float] = {}
    plain = 0.0
    for method in tqdm(settings.methods, desc="predicting", unit="method", disable=None):
        speeds = _predict_speeds(model, draft, method, streams, settings)
        plain = speeds.pop(None)
        predicted |= {(str(method), str(shape)): speed for shape, speed in speeds.items()}
    measured = replace(
        settings,
        methods=(Method("autoregressive"), *settings.methods),
        gammas=GAMMAS,
        trees=(None, *TREES, AutoShape()),
    )
    report = compare(model, draft, streams, measured)
    rows = [
        _describe_row(row, predicted, plain)
        for row in report["results"]
        if row["stream"] == "all" and not row["best"]
    ]
    rows.sort(key=lambda row: -row["tokens_per_second"])
    kept = ("model", "dtype", "backend", "sampling", "max_new_tokens", "seed", "threads", "machine")
    return {"version": 1, **{name: report[name] for name in kept}, "rows": rows}


def _predict_speeds(
    model: Pretrained, draft: Draft, method: Method, streams: Sequence[Stream], settings: Settings
) -> dict[TreeShape | None, float]:
    """Tokens a second of each shape, None for plain decoding, by the acceptance that was seen while
    all prompts were decoded with chosen shapes."""
    domain = streams[0].name
    shortlist = build_shortlist(method, model, domain)
    drafting = draft.with_own_head(), shortlist
    chooser = build_chooser(AutoShape(), model, settings.sampling, drafting)
    eos_ids = () if settings.ignore_eos else model.tokenizer.eos_ids
    decode = build_decoder(
        method, model, draft, domain, gamma=1, sampling=settings.sampling,
        stop=StopRule(settings.max_new_tokens, eos_ids), shortlist=shortlist, tree=chooser,
    )  # fmt: skip
    conversations = plan_streams(
        model, streams, switching=False, max_new_tokens=settings.max_new_tokens,
        seed=settings.seed, raw=settings.raw,
    )  # fmt: skip
    for stream in conversations.values():
        for number, (turn,) in enumerate(stream):
            measure(decode(turn.ids, SeededRandom(settings.seed + number)))
    shapes: list[TreeShape | None] = [None, *map(TreeShape.chain, GAMMAS), *TREES]
    return {shape: chooser.predict(shape) for shape in shapes}


def _describe_row(
    row: dict[str, Any], predicted: dict[tuple[str, str], float], plain: float
) -> dict[str, Any]:
    chain = None if row["gamma"] is None else str(TreeShape.chain(row["gamma"]))
    setting = row["tree"] or chain  # None for plain decoding
    promised = plain if setting is None else predicted.get((row["method"], setting))
    return {
        "method": row["method"],
        "setting": setting,
        "tau": row["tau"],
        "drafted_per_pass": row["drafted_per_pass"],
        "tokens_per_second": row["tokens_per_second"],
        "predicted_tokens_per_second": promised,
        "over_plain": row["ratio_to_autoregressive"]["value"],
        "predicted_over_plain": None if promised is None else promised / plain,
    }
