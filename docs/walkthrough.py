# %% [markdown]
# # Speculative decoding with a pruned draft vocabulary, from one distribution to a picture
#
# Everything runs on the *pocket pair*, two models that come with the package: a target of 1.8
# million parameters and its draft, trained from scratch by `make pocket`. Their text is coherent
# for a few words. That is enough here, since speculative decoding promises nothing about the
# quality of text: it promises that the text follows **the same distribution** as without it.
#
# The file runs from top to bottom (`python docs/walkthrough.py`, or as a notebook by
# `make notebook`), and stops where a claim does not hold: each claim is an `assert`.

# %%
from pathlib import Path

import torch
from matplotlib.figure import Figure

import minispec
from minispec import BaseShortlist, Distribution, Sampling, SeededRandom, StopRule
from minispec.certificate import walker
from minispec.propose import Drafter
from minispec.shortlists.frspec import FRSpecShortlist
from minispec.shortlists.full import FullShortlist
from minispec.stopwatch import Stopwatch
from minispec.text.tokenizer import encode_prompt
from minispec.tools.data import corpus, ranking
from minispec.tools.evaluation import assembly, methods
from minispec.tools.reporting.colours import FATES
from minispec.verify import acceptance_probability, positive_part, residual, verify

torch.set_num_threads(1)  # a pass of this size ends before a second thread has started

# In float64, where no two tokens are equally likely by rounding alone.
model = minispec.load("pocket", dtype="float64", backend="reference")
target, draft, tokenizer = model.pretrained.reference, model.draft, model.tokenizer
V, D = target.config.vocab_size, target.config.hidden_size
PROMPT = "You may not"

# %% [markdown]
# ## 1. A distribution, and how a token is sampled from it
#
# The target turns ids into a *hidden state* at each position. The LM head, a matrix with one row
# for each id, turns the last hidden state into logits. `Sampling` turns the logits into a
# distribution: the probability of each id to be the next. Greedy decoding is the distribution at
# temperature 0, with all its mass on the most likely id. So all that follows holds for it as well.


# %%
def target_distributions(tokens: list[int], sampling: Sampling) -> list[Distribution]:
    """The target's distribution of the next token after each of the tokens."""
    features = target.step(torch.tensor(tokens), target.new_cache(len(tokens)))
    logits = target.head.logits(features.hidden)  # (T, V)
    return [sampling.distribution(row, torch.arange(V)) for row in logits]


def format_top(distribution: Distribution, count: int = 5) -> str:
    """The most likely tokens of a distribution, as text."""
    top = distribution.probs.argsort(descending=True)[:count].tolist()
    return "   ".join(
        f"{tokenizer.decode([int(distribution.ids[i])])!r} {float(distribution.probs[i]):.3f}"
        for i in top
    )


print(f"1. A distribution: the next token after {PROMPT!r}")
prompt = encode_prompt(tokenizer, PROMPT, raw=True)
warm, greedy = Sampling(temperature=1.0), Sampling(temperature=0.0)
p = target_distributions(prompt, warm)[-1]
print("temperature 1:", format_top(p))
print("greedy:       ", format_top(target_distributions(prompt, greedy)[-1], 1))

rng = SeededRandom(0)  # the only door through which randomness enters
samples = [int(p.ids[rng.choose(p.probs)]) for _ in range(8)]
print("samples:      ", [tokenizer.decode([token]) for token in samples])

assert abs(float(p.probs.sum()) - 1) < 1e-12
assert float(target_distributions(prompt, greedy)[-1].probs.max()) == 1

# %% [markdown]
# Decoding repeats this, one token at a time. Each token costs a whole pass of the target, which
# reads every weight from memory for a single position. A pass over five positions reads the same
# weights once. But which five tokens should it process?

# %%
plain = model.generate(PROMPT, shortlist="autoregressive", max_new_tokens=40)
print(f"\nplain decoding: {PROMPT}{plain.text}")
assert plain.target_passes == len(plain.token_ids)

# %% [markdown]
# ## 2. Drafting
#
# The draft is one decoder layer (EAGLE-3). Its input is the hidden states after three of the
# target's layers; from the second drafted token on it continues from its own states. It has no LM
# head: its hidden states are multiplied with the target's rows. With every token that it drafts,
# the proposal records **the distribution q that the token was really drawn from**.


