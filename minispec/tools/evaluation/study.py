"""The study: what a shortlist costs in acceptance, over its budget and over its parts.

By replay (see ``minispec.tools.evaluation.replay``): all shortlists draft over the same text, the
target's own greedy answers, so they differ in nothing but the ids that they allow. Measures
acceptance and its ceiling, the target's mass on the shortlist, not time; the speed that would
follow is computed by the ``gate``, beside what was measured. Also computes, for shortlists with
parts, which part contained the accepted tokens.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from statistics import fmean
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from minispec.commit import StopRule
from minispec.errors import ArgumentError
from minispec.tools.data.streams import SWITCH
from minispec.tools.evaluation import assembly, shortlist_files
from minispec.tools.evaluation.gate import compute_kappa, compute_nu, measure_speed, predict_speed
from minispec.tools.evaluation.measure import Figures, pool
from minispec.tools.evaluation.methods import Method
from minispec.tools.evaluation.replay import (
    RETRIEVED,
    TEMPERATURE,
    RecordedTarget,
    Replay,
    replay_text,
)
from minispec.tools.models.pretrained import Pretrained
from minispec.types import BaseShortlist, Context, Draft, Round, Shortlist

_SMALLEST = 256  # the first budget of the sweep, doubled up to the whole vocabulary


@dataclass(frozen=True)
class Text:
    """A prompt of some domain, and its answer."""

    domain: str
    prompt: tuple[int, ...]
    tokens: tuple[int, ...]


Texts = Mapping[str, Sequence[Sequence[Text]]]  # by stream, by conversation, by turn
Replays = Mapping[str, Sequence[Replay]]  # by stream
Timed = Mapping[Method, Mapping[str, Sequence[Figures]]]  # by stream
Shortlists = Mapping[str, Shortlist]  # by domain


class Study:
    """Replays with one model and its draft; ``stop`` is the rule that ended the answers."""

    def __init__(self, model: Pretrained, draft: Draft, stop: StopRule) -> None:
        self._model, self._draft, self._stop = model, draft, stop
        self._size = model.target.head.vocab_size
        # The target reads each text once, for all shortlists.
        self._record = cache(lambda prompt, answer: RecordedTarget(model.target, prompt, answer))

    def compute_origin(
        self, method: Method, texts: Texts, gamma: int
    ) -> dict[str, dict[str, float]]:
        """By stream, the share of accepted tokens that each part of the method's shortlist
        contained; empty for a shortlist without parts, and without a draft."""
        if not method.needs_draft:
            return {}
        shortlists = self._build_shortlists(method, texts)
        if not _have_parts(shortlists):
            return {}
        replays = self._replay_all(shortlists, texts, gamma, f"explaining {method}")
        return {stream: _share_by_part(found) for stream, found in replays.items()}

    def report(
        self, compared: Iterable[Method], texts: Texts, gamma: int, timed: Timed
    ) -> dict[str, Any]:
        """tau, coverage, ceiling and gate of all shortlists over their budget, and of those with
        parts also with their ablations. ``texts``: the target's greedy answers; ``timed``: the
        figures of the comparison at this gamma, from which the gate has the cost of the head."""
        full = self._replay_all(self._build_shortlists(Method("full"), texts), texts, gamma, "full")
        timed_full = timed.get(Method("full"))
        points = self._build_points("full", None, self._size, full, full, timed_full, timed_full)
        own = {
            replace(method, budget=method.ids(self._size), adapt="", spelled=""): method
            for method in compared
            if method.ranking is not None or method.budget is not None
        }
        doubled = (_SMALLEST << i for i in range(self._size.bit_length()))
        sweep = [budget for budget in (*doubled, self._size) if budget <= self._size]
        tried = {replace(method, budget=b) for method in own for b in (method.budget, *sweep)}
        for method in sorted(tried, key=lambda m: (_name_curve(m), m.budget)):
            try:
                shortlists = self._build_shortlists(method, texts)
            except ArgumentError:
                continue  # this shortlist cannot have this budget
            curve = _name_curve(method)
            found = self._replay_all(shortlists, texts, gamma, f"replaying {method}")
            ours = timed.get(own[method]) if method in own and not own[method].adapt else None
            points += self._build_points(curve, None, method.budget, found, full, timed_full, ours)
            if method in own and method.ranking and _have_parts(shortlists):
                for name, change in _list_ablations(shortlists).items():
                    altered = self._build_shortlists(method, texts, change)
                    found = self._replay_all(altered, texts, gamma, f"{method}, {name}")
                    points += self._build_points(
                        curve, name, method.budget, found, full, timed_full, None
                    )
        return {"gamma": gamma, "temperature": TEMPERATURE, "points": points}

    def _build_shortlists(
        self, method: Method, texts: Texts, change: Mapping[str, Any] | None = None
    ) -> Shortlists:
        """The method's shortlist for each domain, with one ablation or unchanged; domains with the
        same ranking share one."""
        by_ranking: dict[str | None, Shortlist] = {}
        found = {}
        for domain in {text.domain for text in _flatten(texts)}:
            key = method.ranking_for(domain)
            if key not in by_ranking:
                built = assembly.build_shortlist(method, self._model, domain)
                if change:
                    assert isinstance(built, BaseShortlist)  # it has parts
                    built = _AlteredShortlist(built, self._read_ranking(str(key)), **change)
                by_ranking[key] = built
            found[domain] = by_ranking[key]
        return found

    def _read_ranking(self, name: str) -> Tensor:
        return shortlist_files.read_ranking(self._model, name)[0]

    def _replay_all(self, shortlists: Shortlists, texts: Texts, gamma: int, title: str) -> Replays:
        """Replay every text; within a conversation a shortlist keeps what it has learnt. "all"
        concatenates the single-domain streams."""
        own = self._draft.with_own_head()
        found: dict[str, list[Replay]] = {stream: [] for stream in (*texts, "all")}
        total = sum(1 for _ in _flatten(texts))
        with tqdm(total=total, desc=title, unit="prompt", leave=False, disable=None) as bar:
            for stream, conversations in texts.items():
                for conversation in conversations:
                    previous = None
                    for text in conversation:
                        shortlist = shortlists[text.domain]
                        replay = replay_text(
                            self._record(text.prompt, text.tokens), own, shortlist, gamma=gamma,
                            stop=self._stop, continued=shortlist is previous,
                        )  # fmt: skip
                        found[stream].append(replay)
                        if stream != SWITCH:
                            found["all"].append(replay)
                        previous = shortlist
                        bar.update()
        return found

    def _build_points(
        self,
        curve: str,
        altered: str | None,
        budget: Any,
        replays: Replays,
        full: Replays,
        timed_full: Mapping[str, Sequence[Figures]] | None,
        timed: Mapping[str, Sequence[Figures]] | None,
    ) -> list[dict[str, Any]]:
        """A point of the study for each stream."""
        points = []
        for stream, ours in replays.items():
            row, best = (pool([r.figures for r in each]) for each in (ours, full[stream]))
            steps, best_steps = (
                [s for r in each for s in r.steps] for each in (ours, full[stream])
            )
            overlap, best_overlap = (fmean(s.overlap for s in each) for each in (steps, best_steps))
            kappa = compute_kappa(timed_full[stream]) if timed_full else None
            tau_to_full, nu = row["tau"] / best["tau"], compute_nu(row, self._size)
            points.append(
                {
                    "curve": curve,
                    "altered": altered,
                    "budget": budget,
                    "stream": stream,
                    "tau": row["tau"],
                    "tau_to_full": tau_to_full,
                    "coverage": row["coverage"],
                    "overlap": overlap,
                    "overlap_to_full": overlap / best_overlap,
                    "ceiling": fmean(step.mass for step in steps),
                    "ceiling_by_part": {
                        name: fmean(step.parts[name] for step in steps) for name in steps[0].parts
                    },
                    "recall": [
                        {"ids": count, "value": fmean(step.recall[i] for step in steps)}
                        for i, count in enumerate(RETRIEVED)
                    ],
                    "rows_to_full": nu,
                    "gate": None if kappa is None else predict_speed(tau_to_full, nu, kappa),
                    "measured": (
                        measure_speed(timed[stream], timed_full[stream])
                        if timed and timed_full else None
                    ),
                }
            )  # fmt: skip
        return points


class _AlteredShortlist(BaseShortlist):
    """A shortlist with one ablation: it keeps some parts and fills up with the next ids of its
    ranking, or does not learn, or selects once a round or at each step."""

    def __init__(
        self,
        inner: BaseShortlist,
        ranked: Tensor,
        parts: Sequence[str] | None = None,
        learns: bool = True,
        per_round: bool | None = None,
    ) -> None:
        self.name, self.budget = inner.name, inner.budget
        self.per_round = inner.per_round if per_round is None else per_round
        self.top_ids_wanted, self.reads_prompt = inner.top_ids_wanted, inner.reads_prompt
        self.rows_probed = inner.rows_probed
        self._fill = ranked[: inner.budget]
        self._inner, self._parts, self._learns = inner, parts, learns

    def select(self, context: Context) -> Tensor:
        if self._parts is None:
            return self._inner.select(context)
        by_part = self._inner.explain(context)
        kept = torch.cat([ids for name, ids in by_part.items() if name in self._parts])
        size = sum(len(ids) for ids in by_part.values())  # as large as the original
        fill = self._fill[~torch.isin(self._fill, kept)][: size - len(kept)]
        return torch.cat((kept, fill)).sort().values  # (K,)

    def on_prefill(self, tokens: Sequence[int], top_ids: Tensor) -> None:
        self._inner.on_prefill(tokens, top_ids)

    def observe(self, finished: Round) -> None:
        if self._learns:
            self._inner.observe(finished)

    def reset(self) -> None:
        self._inner.reset()


def _name_curve(method: Method) -> str:
    """A method without its budget."""
    buffer = "" if method.buffer is None else f"/{method.buffer}/{method.delay or 1}"
    return f"{method.name}{buffer}" + (f":{method.ranking}" if method.ranking else "")


def _list_ablations(shortlists: Shortlists) -> dict[str, dict[str, Any]]:
    """The ablations of a shortlist with parts: its first parts only, no learning, or another
    frequency of selection."""
    shortlist = next(iter(shortlists.values()))
    assert isinstance(shortlist, BaseShortlist)  # it has parts
    names = shortlist.part_names
    first = {" + ".join(names[:n]): {"parts": names[:n]} for n in range(1, len(names))}
    return {
        **first,
        "without online updates": {"learns": False},
        "once a round": {"per_round": True},
        "at each step": {"per_round": False},
    }


def _have_parts(shortlists: Shortlists) -> bool:
    return all(isinstance(s, BaseShortlist) and s.part_names for s in shortlists.values())


def _flatten(texts: Texts) -> Iterator[Text]:
    return (text for stream in texts.values() for turns in stream for text in turns)


def _share_by_part(replays: Sequence[Replay]) -> dict[str, float]:
    """The share of all accepted tokens that each part contained."""
    counts = sum((Counter(replay.origin) for replay in replays), Counter[str]())
    return {name: count / counts.total() for name, count in counts.items()}
