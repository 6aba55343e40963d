"""The recorder stores each position with the distribution of the token after it."""

from dataclasses import replace

import torch

from helpers.online_learning import DRAFT, EXTREME, run, tokens_of
from minispec.learning.learner import OnlineLearner


def test_recorder_stores_positions_in_order_with_the_next_token() -> None:
    """Of greedy text the target's distributions are one-hot on the tokens of the answer."""
    learner = OnlineLearner(DRAFT, replace(EXTREME, window_size=32))
    answer = tokens_of(run(learner, prompt=(1, 2, 3), temperature=0.0, limit=40))
    buffer = learner.recorder.buffer
    # Of the last round only the first token is recorded.
    assert 36 < len(buffer) <= len(answer) == 40
    entries = buffer.entries.select(slice(len(buffer)))
    assert entries.ids[:, 0].tolist() == list(answer[: len(buffer)])
    assert torch.equal(entries.probs[:, 0], torch.ones(len(buffer)))
    tokens = (1, 2, 3, *answer)
    for i, ngram in enumerate(entries.ngrams.tolist()):
        recent = [-1, *tokens[1 : i + 3]]  # the draft does not process the first token
        assert ngram == recent[: -len(ngram) - 1 : -1]
    assert torch.allclose(entries.keys.norm(dim=1), torch.ones(len(buffer)))