# %%
def propose(shortlist, gamma: int, seed: int):
    """A chain of gamma tokens that the draft proposes after the prompt."""
    drafter = Drafter(draft, shortlist, len(prompt) + gamma)
    features = target.step(torch.tensor(prompt[:-1]), target.new_cache(len(prompt)))
    drafter.resync(torch.tensor(prompt[1:]), features.aux_hidden_states)
    return drafter.propose(prompt, gamma, warm, SeededRandom(seed), Stopwatch())


print("\n2. Drafting: four tokens, each with its distribution q")
proposal = propose(FullShortlist(V), gamma=4, seed=10)
for token, q in zip(proposal.tokens, proposal.draft_distributions, strict=True):
    print(f"drafted {tokenizer.decode([token])!r:>12} from q:  {format_top(q, 4)}")

# %% [markdown]
# ## 3. Verification
#
# One pass of the target over the last token and the chain gives p at each position. A token x is
# accepted with probability min(1, p(x)/q(x)). The first rejected token is replaced by a token drawn
# from the *residual*, the positive part of p - q, normalised. If all tokens are accepted, one more
# is drawn from the target's distribution after the last of them: the *bonus token*.

# %%
print("\n3. Verification")
distributions = target_distributions([*prompt, *proposal.tokens], warm)[-len(proposal) - 1 :]
verdict = verify(proposal, distributions, SeededRandom(2))
for index, probability in enumerate(verdict.acceptance):
    result = "accepted" if index in verdict.path else "rejected"
    word = tokenizer.decode([proposal.tokens[index]])
    print(f"{word!r:>12}  min(1, p/q) = {probability:.3f}  {result}")
print(f"{tokenizer.decode([verdict.next_token])!r:>12}  drawn by the target")

# %% [markdown]
# Why is that exact? Token x is drawn and accepted with probability
# q(x) min(1, p(x)/q(x)) = min(p(x), q(x)). A rejection has probability 1 - sum min(p, q), which is
# exactly the mass of (p - q)+, and then x is drawn with its share of that mass. Together
# min(p, q) + (p - q)+ = p, **whatever q is**. The closer q is to p, the rarer are rejections:

# %%
p, q = distributions[0], proposal.draft_distributions[0]
overlap = torch.minimum(p.probs, q.probs)  # (V,)
assert torch.allclose(overlap + positive_part(p, q), p.probs, atol=1e-12)
assert abs(float(positive_part(p, q).sum()) - (1 - float(overlap.sum()))) < 1e-12
mean = sum(
    float(q.probs[x]) * float(acceptance_probability(p, q, x))
    for x in range(V)
    if float(q.probs[x]) > 0
)
print(f"acceptance rate at the first position: sum min(p, q) = {float(overlap.sum()):.3f}")
assert abs(mean - float(overlap.sum())) < 1e-9

# %% [markdown]
# ## 4. The loop
#
# `generate` repeats this round by round, and rolls the caches of both models back to the accepted
# tokens. Under greedy decoding its text is that of plain decoding, id for id, in fewer passes of
# the target. *tau*, the mean acceptance length, is the number of tokens per pass.

# %%
fast = model.generate(PROMPT, shortlist="full", gamma=4, max_new_tokens=40)
print("\n4. The loop")
print(f"{len(fast.token_ids)} tokens in {fast.target_passes} passes: tau = {fast.tau:.2f}")
assert fast.token_ids == plain.token_ids
assert fast.target_passes < plain.target_passes

# %% [markdown]
# ## 5. The bottleneck
#
# What does a draft step read? Its one layer, and then the head rows of *all* ids, to propose one of
# them. In this pair, as in real ones, most of what a draft reads is the LM head.

# %%
layer = sum(weight.numel() for weight in draft.parameters())
head = V * D
print("\n5. The bottleneck")
print(f"numbers read in a draft step: layer {layer:,}, head {head:,} ({head / (layer + head):.0%})")
assert head > 2 * layer

# %% [markdown]
# ## 6. FR-Spec: the frequent ids
#
# Section 3 did not ask anything of q, so a q that is zero on most of the vocabulary is as exact as
# any other. The draft may score the rows of a *shortlist* alone. FR-Spec takes the most frequent
# ids, as counted on general text. Ids outside the shortlist are never drafted, but the residual
# ranges over the whole vocabulary and still produces them.

