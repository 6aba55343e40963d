"""One prompt by several methods, as one HTML page on which every round can be watched.

Here it is written down what happened; ``data/explore.html`` shows it, and asks nothing of a
network. Only what a page can show is kept: of the laws at each place the likeliest ids and those
that were drafted or emitted there, so that its size follows the emitted tokens alone.
"""

import json
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from importlib import resources
from itertools import islice
from pathlib import Path
from typing import Any

from torch import isin
from tqdm import tqdm

from minispec.commit import StopRule
from minispec.io.files import write_text
from minispec.sampling import SeededRandom
from minispec.stream_decoder import StreamDecoder
from minispec.text.tokenizer import prompt_ids
from minispec.tools.evaluation.compare import Settings
from minispec.tools.evaluation.measure import machine, measure
from minispec.tools.evaluation.methods import Decoder, Method, decoder, shortlist
from minispec.tools.evaluation.replay import RecordingShortlist, Step
from minispec.tools.models.pretrained import Pretrained
from minispec.tools.reporting.generate import summary
from minispec.tools.reporting.report import PHASES
from minispec.types import Distribution, Draft, Round, Tokenizer

_WARM_UP_ROUNDS = 4
_LIKELIEST = 8  # ids of each law at a place
_OF_EACH_PART = 8  # ids of a list
OUTSIDE = "outside"  # where an id is that the list had not


def explore(
    model: Pretrained, draft: Draft | None, prompt: str, settings: Settings
) -> dict[str, Any]:
    """What each method did with the prompt, all with the same seed and the first gamma; the page
    says what is what. Raises ArgumentError, TextError, ContextError, FileError,
    FingerprintError, before anything is decoded."""
    tokenizer, size = model.tokenizer, model.target.head.vocab_size
    ids = prompt_ids(tokenizer, prompt, settings.raw)
    stop = StopRule(settings.max_new_tokens, () if settings.ignore_eos else tokenizer.eos_ids)
    made: list[tuple[Method, Decoder, RecordingShortlist | None]] = []
    for method in settings.methods:
        plain = method.name == "autoregressive"
        witness = None if plain else RecordingShortlist(shortlist(method, model, None))
        decode = decoder(
            method, model, draft, None, gamma=settings.gammas[0], sampling=settings.sampling,
            stop=stop, trace=True, verifier=settings.verifier, watched=witness,
        )  # fmt: skip
        made.append((method, decode, witness))
    told = []
    for method, decode, witness in tqdm(made, desc="decoding", leave=False, disable=None):
        deque(islice(decode(ids, SeededRandom(0)), _WARM_UP_ROUNDS), maxlen=0)
        name = {"method": str(method), "budget": method.ids(size)}
        told.append(name | _run(decode, witness, ids, settings.seed, tokenizer))
    shown = {
        row[0] for run in told for r in run["rounds"] for place in r["places"] for row in place
    }
    shown |= {each[0] for run in told for r in run["rounds"] for each in r["drafted"]}
    shown |= {i for run in told for r in run["rounds"] for _, _, some in r["parts"] for i in some}
    return {
        "prompt": prompt, "model": model.name, "dtype": model.dtype, "backend": model.backend,
        "vocabulary": size, "gamma": settings.gammas[0], "verifier": settings.verifier,
        "seed": settings.seed, "threads": settings.threads, "processor": machine()["processor"],
        "phases": {"prefill": "reading the prompt"} | dict(PHASES), "runs": told,
        "words": {i: _word(i, tokenizer) for i in sorted(shown)},
    } | asdict(settings.sampling)  # fmt: skip


