"""A target's greedy text, many prompts at once, to be recited as often as a draft is measured.

Greedy decoding emits the target's text whatever the draft does, so one who recites it, in the
real decoding loop, gives the real number of target passes: only the time is not the target's.
"""

from dataclasses import dataclass

from torch import Tensor

from minispec.sampling import Sampling, SeededRandom
from minispec.tools.data.batched_decode import decode_batch
from minispec.tools.evaluation.replay import ReplayTarget
from minispec.tools.models.pretrained import Pretrained


@dataclass(frozen=True, eq=False)
class Recording:
    """A prompt and its greedy answer: ``aux_hidden_states`` (T, n_aux * D) of every token but the last."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    aux_hidden_states: Tensor

    def reciter(self, vocab_size: int, context_limit: int) -> ReplayTarget:
        """A target that says it."""
        return ReplayTarget(
            self.prompt, self.answer, self.aux_hidden_states, vocab_size, context_limit
        )


def record(
    model: Pretrained, prompts: list[list[int]], max_new_tokens: int, rows: int = 16
) -> list[Recording]:
    """The greedy answers to some prompts; those that end at once are left out."""
    found: dict[int, Recording] = {}
    for row in decode_batch(
        model.reference, prompts, [Sampling()] * len(prompts), [SeededRandom(0) for _ in prompts],
        rows=rows, max_new_tokens=max_new_tokens, eos_ids=model.tokenizer.eos_ids,
        keep_features=True,
    ):  # fmt: skip
        assert row.features is not None
        if len(row.tokens) > 1:
            prompt = tuple(prompts[row.index])
            found[row.index] = Recording(prompt, tuple(row.tokens), row.features.aux_hidden_states)
    return [found[index] for index in sorted(found)]
