"""The study: what a list costs in acceptance, over its budget and over its parts.

By replay (see ``minispec.tools.evaluation.replay``): all lists draft over the same text, the target's own greedy
answers, so two of them differ in nothing but the ids that they allow. Measures acceptance and
not time. Also says, of any list that can explain itself, where accepted tokens came from.
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
from minispec.tools.data import ranking
from minispec.tools.data.streams import SWITCH
from minispec.tools.evaluation import methods
from minispec.tools.evaluation.measure import pool
from minispec.tools.evaluation.methods import Method
from minispec.tools.evaluation.replay import TEMPERATURE, RecordedTarget, Replay, replay_text
from minispec.tools.models.pretrained import Pretrained
from minispec.types import Context, Draft, Round

_SMALLEST = 256  # the first budget of the sweep, doubled up to the whole vocabulary

# What is changed in a list that explains itself: it keeps some of its parts alone, or stops
# learning, or is asked more or less often.
_ALTERED: Mapping[str, Mapping[str, Any]] = {
    "core": {"parts": ("core",)},
    "core + recency": {"parts": ("core", "recency")},
    "core + recency + successor": {"parts": ("core", "recency", "successor")},
    "without online updates": {"learns": False},
    "once a round": {"per_round": True},
    "at each step": {"per_round": False},
}


@dataclass(frozen=True)
class Text:
    """A prompt of some domain, and its answer."""

    domain: str
    prompt: tuple[int, ...]
    tokens: tuple[int, ...]


Texts = Mapping[str, Sequence[Sequence[Text]]]  # by stream, by conversation, by turn
Replays = Mapping[str, Sequence[Replay]]  # by stream
Lists = Mapping[str, Any]  # a shortlist by domain


class Study:
    """Replays with one model and its draft; ``stop`` is the rule by which answers ended."""

    def __init__(self, model: Pretrained, draft: Draft, stop: StopRule) -> None:
        self._model, self._draft, self._stop = model, draft, stop
        self._size = model.target.head.vocab_size
        # The target reads a text once, however many lists are tried on it.
        self._recorded = cache(lambda prompt, answer: RecordedTarget(model.target, prompt, answer))

    def origin(self, method: Method, texts: Texts, gamma: int) -> dict[str, dict[str, float]]:
        """By stream, the share of the accepted tokens that each part of the method's list
        brought; nothing for a list that does not explain itself."""
        lists = self._lists(method, texts)
        if not _explains(lists):
            return {}
        replays = self._replays(lists, texts, gamma, f"explaining {method}")
        return {stream: _origin(found) for stream, found in replays.items()}

    def report(self, compared: Iterable[Method], texts: Texts, gamma: int) -> dict[str, Any]:
        """tau, coverage and overlap of all lists over their budget; of those that explain
        themselves also with parts left out. ``texts``: the target's greedy answers."""
        full = self._replays(self._lists(Method("full"), texts), texts, gamma, "full")
        points = _points("full", None, self._size, full, full)
        own = [
            replace(method, budget=method.ids(self._size), spelled="")
            for method in compared
            if method.budget is not None
        ]
        doubled = (_SMALLEST << i for i in range(self._size.bit_length()))
        sweep = [budget for budget in (*doubled, self._size) if budget <= self._size]
        tried = {replace(method, budget=b) for method in own for b in (method.budget, *sweep)}
        for method in sorted(tried, key=lambda m: (m.name, m.ranking or "", m.budget)):
            try:
                lists = self._lists(method, texts)
            except ArgumentError:
                continue  # a list that cannot be that small or that large
            curve = f"{method.name}:{method.ranking}" if method.ranking else method.name
            found = self._replays(lists, texts, gamma, f"replaying {method}")
            points += _points(curve, None, method.budget, found, full)
            if method in own and _explains(lists):
                for name, change in _ALTERED.items():
                    changed = self._lists(method, texts, change)
                    found = self._replays(changed, texts, gamma, f"{method}, {name}")
                    points += _points(curve, name, method.budget, found, full)
        return {"gamma": gamma, "temperature": TEMPERATURE, "points": points}

    def _lists(
        self, method: Method, texts: Texts, change: Mapping[str, Any] | None = None
    ) -> Lists:
        """The method's list for each domain, altered or as it is; domains whose ranking is the
        same share one."""
        made: dict[str | None, Any] = {}
        found = {}
        for domain in {text.domain for text in _flat(texts)}:
            key = method.ranking_for(domain)
            if key not in made:
                made[key] = methods.shortlist(method, self._model, domain)
                if change:
                    ids = self._ranking(str(key))[: method.budget]
                    made[key] = _Altered(made[key], ids, **change)
            found[domain] = made[key]
        return found

    def _ranking(self, name: str) -> Tensor:
        file = ranking.find_ranking(self._model.name, name)
        return ranking.read_ranking(file, self._model.tokenizer.fingerprint, self._size)

    def _replays(self, lists: Lists, texts: Texts, gamma: int, title: str) -> Replays:
        """Every text drafted again, a list going on with what it learnt within a conversation;
        "all" has the replays of every single-domain stream."""
        own = self._draft.with_own_head()
        found: dict[str, list[Replay]] = {stream: [] for stream in (*texts, "all")}
        total = sum(1 for _ in _flat(texts))
        with tqdm(total=total, desc=title, unit="prompt", leave=False, disable=None) as bar:
            for stream, conversations in texts.items():
                for conversation in conversations:
                    before = None
                    for text in conversation:
                        now = lists[text.domain]
                        recorded = self._recorded(text.prompt, text.tokens)
                        replay = replay_text(
                            recorded, own, now, gamma=gamma, stop=self._stop,
                            continued=now is before,
                        )  # fmt: skip
                        found[stream].append(replay)
                        if stream != SWITCH:
                            found["all"].append(replay)
                        before = now
                        bar.update()
        return found