# %%
budget = V // 32
file = ranking.find_ranking("pocket", "general")
ranked = ranking.read_ranking(file, tokenizer.fingerprint, V)
frequent = FRSpecShortlist(ranked, budget, tokenizer.eos_ids)
p, q = distributions[0], propose(frequent, gamma=1, seed=1).draft_distributions[0]
print("\n6. FR-Spec")
print(f"{len(q.ids)} of {V} ids are scored:", format_top(q, 4))
outside = torch.ones(V, dtype=torch.bool)
outside[q.ids] = False
p_outside, rest = float(p.probs[outside].sum()), residual(p, q)
residual_outside = float(rest.probs[outside].sum())
print(f"mass outside the shortlist: of p {p_outside:.3f}, of the residual {residual_outside:.3f}")
rebuilt = positive_part(p, q)
rebuilt[q.ids] += torch.minimum(p.probs[q.ids], q.probs)
assert torch.allclose(rebuilt, p.probs, atol=1e-12)
assert residual_outside >= p_outside

# %% [markdown]
# ## 7. EvoSpec: a shortlist that follows the text
#
# Ids that are frequent in general are not those that come next in a licence or a program.
# EvoSpec adds ids that the text asks for. `evospec`, our form of that idea (`evospec-paper` is
# the paper's), is selected again once a round: a small core of frequent ids, the ids of the
# recent text, the ids that followed the last token before, and members of those clusters of head
# rows that score highest for the draft's hidden state.

# %%
evolving = assembly.build_shortlist(
    methods.Method.parse(f"evospec@{budget}"), model.pretrained, None
)
selections = []


class RecordingShortlist(BaseShortlist):
    """The evolving shortlist, which records the parts of each selection."""

    name, budget, per_round = evolving.name, evolving.budget, evolving.per_round

    def select(self, context):
        selections.append(evolving.explain(context))
        return evolving.select(context)


