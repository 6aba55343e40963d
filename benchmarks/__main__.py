"""Runs a benchmark by name.

python -m benchmarks                    # lists the benchmarks
python -m benchmarks NAME [options]     # runs one
python -m benchmarks NAME --help        # lists its options
"""

import importlib
import sys

from minispec.errors import MinispecError

BENCHMARKS = {
    "peers": "minispec beside llama.cpp, transformers and OpenVINO GenAI",
    "plain": "plain decoding against Hugging Face transformers",
    "perplexity": "what each dtype costs in quality",
    "blocks": "products of quantised rows, as fractions of memory bandwidth",
    "head": "layouts of the LM head's rows on the CPU, as fractions of memory bandwidth",
    "scaling": "a draft step as the vocabulary and the context grow",
    "block": "block verification against token-by-token verification",
    "suffix": "suffix decoding against Hugging Face transformers' prompt lookup",
    "context": "methods after texts of some thousand tokens",
    "transformers-generate": "speculation in transformers' generate against its prompt lookup",
    "hnsw": "libraries for the HNSW index of an LM head",
    "held_out": "drafts on answers that none was trained on, over a chain and a tree",
    "gpu": "LM heads and whole rounds on a GPU",
    "adaptation": "what a draft that learns while it decodes gains and costs",
    "ablation": "the parts of online learning, each removed or changed alone",
}


def main(arguments: list[str]) -> int:
    """Lists the benchmarks, or imports and runs one. Returns the exit status."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: python -m benchmarks NAME [options]\n\nbenchmarks:")
        for name, description in BENCHMARKS.items():
            print(f"  {name:<23}{description}")
        print("\nThe micro-benchmarks of LM heads run under pytest: pytest benchmarks")
        return 0
    name, *options = arguments
    if name not in BENCHMARKS:
        message = f"unknown benchmark {name!r}: choose from {', '.join(BENCHMARKS)}"
        print(f"benchmarks: {message}", file=sys.stderr)
        return 2
    # The programs parse sys.argv, and argparse takes their name from it.
    sys.argv = [f"python -m benchmarks {name}", *options]
    try:
        return importlib.import_module(f"benchmarks.{name.replace('-', '_')}").main() or 0
    except MinispecError as error:
        print(f"benchmarks {name}: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
