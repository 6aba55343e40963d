# %% [markdown]
# # Speculative decoding with a pruned draft vocabulary, from a law to a picture
#
# All of it on the *pocket pair*, two models that come with the package: a target of 1.8 million
# parameters and its draft, trained from nothing by `make pocket`. They write text that holds
# together for a few words. That is enough here, since speculative decoding promises nothing about
# the text: it promises that the text follows **the same law** as without it.
#
# The file runs from top to bottom (`python docs/walkthrough.py`, or as a notebook by
# `make notebook`), and stops where a claim does not hold: each is an `assert`.

# %%
from pathlib import Path

import torch
from matplotlib.figure import Figure

from minispec import decode
from minispec.certificate import walker
from minispec.commit import StopRule
from minispec.io import draft_file
from minispec.propose import Drafter
from minispec.sampling import Sampling, SeededRandom
from minispec.shortlists.frspec import FRSpecShortlist
from minispec.shortlists.full import FullShortlist
from minispec.stopwatch import Stopwatch
from minispec.text.tokenizer import prompt_ids
from minispec.tools.data import corpus, ranking
from minispec.tools.evaluation import measure, methods
from minispec.tools.models import pretrained
from minispec.types import Distribution
from minispec.verify import acceptance_probability, excess, residual, verify

torch.set_num_threads(1)  # passes of this size are over before a second thread has begun

# In float64, where no two tokens are equally likely by rounding alone.
model = pretrained.load("pocket", "float64")
target, tokenizer = model.reference, model.tokenizer
V, D = target.config.vocab_size, target.config.hidden_size

# %% [markdown]
# ## 1. A law, and how a token is drawn from it
#
# The target reads ids and makes a *hidden state* of each position. The LM head, a matrix of one row
# for each id, turns the last state into logits, and `Sampling` turns these into a law: what
# probability every id has of being the next. Greedy decoding is the law at temperature zero, with
# everything on the likeliest id, so all that follows holds for it as well.


# %%
def laws_after(tokens: list[int], sampling: Sampling) -> list[Distribution]:
    """The target's law after each of the tokens."""
    features = target.step(torch.tensor(tokens), target.new_cache(len(tokens)))
    return [
        sampling.distribution(row, torch.arange(V)) for row in target.head.logits(features.hidden)
    ]


def top(distribution: Distribution, count: int = 5) -> str:
    """The likeliest tokens of a law, as text."""
    best = distribution.probs.argsort(descending=True)[:count].tolist()
    shown = (
        f"{tokenizer.decode([int(distribution.ids[i])])!r} {float(distribution.probs[i]):.3f}"
        for i in best
    )
    return "   ".join(shown)


prompt = prompt_ids(tokenizer, "Permission is hereby granted, free of", raw=True)
warm, greedy = Sampling(temperature=1.0), Sampling(temperature=0.0)
distribution = laws_after(prompt, warm)[-1]
print("temperature 1:", top(distribution))
print("greedy:       ", top(laws_after(prompt, greedy)[-1], 1))

random = SeededRandom(0)  # the only door through which chance comes in
drawn = [int(distribution.ids[random.choose(distribution.probs)]) for _ in range(8)]
print("drawn:        ", [tokenizer.decode([token]) for token in drawn])

assert abs(float(distribution.probs.sum()) - 1) < 1e-12
assert float(laws_after(prompt, greedy)[-1].probs.max()) == 1

# %% [markdown]
# Decoding repeats that, a token at a time. Each token costs a whole pass of the target, which reads
# every weight from memory for the sake of one position. A pass over five positions reads the same
# weights once. If only someone could say which five tokens to read!

# %%
stop = StopRule(40, tokenizer.eos_ids)
plain = measure.measured(
    decode.autoregressive(target, prompt, sampling=greedy, rng=SeededRandom(0), stop=stop)
)
print(tokenizer.decode(prompt) + tokenizer.decode(plain.tokens))
assert plain.passes == len(plain.tokens)