propose(RecordingShortlist(), gamma=1, seed=1)
print("\n7. EvoSpec: the parts of its shortlist")
for part, ids in selections[0].items():
    words = [tokenizer.decode([token]) for token in ids.tolist()[:: len(ids) // 8 + 1]]
    print(f"{part:>10}: {len(ids):4} ids, among them {words}")
assert sum(map(len, selections[0].values())) <= budget

# %% [markdown]
# Side by side, on prompts of four domains: *coverage* is the mass of the target's distribution on
# the shortlist, and tau is what it leads to. Both shortlists score one row in 32. Greedy text of a
# model as small as this one repeats frequent words, for which any shortlist will do. Sampled text
# is richer.

# %%
prompts = {name: corpus.load_prompts(name, base=True)[:2] for name in corpus.DOMAINS}
names = ["autoregressive", "full", f"frspec@{budget}", f"evospec@{budget}"]
tables = {}
for temperature in (0.0, 1.0):
    comparison = minispec.compare(
        model, names, prompts=prompts, max_new_tokens=40, temperature=temperature
    )
    rows = [row for row in comparison.report["results"] if row["stream"] == "all"]
    tables[temperature] = {row["method"]: row for row in rows}
    for row in rows:
        covered = f"{row['coverage']:.3f}" if row["coverage"] else "    -"
        print(f"T={temperature:.0f} {row['method']:>15}: tau {row['tau']:.2f}, coverage {covered}")
    if temperature == 0:  # every output is that of plain decoding, id for id
        assert all(result.identical for result in comparison.results)
table = tables[1.0]
full, static, dynamic = (table[name] for name in names[1:])
assert full["tau"] > 1.2 and full["coverage"] > 0.999999
assert static["coverage"] < full["coverage"]
assert dynamic["coverage"] > static["coverage"]

# %% [markdown]
# At temperature 1 the two shortlists are about equal in tau, and with other seeds `evospec` comes
# out below `frspec` although it covers more of the target's mass. On the pocket pair that is
# expected. Each shortlist covers little more than half of the mass, since a small target has flat
# distributions. Its sampled text is coherent for a few words only, so recency and the semantic part
# have little to follow. Coverage is an upper bound: what is accepted is min(p, q), and the q of a
# small draft is far from p. And eight prompts of 40 tokens leave an error of about a tenth. Under
# greedy decoding, and on the real models of `docs/measurements.md`, `evospec` is ahead.

# %% [markdown]
# ## 8. Exactness by enumeration
#
# Equal greedy texts show little of the *distribution* under sampling. Statistics would show it with
# error bars. But all randomness enters through one door, the random source. So replace the source
# with one that takes **every** branch in turn, each with its probability, through the production
# code. The sum over all branches is the distribution of the output. Here it is that of the first
# two tokens, over the three most likely ids of each position (so that the tree stays small): once
# with plain decoding, once with the draft and the evolving shortlist.

# %%
three, two = Sampling(temperature=1.0, top_k=3), StopRule(2)


def run_plain(source: walker.BranchingSource) -> tuple[int, ...]:
    rounds = minispec.autoregressive(target, prompt, sampling=three, rng=source, stop=two)
    return tuple(token for finished in rounds for token in finished.tokens)


def run_speculative(source: walker.BranchingSource) -> tuple[int, ...]:
    rounds = minispec.speculative(
        target, draft, evolving, prompt, gamma=2, sampling=three, rng=source, stop=two
    )
    return tuple(token for finished in rounds for token in finished.tokens)


print("\n8. Exactness by enumeration")
ours, reference = walker.distribution_of(run_speculative), walker.distribution_of(run_plain)
branches = sum(1 for _ in walker.enumerate_branches(run_speculative))
distance = walker.total_variation(ours, reference)
print(f"{branches} branches, {len(reference)} outputs, total variation {distance:.1e}")
assert len(reference) == 9 and distance < 1e-12

# %% [markdown]
# And could that have failed? Take a small, likely mistake: after a rejection the token is drawn
# from p itself instead of the residual.


# %%
def run_mistaken(source: walker.BranchingSource) -> int:
    x = int(q_three.ids[source.choose(q_three.probs)])
    if source.bernoulli(acceptance_probability(p_three, q_three, x)):
        return x
    return int(p_three.ids[source.choose(p_three.probs)])


q_three = three.distribution(torch.log(proposal.draft_distributions[0].probs), torch.arange(V))
p_three = target_distributions(prompt, three)[-1]
wrong = walker.distribution_of(run_mistaken)
right = {int(i): float(p_three.probs[i]) for i in p_three.probs.nonzero()}
print(f"total variation of the mistaken verifier: {walker.total_variation(wrong, right):.3f}")
assert walker.total_variation(wrong, right) > 0.001

# %% [markdown]
# ## 9. A picture
#
# Left, the first position of the proposal, a bar of p beside one of q for each token. What they
# share is accepted; what q has too much is refused, and the residual gives back what p has more.
# Right, what was claimed of the shortlists at temperature 1: with as many ids, the one that follows
# the text covers more of the target's mass. The bars are labelled with the tau that came of it.

# %%
figure = Figure(figsize=(12, 4), layout="constrained")
left_axis, right_axis = figure.subplots(1, 2)
p, q = distributions[0], proposal.draft_distributions[0]
assert 0.1 < float(p.probs.max()) < 0.7  # p is spread over several tokens
top = torch.maximum(p.probs, q.probs).argsort(descending=True)[:8].tolist()
colours = {name: FATES[name].light for name in ("accepted", "rejected", "recovered")}
for side, own, other, fate, label in (
    (-0.2, p, q, "recovered", "(p - q)+: given back by the residual"),
    (0.2, q, p, "rejected", "(q - p)+: refused"),
):
    places = [number + side for number in range(len(top))]
    shared = [min(float(own.probs[i]), float(other.probs[i])) for i in top]
    rest = [float(own.probs[i]) - mass for i, mass in zip(top, shared, strict=True)]
    accepted = "min(p, q): accepted" if fate == "recovered" else None
    left_axis.bar(places, shared, 0.38, color=colours["accepted"], edgecolor="grey", label=accepted)
    left_axis.bar(places, rest, 0.38, shared, color=colours[fate], edgecolor="grey", label=label)
words = [repr(tokenizer.decode([token])) for token in top]
left_axis.set_xticks(range(len(top)), words, rotation=60)
left_axis.set_ylabel("probability: left bar p, right bar q")
left_axis.legend()
shortlists = names[:1:-1]
bars = right_axis.barh(shortlists, [table[name]["coverage"] for name in shortlists])
right_axis.bar_label(bars, [f"tau {table[name]['tau']:.2f}" for name in shortlists], padding=4)
right_axis.set(xlim=(0, 1), xlabel="coverage: the target's mass on the shortlist, temperature 1")
picture = Path("build/walkthrough.png")
picture.parent.mkdir(exist_ok=True)
figure.savefig(picture, dpi=100)
print(f"\n9. A picture: wrote {picture}")
figure  # noqa: B018  (a notebook shows it)
