"""Mutants that change nothing that anybody can observe, each with its reason.

Knows nothing of how mutants are made or run.
"""

from helpers.exactness.mutations import Mutant

_INDEPENDENT = "neither of the two steps reads what the other writes"
_NUMBER = "a NumPy number or a tensor of one entry indexes and compares as its int does"
_MORE_SORTED = "more ids are sorted than are needed; those that are kept are the same"
_ONE_ROW = "there is one row: the first is the last"

# From (file, part of the description of the change) to the reason. A part that ends with a line
# break is the end of the description.
REASONS: dict[tuple[str, str], str] = {
    ("minispec/sampling", "for size in list((_FIRST_SORTED, 8 * _FIRST_SORTED, len(probs)))[1:]"): _MORE_SORTED,
    ("minispec/sampling", "8 * _FIRST_SORTED -> 8\n"): _MORE_SORTED,
    ("minispec/sampling", "if sums[-1] >= mass: -> if False"): _MORE_SORTED,
    ("minispec/sampling", "sums[-1] -> sums[-1 + 1]"): _MORE_SORTED,
    ("minispec/sampling", "int((before < mass).sum()) -> (before"): _NUMBER,
    ("minispec/sampling", "int(logits.numpy().argmax()) -> logits"): _NUMBER,
    ("minispec/sampling", "logits.numpy() -> logits"): (
        "torch's argmax takes the first of equal maxima as well, only more slowly"
    ),
    ("minispec/sampling", "in choose: index = np.searchsorted"): _INDEPENDENT,
    ("minispec/sampling", "side='left') -> np.searchsorted(cumulative, cumulative[-1])"): (
        "left is NumPy's default"
    ),
    ("minispec/sampling", "if len(support) == len(distribution.ids): -> if False"): (
        "a distribution of which nothing is left out is copied: the values are the same"
    ),
    ("minispec/sampling", "history and self.needs_history -> history\n"): (
        "each row gets a history that nothing reads"
    ),
    ("minispec/propose", "in _forward: states = self.draft.step"): _INDEPENDENT,
    ("minispec/propose", "in propose: self._hidden.append(context.hidden) logits"): _INDEPENDENT,
    ("minispec/propose", "in propose: drafted.append("): _INDEPENDENT,
    ("minispec/propose", "in propose: distributions.append(distribution) watch.lap"): (
        "appending to a list takes no time that a phase would show"
    ),
    ("minispec/propose", "self._cache)[0 - 1]"): _ONE_ROW,
    ("minispec/propose", "[:count].tolist() -> np.argsort"): _NUMBER,
    ("minispec/propose", "np.asarray(distribution.probs) -> distribution.probs"): (
        "NumPy sorts the tensor through the array that it shares its memory with"
    ),
    ("minispec/propose", "ids.cpu().numpy() -> ids.cpu()"): (
        "a tensor compares as its array does, only more slowly"
    ),
    ("minispec/decode", "_decode(target, 0, None, prompt"): (
        "plain decoding has no drafter, for which 0 stands as well as None, and reads no gamma"
    ),
    ("minispec/decode", "cache) history = History("): _INDEPENDENT,
    ("minispec/commit", "in __init__: self._limit = min"): _INDEPENDENT,
    ("minispec/commit", "self._stream and token < self._vocab_size -> token"): (
        "without a tokenizer the vocabulary size is 0, which no id is below"
    ),
    ("minispec/commit", "len(stop_string) - 1 -> len(stop_string)"): (
        "text that ends with a whole stop string has stopped the output before"
    ),
    ("minispec/models/lm_head", "ids.to(self.weight.device) -> ids"): (
        "PyTorch itself takes indices on the CPU for rows on any device"
    ),
    ("minispec/models/lm_head", "self.weight if False else self.weight[ids"): (
        "a copy of all rows has the same values as the rows: only memory differs"
    ),
}


def find_reason(mutant: Mutant) -> str | None:
    """Why a mutant is equivalent, None if it is not known to be."""
    for (file, change), reason in REASONS.items():
        if file == mutant.file and change in f"{mutant.change}\n":
            return reason
    return None
