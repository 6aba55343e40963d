"""What a dtype costs in quality: the perplexity of text, against float32's.

Every dtype reads the same windows of the same text, with the arithmetic in which it decodes; each
window's first half is context alone. The text is the book's chapters unless files are given. The
ratio to float32 is paired, window by window.

    python -m benchmarks perplexity --model smollm2 --json build/perplexity.json
"""

import argparse
import json
import math
from pathlib import Path

import torch

from minispec.io.files import write_json
from minispec.tools.models import backend, pretrained

WINDOW = 256  # tokens
DTYPES = ("float32", "bfloat16", "int8", "gguf")


def score(model: pretrained.Pretrained, windows: torch.Tensor) -> torch.Tensor:
    """Windows (n, W) of ids -> the mean negative log probability of each one's second half (n,), in
    nats a token."""
    target, half, losses = model.target, windows.shape[1] // 2, []
    for window in windows:
        hidden = target.step(window[:-1], target.new_cache(len(window))).hidden
        logits = target.head.logits(hidden[half - 1 :]).float()
        found = torch.nn.functional.cross_entropy(logits, window[half:])
        losses.append(float(found))
    return torch.tensor(losses)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2", help="(default: smollm2)")
    parser.add_argument("--backend", default="cpu", help="(default: cpu)")
    parser.add_argument("--windows", type=int, default=32, help="of 256 tokens (default: 32)")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("files", type=Path, nargs="*", help="text (default: the book's chapters)")
    options = parser.parse_args()
    book = Path(__file__).parent.parent / "docs" / "book"
    files = options.files or sorted(book.glob("*.md"))
    text = "\n\n".join(path.read_text("utf-8") for path in files)
    losses = {}
    for dtype in DTYPES:
        model = pretrained.load(options.model, dtype)
        model, _ = backend.place_on_backend(model, None, options.backend)
        ids = torch.tensor(model.tokenizer.encode(text)[: options.windows * WINDOW])
        losses[dtype] = score(model, ids[: len(ids) // WINDOW * WINDOW].view(-1, WINDOW))
    rows = {}
    for dtype, found in losses.items():
        difference = found - losses["float32"]
        error = float(difference.std() / math.sqrt(len(found)))
        rows[dtype] = {
            "perplexity": math.exp(float(found.mean())),
            "ratio_to_float32": math.exp(float(difference.mean())),
            "standard_error": error,
        }
        print(f"{dtype:<10}{rows[dtype]['perplexity']:8.3f}  {rows[dtype]['ratio_to_float32']:.4f}")
    figures = {"model": options.model, "windows": len(losses["float32"]), "dtypes": rows}
    if options.json:
        write_json(options.json, figures)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
