"""What decoding checks before any model runs.

Knows nothing of drafting and of the loop.
"""

from collections.abc import Sequence

import torch

from minispec.auto_shape import ShapeChooser
from minispec.checks import check_parts, to_int
from minispec.commit import Output, StopRule
from minispec.errors import ArgumentError, ContextError
from minispec.growth import MAX_DEPTH, TreeShape
from minispec.sampling import SeededRandom
from minispec.tokenizer import Tokenizer
from minispec.types import Distribution, Proposal, Target
from minispec.verify import VERIFIERS, Verifier, check_verdict


def check_gamma(gamma: int) -> int:
    """The length of a proposal. Raises ArgumentError for gamma outside 1..16."""
    if not 1 <= (gamma := to_int(gamma, "gamma")) <= MAX_DEPTH:
        raise ArgumentError(f"gamma {gamma} must lie in 1..{MAX_DEPTH}")
    return gamma


def open_output(
    target: Target, prompt: Sequence[int], stop: StopRule, tokenizer: Tokenizer | None
) -> Output:
    """Check a prompt and return its empty output. Raises ArgumentError for an empty prompt and for
    ids outside the vocabulary, ContextError for a prompt that fills the context."""
    if tokenizer is not None:
        check_parts(tokenizer=tokenizer)
    if not prompt:
        raise ArgumentError("the prompt has no tokens: at least one is needed")
    size = target.head.vocab_size
    if not 0 <= min(prompt) <= max(prompt) < size:
        raise ArgumentError(f"the prompt has ids outside 0..{size - 1}")
    capacity = target.context_limit - len(prompt)
    if capacity < 1:
        raise ContextError(
            f"the prompt has {len(prompt)} tokens, the context holds {target.context_limit}: "
            "shorten the prompt"
        )
    return Output(stop, tokenizer, capacity)


def split_tree(
    tree: TreeShape | ShapeChooser | None, gamma: int
) -> tuple[TreeShape, ShapeChooser | None]:
    """The largest shape that is proposed, and what chooses among smaller ones, if anything does.
    Without a ``tree``, chains of ``gamma`` tokens."""
    if isinstance(tree, ShapeChooser):
        return tree.largest, tree
    shape = TreeShape.chain(gamma) if tree is None else tree
    check_parts(tree=shape)
    return shape, None


def check_reads_parents(verifier: Verifier) -> None:
    """Show a verifier of one's own two siblings, of which p makes the first certain, before it is
    given any other proposal. Raises ArgumentError if it takes the second for the first one's child,
    as one for chains does."""
    if verifier in VERIFIERS.values():
        return
    first, second = (Distribution(torch.arange(2), torch.eye(2)[i]) for i in range(2))
    siblings = Proposal((0, 1), (first, second), (-1, -1))
    try:
        check_verdict(verifier(siblings, (first, second, second), SeededRandom(0)), siblings, 2)
    except ArgumentError as error:
        name = getattr(verifier, "__name__", type(verifier).__name__)
        raise ArgumentError(
            f"verifier {name} reads chains, no trees: {error}; let it follow proposal.parents, or "
            "use no tree and no continuations"
        ) from None
