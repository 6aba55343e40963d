"""Exercises of chapter 4: the cache and the rollback."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from minispec.certificate.toys import ToyCache, ToyDraft, ToyTarget, random_table
from minispec.exercises.grading import Exercise, is_same

_V = 5
_TEXT = [0, 1, 2]  # the tokens before the round
_DRAFTED = [3, 4, 1]


def _grade_rollback(answer: Callable[[Any, int, int], None]) -> str | None:
    target = ToyTarget(_V, random_table(_V, seed=0))
    for accepted in range(len(_DRAFTED) + 1):
        cache = target.new_cache(16)
        target.step(torch.tensor(_TEXT[:-1]), cache)
        before = cache.length
        target.step(torch.tensor([_TEXT[-1], *_DRAFTED]), cache)
        answer(cache, before, accepted)
        wanted = [*_TEXT, *_DRAFTED[:accepted]]
        if cache.inputs != wanted:
            return (
                f"after {accepted} of {len(_DRAFTED)} tokens were accepted the cache holds "
                f"{cache.inputs}, expected {wanted}{_explain_length(cache, len(wanted))}"
            )
    return None


def _explain_length(cache: ToyCache, wanted: int) -> str:
    if cache.length == wanted - 1:
        return "; the mistake: the pass began with the last emitted token, which stays too"
    if cache.length == wanted + 1:
        return "; the mistake: one position too many, that of the first rejected token"
    return ""


def _grade_resync(answer: Callable[..., Tensor]) -> str | None:
    table = random_table(_V, seed=0)
    target, draft = ToyTarget(_V, table), ToyDraft(_V, table)
    for accepted in range(3):
        emitted = [*_DRAFTED[:accepted], 0]
        text = [*_TEXT, *emitted]
        features = target.step(torch.tensor(text), target.new_cache(16))
        states = draft.fuse(features.aux_hidden_states)[:-1]  # (T - 1, context)
        cache, start = draft.new_cache(16), len(_TEXT) - 1
        state = draft.step(torch.tensor(_TEXT[1:]), states[:start], cache)[-1]
        for token in _DRAFTED[:-1]:  # the draft runs ahead on its own states
            state = draft.step(torch.tensor([token]), state[None], cache)[-1]
        fresh = draft.new_cache(16)
        wanted = draft.step(torch.tensor(text[1:]), states, fresh)[-1]
        where = f"after {accepted} accepted tokens"
        try:
            found = answer(draft, cache, start, torch.tensor(emitted), states[start:])
        except AssertionError as error:
            return f"{where}: {error}; the mistake: cut the cache to the start of the round first"
        if not isinstance(found, Tensor):
            return f"{where}: returns a {type(found).__name__}, expected the last output, (D,)"
        if cache.inputs != fresh.inputs:
            return f"{where}: the cache differs from that of a fresh pass over the emitted tokens"
        if found.shape != wanted.shape:
            return f"{where}: returns a shape of {tuple(found.shape)}, not that of the last output"
        if not is_same(found, wanted):
            return f"{where}: returns a state that is not the pass's last output"
    return None


EXERCISES = (
    Exercise("resync", "Rebuild the draft's cache after a round.", _grade_resync),
    Exercise(
        "roll_back", "Cut the target's cache back after a round.", _grade_rollback, defect=True
    ),
)