# %% [markdown]
# ## 2. Drafting
#
# The draft is one decoder layer (EAGLE-3). It reads what three of the target's layers made of the
# text, and then runs ahead on its own states. It has no LM head: it multiplies its state with the
# target's rows. With every token that it draws it records **the law q that the token was really
# drawn from**.

# %%
path = draft_file.find_draft("pocket")
assert path is not None
guesser = draft_file.load_draft(path, target, model.fingerprint)


def proposed(shortlist, gamma: int, seed: int):
    """A chain of gamma tokens that the draft proposes to go on with the prompt."""
    drafter = Drafter(guesser, shortlist, len(prompt) + gamma)
    features = target.step(torch.tensor(prompt[:-1]), target.new_cache(len(prompt)))
    drafter.resync(torch.tensor(prompt[1:]), features.aux_hidden_states)
    return drafter.propose(prompt, gamma, warm, SeededRandom(seed), Stopwatch())


proposal = proposed(FullShortlist(V), gamma=4, seed=1)
for token, q in zip(proposal.tokens, proposal.draft_distributions, strict=True):
    print(f"drafted {tokenizer.decode([token])!r:>12} from q:  {top(q, 4)}")

# %% [markdown]
# ## 3. Verification
#
# One pass of the target over the last token and the chain gives p at each place. A token x is
# accepted with probability min(1, p(x)/q(x)); the first that is rejected is replaced by a draw from
# the *residual*, the positive part of p - q, normalised. If all are accepted, the target's own law
# after the last of them gives one token more, the *bonus*.

# %%
distributions = laws_after([*prompt, *proposal.tokens], warm)[-len(proposal) - 1 :]
verdict = verify(proposal, distributions, SeededRandom(2))
for place, chance in enumerate(verdict.acceptance):
    fate = "accepted" if place in verdict.path else "rejected"
    word = tokenizer.decode([proposal.tokens[place]])
    print(f"{word!r:>12}  min(1, p/q) = {chance:.3f}  {fate}")
print(f"{tokenizer.decode([verdict.next_token])!r:>12}  the target's own")

# %% [markdown]
# Why is that exact? Of the ways to end up with x, drawing and accepting it has the probability
# q(x) min(1, p(x)/q(x)) = min(p(x), q(x)). Rejection has the probability 1 - sum min(p, q), which
# is just the mass of (p - q)+, and then x has its share of that. Together
# min(p, q) + (p - q)+ = p, **whatever q is**. The better q, the seldomer a rejection:

# %%
p, q = distributions[0], proposal.draft_distributions[0]
both = torch.minimum(p.probs, q.probs)
assert torch.allclose(both + excess(p, q), p.probs, atol=1e-12)
assert abs(float(excess(p, q).sum()) - (1 - float(both.sum()))) < 1e-12
mean = sum(
    float(q.probs[x]) * float(acceptance_probability(p, q, x))
    for x in range(V)
    if float(q.probs[x]) > 0
)
print(f"chance of acceptance here: sum min(p, q) = {float(both.sum()):.3f}")
assert abs(mean - float(both.sum())) < 1e-9

# %% [markdown]
# ## 4. The loop
#
# `decode.speculative` does this round by round, and gives both models back the state that they
# would have had without the rejected tokens. Greedily its text is that of plain decoding, id for
# id, in fewer passes of the target. *tau* is the number of tokens a pass.

# %%
fast = measure.measured(
    decode.speculative(
        target, guesser, FullShortlist(V), prompt, gamma=4, sampling=greedy,
        rng=SeededRandom(0), stop=stop,
    )
)  # fmt: skip
print(f"{len(fast.tokens)} tokens in {fast.passes} passes: tau = {fast.tau:.2f}")
assert fast.tokens == plain.tokens
assert fast.passes < plain.passes

# %% [markdown]
# ## 5. The bottleneck
#
# What does a draft step read? Its one layer, and then the rows of *all* ids, to propose one of
# them. In this pair, as in real ones, most of a draft's reading is the LM head.

