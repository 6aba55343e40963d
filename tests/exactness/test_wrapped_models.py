"""Models of transformers as targets: the distribution of whole outputs, every branch of randomness
walked, and greedy outputs that are plain decoding's, with shortlists, verifiers and a learner."""

import random
from collections.abc import Callable
from functools import partial

import pytest
import torch
from transformers.utils import logging

from helpers.families import decode_greedily
from helpers.wrapped_models import ARCHITECTURES, CHAINS_ONLY, build_model, wrap_model
from minispec.certificate.walker import BranchingSource, distribution_of, total_variation
from minispec.commit import StopRule
from minispec.decode import autoregressive, speculative
from minispec.growth import TreeShape
from minispec.learning.config import LearnerConfig
from minispec.learning.learner import OnlineLearner
from minispec.models.eagle_draft import EagleDraft, init_draft
from minispec.sampling import Sampling, SeededRandom
from minispec.shortlists.evospec import EvoSpecShortlist
from minispec.shortlists.frspec import FRSpecShortlist
from minispec.shortlists.full import FullShortlist
from minispec.shortlists.microspec import MicroSpecShortlist
from minispec.tools.models.wrapped_checks import wrap
from minispec.tools.models.wrapped_target import WrappedTarget
from minispec.types import Round, Shortlist
from minispec.verify import verify, verify_block

logging.disable_progress_bar()

V, EOS = 4, 3
TREE = TreeShape(2, 2, 3)


def build_draft(target: WrappedTarget) -> EagleDraft:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return init_draft(target).requires_grad_(False)


def output_distribution(
    target: WrappedTarget, draft: EagleDraft | None, shortlist: Shortlist | None, **more: object
) -> dict[object, float]:
    """The distribution of whole outputs of at most two tokens; plain decoding's without a draft."""
    stop, sampling = StopRule(2, (EOS,)), Sampling(1.0)

    def program(rng: BranchingSource) -> tuple[tuple[int, ...], str | None]:
        given = dict(sampling=sampling, rng=rng, stop=stop)
        if draft is None or shortlist is None:
            rounds = autoregressive(target, [0, 1, 2], **given)  # type: ignore[arg-type]
        else:
            rounds = speculative(target, draft, shortlist, [0, 1, 2], gamma=2, **given, **more)  # type: ignore[arg-type]
        done = list(rounds)
        return tuple(t for r in done for t in r.tokens), done[-1].stop

    return distribution_of(program)


@pytest.mark.parametrize("name", ["gpt2", "phi3", "granite", "falcon with ALiBi"])
def test_speculative_keeps_the_distribution_of_a_wrapped_model(name):
    config, model, changes = (ARCHITECTURES | CHAINS_ONLY)[name]
    target = wrap(build_model(config, model, changes | {"vocab_size": V}).double())
    draft, expected = build_draft(target), output_distribution(target, None, None)
    assert abs(sum(expected.values()) - 1) < 1e-12 and len(expected) > 4
    static = FRSpecShortlist(torch.tensor([2, 0, 1, 3]), 2, ())
    found = output_distribution(target, draft, static)
    assert total_variation(found, expected) < 1e-12
    if not target.why_chains:
        trees = output_distribution(target, draft, static, tree=TREE)
        assert total_variation(trees, expected) < 1e-12


def build_evospec(target: WrappedTarget) -> Shortlist:
    rows = target.head.weight
    clusters = torch.arange(len(rows)) % 6
    return EvoSpecShortlist(torch.arange(len(rows)), 24, (2,), clusters, rows)


SHORTLISTS: dict[str, Callable[[WrappedTarget], Shortlist]] = {
    "full": lambda target: FullShortlist(target.head.vocab_size),
    "frspec": lambda target: FRSpecShortlist(torch.arange(3, 97), 30, (2,)),
    "microspec": lambda target: MicroSpecShortlist(target.head.vocab_size, 20),
    "evospec": build_evospec,
}
WAYS = {
    "token": dict(verifier=verify),
    "block": dict(verifier=verify_block),
    "tree": dict(tree=TreeShape(3, 2, 6)),
}


@pytest.mark.parametrize("name", ["gpt2", "gemma2, whose logits are capped"])
def test_speculative_is_lossless_on_20_prompts(name):
    target = wrap_model(name)
    draft, rng = build_draft(target), random.Random(0)
    ways = [(build, way) for build in SHORTLISTS.values() for way in WAYS.values()]
    for number in range(20):
        prompt = [rng.randrange(3, 97) for _ in range(rng.randint(2, 20))]
        build, way = ways[number % len(ways)]
        rounds = decode(target, draft, build(target), prompt, **way)
        found = [token for finished in rounds for token in finished.tokens]
        assert found == decode_greedily(target, prompt, 24)


def decode(
    target: WrappedTarget,
    draft: EagleDraft,
    shortlist: Shortlist,
    prompt: list[int],
    **more: object,
) -> list[Round]:
    rounds = speculative(
        target, draft, shortlist, prompt, gamma=3, sampling=Sampling(), rng=SeededRandom(0),
        stop=StopRule(24), **more,  # type: ignore[arg-type]
    )  # fmt: skip
    return list(rounds)


def test_a_learner_runs_on_a_wrapped_model_and_keeps_its_text():
    target = wrap_model("stablelm", torch.float32)
    settings = LearnerConfig(window_size=4, update_interval=4)
    learner = OnlineLearner(build_draft(target), settings)
    run = partial(decode, target, learner.draft, FullShortlist(97), learner=learner)
    prompt = list(range(5, 17))
    rounds = run(prompt)
    assert sum(finished.events.get("positions", 0) for finished in rounds) > 0
    assert [t for r in rounds for t in r.tokens] == decode_greedily(target, prompt, 24)
