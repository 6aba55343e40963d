"""The record of a finished round: what a shortlist and a learner may learn from it.

Nothing that lies after a stop is in it.
"""

from bisect import bisect_left
from collections.abc import Sequence

import torch
from torch import Tensor

from minispec.commit import Committed
from minispec.propose import Drafter
from minispec.tree import find_depths, select
from minispec.types import Distribution, Evidence, Proposal, Round
from minispec.verify import Verdict


def summarize_round(
    proposal: Proposal,
    num_drafted: int,
    distributions: Sequence[Distribution],
    top_ids: Tensor,
    top_logits: Tensor,
    verdict: Verdict,
    committed: Committed,
    drafter: Drafter | None,
) -> Round:
    """The record of a round. p, and the likeliest ids (n, k) and logits (n, k), are those at the
    positions of the n emitted tokens; the first ``num_drafted`` tokens of the proposal are the
    draft's."""
    kept, path, acceptance = len(committed.tokens), verdict.path, verdict.acceptance
    hidden = drafter.hidden_states([-1, *path][:kept]) if drafter else torch.zeros(0, 0)
    if committed.stop:
        depths = find_depths(proposal.parents)
        nodes = [node for node, depth in enumerate(depths) if depth < kept]
        proposal, num_drafted = select(proposal, nodes), bisect_left(nodes, num_drafted)
        path = tuple(nodes.index(node) for node in path[:kept])
        acceptance = tuple(acceptance[node] for node in nodes if node < len(acceptance))
    complete = kept == len(verdict.path) + 1  # the target's own token was emitted too
    evidence = Evidence(
        proposal,
        tuple(distributions),
        acceptance,
        verdict.next_distribution if complete else None,
        top_ids=top_ids,
        top_logits=top_logits,
        draft_hidden=hidden,
    )
    return Round(
        tokens=committed.tokens,
        text=committed.text,
        path=path,
        proposed=proposal.tokens,
        shortlist_sizes=tuple(len(q.ids) for q in proposal.draft_distributions[:num_drafted]),
        seconds={},
        stop=committed.stop,
        evidence=evidence,
        rows_probed=drafter.rows_probed if drafter else 0,
        parents=proposal.parents,
    )
