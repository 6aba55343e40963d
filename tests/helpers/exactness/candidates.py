"""Decoding with two sibling candidates instead of a chain: the first level of a draft tree.

The production code verifies siblings, but decodes chains only, so the loop is here.
"""

from collections.abc import Iterable
from functools import cache

import torch

from helpers.exactness.shortlists import ShortlistFactory
from minispec.certificate.decodings import Decoding, ToyModels
from minispec.commit import Output
from minispec.logits_processor import History
from minispec.propose import top_k_candidates
from minispec.ranked_head import RankedHead
from minispec.types import (
    BaseShortlist,
    Context,
    Distribution,
    Evidence,
    Proposal,
    RandomSource,
    Round,
)
from minispec.verify import verify_siblings


def decode_candidates(shortlist: ShortlistFactory) -> Decoding:
    """Decoding in which the draft's two likeliest tokens are candidates for each next token."""
    build_shortlist = cache(shortlist)

    def decode(models: ToyModels, source: RandomSource) -> Iterable[Round]:
        case, sampling, head = models.case, models.sampling, models.target.head
        vocabulary, candidates = torch.arange(case.vocab_size), build_shortlist(case.vocab_size)
        candidates.reset()
        wanted = candidates.top_ids_wanted if isinstance(candidates, BaseShortlist) else 0
        ranked = RankedHead(head, max(1, wanted))
        if isinstance(candidates, BaseShortlist) and candidates.reads_prompt:
            prefix = torch.stack([models.target.logits_after(tuple(case.prompt[:-1]))])
            candidates.on_prefill(case.prompt, ranked.rank(prefix)[0])
        output = Output(case.stop, None, case.max_new_tokens)
        tokens, stop = list(case.prompt), None

        def target_distribution(*following: int) -> Distribution:
            hidden = models.target.logits_after((*tokens, *following))  # (V,)
            history = History((*tokens, *following), len(case.prompt))
            result: Distribution = sampling.distribution(head.logits(hidden), vocabulary, history)
            return result

        while stop is None:
            # 1) Propose two candidates, unless only one token may follow.
            proposal, target_distributions = Proposal((), ()), [target_distribution()]
            if output.remaining > 1:
                hidden = models.draft.logits_after(tuple(tokens))
                ids = candidates.select(Context(tuple(tokens), hidden, 0))  # (K,)
                history = History(tokens, len(case.prompt))
                if not sampling.excludes_all(ids, history):
                    q = sampling.distribution(head.logits_of(hidden, ids), ids, history)
                    proposal = top_k_candidates(q, 2)
                    target_distributions += map(target_distribution, proposal.tokens)

            # 2) Verify and commit.
            verdict = verify_siblings(proposal, target_distributions, source)
            accepted = [proposal.tokens[node] for node in verdict.path]
            committed = output.commit([*accepted, verdict.next_token])
            tokens += committed.tokens
            stop = committed.stop

            # 3) Report the round as a chain: the accepted candidate, or else the last one tested.
            last = slice(*verdict.path, verdict.path[0] + 1) if verdict.path else slice(-1, None)
            distributions = [
                target_distributions[0],
                *(target_distributions[1 + node] for node in verdict.path),
            ]
            complete = len(committed.tokens) > len(accepted)
            start = len(tokens) - len(committed.tokens)
            read = [tuple(tokens[:end]) for end in range(start, len(tokens))]
            hidden = torch.stack([models.target.logits_after(prefix) for prefix in read])  # (n, V)
            drafted = torch.stack([models.draft.logits_after(prefix) for prefix in read])  # (n, V)
            evidence = Evidence(
                Proposal(proposal.tokens[last], proposal.draft_distributions[last]),
                tuple(distributions[: len(committed.tokens)]),
                verdict.acceptance,
                verdict.next_distribution if complete else None,
                *ranked.rank(hidden),
                draft_hidden=drafted,
            )
            finished = Round(
                tokens=committed.tokens, text="", path=tuple(range(len(accepted))),
                proposed=proposal.tokens[last], shortlist_sizes=(), seconds={}, stop=stop,
                evidence=evidence,
            )  # fmt: skip
            candidates.observe(finished)
            yield finished

    return decode
