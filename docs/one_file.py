"""Speculative decoding with a pruned draft vocabulary: the whole method, on toy models.

A small draft model proposes gamma tokens, and the target model scores them all in one pass. Each
token x is accepted with probability min(1, p(x) / q(x)). After the first rejection the next token
is drawn from the residual, the normalised positive part of p - q. The output then follows the
target's distribution exactly, whatever q is. FR-Spec makes use of that: its draft scores only the
K most frequent tokens and so reads K rows of the LM head instead of all V.

    p      the target's distribution over all V tokens
    q      the draft's distribution, zero outside the shortlist of K tokens
    gamma  tokens drafted per round       (vLLM: num_speculative_tokens)
    tau    tokens emitted per round       (EAGLE, vLLM: mean acceptance length)

Leviathan et al., arXiv 2211.17192; FR-Spec, arXiv 2502.14856. `python docs/one_file.py` decodes
some text, then proves the exactness by enumerating every outcome of every random choice.
"""

import torch

torch.manual_seed(0)
torch.set_default_dtype(torch.float64)
torch.set_num_threads(1)  # these tensors are too small for more

V, K, D, GAMMA = 8, 3, 4, 2  # vocabulary, shortlist, hidden size, drafted tokens

# --- Two toy models: a fixed hidden state for each last token, and one LM head for both ---------

LM_HEAD = torch.randn(V, D)
TARGET_STATES = torch.randn(V, D)
DRAFT_STATES = TARGET_STATES + 0.5 * torch.randn(V, D)  # close to the target's, but not equal


def target_distributions(tokens):
    """p after each of T tokens, in one pass: (T, V)."""
    hidden = TARGET_STATES[tokens]  # (T, D)
    return torch.softmax(hidden @ LM_HEAD.T, dim=-1)


def draft_distribution(token, shortlist):
    """q after one token: (V,), zero outside the shortlist."""
    logits = LM_HEAD[shortlist] @ DRAFT_STATES[token]  # (K,): only K rows of the head are read
    q = torch.zeros(V)
    q[shortlist] = torch.softmax(logits, dim=-1)
    return q


def frspec_shortlist(corpus):
    """The K most frequent tokens of a corpus, sorted: (K,)."""
    counts = torch.bincount(torch.tensor(corpus), minlength=V)  # (V,)
    return counts.topk(K).indices.sort().values


# --- Decoding: choose(probs), which draws an index, is the only source of randomness ------------


def autoregressive(token, length, choose):
    """Plain decoding of `length` tokens after `token`: one target pass for each."""
    tokens = [token]
    for _ in range(length):
        p = target_distributions(tokens[-1:])[0]  # (V,)
        tokens.append(choose(p))
    return tokens[1:]


def speculative(token, length, shortlist, choose):
    """The same by speculative decoding: one target pass per round. Also counts the rounds."""
    tokens, rounds = [token], 0
    while len(tokens) <= length:
        gamma = min(GAMMA, length - len(tokens))  # the last token of a round is the target's own
        tokens += speculative_round(tokens[-1], gamma, shortlist, choose)
        rounds += 1
    return tokens[1:], rounds


def speculative_round(token, gamma, shortlist, choose):
    """Draft, score and verify: 1 to gamma + 1 tokens for one target pass."""
    drafted, q = [], []
    for _ in range(gamma):  # 1) draft each token x ~ q
        q.append(draft_distribution([token, *drafted][-1], shortlist))
        drafted.append(choose(q[-1]))
    p = target_distributions([token, *drafted])  # 2) score them in one pass: (gamma + 1, V)
    return verify(drafted, q, p, choose)  # 3) accept a prefix


def verify(drafted, q, p, choose):
    """Accept a prefix of the drafted tokens and add one token of the target's own. Why it is exact:

    P(x) = q(x) min(1, p(x)/q(x)) + P(reject) * (p(x) - q(x))+ / sum_y (p(y) - q(y))+
         = min(p(x), q(x))        + (p(x) - q(x))+         since P(reject) = sum_y (p(y) - q(y))+
         = p(x)
    """
    for i, x in enumerate(drafted):
        accept = (p[i, x] / q[i][x]).clamp(max=1)
        if not choose(torch.stack([1 - accept, accept])):
            residual = (p[i] - q[i]).clamp(min=0)  # (V,): also tokens outside the shortlist
            return [*drafted[:i], choose(residual / residual.sum())]
    return [*drafted, choose(p[-1])]  # all accepted: one bonus token


# --- Two ways to choose: draw at random, or take every branch in turn ---------------------------


def sample(probs):
    """An index drawn from `probs`."""
    return int(torch.multinomial(probs, 1))


class Branch:
    """One sequence of choices: a given beginning, then the first possible index of each choice."""

    def __init__(self, beginning):
        self.beginning, self.choices, self.probability, self.others = beginning, [], 1.0, []

    def choose(self, probs):
        """The next choice. Where it is not given, keep the other possible ones for later."""
        if len(self.choices) < len(self.beginning):
            index = self.beginning[len(self.choices)]
        else:
            index, *others = probs.nonzero().flatten().tolist()
            self.others += [[*self.choices, other] for other in others]
        self.choices.append(index)
        self.probability *= float(probs[index])
        return index


def enumerate_outputs(decode):
    """The exact distribution of the output of `decode(choose)`: {output: probability}."""
    distribution, beginnings = {}, [[]]
    while beginnings:
        branch = Branch(beginnings.pop())
        output = tuple(decode(branch.choose))
        distribution[output] = distribution.get(output, 0) + branch.probability
        beginnings += branch.others
    return distribution


if __name__ == "__main__":
    shortlist = frspec_shortlist(corpus=autoregressive(0, 1000, sample))
    tokens, rounds = speculative(0, 1000, shortlist, sample)
    outside = sum(x not in shortlist for x in tokens) / len(tokens)
    print(f"{K} of {V} tokens are in the shortlist; {outside:.0%} of the output lies outside it")
    print(f"tau = {len(tokens) / rounds:.2f} tokens per target pass")

    plain = enumerate_outputs(lambda choose: autoregressive(0, 3, choose))
    ours = enumerate_outputs(lambda choose: speculative(0, 3, shortlist, choose)[0])
    distance = sum(abs(ours.get(output, 0) - plain[output]) for output in plain) / 2
    print(f"total variation over {len(plain)} outputs of 3 tokens: {distance:.1e}")
    assert distance < 1e-12, "the output does not follow the target's distribution"
