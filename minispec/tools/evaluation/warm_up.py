"""Warm-up: decode a few tokens, so that everything compiled on first use is compiled."""

from collections.abc import Sequence
from itertools import islice

from tqdm import tqdm

from minispec.commit import StopRule
from minispec.sampling import Sampling, SeededRandom
from minispec.tools.evaluation import assembly, methods
from minispec.tools.models.pretrained import Pretrained
from minispec.types import Draft

_ROUNDS = 16


def warm_up(model: Pretrained, draft: Draft | None) -> None:
    """Decodes eight tokens with each kind of method that the model and its draft can run: plain
    decoding, the full vocabulary and the default method."""
    names = {"autoregressive", str(assembly.default_method(model, draft is not None))}
    for name in sorted(names | {"full"} if draft else names):
        decode = assembly.build_decoder(
            methods.Method.parse(name), model, draft, None, gamma=4, sampling=Sampling(),
            stop=StopRule(8),
        )  # fmt: skip
        for _ in decode([0, 1, 2], SeededRandom(0)):
            pass


def warm_up_decoders(decoders: Sequence[assembly.Decoder], ids: Sequence[int]) -> None:
    """Runs a few rounds of every decoder on a prompt, untimed."""
    for decode in tqdm(decoders, desc="warming up", unit="method", leave=False, disable=None):
        for _ in islice(decode(ids, SeededRandom(0)), _ROUNDS):
            pass
