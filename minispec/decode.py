"""The decoding loop: draft, score, verify, commit, roll back, resync, learn.

``autoregressive`` and ``speculative`` run the same loop; plain decoding drafts nothing. Both are
generators of rounds and can be abandoned after any of them.

At the start of each round ``tokens`` holds the prompt and everything emitted, and the caches of
target and draft hold all of these positions but the last.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from minispec.auto_shape import ShapeChooser
from minispec.checks import check_parts, check_trees, to_ids
from minispec.commit import Output, StopRule
from minispec.growth import TreeShape
from minispec.logits_processor import History
from minispec.preconditions import check_gamma, check_reads_parents, open_output, split_tree
from minispec.propose import Drafter
from minispec.ranked_head import RankedHead
from minispec.rounds import summarize_round
from minispec.sampling import Sampling
from minispec.stopwatch import Stopwatch
from minispec.suffix_candidates import SuffixProposer, merge_continuations
from minispec.suffix_index import Continuations, SuffixIndex
from minispec.tokenizer import Tokenizer
from minispec.tree import list_arguments
from minispec.types import (
    Draft,
    Features,
    Learner,
    Proposal,
    RandomSource,
    Round,
    Shortlist,
    Target,
)
from minispec.verify import Verifier, check_verdict, verify

_PREFILL_CHUNK = 512  # positions per pass: the attention mask of a whole prompt would be large
_NO_PROPOSAL, _NO_CONTINUATIONS = Proposal((), ()), Continuations()
_NO_TOP = torch.zeros(0, 0, dtype=torch.int64), torch.zeros(0, 0)


def autoregressive(
    target: Target,
    prompt: Sequence[int],
    *,
    sampling: Sampling,
    rng: RandomSource,
    stop: StopRule,
    tokenizer: Tokenizer | None = None,
    trace: bool = False,
) -> Iterator[Round]:
    """Plain decoding: one token per round, drawn from the target's distribution.

    Spends one choice for each token. Raises ArgumentError for an empty prompt and for a bias or bad
    word outside the vocabulary, and ContextError for a prompt that fills the context, all before
    any model runs. If the context is full before
    ``stop.max_new_tokens``, the last round's ``stop`` is "context".
    """
    check_parts(target=target, sampling=sampling, rng=rng, stop=stop)
    prompt = to_ids(prompt, "the prompt")
    output = open_output(target, prompt, stop, tokenizer)
    sampling.check_vocabulary(target.head.vocab_size)
    return decode_rounds(target, None, prompt, sampling, rng, output, trace)


def speculative(
    target: Target,
    draft: Draft,
    shortlist: Shortlist,
    prompt: Sequence[int],
    *,
    gamma: int,
    sampling: Sampling,
    rng: RandomSource,
    stop: StopRule,
    tokenizer: Tokenizer | None = None,
    trace: bool = False,
    continued: bool = False,
    verifier: Verifier = verify,
    learner: Learner | None = None,
    tree: TreeShape | ShapeChooser | None = None,
    index: SuffixIndex | None = None,
) -> Iterator[Round]:
    """Speculative decoding: the same output distribution, several tokens per round.

    Each round drafts up to ``gamma`` tokens among the ids that ``shortlist`` selects, verifies
    them in one target pass, and emits the accepted ones and one token of the target's own. Fewer
    are drafted where the output is about to reach its limit. With a ``tree`` it drafts trees of
    this shape, or of those that a chooser chooses, and ``gamma`` does not count. With an ``index``,
    continuations of the text, which it is given, are proposed as well (``suffix_candidates``), as
    many of them as a chooser chooses.

    Shortlist and index are reset first, unless ``prompt`` is the ``continued`` conversation that
    they have already observed, plus a new turn; the models process the whole prompt again. With a
    ``learner``, pass the learner's own ``draft``: it is adapted between rounds.

    Spends, in this order: one choice for each drafted token that was not picked, one Bernoulli draw
    for each token examined (in ``verify_block`` for each path, the longest first), one choice.
    Raises as ``autoregressive``, and ArgumentError for gamma outside 1..16.
    """
    gamma = check_gamma(gamma)
    check_parts(target=target, draft=draft, shortlist=shortlist)
    check_parts(sampling=sampling, rng=rng, stop=stop)
    prompt = to_ids(prompt, "the prompt")
    output = open_output(target, prompt, stop, tokenizer)
    sampling.check_vocabulary(target.head.vocab_size)
    if not continued:
        shortlist.reset()
        if index:
            index.reset()
    if learner:
        learner.start(continued)
    shape, chooser = split_tree(tree, gamma)
    if not shape.is_chain:
        check_trees(target, draft)
    if index:
        check_trees(target)
    if index or not shape.is_chain:
        check_reads_parents(verifier)
    capacity = len(prompt) + output.remaining
    drafter = Drafter(draft, shortlist, capacity, learner, len(prompt), shape)
    suffix = SuffixProposer(index, shape.depth, index.config.nodes) if index else None
    return decode_rounds(
        target, drafter, prompt, sampling, rng, output, trace, verifier, suffix, chooser
    )


def prefill(target: Target, ids: Sequence[int], cache: Any) -> Iterator[Features]:
    """Run the target over ``ids`` in chunks of 512 tokens; yields the features of each chunk."""
    for start in range(0, len(ids), _PREFILL_CHUNK):
        yield target.step(torch.tensor(ids[start : start + _PREFILL_CHUNK]), cache)


def decode_rounds(
    target: Target,
    drafter: Drafter | None,
    tokens: list[int],
    sampling: Sampling,
    rng: RandomSource,
    output: Output,
    trace: bool,
    verifier: Verifier = verify,
    suffix: SuffixProposer | None = None,
    chooser: ShapeChooser | None = None,
) -> Iterator[Round]:
    """All rounds of one prompt; ``tokens`` is the prompt at first, and grows. Tokens are proposed
    by ``drafter`` and by ``suffix``, as far as these are given, and how many ``chooser`` chooses,
    if it is given."""
    if output.remaining == 0:
        return
    watch, prompt_length = Stopwatch(), len(tokens)
    extra_rows = (drafter.extra_rows if drafter else 0) + (suffix.nodes if suffix else 0)
    cache = target.new_cache(prompt_length + output.remaining + extra_rows)
    top_ids_wanted = drafter.top_ids_wanted if drafter else 0
    ranked = RankedHead(target.head, top_ids_wanted) if top_ids_wanted else None
    head = ranked or target.head
    _prefill_prompt(target, drafter, tokens, cache, ranked)
    watch.lap("prefill")

    stop = None
    while stop is None:
        # 1) Draft: a chain or a tree, each token x ~ q, and continuations of the text. The round's
        # last token is the target's own.
        limit, shape = output.remaining - 1, drafter.shape if drafter else None
        found = suffix.find(tokens, limit) if suffix else _NO_CONTINUATIONS
        if chooser:
            shape, count = chooser.choose(found)
            found = found.first(count)
        proposal = _NO_PROPOSAL
        if drafter:
            drafter.shape = shape or drafter.shape
            proposal = drafter.propose(tokens, limit if shape else 0, sampling, rng, watch)
            watch.lap("draft")
        num_drafted = len(proposal)
        if suffix:
            history = History(tokens, prompt_length)
            proposal = merge_continuations(proposal, found, sampling, history)
            watch.lap("draft")

        # 2) Score: one target pass over the last token and the n drafted ones gives n + 1 p's.
        # Penalties at each position count the tokens drafted on the way to it.
        start = cache.length
        nodes = torch.tensor([tokens[-1], *proposal.tokens])
        features = target.step(nodes, cache, *list_arguments(proposal))
        history = History((*tokens, *proposal.tokens), prompt_length, proposal.parents)
        distributions = sampling.target_distributions(head, features.hidden, history)
        ranks = ranked.rank(features.hidden) if ranked else None
        watch.lap("target")

        # 3) Verify: accept a path; the next token comes from a residual or from the last p.
        verdict = check_verdict(verifier(proposal, distributions, rng), proposal, head.vocab_size)
        watch.lap("verify")

        # 4) Commit: emit the accepted tokens and the next one, up to a stop.
        accepted = [proposal.tokens[i] for i in verdict.path]
        committed = output.commit([*accepted, verdict.next_token])
        kept, stop = committed.tokens, committed.stop
        tokens += kept

        # 5) Roll back: the target's cache keeps the last token and the accepted ones before it.
        rows = [0, *(1 + node for node in verdict.path)][: len(kept)]
        cache.keep(start, rows)
        watch.lap("commit")

        # 6) Resync: the draft's cache is rebuilt from the target's hidden states.
        if drafter and stop is None:
            states = features.aux_hidden_states
            states = states[torch.tensor(rows, device=states.device)]
            drafter.resync(torch.tensor(kept), states, verdict.path)
            watch.lap("draft")

        # 7) Learn: the shortlist, the learner and the chooser update themselves for the next round.
        shown = [distributions[row] for row in rows]
        top_ids, top_logits = (rank[rows] for rank in ranks) if ranks else _NO_TOP
        finished = summarize_round(
            proposal, num_drafted, shown, top_ids, top_logits, verdict, committed, drafter
        )
        if chooser:
            chooser.observe(finished)
        if drafter:
            drafter.shortlist.observe(finished)
            watch.lap("observe")
            finished = replace(finished, events=drafter.learn(finished))
            watch.lap("learn")

        evidence = finished.evidence if trace else None
        yield replace(finished, seconds=watch.collect(), evidence=evidence)
        watch.resume()


def _prefill_prompt(
    target: Target,
    drafter: Drafter | None,
    tokens: list[int],
    cache: Any,
    ranked: RankedHead | None,
) -> None:
    """Process a prompt except for its last token, which the first round scores."""
    reader = drafter.reader if drafter else None
    top_ids = [_NO_TOP[0]]
    for features in prefill(target, tokens[:-1], cache):
        if drafter:
            start, end = cache.length - len(features.aux_hidden_states), cache.length
            drafter.resync(torch.tensor(tokens[start + 1 : end + 1]), features.aux_hidden_states)
        if reader and ranked:
            top_ids.append(ranked.rank(features.hidden)[0])
    if reader:
        reader.on_prefill(tokens, torch.cat(top_ids[1:] or top_ids)[:, : reader.top_ids_wanted])
