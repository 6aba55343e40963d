"""Solutions of the exercises of chapter 5, as ``minispec.exercises`` grades them."""

import torch


def draft_inputs(tokens, states):
    """The ids and the states that the draft's layer reads side by side: (ids, states).

    tokens (T,) of a text; states (T, D), of the target, at the same positions. Beside the state of
    a position stands the token after it.
    """
    return tokens[1:], states[:-1]


def draft_chain(draft, cache, state, gamma):
    """Drafts gamma tokens, each the likeliest.

    state (D,): the draft's last output. ``draft.apply_final_norm(state)`` is the input of the
    head, and ``draft.step(ids, states, cache)`` reads (1,) and (1, D) and returns states (1, D).
    """
    tokens = []
    for _ in range(gamma):
        logits = draft.head.logits(draft.apply_final_norm(state))
        tokens.append(int(logits.argmax()))
        state = draft.step(torch.tensor(tokens[-1:]), state[None], cache)[0]
    return tokens
