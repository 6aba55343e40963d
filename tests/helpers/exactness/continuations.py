"""Decoding with continuations of the text alone, as the certificate enumerates it."""

from collections.abc import Iterable
from functools import cache

from minispec.certificate.decodings import Decoding, ToyModels
from minispec.suffix_decoding import suffix_decoding
from minispec.suffix_index import SuffixConfig, SuffixIndex
from minispec.types import RandomSource, Round
from minispec.verify import Verifier


@cache
def build_suffix_index(vocab_size: int) -> SuffixIndex:
    """An index that matches one token or two. An earlier text has every id, those that may be EOS
    too, so that the first round has a proposal."""
    return SuffixIndex(
        SuffixConfig(min_match=1, max_match=2, capacity=32), [[*range(vocab_size), 0, 1]]
    )


def decode_continuations(verifier: Verifier) -> Decoding:
    """Speculative decoding without a draft."""

    def decode(models: ToyModels, source: RandomSource) -> Iterable[Round]:
        case = models.case
        return suffix_decoding(
            models.target, case.prompt, gamma=case.gamma, sampling=models.sampling, rng=source,
            stop=case.stop, index=build_suffix_index(case.vocab_size), trace=True,
            verifier=verifier,
        )  # fmt: skip

    return decode
