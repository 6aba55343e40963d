"""Exercises of chapter 5: the draft."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from minispec.certificate.toys import ToyDraft, ToyTarget, random_table
from minispec.exercises.grading import Exercise, compare_values

_V = 6


def _grade_inputs(answer: Callable[[Tensor, Tensor], Any]) -> str | None:
    cases = [
        (torch.tensor([7, 8, 9, 5]), torch.arange(8.0).reshape(4, 2)),
        (torch.tensor([3, 1]), torch.tensor([[1.0], [2.0]])),
    ]
    return compare_values(
        answer,
        lambda tokens, states: (tokens[1:], states[:-1]),
        cases,
        {
            "the embedding is that of the next token: shift the tokens by one": (
                lambda tokens, states: (tokens, states)
            ),
            "shifted the wrong way: the state of a token stands beside the token before it": (
                lambda tokens, states: (tokens[:-1], states[1:])
            ),
            "one position is lost at the wrong end": lambda tokens, states: (
                tokens[:-1],
                states[:-1],
            ),
        },
    )


def _grade_chain(answer: Callable[..., Sequence[int]]) -> str | None:
    table = random_table(_V, seed=3)
    target, draft = ToyTarget(_V, table), ToyDraft(_V, table)
    for text in ([0, 1, 2], [3, 5]):
        features = target.step(torch.tensor(text), target.new_cache(16))
        states = draft.fuse(features.aux_hidden_states)[:-1]
        cache = draft.new_cache(16)
        state = draft.step(torch.tensor(text[1:]), states, cache)[-1]
        wanted = list(text)
        for _ in range(3):
            wanted.append(int(table(tuple(wanted)).argmax()))
        try:
            found = list(answer(draft, cache, state, 3))
        except AssertionError as error:
            return f"{error}; the mistake: the state of the next step is the output of this one"
        if found != wanted[len(text) :]:
            return f"after {text} it drafts {found}, expected {wanted[len(text) :]}"
    return None


EXERCISES = (
    Exercise("draft_inputs", "What the draft's layer reads at each position.", _grade_inputs),
    Exercise("draft_chain", "Draft a chain of the likeliest tokens.", _grade_chain, defect=True),
)
