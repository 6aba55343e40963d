"""Decoding with continuations of the text, alone or beside a draft, as the certificate enumerates
it."""

from collections.abc import Iterable
from functools import cache

from helpers.exactness.shortlists import SHORTLISTS
from minispec.auto_shape import ShapeChooser
from minispec.certificate.decodings import Decoding, ToyModels
from minispec.decode import speculative
from minispec.growth import TreeShape
from minispec.round_costs import PassCosts
from minispec.suffix_decoding import suffix_decoding
from minispec.suffix_index import SuffixConfig, SuffixIndex
from minispec.types import RandomSource, Round
from minispec.verify import Verifier

# Costs by which a draft pays in some rounds, and continuations in others.
COSTS = PassCosts(((1, 1.0), (4, 1.3)), ((1, 0.2), (2, 0.25)))


@cache
def build_chooser(draft: bool) -> ShapeChooser:
    """A chooser among trees of two levels and three nodes, or of continuations alone."""
    costs = COSTS if draft else PassCosts(COSTS.target)
    return ShapeChooser(costs, max_depth=2, beams=(1, 2), max_nodes=3, candidates="drawn")


# A shortlist, None without a draft, and the shape of its trees, None for chains.
CONTINUATIONS: dict[str, tuple[str | None, TreeShape | ShapeChooser | None]] = {
    "suffix": (None, None),
    "suffix, branches": (None, TreeShape(2, 2, 3)),
    "evospec+suffix": ("evospec", None),
    "evospec+suffix, branches": ("evospec", TreeShape(2, 2, 3, candidates="drawn")),
    "suffix, auto": (None, build_chooser(False)),
    "evospec+suffix, auto": ("evospec", build_chooser(True)),
}


@cache
def build_index(vocab_size: int) -> SuffixIndex:
    """An index that matches one token or two, for three continuations. An earlier text has every
    id, those that may be EOS too, so that the first round has a proposal."""
    config = SuffixConfig(min_match=1, max_match=2, capacity=32, nodes=3)
    return SuffixIndex(config, [[*range(vocab_size), 0, 1, 1]])


def decode_continuations(name: str, verifier: Verifier) -> Decoding:
    """Speculative decoding with one of ``CONTINUATIONS``."""
    shortlist, tree = CONTINUATIONS[name]
    build_shortlist = cache(SHORTLISTS[shortlist or "full"])

    def decode(models: ToyModels, source: RandomSource) -> Iterable[Round]:
        case, index = models.case, build_index(models.case.vocab_size)
        if isinstance(tree, ShapeChooser):
            tree.reset()
        if shortlist is None:
            return suffix_decoding(
                models.target, case.prompt, gamma=case.gamma, sampling=models.sampling, rng=source,
                stop=case.stop, index=index, trace=True, verifier=verifier, tree=tree,
            )  # fmt: skip
        return speculative(
            models.target, models.draft, build_shortlist(case.vocab_size), case.prompt,
            gamma=case.gamma, sampling=models.sampling, rng=source, stop=case.stop, index=index,
            trace=True, verifier=verifier, tree=tree,
        )  # fmt: skip

    return decode
