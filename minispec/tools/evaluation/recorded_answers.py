"""The target's greedy answers, recorded for many prompts at once and replayed for each draft.

Greedy decoding emits the target's text with any draft, so replaying a recorded answer in the
real decoding loop gives the real number of target passes. Only its time is not the target's.
"""

from dataclasses import dataclass

from torch import Tensor

from minispec.sampling import Sampling, SeededRandom
from minispec.tools.data.batched_decode import decode_batch
from minispec.tools.evaluation.replay import ReplayTarget
from minispec.tools.models.pretrained import Pretrained


@dataclass(frozen=True, eq=False)
class RecordedAnswer:
    """A prompt and its greedy answer. ``aux_hidden_states`` (T, n_aux * D): the target's, of every
    token of both but the last."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    aux_hidden_states: Tensor

    def replay_target(self, vocab_size: int, context_limit: int) -> ReplayTarget:
        """A target that predicts this answer."""
        return ReplayTarget(
            self.prompt, self.answer, self.aux_hidden_states, vocab_size, context_limit
        )


def record_answers(
    model: Pretrained, prompts: list[list[int]], max_new_tokens: int, rows: int = 16
) -> list[RecordedAnswer]:
    """The greedy answers to some prompts, ``rows`` at a time; answers of a single token are left
    out."""
    recorded: dict[int, RecordedAnswer] = {}
    for row in decode_batch(
        model.reference, prompts, [Sampling()] * len(prompts), [SeededRandom(0) for _ in prompts],
        rows=rows, max_new_tokens=max_new_tokens, eos_ids=model.tokenizer.eos_ids,
        keep_features=True,
    ):  # fmt: skip
        assert row.features is not None
        if len(row.tokens) > 1:
            recorded[row.index] = RecordedAnswer(
                tuple(prompts[row.index]), tuple(row.tokens), row.features.aux_hidden_states
            )
    return [recorded[index] for index in sorted(recorded)]
