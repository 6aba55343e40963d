"""One prompt decoded by several methods, as one HTML page that steps through the rounds.

This module records the rounds; ``data/explore.html`` displays them and loads nothing from a
network. Of the distributions at each position only the most likely ids are kept, and those that
were drafted or emitted there, so that the size of the page grows with the emitted tokens alone.
"""

import json
import os
from collections import deque
from collections.abc import Iterator, Sequence
from importlib import resources
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import quote

from torch import isin
from tqdm import tqdm

from minispec.commit import StopRule
from minispec.io.files import write_text
from minispec.sampling import SeededRandom
from minispec.stream_decoder import StreamDecoder
from minispec.text.tokenizer import encode_prompt
from minispec.tokenizer import Tokenizer
from minispec.tools.evaluation.assembly import Decoder, build_decoder, build_shortlist
from minispec.tools.evaluation.compare import Settings
from minispec.tools.evaluation.measure import describe_machine, measure
from minispec.tools.evaluation.methods import Method
from minispec.tools.evaluation.plugins import verifier_name
from minispec.tools.evaluation.replay import RecordingShortlist, Step
from minispec.tools.models.pretrained import Pretrained
from minispec.tools.reporting.colours import PHASES, css_variables
from minispec.tools.reporting.generate import summarize
from minispec.tree import follow, is_chain
from minispec.types import Distribution, Draft, Evidence, Round

_WARM_UP_ROUNDS = 4
_MOST_LIKELY = 8  # ids kept of each distribution at a position
_IDS_PER_PART = 8  # ids kept of each part of a shortlist
OUTSIDE = "outside"  # the origin of an id that is not on the shortlist


def explore(
    model: Pretrained, draft: Draft | None, prompt: str, settings: Settings
) -> dict[str, Any]:
    """Decode the prompt with each method, with the same seed and the first gamma or tree;
    returns the data of the page. Raises ArgumentError, TextError, ContextError, FileError,
    FingerprintError, all before anything is decoded."""
    tokenizer, size = model.tokenizer, model.target.head.vocab_size
    ids = encode_prompt(tokenizer, prompt, settings.raw)
    stop = StopRule(settings.max_new_tokens, () if settings.ignore_eos else tokenizer.eos_ids)
    tree = settings.trees[0]
    prepared: list[tuple[Method, Decoder, RecordingShortlist | None]] = []
    for method in settings.methods:
        recording = None
        if method.needs_draft:
            recording = RecordingShortlist(build_shortlist(method, model, None))
        decode = build_decoder(
            method, model, draft, None, gamma=settings.gammas[0], sampling=settings.sampling,
            stop=stop, trace=True, verifier=settings.verifier, shortlist=recording, tree=tree,
        )  # fmt: skip
        prepared.append((method, decode, recording))
    runs = []
    for method, decode, recording in tqdm(prepared, desc="decoding", leave=False, disable=None):
        deque(islice(decode(ids, SeededRandom(0)), _WARM_UP_ROUNDS), maxlen=0)
        name = {"method": str(method), "budget": method.ids(size)}
        runs.append(name | _record_run(decode, recording, ids, settings.seed, tokenizer))
    return {
        "prompt": prompt, "model": model.name, "dtype": model.dtype, "backend": model.backend,
        "vocab_size": size, "gamma": settings.gammas[0],
        "tree": str(tree) if tree else None,
        "verifier": verifier_name(settings.verifier), "seed": settings.seed,
        "threads": settings.threads, "processor": describe_machine()["processor"],
        "phases": {"prefill": "prefill"} | PHASES, "runs": runs,
        "texts": {i: _display_text(i, tokenizer) for i in sorted(_collect_ids(runs))},
        "temperature": settings.sampling.temperature, "sampling": str(settings.sampling),
    }  # fmt: skip


def write(data: dict[str, Any], path: Path) -> None:
    """Write the page for ``explore``'s data, completely or not at all. Raises FileError."""
    page = resources.files("minispec").joinpath("data/explore.html").read_text("utf-8")
    page = page.replace("{{light}}", css_variables(dark=False))
    page = page.replace("{{dark}}", css_variables(dark=True))
    # Without "<" in the JSON, no prompt can close the script element or open a comment.
    text = json.dumps(
        data | {"book": find_book(path.parent)}, allow_nan=False, separators=(",", ":")
    ).replace("<", "\\u003c")
    write_text(path, page.replace("{{data}}", text))


def find_book(folder: Path) -> tuple[str, str] | None:
    """Where the book's chapters are, as seen from ``folder``, and how their files end: those of the
    built book if there is one beside the package, else the pages. None without a checkout."""
    root = Path(__file__).resolve().parents[3]
    for chapters, ending in (("build/book/book", ".html"), ("docs/book", ".md")):
        if (root / chapters).is_dir():
            return quote(
                os.path.relpath(root / chapters, folder.resolve()).replace("\\", "/")
            ), ending
    return None


