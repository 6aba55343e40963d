"""Mutants that change nothing that anybody can observe, each with its reason.

Knows nothing of how mutants are made or run.
"""

from helpers.exactness.mutations import Mutant

_INDEPENDENT = "neither of the two steps reads what the other writes"
_NUMBER = "a NumPy number or a tensor of one entry indexes and compares as its int does"
_EQUAL_LENGTHS = "what is paired has one entry for each node, so the check never fails"
_FASTER = "what is computed more is not read, or has the same values: only time differs"
_ONE_WORD = "there is one word of each kind: two are refused"
_MORE_SORTED = "more ids are sorted than are needed; those that are kept are the same"

# From (file, part of the description of the change) to the reason. A part that ends with a line
# break is the end of the description.
REASONS: dict[tuple[str, str], str] = {
    ("minispec/sampling", "8 * _FIRST_SORTED, len(probs)))[1:]"): _MORE_SORTED,
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
    ("minispec/propose", "in propose: logits = self._score"): _INDEPENDENT,
    ("minispec/propose", "strict=True) -> zip("): _EQUAL_LENGTHS,
    ("minispec/propose", "strict=False) -> zip("): "lengths may differ by default",
    ("minispec/propose", "*states -> *states[:-1]"): (
        "without the last state as many are left as there are nodes, and more are not paired"
    ),
    ("minispec/propose", "[:4] + r[:1] * len(r[4:]))([torch.cat(parts)"): "there are two parts",
    ("minispec/propose", "dict(zip(nodes, outputs, strict=True)) -> zip"): (
        "a dictionary takes pairs as it takes another dictionary"
    ),
    ("minispec/propose", "-> all((ids is choices[0] for ids in choices))"): (
        "of a batch of one state the logits are those of the state"
    ),
    ("minispec/propose", "for ids in list(choices)[1:]"): "the first is the first itself",
    ("minispec/propose", "choices[0] -> choices[0 "): "where this is read, all are the same tensor",
    ("minispec/propose", "(not self.shape.is_chain) -> sampling.temperature == 0\n"): (
        "in a chain nothing reads the confidence"
    ),
    ("minispec/propose", "self.shape.candidates != 'top' -> soft\n"): _FASTER,
    ("minispec/decode", "in speculative: drafter = Drafter"): _INDEPENDENT,
    ("minispec/decode", "in decode_rounds: ranks = ranked.rank"): (
        "the ranks are those of the logits, which were computed before"
    ),
    ("minispec/decode", "in decode_rounds: features = target.step"): _INDEPENDENT,
    ("minispec/decode", "in decode_rounds: shown = "): _INDEPENDENT,
    ("minispec/decode", "torch.tensor(rows, device=states.device) -> "): (
        "PyTorch itself takes indices on the CPU, as a tensor or not, for rows on any device"
    ),
    ("minispec/growth", "in __post_init__: convert_fields"): _INDEPENDENT,
    ("minispec/growth", "in parse: depth, beam, nodes"): _INDEPENDENT,
    ("minispec/growth", "in _share_out: left"): _INDEPENDENT,
    ("minispec/growth", "in _share_out: levels"): _INDEPENDENT,
    ("minispec/growth", "in add: "): _INDEPENDENT,
    ("minispec/growth", "in finish: proposal"): _INDEPENDENT,
    ("minispec/growth", "np.asarray(confidence.probs) -> confidence.probs"): (
        "NumPy sorts the tensor through the array that it shares its memory with"
    ),
    ("minispec/growth", "[:count].tolist() -> np.argsort"): _NUMBER,
    ("minispec/growth", "[w for w in words if w in CANDIDATES] -> (lambda"): _ONE_WORD,
    ("minispec/growth", "[w for w in words if w in GROWTHS] -> (lambda"): _ONE_WORD,
    ("minispec/growth", "given[0] -> given[0 - 1]"): _ONE_WORD,
    ("minispec/growth", "__str__ keeps its first result"): "a shape never changes",
    ("minispec/growth", "heap and sum(counts.values()) < self.nodes -> sum("): (
        "a shape has no more nodes than there are places, so some are left until then"
    ),
    ("minispec/growth", "float(confidence.probs[index]) -> confidence"): _NUMBER,
    ("minispec/growth", "point[i] -> point["): "all entries are 0",
    ("minispec/growth", "places.get(self._ranks_of(node), 0) -> "): "None is as false as 0",
    ("minispec/verify", "in verify: _check_lengths"): _INDEPENDENT,
    ("minispec/verify", "in verify_block: _check_lengths"): _INDEPENDENT,
    ("minispec/verify", "in _draw_next: token = int"): _INDEPENDENT,
    ("minispec/verify", "descend(-1, 1) or (-1, target_distributions[0]) -> "): (
        "the last emitted token, of index -1, is always kept"
    ),
    ("minispec/verify", "target_distributions[0] -> target_distributions[0 "): (
        "the last emitted token, of index -1, is always kept"
    ),
    ("minispec/tree", "strict=True) -> zip("): _EQUAL_LENGTHS,
    ("minispec/tree", "node - 1 for node, parent in list("): "the first node's parent is -1",
    ("minispec/tree", "if parent == last] -> (lambda"): "of these the first alone is taken",
    ("minispec/tree", "for node, parent in list(enumerate(parents))[1:]:"): (
        "the first node's parent is -1, which has no row"
    ),
    ("minispec/suffix_candidates", "in merge_continuations: tokens.append"): _INDEPENDENT,
    ("minispec/suffix_candidates", "in merge_continuations: parents.append"): _INDEPENDENT,
    ("minispec/suffix_candidates", "strict=True) -> zip("): _EQUAL_LENGTHS,
    ("minispec/suffix_candidates", "None if False else nodes.get"): (
        "no node's parent is None, so none is found"
    ),
    ("minispec/commit", "in __init__: self._limit = min"): _INDEPENDENT,
    ("minispec/commit", "self._stream and token < self._vocab_size -> token"): (
        "without a tokenizer the vocabulary size is 0, which no id is below"
    ),
    ("minispec/commit", "len(stop_string) - 1 -> len(stop_string)"): (
        "text that ends with a whole stop string has stopped the output before"
    ),
    ("minispec/shortlists/evospec", "in __init__: self._max_recent ="): _INDEPENDENT,
    ("minispec/shortlists/evospec", "in __init__: self._core: Ids ="): _INDEPENDENT,
    ("minispec/shortlists/evospec", "in __init__: self.semantic ="): _INDEPENDENT,
    ("minispec/shortlists/evospec", "strict=True) -> zip(self.part_names, parts)\n"): (
        "there are four names and four parts"
    ),
    ("minispec/shortlists/evospec", "eos_ids).numpy() -> truncate_ranking"): (
        "NumPy takes the tensor as the array that it shares its memory with"
    ),
    ("minispec/shortlists/evospec_paper", "in __init__: self._core ="): _INDEPENDENT,
    ("minispec/shortlists/evospec_paper", "in reset: self._waiting:"): _INDEPENDENT,
    ("minispec/shortlists/evospec_paper", "in _admit: self._buffer.count_event()"): _INDEPENDENT,
    ("minispec/shortlists/evospec_paper", "np.zeros(vocab_size, bool) -> np.zeros(vocab_size)"): (
        "0.0 and 1.0 are as false and as true as booleans"
    ),
    ("minispec/shortlists/arc", "return True -> return recent\n"): "a pair is as true as True",
    ("minispec/shortlists/arc", "return True -> return frequent\n"): "a pair is as true as True",
    ("minispec/shortlists/arc", "in clear: self._"): _INDEPENDENT,
    ("minispec/shortlists/bigrams", "in count_bigrams: chunk.append("): _INDEPENDENT,
    ("minispec/shortlists/bigrams", "minlength=vocab_size) -> np.bincount(first, counts)"): (
        "the totals are read at ids that begin a pair, and the largest of these is counted"
    ),
    ("minispec/shortlists/microspec", "-> np.array_equal(self._ids.numpy(), distinct)"): (
        "equality is symmetric"
    ),
    ("minispec/shortlists/microspec", "in reset: self._stream:"): _INDEPENDENT,
    ("minispec/shortlists/dynaspec", "in select: scores = "): _INDEPENDENT,
    ("minispec/shortlists/dynaspec", "in __init__: self._eos_ids ="): _INDEPENDENT,
    ("minispec/shortlists/lowrank", "sorted=False) -> scores.topk(self.budget)"): (
        "the ids are sorted afterwards"
    ),
    ("minispec/shortlists/evospec", "in __init__: self.statistical ="): _INDEPENDENT,
    ("minispec/shortlists/evospec_paper", ":_SEEDS].numpy() -> evidence"): _NUMBER,
    ("minispec/shortlists/evospec_paper", "int(u) -> u"): _NUMBER,
    ("minispec/shortlists/evospec_paper", "ids.tolist() -> ids"): (
        "NumPy's integers are equal to Python's, and hash as they do"
    ),
    ("minispec/shortlists/arc", "float(self.capacity) -> self.capacity"): _NUMBER,
    ("minispec/shortlists/bigrams", "int(self._ends[token]) -> self._ends[token]"): _NUMBER,
    ("minispec/shortlists/bigrams", "degrees.astype(np.int64) -> degrees"): (
        "NumPy adds up small integers in 64 bits"
    ),
    ("minispec/shortlists/microspec", "self._ids.numpy() -> self._ids"): (
        "a tensor compares as its array does"
    ),
    ("minispec/shortlists/dynaspec", "logits.numpy() -> logits"): (
        "a tensor is indexed, and an array subtracted from it, as from its array"
    ),
    ("minispec/shortlists/lowrank", "indices) -> scores.topk(self.budget, sorted=False).indices"): (
        "NumPy sorts the tensor through the array that it shares its memory with"
    ),
    ("minispec/models/lm_head", "ids.to(self.weight.device) -> ids"): (
        "PyTorch itself takes indices on the CPU for rows on any device"
    ),
    ("minispec/models/lm_head", "self.weight if False else _select(self.weight, ids"): (
        "a copy of all rows has the same values as the rows: only memory differs"
    ),
}


def find_reason(mutant: Mutant) -> str | None:
    """Why a mutant is equivalent, None if it is not known to be."""
    for (file, change), reason in REASONS.items():
        if file == mutant.file and change in f"{mutant.change}\n":
            return reason
    return None
