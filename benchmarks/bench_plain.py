"""Plain decoding is no straw man: the same weights, prompts and tokens in transformers.

Both sides decode greedily, in one dtype, one sequence at a time, with a key-value cache, a fixed
number of tokens, the prompt's own pass included on both sides. They alternate, prompt by
prompt, in one process; what is reported is the geometric mean of paired ratios.

The CPU backend takes torch's threads and gives them to its own kernels, so each side gets them
back, all of them, before its turn.

Run: make bench, or python benchmarks/bench_plain.py --backend reference|cpu --model gemma3-270m
"""

import argparse
import json
import statistics
import time

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
    parser.add_argument("--backend", choices=("reference", "cpu"), default="cpu")
    parser.add_argument("--model", choices=known_models.SOURCES, default="smollm2")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    options = parser.parse_args()
    name, threads = options.backend, torch.get_num_threads()
    path = known_models.fetch(options.model)
    model = backend.place_on_backend(pretrained.load(options.model, options.dtype), None, name)[0]
    logging.set_verbosity_error()
    theirs = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=getattr(torch, options.dtype)
    ).eval()
    theirs.generation_config.eos_token_id = None  # both sides go on past the end of an answer

    def ours(ids: list[int]) -> list[int]:
        torch.set_num_threads(1 if name == "cpu" else threads)
        rounds = autoregressive(
            model.target, ids, sampling=Sampling(), rng=SeededRandom(0), stop=StopRule(TOKENS)
        )
        return [token for finished in rounds for token in finished.tokens]

    def transformers(ids: list[int]) -> list[int]:
        torch.set_num_threads(threads)
        prompt = torch.tensor([ids])
        output = theirs.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            do_sample=False,
            max_new_tokens=TOKENS,
            pad_token_id=0,
        )
        return output[0, len(ids) :].tolist()

    sides = [ours, transformers]
    base = known_models.is_base(options.model)
    texts = [text for domain in corpus.DOMAINS for text in corpus.load_prompts(domain, base)[:PROMPTS]]
    prompts = [encode_prompt(model.tokenizer, text, base) for text in texts]
    for side in sides:
        side(prompts[0])
    ratios = []
    for number, ids in enumerate(prompts):
        seconds = {}
        for side in sides[:: 1 if number % 2 else -1]:
            start = time.perf_counter()
            assert len(side(ids)) == TOKENS
            seconds[side] = time.perf_counter() - start
        ratios.append(seconds[transformers] / seconds[ours])
    print(json.dumps({
        "tokens": TOKENS,
        "prompts": len(prompts),
        "threads": threads,
        "backend": name,
        "model": options.model,
        "dtype": options.dtype,
        "speed_over_transformers": round(statistics.geometric_mean(ratios), 3),
        "lowest": round(min(ratios), 3),
        "highest": round(max(ratios), 3),
    }))  # fmt: skip


if __name__ == "__main__":
    main()
