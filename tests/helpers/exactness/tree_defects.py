"""Planted defects of property 16: trees of drafts."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from helpers import trees
from helpers.exactness.planting import patch_attribute, plant, worst_tv
from helpers.exactness.tree_checks import check_exhausted_siblings
from minispec import growth, propose
from minispec import verify as verification
from minispec.certificate.cases import GRID
from minispec.certificate.decodings import decode_with
from minispec.certificate.toys import ToyCache
from minispec.growth import Candidate, Growth, TreeShape
from minispec.logits_processor import History
from minispec.models import rope
from minispec.models.kv_cache import KVCache
from minispec.sampling import Sampling
from minispec.shortlists.full import FullShortlist
from minispec.tree import find_depths, select
from minispec.types import Distribution, Proposal, RandomSource
from minispec.verify import Verdict, Verifier, residual, verify, verify_block

PICKED, DRAWN = TreeShape.parse("2x2x4"), TreeShape.parse("2x2x4:drawn")
DISTINCT = TreeShape.parse("2x2x4:distinct")
FEW_CASES = [GRID[seed] for seed in (2, 8, 13)]
# Candidates 11 and 12, of which the second goes on: the same token 3 at two depths.
TREE = ([1, 2, 3], [11, 12, 3, 3, 7, 3], [-1, -1, 0, 1, 3, 4])


def measure(verifier: Verifier = verify, tree: TreeShape = DRAWN, **options: Any) -> Any:
    """The largest total variation over a few cases with trees, in fractions."""
    return worst_tv(decode_with(FullShortlist, verifier, tree=tree), cases=FEW_CASES, **options)


# --- what siblings are judged against -------------------------------------------------------


@plant(16, "a sibling is tested against p, not against what the one before left of it")
def _() -> Any:
    right = verification.acceptance_probability

    def judge(
        proposal: Proposal, distributions: Sequence[Distribution], rng: RandomSource
    ) -> Verdict:
        parents = dict(zip(proposal.tokens, proposal.parents, strict=True))

        def accept(p: Distribution, q: Distribution, token: int, weight: Any = 1) -> Any:
            return right(distributions[1 + parents[token]], q, token, weight)

        with patch_attribute(verification, "acceptance_probability", accept):
            return verify(proposal, distributions, rng)

    return measure(judge, PICKED)


@plant(16, "the token after rejected siblings comes from the residual of the last one alone")
def _() -> Any:
    def judge(
        proposal: Proposal, distributions: Sequence[Distribution], rng: RandomSource
    ) -> Verdict:
        verdict = verify(proposal, distributions, rng)
        last = verdict.path[-1] if verdict.path else -1
        rejected = [node for node, parent in enumerate(proposal.parents) if parent == last]
        if not rejected:
            return verdict
        p = residual(distributions[1 + last], proposal.draft_distributions[rejected[-1]])
        token = int(p.ids[rng.choose(p.probs)])
        return replace(verdict, next_token=token, next_distribution=p)

    return measure(judge, PICKED)


@plant(16, "a leaf is tested with the weight that its siblings had at first")
def _() -> Any:
    with patch_attribute(verification, "_weight_after_rejection", lambda p, q, weight: weight):
        return measure(verify_block)


@plant(16, "a repetition among drawn siblings is left out")
def _() -> Any:
    right = growth.choose_candidates

    def choose(*arguments: Any) -> list[Candidate]:
        first = {c.token: c for c in reversed(right(*arguments))}
        return [*first.values()][::-1]

    with patch_attribute(propose, "choose_candidates", choose):
        return measure()


@plant(16, "candidates drawn without replacement are recorded with the whole q")
def _() -> Any:
    right = growth.choose_candidates

    def choose(kind: str, q: Distribution, *rest: Any) -> list[Candidate]:
        return [replace(c, distribution=q) for c in right(kind, q, *rest)]

    with patch_attribute(propose, "choose_candidates", choose):
        return measure(tree=DISTINCT)


# --- what stays in a tree -------------------------------------------------------------------


@plant(16, "drawn candidates are ranked again, and the least likely are dropped")
def _() -> Any:
    def finish(self: Growth) -> tuple[Proposal, list[int]]:
        tree = Proposal(tuple(self.tokens), tuple(self._distributions), tuple(self.parents))
        ranked = sorted(range(len(tree)), key=lambda node: -self._confidences[node])
        nodes = sorted(ranked[:1])
        return select(tree, nodes), nodes

    with patch_attribute(Growth, "finish", finish):
        return measure(tree=TreeShape.parse("1x2x2:drawn"))


@plant(16, "drawn siblings are verified in the order of their probability")
def _() -> Any:
    right = Growth.add

    def add(self: Growth, parent: int, candidates: Sequence[Candidate]) -> None:
        right(self, parent, sorted(candidates, key=lambda candidate: candidate.confidence))

    with patch_attribute(Growth, "add", add):
        return measure(tree=DISTINCT)


# --- a residual of zero mass at the last candidate ------------------------------------------


def measure_exhausted(fallback: Callable[[Distribution, Any], Any]) -> Any:
    """Siblings take all of p, and the last one is rejected all the same, by rounding."""
    positive_part = verification.positive_part

    def leave(p: Distribution, q: Distribution, weight: Any = 1) -> Distribution:
        remaining = positive_part(p, q, weight)
        mass = remaining.sum()
        return Distribution(p.ids, remaining / mass if mass > 0 else fallback(p, remaining))

    with patch_attribute(verification, "residual", leave):
        return max(check_exhausted_siblings(verifier) for verifier in (verify, verify_block))


@plant(16, "a residual of zero mass after the last sibling is divided by 0")
def _() -> Any:
    return measure_exhausted(lambda p, remaining: remaining / remaining.sum())


@plant(16, "a residual of zero mass after the last sibling becomes id 0")
def _() -> Any:
    return measure_exhausted(lambda p, remaining: (p.ids == 0).double())


# --- attention, positions and caches --------------------------------------------------------


@plant(16, "the mask lets a node see its cousins")
def _() -> Any:
    def see(parents: Sequence[int]) -> torch.Tensor:
        return torch.ones(len(parents), len(parents), dtype=torch.bool).tril()

    with patch_attribute(rope, "find_ancestors", see):
        return max(trees.measure_target(TREE, "Llama"), trees.measure_draft(TREE, "Llama"))


@plant(16, "two depths have the same position")
def _() -> Any:
    def count(parents: Sequence[int]) -> list[int]:
        return [depth - (depth > 1) for depth in find_depths(parents)]

    with patch_attribute(rope, "find_depths", count):
        return trees.measure_target(TREE, "Gemma")


@plant(16, "keep is off by one after a rejected first candidate")
def _() -> Any:
    right = ToyCache.keep

    def keep(self: ToyCache, start: int, path: Sequence[int]) -> None:
        # The first of the path is the last emitted token.
        shift = int(len(path) > 1 and path[1] > 1)
        right(self, start, [path[0], *(node - shift for node in path[1:])])

    with patch_attribute(ToyCache, "keep", keep):
        return measure(tree=PICKED)


@plant(16, "a cache keeps the first nodes of a tree instead of the accepted ones")
def _() -> Any:
    def keep(self: KVCache, start: int, path: Sequence[int]) -> None:
        self.truncate(start + len(path))

    with patch_attribute(KVCache, "keep", keep):
        return trees.measure_kept(TREE, "Llama")


@plant(16, "penalties count the tokens of cousins")
def _() -> Any:
    def count_all(self: History, count: int) -> History:
        return History(self.tokens[: len(self.tokens) - count], self.prompt_length)

    penalties = Sampling(1.0, presence_penalty=math.log(4))
    with patch_attribute(History, "without_last", count_all):
        decode = decode_with(FullShortlist, verify, tree=PICKED)
        return worst_tv(decode, penalties, FEW_CASES)