# %%
layer = sum(weight.numel() for weight in guesser.parameters())
head = V * D
print(f"numbers read in a draft step: layer {layer:,}, head {head:,} ({head / (layer + head):.0%})")
assert head > 2 * layer

# %% [markdown]
# ## 6. FR-Spec: the frequent ids
#
# A q that is zero on most of the vocabulary is as exact as any other: section 3 asked nothing of q.
# So the draft may score the rows of a *shortlist* alone. FR-Spec takes the most frequent ids, as
# counted on general text. What the list leaves out is never proposed, and the residual, which
# ranges over the whole vocabulary, still brings it.

# %%
budget = V // 32
ranked = ranking.read_ranking(ranking.find("pocket", "general"), tokenizer.fingerprint, V)
frequent = FRSpecShortlist(ranked, budget, tokenizer.eos_ids)
pruned = proposed(frequent, gamma=1, seed=1)
p, q = laws_after(prompt, warm)[-1], pruned.draft_distributions[0]
print(f"{len(q.ids)} of {V} ids are scored:", top(q, 4))
outside = torch.ones(V, dtype=torch.bool)
outside[q.ids] = False
left = residual(p, q)
print(f"mass of p outside of the list: {float(p.probs[outside].sum()):.3f}; of the residual: "
      f"{float(left.probs[outside].sum()):.3f}")  # fmt: skip
rebuilt = excess(p, q)
rebuilt[q.ids] += torch.minimum(p.probs[q.ids], q.probs)
assert torch.allclose(rebuilt, p.probs, atol=1e-12)
assert float(left.probs[outside].sum()) >= float(p.probs[outside].sum())

# %% [markdown]
# ## 7. EvoSpec: a list that follows the text
#
# What is frequent in general is not what a licence or a program says next. EvoSpec's list is made
# anew at each draft step: a small core of frequent ids, the ids of the recent text, what followed
# the last token before, and the members of those clusters of head rows that the draft's own state
# points at.

# %%
evolving = methods.shortlist(methods.Method.parse(f"evospec@{budget}"), model, None)
seen = []


class Watched:
    """The evolving list, and a note of what each part brought."""

    def __getattr__(self, name):
        return getattr(evolving, name)

    def select(self, context):
        seen.append(evolving.explain(context))
        return evolving.select(context)


proposed(Watched(), gamma=1, seed=1)
for part, ids in seen[0].items():
    words = [tokenizer.decode([token]) for token in ids.tolist()[-8:]]
    print(f"{part:>10}: {len(ids):4} ids, among them {words}")
assert sum(map(len, seen[0].values())) <= budget

# %% [markdown]
# Side by side, on prompts of four domains: *coverage* is the mass of the target's law that lies
# within the list, and tau what comes of it. Both lists score one row in 32. Greedily a model as
# small as this one goes in circles of frequent words, where any list will do; drawn from its law,
# its text is richer.


# %%
def figures(spelled: str, sampling: Sampling) -> list[measure.Figures]:
    """Two prompts of each domain, continued by a method."""
    run = methods.decoder(
        methods.Method.parse(spelled), model, guesser, None, gamma=4, sampling=sampling,
        stop=stop, trace=True,
    )  # fmt: skip
    found = []
    for domain in corpus.DOMAINS:
        for text in corpus.prompts(domain, base=True)[:2]:
            ids = prompt_ids(tokenizer, text, raw=True)
            found.append(measure.measured(run(ids, SeededRandom(0))))
    return found


names = ["autoregressive", "full", f"frspec@{budget}", f"evospec@{budget}"]
tables = {}
for kind, sampling in (("greedy", greedy), ("temperature 1", warm)):
    decoded = {name: figures(name, sampling) for name in names}
    tables[kind] = {name: measure.pooled(runs) for name, runs in decoded.items()}
    for name, row in tables[kind].items():
        covered = f"{row['coverage']:.3f}" if row["coverage"] else "    -"
        print(f"{kind:>13} {name:>15}: tau {row['tau']:.2f}, coverage {covered}")
    if kind == "greedy":  # lossless, all of them
        texts = [[run.tokens for run in runs] for runs in decoded.values()]
        assert all(text == texts[0] for text in texts)
