"""Plain decoding against Hugging Face transformers, to show that the baseline is not slow.

Both sides decode greedily with the same weights and prompts, in one dtype, one sequence at a time,
with a key-value cache and a fixed number of tokens; the prefill counts on both sides. They
alternate, prompt by prompt, in one process. The result is the geometric mean of paired ratios.

The CPU backend uses all threads for its own kernels and leaves torch one, so each side gets all
threads back before its turn.

    python -m benchmarks plain --backend cpu --model gemma3-270m
"""

import argparse
import json
import statistics
import time
from functools import partial

import torch
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from minispec.commit import StopRule
from minispec.decode import autoregressive
from minispec.sampling import Sampling, SeededRandom
from minispec.text.tokenizer import encode_prompt
from minispec.tools.data import corpus
from minispec.tools.models import backend, known_models, pretrained

TOKENS = 64
PROMPTS = 4  # of each domain


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_option = partial(parser.add_argument, help="(default: %(default)s)")
    add_option("--backend", choices=("reference", "cpu"), default="cpu")
    add_option("--model", choices=known_models.SOURCES, default="smollm2")
    add_option("--dtype", choices=("float32", "bfloat16"), default="float32")
    options = parser.parse_args()
    backend_name, threads = options.backend, torch.get_num_threads()
    path = known_models.fetch(options.model)
    model = pretrained.load(options.model, options.dtype)
    model, _ = backend.place_on_backend(model, None, backend_name)
    logging.set_verbosity_error()
    reference = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=getattr(torch, options.dtype)
    ).eval()
    reference.generation_config.eos_token_id = None  # both sides continue past the end of turn

    def run_minispec(ids: list[int]) -> list[int]:
        torch.set_num_threads(1 if backend_name == "cpu" else threads)
        rounds = autoregressive(
            model.target, ids, sampling=Sampling(), rng=SeededRandom(0), stop=StopRule(TOKENS)
        )
        return [token for finished in rounds for token in finished.tokens]

    def run_transformers(ids: list[int]) -> list[int]:
        torch.set_num_threads(threads)
        prompt = torch.tensor([ids])
        output = reference.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            do_sample=False,
            max_new_tokens=TOKENS,
            pad_token_id=0,
        )
        return output[0, len(ids) :].tolist()

    sides = [run_minispec, run_transformers]
    base = known_models.is_base(options.model)
    texts = [
        text for domain in corpus.DOMAINS for text in corpus.load_prompts(domain, base)[:PROMPTS]
    ]
    prompts = [encode_prompt(model.tokenizer, text, base) for text in texts]
    for side in sides:
        side(prompts[0])  # warms up
    ratios = []
    for number, ids in enumerate(prompts):
        seconds = {}
        for side in sides[:: 1 if number % 2 else -1]:
            start = time.perf_counter()
            assert len(side(ids)) == TOKENS
            seconds[side] = time.perf_counter() - start
        ratios.append(seconds[run_transformers] / seconds[run_minispec])
    print(json.dumps({
        "tokens": TOKENS,
        "prompts": len(prompts),
        "threads": threads,
        "backend": backend_name,
        "model": options.model,
        "dtype": options.dtype,
        "speed_over_transformers": round(statistics.geometric_mean(ratios), 3),
        "lowest": round(min(ratios), 3),
        "highest": round(max(ratios), 3),
    }))  # fmt: skip


if __name__ == "__main__":
    main()
