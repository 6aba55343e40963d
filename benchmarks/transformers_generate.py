"""Speculation in transformers' generate against its plain decoding and its prompt lookup.

All sides are ``generate`` of one loaded model: the same weights, dtype, threads, prompts and number
of tokens, greedily. They take turns, prompt by prompt, in one process. The result is the geometric
mean of paired ratios.

    python -m benchmarks transformers-generate --shortlist evospec@1536
"""

import argparse
import json
import statistics
import time
from functools import partial

import torch
from transformers import AutoModelForCausalLM
from transformers.utils import logging

import minispec
from minispec.io import draft_file
from minispec.text.tokenizer import encode_prompt
from minispec.tools.custom_generate import CustomGenerate
from minispec.tools.data import corpus
from minispec.tools.models import known_models, pretrained

TOKENS = 64
_LOOKUP = 10  # transformers' own recommendation for prompt_lookup_num_tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_option = partial(parser.add_argument, help="(default: %(default)s)")
    add_option("--model", choices=known_models.SOURCES, default="smollm2")
    add_option("--dtype", choices=("float32", "bfloat16"), default="float32")
    add_option("--shortlist", default="microspec@1536")
    add_option("--gamma", type=int, default=4)
    add_option("--prompts", type=int, default=4)
    options = parser.parse_args()
    path = known_models.fetch(options.model)
    logging.set_verbosity_error()
    model = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=getattr(torch, options.dtype)
    ).eval()
    model.generation_config.eos_token_id = None  # all sides continue past the end of turn
    tokenizer = pretrained.load(options.model).tokenizer
    loaded = minispec.load(model, tokenizer=tokenizer, draft=draft_file.find_draft(options.model))
    custom = CustomGenerate(loaded, options.shortlist, gamma=options.gamma)
    sides = {
        "minispec": {"custom_generate": custom},
        "plain": {},
        "prompt_lookup": {"prompt_lookup_num_tokens": _LOOKUP},
    }

    def run(side: str, ids: list[int]) -> list[int]:
        prompt = torch.tensor([ids])
        output = model.generate(
            prompt, do_sample=False, max_new_tokens=TOKENS, pad_token_id=0,
            attention_mask=torch.ones_like(prompt), **sides[side],
        )  # fmt: skip
        return output[0, len(ids) :].tolist()

    base = known_models.is_base(options.model)
    texts = [
        text
        for domain in corpus.DOMAINS
        for text in corpus.load_prompts(domain, base)[: options.prompts]
    ]
    prompts = [encode_prompt(tokenizer, text, base) for text in texts]
    for side in sides:
        run(side, prompts[0])  # warms up
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    identical = 0
    for number, ids in enumerate(prompts):
        outputs = {}
        for side in [*sides][:: 1 if number % 2 else -1]:
            start = time.perf_counter()
            outputs[side] = run(side, ids)
            seconds[side].append(time.perf_counter() - start)
        identical += outputs["minispec"] == outputs["plain"]
    ratios = {
        side: [other / ours for other, ours in zip(taken, seconds["minispec"], strict=True)]
        for side, taken in seconds.items()
        if side != "minispec"
    }
    print(json.dumps({
        "model": options.model,
        "dtype": options.dtype,
        "shortlist": options.shortlist,
        "gamma": options.gamma,
        "tokens": TOKENS,
        "prompts": len(prompts),
        "identical": identical,
        "threads": torch.get_num_threads(),
        **{
            f"speed_over_{side}": {
                "mean": round(statistics.geometric_mean(found), 3),
                "lowest": round(min(found), 3),
                "highest": round(max(found), 3),
            }
            for side, found in ratios.items()
        },
    }))  # fmt: skip


if __name__ == "__main__":
    main()