table = tables["temperature 1"]
full, static, followed = (table[name] for name in names[1:])
assert full["tau"] > 1.2 and full["coverage"] > 0.999999
assert static["coverage"] < full["coverage"]
assert followed["coverage"] > static["coverage"]

# %% [markdown]
# ## 8. Exactness by walking
#
# That greedy texts agree shows little of the *law* under sampling. Statistics would show it with
# error bars. But chance comes in through one door, so one can put somebody else behind it: a
# source that takes **every** branch in turn, with its probability, through the production code.
# Summed up, the branches are the law of the output. Here the first two tokens, over the three
# likeliest ids of each place (so that the tree stays small): once decoded plainly, once with draft
# and evolving list.

# %%
three, two = Sampling(temperature=1.0, top_k=3), StopRule(2)


def plainly(source: walker.Branching) -> tuple[int, ...]:
    rounds = decode.autoregressive(target, prompt, sampling=three, rng=source, stop=two)
    return tuple(token for finished in rounds for token in finished.tokens)


def speculatively(source: walker.Branching) -> tuple[int, ...]:
    rounds = decode.speculative(
        target, guesser, evolving, prompt, gamma=2, sampling=three, rng=source, stop=two
    )
    return tuple(token for finished in rounds for token in finished.tokens)


ours, theirs = walker.distribution_of(speculatively), walker.distribution_of(plainly)
branches = sum(1 for _ in walker.every_branch(speculatively))
apart = walker.total_variation(ours, theirs)
print(f"{branches} branches, {len(theirs)} outputs, total variation {apart:.1e}")
assert len(theirs) == 9 and apart < 1e-12

# %% [markdown]
# And could that have failed? A small, likely mistake: after a rejection the token is drawn from p
# itself in place of the residual.


# %%
def mistaken(source: walker.Branching) -> int:
    q = q_three
    x = int(q.ids[source.choose(q.probs)])
    if source.bernoulli(acceptance_probability(p_three, q, x)):
        return x
    return int(p_three.ids[source.choose(p_three.probs)])


q_three = three.distribution(torch.log(proposal.draft_distributions[0].probs), torch.arange(V))
p_three = laws_after(prompt, three)[-1]
wrong = walker.distribution_of(mistaken)
right = {int(i): float(p_three.probs[i]) for i in p_three.probs.nonzero()}
print(f"total variation of the mistaken verifier: {walker.total_variation(wrong, right):.3f}")
assert walker.total_variation(wrong, right) > 0.001

# %% [markdown]
# ## 9. A picture
#
# Left, one place of the text: where q covers p, drafted tokens are accepted; what sticks out is the
# residual. Right, what the lists are worth.

# %%
figure = Figure(figsize=(12, 4), layout="constrained")
left_axis, right_axis = figure.subplots(1, 2)
p, q = distributions[0], proposal.draft_distributions[0]
best = p.probs.argsort(descending=True)[:10].tolist()
words = [repr(tokenizer.decode([token])) for token in best]
kept = [min(float(p.probs[i]), float(q.probs[i])) for i in best]
left_axis.bar(words, kept, label="min(p, q): drafted and accepted")
over = [float(p.probs[i]) - k for i, k in zip(best, kept, strict=True)]
left_axis.bar(words, over, bottom=kept, label="(p - q)+: by the residual")
left_axis.plot(words, [float(q.probs[i]) for i in best], "k_", markersize=16, label="q")
left_axis.tick_params(axis="x", rotation=60)
left_axis.set_ylabel("probability")
left_axis.legend()
right_axis.barh(names[::-1], [table[name]["tau"] for name in names[::-1]])
right_axis.set_xlabel("tokens per target pass (tau), temperature 1, gamma 4")
picture = Path("build/walkthrough.png")
picture.parent.mkdir(exist_ok=True)
figure.savefig(picture, dpi=100)
print(f"drawn into {picture}")
figure  # noqa: B018  (a notebook shows it)