class _Altered:
    """A list of which some parts are left, the others' places going to the next ids of its
    ranking, or that learns nothing, or that is asked once a round or at each step."""

    def __init__(
        self,
        inner: Any,
        fill: Tensor,
        parts: Sequence[str] | None = None,
        learns: bool = True,
        per_round: bool | None = None,
    ) -> None:
        self.name, self.budget = inner.name, inner.budget
        self.per_round = inner.per_round if per_round is None else per_round
        self._inner, self._fill, self._parts, self._learns = inner, fill, parts, learns

    def select(self, context: Context) -> Tensor:
        if self._parts is None:
            return self._inner.select(context)
        brought = self._inner.explain(context)
        kept = torch.cat([ids for name, ids in brought.items() if name in self._parts])
        size = sum(len(ids) for ids in brought.values())  # no more than it had anyway
        others = self._fill[~torch.isin(self._fill, kept)][: size - len(kept)]
        return torch.cat((kept, others)).sort().values

    def observe(self, finished: Round) -> None:
        if self._learns:
            self._inner.observe(finished)

    def reset(self) -> None:
        self._inner.reset()


def _explains(lists: Lists) -> bool:
    return all(hasattr(each, "explain") for each in lists.values())


def _flat(texts: Texts) -> Iterator[Text]:
    return (text for stream in texts.values() for talk in stream for text in talk)


def _origin(replays: Sequence[Replay]) -> dict[str, float]:
    """The share of all accepted tokens that each part brought."""
    counts = sum((Counter(replay.origin) for replay in replays), Counter[str]())
    return {name: count / counts.total() for name, count in counts.items()}


def _points(
    curve: str, altered: str | None, budget: Any, replays: Replays, full: Replays
) -> list[dict[str, Any]]:
    """A point of the study for each stream."""
    found = []
    for stream, ours in replays.items():
        row, best = (pool([r.figures for r in each]) for each in (ours, full[stream]))
        overlap, most = (
            fmean(value for replay in each for value in replay.overlaps)
            for each in (ours, full[stream])
        )
        found.append(
            {
                "curve": curve,
                "altered": altered,
                "budget": budget,
                "stream": stream,
                "tau": row["tau"],
                "tau_to_full": row["tau"] / best["tau"],
                "coverage": row["coverage"],
                "overlap": overlap,
                "overlap_to_full": overlap / most,
            }
        )
    return found
