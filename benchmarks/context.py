"""Methods after long texts: tau, the mass on the shortlist and speed as the context grows.

For each length and each domain whose documents are installed, one text of about that many tokens
is continued. All methods are compared on the same texts, in turn.

    python -m benchmarks context --lengths 1000 4000 8000 --methods evospec@1536,suffix
"""

import argparse
import json
from functools import partial

import minispec
from minispec.errors import FileError
from minispec.tools.data import corpus


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_option = partial(parser.add_argument, help="(default: %(default)s)")
    add_option("--model", default="smollm2")
    add_option("--dtype", choices=("float32", "bfloat16"), default="float32")
    add_option("--backend", default="cpu")
    add_option("--lengths", nargs="+", type=int, default=[1000, 4000, 8000])
    add_option("--max-new-tokens", type=int, default=64)
    add_option("--methods", default="autoregressive,evospec@1536,evospec@1536+suffix,suffix")
    add_option("--tree", default="chain,auto")
    options = parser.parse_args()
    model = minispec.load(options.model, dtype=options.dtype, backend=options.backend)
    prompts = {
        f"after {length}": [
            text for domain in corpus.DOMAINS for text in read_text(model, domain, length)
        ]
        for length in options.lengths
    }
    found = minispec.compare(
        model, options.methods.split(","), prompts=prompts, raw=True, ignore_eos=True,
        max_new_tokens=options.max_new_tokens, tree=options.tree.split(","),
    )  # fmt: skip
    names = ("method", "stream", "gamma", "tree", "tau", "coverage", "tokens_per_second", "prompts")
    rows = [
        {name: row[name] for name in names}
        | {"over_plain": (row["ratio_to_autoregressive"] or {}).get("value")}
        for row in found.report["results"]
        if not row["best"]
    ]
    print(json.dumps(rows, indent=1))


def read_text(model: minispec.Model, domain: str, length: int) -> list[str]:
    """The first ``length`` tokens of a domain's documents as text; nothing if none is installed."""
    try:
        documents = corpus.load_documents(domain, 16 * length)
    except FileError:
        return []
    ids = model.tokenizer.encode("\n\n".join(documents))[:length]
    return [model.tokenizer.decode(ids)]


if __name__ == "__main__":
    main()