class _RecordingSource(SeededRandom):
    """The production source, which records its Bernoulli decisions: probability and uniform."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.decisions: list[tuple[float, float]] = []

    def uniform(self) -> float:
        self._last = super().uniform()
        return self._last

    def bernoulli(self, probability: float) -> bool:
        accepted = super().bernoulli(probability)
        self.decisions.append((round(float(probability), 6), round(self._last, 6)))
        return accepted


def _record_run(
    decode: Decoder,
    recording: RecordingShortlist | None,
    ids: Sequence[int],
    seed: int,
    tokenizer: Tokenizer,
) -> dict[str, Any]:
    """One method's figures and rounds."""
    rng, stream = _RecordingSource(seed), StreamDecoder(tokenizer)
    steps = recording.steps if recording else []
    steps.clear()  # those of the warm-up
    recorded: list[dict[str, Any]] = []

    def record_rounds() -> Iterator[Round]:
        for finished in decode(ids, rng):
            # A shortlist selected once a round is the same at all positions.
            per_round = recording is not None and recording.per_round
            by_position = steps * len(finished.tokens) if per_round else steps
            row = _record_round(finished, by_position, stream)
            recorded.append(row | {"decisions": rng.decisions[:]})
            rng.decisions.clear()
            steps.clear()
            yield finished

    figures = measure(record_rounds())
    recorded[-1]["tokens"][-1][1] += stream.flush()
    return summarize(figures, None) | {"rounds": recorded}


def _record_round(finished: Round, steps: Sequence[Step], stream: StreamDecoder) -> dict[str, Any]:
    """A round as JSON with short numbers. ``steps[i]``: the selection at position i, if any."""
    evidence, kept = finished.evidence, len(finished.path)
    assert evidence  # decoded with trace=True
    branches = not is_chain(evidence.proposal.parents)
    # Of a tree, the accepted path and the first candidate after it.
    chain = follow(evidence.proposal, finished.path) if branches else evidence.proposal
    # None at the position after a chain, where nothing was drafted.
    drafts = [*chain.draft_distributions, None]
    positions = []
    for i, (token, p) in enumerate(
        zip(finished.tokens, evidence.target_distributions, strict=True)
    ):
        rejected = i == kept < len(chain)
        residual = evidence.next_distribution if rejected else None
        step = steps[i] if i < len(steps) else None
        ids = {
            token, *chain.tokens[i : i + 1], *_most_likely(p), *_most_likely(drafts[i]),
        }  # fmt: skip
        rows: list[list[Any]] = [
            [n, *(_probability(each, n) for each in (p, drafts[i], residual)), _origin(step, n)]
            for n in ids
        ]
        positions.append(sorted(rows, key=lambda row: (-max(row[1], row[2] or 0), row[0])))
    return {
        "ms": {phase: _shorten(1000 * seconds) for phase, seconds in finished.seconds.items()},
        "sizes": finished.shortlist_sizes,
        "parts": _list_parts(steps[0], drafts[0]) if steps and drafts[0] else [],
        "drafted": [
            [token, _probability(drafts[i], token)] for i, token in enumerate(chain.tokens)
        ],
        "nodes": _list_nodes(finished, evidence) if branches else [],
        "kept": kept,
        "tokens": [[token, stream.feed([token])] for token in finished.tokens],
        "positions": positions,
    }


def _list_nodes(finished: Round, evidence: Evidence) -> list[list[Any]]:
    """Each node of a tree: token, parent, its probability where it was drafted, who proposed it,
    its acceptance probability if it was tested, and whether it was accepted."""
    proposal, acceptance = evidence.proposal, evidence.acceptance
    nodes: list[list[Any]] = []
    for node, (token, q, parent) in enumerate(
        zip(proposal.tokens, proposal.draft_distributions, proposal.parents, strict=True)
    ):
        tested = acceptance[node] if node < len(acceptance) else None
        nodes.append([
            token, parent, _probability(q, token),
            "draft" if node < len(finished.shortlist_sizes) else "suffix",
            None if tested is None else _shorten(tested), node in finished.path,
        ])  # fmt: skip
    return nodes


def _collect_ids(runs: Sequence[dict[str, Any]]) -> set[int]:
    """All ids that the page displays."""
    rounds = [each for run in runs for each in run["rounds"]]
    ids = {row[0] for each in rounds for rows in each["positions"] for row in rows}
    ids |= {token for each in rounds for token, _ in each["drafted"]}
    ids |= {node[0] for each in rounds for node in each["nodes"]}
    return ids | {i for each in rounds for _, _, some in each["parts"] for i in some}


def _most_likely(distribution: Distribution | None) -> list[int]:
    if distribution is None:
        return []
    probs, indices = distribution.probs.topk(min(_MOST_LIKELY, len(distribution.ids)))
    return distribution.ids[indices[probs > 0]].tolist()


def _probability(distribution: Distribution | None, token: int) -> float | None:
    return None if distribution is None else _shorten(distribution.probability(token))


def _shorten(value: Any) -> float:
    return float(f"{float(value):.4g}")


def _origin(step: Step | None, token: int) -> str | None:
    """The part of the shortlist that contains an id; None without a shortlist."""
    if step is None:
        return None
    parts = step.parts or {"shortlist": step.ids}
    return next((name for name, ids in parts.items() if token in ids), OUTSIDE)


def _list_parts(step: Step, q: Distribution) -> list[Any]:
    """The parts of a shortlist: name, size, and the ids that are most likely under q."""
    found = []
    for name, ids in (step.parts or {"shortlist": step.ids}).items():
        inside = isin(q.ids, ids)
        own = Distribution(q.ids[inside], q.probs[inside])
        indices = own.probs.topk(min(_IDS_PER_PART, len(own.ids))).indices
        found.append([name, len(ids), own.ids[indices].tolist()])
    return found


def _display_text(token: int, tokenizer: Tokenizer) -> str:
    """A token's text; bytes that are not a whole character as escapes."""
    if data := tokenizer.token_bytes(token):
        return data.decode(errors="backslashreplace")
    return "⟨end⟩" if token in tokenizer.eos_ids else f"⟨{token}⟩"
