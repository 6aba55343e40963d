"""Speculative decoding without a draft: the text proposes its own continuations.

Any target can be decoded this way, since nothing is trained and no hidden state is read. It pays
where text repeats itself, as code and law do.
"""

from collections.abc import Iterator, Sequence

from minispec.auto_shape import ShapeChooser
from minispec.checks import check_parts, check_trees, to_ids
from minispec.commit import StopRule
from minispec.decode import decode_rounds
from minispec.growth import TreeShape
from minispec.preconditions import check_gamma, check_reads_parents, open_output, split_tree
from minispec.sampling import Sampling
from minispec.suffix_candidates import SuffixProposer
from minispec.suffix_index import SuffixIndex
from minispec.tokenizer import Tokenizer
from minispec.types import RandomSource, Round, Target
from minispec.verify import Verifier, verify


def suffix_decoding(
    target: Target,
    prompt: Sequence[int],
    *,
    gamma: int,
    sampling: Sampling,
    rng: RandomSource,
    stop: StopRule,
    index: SuffixIndex | None = None,
    tokenizer: Tokenizer | None = None,
    trace: bool = False,
    continued: bool = False,
    verifier: Verifier = verify,
    tree: TreeShape | ShapeChooser | None = None,
) -> Iterator[Round]:
    """Decode with continuations of the longest suffix match as proposals (SuffixDecoding, arXiv
    2411.04975): the same output distribution as plain decoding's.

    Each round proposes up to ``gamma`` tokens, the most frequent continuation in ``index``, a new
    index by default, to which prompt and output are added; with a ``tree``, continuations up to its
    depth, beam and nodes, or as many as a chooser chooses, and ``gamma`` does not count. The index
    is reset first, unless ``prompt`` is the ``continued`` conversation that it holds, plus a new
    turn.

    Spends, in this order: one Bernoulli draw for each token examined, one choice. Raises as
    ``decode.autoregressive``, and ArgumentError for gamma outside 1..16.
    """
    gamma = check_gamma(gamma)
    check_parts(target=target, sampling=sampling, rng=rng, stop=stop)
    prompt = to_ids(prompt, "the prompt")
    output = open_output(target, prompt, stop, tokenizer)
    sampling.check_vocabulary(target.head.vocab_size)
    index = index or SuffixIndex()
    if not continued:
        index.reset()
    shape, chooser = split_tree(tree, gamma)
    if shape.beam > 1:
        check_trees(target)
        check_reads_parents(verifier)
    suffix = SuffixProposer(index, shape.depth, shape.nodes, shape.beam)
    return decode_rounds(
        target, None, prompt, sampling, rng, output, trace, verifier, suffix, chooser
    )
