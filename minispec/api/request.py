"""One request for text: the method, the way of sampling, and when to stop.

The options have the names that vLLM and transformers give them. All of them are checked here,
before any model is loaded. Knows nothing of models.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from minispec.auto_shape import AutoShape, Shape
from minispec.checks import to_flag, to_int, to_sequence, to_text, to_texts
from minispec.commit import StopRule
from minispec.errors import ArgumentError
from minispec.growth import TreeShape
from minispec.preconditions import check_gamma
from minispec.sampling import Sampling
from minispec.tokenizer import Tokenizer
from minispec.tools.evaluation.methods import Method
from minispec.tools.evaluation.plugins import find_verifier
from minispec.types import Shortlist
from minispec.verify import Verifier

# A method by its spelling, or a shortlist of one's own: an instance, a class or a factory.
ShortlistLike = str | Method | Shortlist | Callable[..., Shortlist]
TreeLike = str | Shape | None  # "4x3x8", "auto"; None or "chain" for chains
BadWords = str | Sequence[str | Sequence[int]]  # texts, or sequences of token ids
AUTO = "auto"  # a gamma that is chosen round by round
_LARGEST_SEED = 2**31 - 1


@dataclass(frozen=True)
class SamplingRequest:
    """A way of sampling, checked, whose bad words may still be ``texts`` that no tokenizer has
    read."""

    sampling: Sampling
    texts: tuple[str, ...] = ()

    def resolve(self, tokenizer: Tokenizer) -> Sampling:
        """The sampling with all bad words as ids. As in vLLM, a text is read without and with a
        space before it; the second counts if it has another first id and as many ids. Raises
        ArgumentError for a text without tokens."""
        words = list(self.sampling.bad_words)
        for text in self.texts:
            bare, spaced = (tuple(tokenizer.encode(space + text.lstrip())) for space in ("", " "))
            if not bare:
                raise ArgumentError(f"bad word {text!r} has no tokens: give one with letters")
            words.append(bare)
            if spaced[0] != bare[0] and len(spaced) == len(bare):
                words.append(spaced)
        return replace(self.sampling, bad_words=tuple(words))


def build_sampling(
    *,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    presence_penalty: float = 0.0,
    frequency_penalty: float = 0.0,
    logit_bias: Mapping[int, float] | None = None,
    bad_words: BadWords = (),
) -> SamplingRequest:
    """Checks the options of ``Model.generate`` that shape distributions. Raises ArgumentError."""
    several = [bad_words] if isinstance(bad_words, str) else bad_words
    words = tuple(to_sequence(several, "bad-words"))
    for word in words:
        if not isinstance(word, Sequence) or isinstance(word, bytes):
            raise ArgumentError(f"bad word {word!r} is neither a text nor a list of token ids")
    if logit_bias is not None and not isinstance(logit_bias, Mapping):
        raise ArgumentError(f"logit-bias {logit_bias!r} is not a mapping from token ids to numbers")
    sampling = Sampling(
        temperature, top_k, top_p, min_p,
        repetition_penalty=repetition_penalty, presence_penalty=presence_penalty,
        frequency_penalty=frequency_penalty, logit_bias=tuple((logit_bias or {}).items()),
        bad_words=tuple(tuple(word) for word in words if not isinstance(word, str)),
    )  # fmt: skip
    return SamplingRequest(sampling, tuple(word for word in words if isinstance(word, str)))


@dataclass(frozen=True)
class Request:
    """Checked options of a request. ``method``: None for the best that the model has. ``tree``:
    None for chains of ``gamma`` tokens. ``stop``
    lacks the model's end ids, which are added unless ``ignore_eos``. ``raw``: continue the prompt's
    text without a chat template; None for what suits the model. ``parse_special``: read names of
    special tokens in raw text."""

    method: Method | None
    gamma: int
    sampling: SamplingRequest
    stop: StopRule
    verifier: str | Verifier
    seed: int
    adapt: bool
    ignore_eos: bool
    raw: bool | None
    parse_special: bool = False
    tree: Shape | None = None

    @property
    def is_plain(self) -> bool:
        """Whether the method that was asked for needs no draft."""
        return self.method is not None and not self.method.needs_draft

    @property
    def learns(self) -> bool:
        """Whether the draft learns while it decodes."""
        return self.adapt or (self.method is not None and self.method.adapt != "")

    def stop_rule(self, eos_ids: Sequence[int]) -> StopRule:
        """The stop rule of a model with these end ids."""
        return self.stop if self.ignore_eos else replace(self.stop, eos_ids=tuple(eos_ids))


def build_request(
    *,
    shortlist: ShortlistLike | None = None,
    gamma: int | str = 4,
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    presence_penalty: float = 0.0,
    frequency_penalty: float = 0.0,
    logit_bias: Mapping[int, float] | None = None,
    bad_words: BadWords = (),
    seed: int = 0,
    stop: str | Sequence[str] = (),
    ignore_eos: bool = False,
    verifier: str | Verifier = "token",
    adapt: bool = False,
    raw: bool | None = None,
    parse_special: bool = False,
    tree: TreeLike = None,
) -> Request:
    """Checks the options of ``Model.generate``, where they are explained. Raises ArgumentError."""
    method = None if shortlist is None else Method.of(shortlist)
    if method is not None:
        method.ranking_for(None)  # a single prompt has no domain that could be left out
        method = method.with_learning() if adapt and not method.adapt else method
    [gamma], [shape] = split_auto([gamma], [to_tree(tree)])
    seed = check_seed(seed)
    find_verifier(verifier)
    flags = {"ignore_eos": ignore_eos, "adapt": adapt, "parse_special": parse_special}
    for name, flag in flags.items() if raw is None else [*flags.items(), ("raw", raw)]:
        to_flag(flag, name)
    sampling = build_sampling(
        temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p,
        repetition_penalty=repetition_penalty, presence_penalty=presence_penalty,
        frequency_penalty=frequency_penalty, logit_bias=logit_bias, bad_words=bad_words,
    )  # fmt: skip
    return Request(
        method=method,
        gamma=gamma,
        sampling=sampling,
        stop=StopRule(max_new_tokens, (), to_texts(stop, "stop")),
        verifier=verifier,
        seed=seed,
        adapt=adapt,
        ignore_eos=ignore_eos,
        raw=raw,
        parse_special=parse_special,
        tree=shape,
    )


def to_tree(tree: TreeLike) -> Shape | None:
    """The shape of a tree, given as one or spelled; None for chains. Raises ArgumentError."""
    if isinstance(tree, TreeShape | AutoShape) or tree is None:
        return tree
    spelled = to_text(tree, "tree").strip()
    if spelled in ("auto", "auto:chain"):
        return AutoShape(chains=spelled != "auto")
    return None if spelled == "chain" else TreeShape.parse(spelled)


def split_auto(
    gammas: Sequence[Any], trees: Sequence[Shape | None]
) -> tuple[list[int], list[Shape | None]]:
    """Lengths of chains and shapes, where a length "auto" has become a shape: it replaces the
    chains unless another length is given. Raises ArgumentError."""
    lengths = [check_gamma(gamma) for gamma in gammas if gamma != AUTO]
    shapes = [tree for tree in trees if tree is not None or lengths]
    if len(lengths) < len(gammas) and None in trees:
        shapes.append(AutoShape(chains=True))
    return lengths or [check_gamma(4)], shapes


def check_seed(seed: int) -> int:
    """The seed. Raises ArgumentError for one out of range."""
    if not 0 <= (seed := to_int(seed, "seed")) <= _LARGEST_SEED:
        raise ArgumentError(f"seed {seed} must lie in 0..{_LARGEST_SEED}")
    return seed