def write(found: dict[str, Any], path: Path) -> None:
    """Writes what was explored as a page, whole or not at all. Raises FileError."""
    template = resources.files("minispec").joinpath("data/explore.html").read_text("utf-8")
    # JSON that no HTML can begin or end in, whatever a prompt says.
    data = json.dumps(found, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    write_text(path, template.replace("{{data}}", data))


class _RecordingSource(SeededRandom):
    """The production source, which also notes its coins: the chance of heads, the uniform."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.coins: list[tuple[float, float]] = []

    def uniform(self) -> float:
        self._last = super().uniform()
        return self._last

    def bernoulli(self, probability: float) -> bool:
        heads = super().bernoulli(probability)
        self.coins.append((round(float(probability), 6), round(self._last, 6)))
        return heads


def _run(
    decode: Decoder,
    witness: RecordingShortlist | None,
    ids: Sequence[int],
    seed: int,
    tokenizer: Tokenizer,
) -> dict[str, Any]:
    """One method's figures, and its rounds."""
    rng, stream = _RecordingSource(seed), StreamDecoder(tokenizer)
    steps = witness.steps if witness else []
    steps.clear()  # those of the warm-up
    told: list[dict[str, Any]] = []

    def watched() -> Iterator[Round]:
        for finished in decode(ids, rng):
            # A list that is asked once a round is the same at all of its places.
            asked = steps * len(finished.tokens) if witness and witness.per_round else steps
            told.append(_round(finished, asked, stream) | {"coins": rng.coins[:]})
            rng.coins.clear()
            steps.clear()
            yield finished

    figures = measure(watched())
    told[-1]["tokens"][-1][1] += stream.flush()
    return summary(figures, None) | {"rounds": told}


def _round(finished: Round, steps: Sequence[Step], stream: StreamDecoder) -> dict[str, Any]:
    """A round, its numbers short. ``steps[i]``: what the list was asked at place i, if it was."""
    evidence, kept = finished.evidence, len(finished.path)
    assert evidence  # it was asked for
    distributions, places = (
        [*evidence.proposal.draft_distributions, None],
        [],
    )  # None where the target speaks alone
    for i, (token, p) in enumerate(
        zip(finished.tokens, evidence.target_distributions, strict=True)
    ):
        rejected = i == kept < len(finished.proposed)
        listed = {
            token,
            *finished.proposed[i : i + 1],
            *_likeliest(p),
            *_likeliest(distributions[i]),
        }
        here = p, distributions[i], evidence.next_distribution if rejected else None
        step = steps[i] if i < len(steps) else None
        rows: list[list[Any]] = [
            [n, *(_at(distribution, n) for distribution in here), _part(step, n)] for n in listed
        ]
        places.append(sorted(rows, key=lambda row: (-max(row[1], row[2] or 0), row[0])))
    return {
        "ms": {phase: _short(1000 * seconds) for phase, seconds in finished.seconds.items()},
        "sizes": finished.shortlist_sizes,
        "parts": _parts(steps[0], evidence.proposal.draft_distributions[0]) if steps else [],
        "drafted": [
            [token, _at(distributions[i], token)] for i, token in enumerate(finished.proposed)
        ],
        "kept": kept,
        "tokens": [[token, stream.feed([token])] for token in finished.tokens],
        "places": places,
    }


def _likeliest(distribution: Distribution | None) -> list[int]:
    if distribution is None:
        return []
    probs, best = distribution.probs.topk(min(_LIKELIEST, len(distribution.ids)))
    return distribution.ids[best[probs > 0]].tolist()


def _at(distribution: Distribution | None, token: int) -> float | None:
    return None if distribution is None else _short(distribution.probability(token))


def _short(value: Any) -> float:
    return float(f"{float(value):.4g}")


def _part(step: Step | None, token: int) -> str | None:
    """Which part of the list brought an id; None where no list was asked."""
    if step is None:
        return None
    parts = step.parts or {"list": step.ids}
    return next((name for name, ids in parts.items() if token in ids), OUTSIDE)


def _parts(step: Step, q: Distribution) -> list[Any]:
    """The parts of a list: name, size, and the ids that the draft found likeliest."""
    found = []
    for name, ids in (step.parts or {"list": step.ids}).items():
        inside = isin(q.ids, ids)
        own = Distribution(q.ids[inside], q.probs[inside])
        best = own.probs.topk(min(_OF_EACH_PART, len(own.ids))).indices
        found.append([name, len(ids), own.ids[best].tolist()])
    return found


def _word(token: int, tokenizer: Tokenizer) -> str:
    """A token as it is told; bytes that are no whole character by their numbers."""
    if data := tokenizer.token_bytes(token):
        return data.decode(errors="backslashreplace")
    return "⟨end⟩" if token in tokenizer.eos_ids else f"⟨{token}⟩"
