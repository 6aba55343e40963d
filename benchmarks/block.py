"""Block verification against token-by-token verification: same model, draft, prompts and seeds.

The two alternate, prompt by prompt, in one process. Next to the measured acceptance, the expected
one of the same proposals is reported, from a run that is not timed: given a chain, at least i
tokens are kept with probability w_i by block verification, and with the product of min(1, p/q) of
the first i tokens by token-by-token verification. This comparison does not depend on the uniforms.

    python -m benchmarks block --prompts 6 --tokens 96
"""

import argparse
import json
from collections.abc import Sequence

from minispec.commit import StopRule
from minispec.decode import speculative
from minispec.io import draft_file
from minispec.sampling import Sampling, SeededRandom
from minispec.tools.data import corpus
from minispec.tools.evaluation.assembly import build_shortlist
from minispec.tools.evaluation.measure import measure, paired_ratio, pool
from minispec.tools.evaluation.methods import Method
from minispec.tools.models import known_models, pretrained
from minispec.types import Distribution, Proposal, RandomSource
from minispec.verify import VERIFIERS, Verdict, verify

METHOD, GAMMA = Method.parse("frspec@0.25"), 4


class ExpectedAcceptance:
    """Verifies token by token, and sums the expected numbers of kept tokens of both verifiers."""

    def __init__(self) -> None:
        self.kept = {"token": 0.0, "block": 0.0}

    def __call__(
        self, proposal: Proposal, distributions: Sequence[Distribution], rng: RandomSource
    ) -> Verdict:
        product = block_weight = 1.0  # block_weight is w_i
        for token, p, q in zip(
            proposal.tokens, distributions[:-1], proposal.draft_distributions, strict=True
        ):
            ratio = float(p.probability(token) / q.probability(token))
            product, block_weight = product * min(1.0, ratio), min(1.0, block_weight * ratio)
            self.kept["token"] += product
            self.kept["block"] += block_weight
        return verify(proposal, distributions, rng)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=2, help="of each domain (default: 2)")
    parser.add_argument("--tokens", type=int, default=48, help="of each answer (default: 48)")
    parser.add_argument(
        "--temperatures", type=float, nargs="+", default=[0.8, 1.0], help="(default: 0.8 1.0)"
    )
    options = parser.parse_args()
    known_models.fetch("smollm2")
    model = pretrained.load("smollm2")
    path = draft_file.find_draft("smollm2")
    assert path is not None
    draft = draft_file.load_draft(path, model.target, model.fingerprint)
    shortlist = build_shortlist(METHOD, model, None)
    texts = [t for name in corpus.DOMAINS for t in corpus.load_prompts(name)[: options.prompts]]
    prompts = [model.tokenizer.chat(text) for text in texts]
    stop = StopRule(options.tokens, model.tokenizer.eos_ids)
    for temperature in options.temperatures:
        figures = {name: [] for name in VERIFIERS}
        expected = ExpectedAcceptance()

        def decode(ids, seed, verifier, temperature=temperature):  # type: ignore[no-untyped-def]
            return measure(speculative(
                model.target, draft, shortlist, ids, gamma=GAMMA, sampling=Sampling(temperature),
                rng=SeededRandom(seed), stop=stop, tokenizer=model.tokenizer,
                verifier=verifier,
            ))  # fmt: skip

        decode(prompts[0], 0, verify)  # warms up
        for seed, ids in enumerate(prompts):
            order = list(VERIFIERS)[:: 1 if seed % 2 else -1]
            for name in order:
                figures[name].append(decode(ids, seed, VERIFIERS[name]))
            decode(ids, seed, expected)
        pools = {name: pool(each) for name, each in figures.items()}
        print(json.dumps({
            "temperature": temperature,
            "prompts": len(prompts),
            "tau": {name: round(pool["tau"], 3) for name, pool in pools.items()},
            "tokens_per_second": {n: round(p["tokens_per_second"], 2) for n, p in pools.items()},
            "speed_of_block_over_token": paired_ratio(figures["block"], figures["token"]),
            "expected_kept_on_the_same_chains": expected.kept,
            "gain_in_kept": expected.kept["block"] / expected.kept["token"] - 1,
        }, indent=1))  # fmt: skip


if __name__ == "__main__":
    main()
