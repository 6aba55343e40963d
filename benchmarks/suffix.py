"""Suffix decoding against prompt lookup of Hugging Face transformers, on the same weights.

Both propose continuations of the text, without a draft, and decode greedily, one sequence at a
time. Each side is set beside its own plain decoding, since their target passes differ in speed:
what a proposal gains is then in tau (tokens for each target pass) and in the speed over plain. All
sides take turns, prompt by prompt, in one process; the prefill counts everywhere.

    python -m benchmarks suffix --prompts 4
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from minispec.auto_shape import AutoShape
from minispec.commit import StopRule
from minispec.sampling import Sampling, SeededRandom
from minispec.text.tokenizer import encode_prompt
from minispec.tools.data import corpus
from minispec.tools.evaluation.assembly import build_decoder
from minispec.tools.evaluation.measure import measure
from minispec.tools.evaluation.methods import Method
from minispec.tools.models import backend, known_models, pretrained


@dataclass(frozen=True)
class Run:
    """One answer: its ids, the target passes that it took, and its seconds."""

    tokens: list[int]
    passes: int
    seconds: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_option = partial(parser.add_argument, help="(default: %(default)s)")
    add_option("--model", choices=known_models.SOURCES, default="smollm2")
    add_option("--dtype", choices=("float32", "bfloat16"), default="float32")
    add_option("--prompts", type=int, default=4)
    add_option("--tokens", type=int, default=96)
    add_option("--gamma", type=int, default=8)
    options = parser.parse_args()
    threads = torch.get_num_threads()
    sides = {**build_ours(options, threads), **build_theirs(options, threads)}
    base = known_models.is_base(options.model)
    tokenizer = pretrained.load(options.model, options.dtype).tokenizer
    prompts = {
        domain: [
            encode_prompt(tokenizer, text, base)
            for text in corpus.load_prompts(domain, base)[: options.prompts]
        ]
        for domain in corpus.DOMAINS
    }
    for run in sides.values():
        run(prompts[corpus.DOMAINS[0]][0])  # warms up
    rows: dict[str, dict[str, list[Run]]] = {}
    for domain, texts in prompts.items():
        rows[domain] = {name: [] for name in sides}
        for number, ids in enumerate(texts):
            first = number % len(sides)
            for name in [*sides][first:] + [*sides][:first]:
                rows[domain][name].append(sides[name](ids))
    print(json.dumps(summarize(rows, options, threads), indent=1))


def build_ours(options: argparse.Namespace, threads: int) -> dict[str, Callable[[list[int]], Run]]:
    """Plain decoding, chains of continuations, and as many as promise most, on backend cpu."""
    model, _ = backend.place_on_backend(pretrained.load(options.model, options.dtype), None, "cpu")

    def build(name: str, tree: AutoShape | None) -> Callable[[list[int]], Run]:
        decode = build_decoder(
            Method(name), model, None, None, gamma=options.gamma, sampling=Sampling(),
            stop=StopRule(options.tokens), tree=tree,
        )  # fmt: skip

        def run(ids: list[int]) -> Run:
            torch.set_num_threads(1)  # the backend has its own
            start = time.perf_counter()
            figures = measure(decode(ids, SeededRandom(0)))
            return Run([*figures.tokens], figures.passes, time.perf_counter() - start)

        return run

    torch.set_num_threads(threads)
    return {
        "minispec, plain": build("autoregressive", None),
        "minispec, suffix": build("suffix", None),
        "minispec, suffix --tree auto": build("suffix", AutoShape()),
    }


def build_theirs(
    options: argparse.Namespace, threads: int
) -> dict[str, Callable[[list[int]], Run]]:
    """Plain decoding and prompt lookup of transformers."""
    path = known_models.fetch(options.model)
    logging.set_verbosity_error()
    model = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=getattr(torch, options.dtype)
    ).eval()
    model.generation_config.eos_token_id = None  # all sides continue past the end of turn
    calls = 0

    def count(*arguments: Any) -> None:
        nonlocal calls
        calls += 1

    model.register_forward_hook(count)

    def build(**lookup: int) -> Callable[[list[int]], Run]:
        def run(ids: list[int]) -> Run:
            nonlocal calls
            torch.set_num_threads(threads)
            prompt, calls, start = torch.tensor([ids]), 0, time.perf_counter()
            output = model.generate(
                prompt, attention_mask=torch.ones_like(prompt), do_sample=False,
                max_new_tokens=options.tokens, pad_token_id=0, **lookup,
            )  # fmt: skip
            return Run(output[0, len(ids) :].tolist(), calls, time.perf_counter() - start)

        return run

    return {
        "transformers, plain": build(),
        "transformers, prompt lookup": build(prompt_lookup_num_tokens=options.gamma),
    }


def summarize(
    rows: dict[str, dict[str, list[Run]]], options: argparse.Namespace, threads: int
) -> dict[str, Any]:
    """tau, the speed over the side's own plain decoding (geometric mean over prompts), and how many
    answers equal its own."""
    found: list[dict[str, Any]] = []
    names = next(iter(rows.values()))
    pooled = {name: [run for sides in rows.values() for run in sides[name]] for name in names}
    streams = {**rows, "all": pooled}
    for domain, sides in streams.items():
        for name, runs in sides.items():
            plain = sides[f"{name.partition(',')[0]}, plain"]
            ratios = [own.seconds / run.seconds for own, run in zip(plain, runs, strict=True)]
            found.append({
                "stream": domain,
                "side": name,
                "tau": round(sum(len(r.tokens) for r in runs) / sum(r.passes for r in runs), 3),
                "over_own_plain": round(statistics.geometric_mean(ratios), 3),
                "tokens_per_second": round(
                    sum(len(r.tokens) for r in runs) / sum(r.seconds for r in runs), 1
                ),
                "identical": sum(a.tokens == b.tokens for a, b in zip(plain, runs, strict=True)),
                "prompts": len(runs),
            })  # fmt: skip
    chosen = {name: getattr(options, name) for name in ("model", "dtype", "tokens", "gamma")}
    return {**chosen, "threads": threads, "rows": found}


if __name__ == "__main__":
    main()
