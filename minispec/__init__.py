"""Exact speculative decoding with an evolving draft vocabulary, in plain PyTorch.

    import minispec

    model = minispec.load("smollm2")  # a name, a folder in Hugging Face layout, a GGUF file, or
                                      # a PreTrainedModel of transformers with its tokenizer
    out = model.generate("Why is the sky blue?", shortlist="evospec@1536", max_new_tokens=64)
    print(out.text, out.tau, out.tokens_per_second)  # tau: the mean acceptance length

    for step in model.stream("Why is the sky blue?", temperature=0.8, seed=7):
        print(step.text, end="", flush=True)

    chat = model.chat()  # shortlist and learner keep their state from turn to turn
    print(chat.send("Why is the sky blue?").text)

    minispec.certify(MyShortlist)  # exact? decided by enumerating every branch of randomness
    print(minispec.compare(model, ["autoregressive", "frspec@0.25", MyShortlist]))

``minispec fetch smollm2`` downloads that model; "pocket" ships with the package. ``load``,
``Model.generate`` and ``compare`` explain all options. A shortlist, draft or verifier of your own
can be given wherever a built-in one can: derive the first from ``BaseShortlist``, and see
docs/book/13-your-own.md.

Importing this package imports nothing else: each name below is loaded when it is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from minispec.api.chat import Chat
    from minispec.api.comparison import compare
    from minispec.api.model import Model, load
    from minispec.api.results import Comparison, MethodResult, Output
    from minispec.certificate.certify import certify
    from minispec.commit import StopRule
    from minispec.decode import autoregressive, speculative
    from minispec.errors import MinispecError
    from minispec.growth import TreeShape
    from minispec.sampling import Sampling, SeededRandom
    from minispec.types import BaseShortlist, Context, Distribution, Draft, Round, Shortlist

__version__ = "0.1.0"

_HOMES = {
    "Chat": "minispec.api.chat",
    "compare": "minispec.api.comparison",
    "Model": "minispec.api.model",
    "load": "minispec.api.model",
    "Comparison": "minispec.api.results",
    "MethodResult": "minispec.api.results",
    "Output": "minispec.api.results",
    "certify": "minispec.certificate.certify",
    "StopRule": "minispec.commit",
    "autoregressive": "minispec.decode",
    "speculative": "minispec.decode",
    "MinispecError": "minispec.errors",
    "TreeShape": "minispec.growth",
    "Sampling": "minispec.sampling",
    "SeededRandom": "minispec.sampling",
    "BaseShortlist": "minispec.types",
    "Context": "minispec.types",
    "Distribution": "minispec.types",
    "Draft": "minispec.types",
    "Round": "minispec.types",
    "Shortlist": "minispec.types",
}

__all__ = [
    "BaseShortlist", "Chat", "Comparison", "Context", "Distribution", "Draft", "MethodResult",
    "MinispecError", "Model", "Output", "Round", "Sampling", "SeededRandom", "Shortlist",
    "StopRule", "TreeShape", "autoregressive", "certify", "compare", "load", "speculative",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """The public name, imported from its module on first use (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module 'minispec' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
