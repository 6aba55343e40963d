"""Solutions of the exercises of chapter 2, as ``minispec.exercises`` grades them."""

from minispec.verify import Verdict, acceptance_probability, residual


def expected_tokens(rates):
    """The number of tokens that a round emits, on average.

    rates: for each drafted token, the probability that it is accepted if those before it were.
    """
    expected = reached = 1
    for rate in rates:
        reached *= rate
        expected += reached
    return expected


def verify_chain(proposal, target_distributions, rng):
    """Verifies a chain token by token."""
    accepted = 0
    for token, q in zip(proposal.tokens, proposal.draft_distributions):
        p = target_distributions[accepted]
        if not rng.bernoulli(acceptance_probability(p, q, token)):
            break
        accepted += 1
    following = target_distributions[accepted]
    if accepted < len(proposal):
        following = residual(following, proposal.draft_distributions[accepted])
    token = int(following.ids[rng.choose(following.probs)])
    return Verdict(tuple(range(accepted)), token, following, ())
