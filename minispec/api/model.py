"""A model to generate text with: target, tokenizer, draft, and the data of its shortlists.

Everything that ``minispec generate`` can do is done through ``Model``.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from minispec.api.chat import Chat, time_first
from minispec.api.request import BadWords, Request, ShortlistLike, TreeLike, build_request
from minispec.api.results import Output
from minispec.checks import to_flag, to_ids, to_path
from minispec.errors import ArgumentError
from minispec.sampling import Sampling, SeededRandom
from minispec.text.tokenizer import encode_prompt
from minispec.tokenizer import Tokenizer
from minispec.tools.evaluation import drafts
from minispec.tools.evaluation.assembly import Decoder, build_decoder, default_method
from minispec.tools.evaluation.measure import measure
from minispec.tools.evaluation.methods import Method
from minispec.tools.models import backend as backends
from minispec.tools.models import known_models, pretrained
from minispec.tools.models.pretrained import Pretrained
from minispec.tools.models.threads import set_threads
from minispec.types import Draft, Round, Target
from minispec.verify import Verifier


def load(
    name: str | Path | Any = "smollm2",
    *,
    tokenizer: Any = None,
    dtype: str | None = None,
    backend: str = "auto",
    device: str | None = None,
    draft: drafts.DraftLike | Literal[False] | None = None,
    index: str | Path | None = None,
    threads: int | None = None,
    measure_backends: bool = False,
    adapt: bool = False,
) -> "Model":
    """Loads a model with its draft.

    ``name``: "pocket", which ships with the package, "smollm2" or "gemma3-270m" (after ``minispec
    fetch NAME``), a folder in Hugging Face layout, a GGUF file, or a loaded PreTrainedModel of
    transformers, which is used as it is, with its ``tokenizer``. Llama, Mistral, Qwen 2, Qwen 3,
    SmolLM3 and Gemma 3 have an implementation of minispec's, other folders that of transformers
    (docs/your-model.md). ``dtype``: "float32" (None), "bfloat16", "float64", "int8", or "gguf",
    the blocks of a GGUF file as they are. ``backend``: "reference", "cpu", "compiled" or "cuda";
    "auto" takes the fastest that was measured before (by ``minispec doctor``, or now with
    ``measure_backends``), else the reference, and with ``adapt`` one on which a draft can learn.
    ``device``: where the reference runs, "cpu" (None), "cuda" or "mps". ``draft``: None for the
    draft that ships for the model, a file made by ``minispec train draft``, the folder of an
    EAGLE-3 draft, False for none, or a draft of one's own as an instance, a class, a factory or
    "MODULE:CLASS"; a class is called with the values of the parameters that it names, from
    ``target``, ``tokenizer`` and ``model``. ``index``: a file made by ``minispec index build``,
    None for the one that ships. ``threads``: torch's threads, for the whole process.

    Raises ArgumentError, FileError, FingerprintError.
    """
    set_threads(threads)
    adapt = to_flag(adapt, "adapt")
    is_loaded = hasattr(name, "get_output_embeddings")
    own = drafts.find_draft("" if is_loaded else str(to_path(name, "the model")), draft)
    if is_loaded:
        loaded = pretrained.wrap(name, tokenizer, dtype, device)
    elif tokenizer is not None:
        raise ArgumentError(f"model {name} has a tokenizer of its own: leave tokenizer out")
    else:
        loaded = pretrained.load(str(name), dtype, device)
    loaded = replace(loaded, index=None if index is None else to_path(index, "index"))
    eagle = None
    if isinstance(own, Path):
        eagle = pretrained.load_draft(own, loaded)
    loaded, placed = backends.place_on_backend(loaded, eagle, backend, measure_backends, adapt)
    if own is not None and not isinstance(own, Path):
        placed = drafts.build_own_draft(own, loaded)
    return Model(loaded, placed)


class Model:
    """A loaded model, made by ``load``. ``pretrained`` and ``draft`` are its parts; ``draft`` is
    None where there is none, and text is then decoded plainly."""

    def __init__(self, pretrained: Pretrained, draft: Draft | None) -> None:
        self.pretrained, self.draft = pretrained, draft

    def __repr__(self) -> str:
        model, draft = self.pretrained, "a draft" if self.draft else "no draft"
        runs = f"backend {model.backend}, {draft}, run by {model.implementation}"
        return f"<minispec.Model {model.name}: {model.dtype}, {runs}>"

    @property
    def name(self) -> str:
        """The name or path that it was loaded by."""
        return self.pretrained.name

    @property
    def tokenizer(self) -> Tokenizer:
        """Its tokenizer."""
        return self.pretrained.tokenizer

    @property
    def target(self) -> Target:
        """The target model, as it runs on the backend."""
        return self.pretrained.target

    @property
    def is_base(self) -> bool:
        """Whether it is known to be a base model, which continues text and has no chat template."""
        return known_models.is_base(self.name)

    def generate(
        self,
        prompt: str | Sequence[int],
        *,
        shortlist: ShortlistLike | None = None, gamma: int | str = 4, max_new_tokens: int = 256,
        temperature: float = 0.0, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0,
        repetition_penalty: float = 1.0, presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0, logit_bias: Mapping[int, float] | None = None,
        bad_words: BadWords = (), seed: int = 0, stop: str | Sequence[str] = (),
        ignore_eos: bool = False, verifier: str | Verifier = "token", adapt: bool = False,
        raw: bool | None = None, parse_special: bool = False, tree: TreeLike = None,
    ) -> Output:  # fmt: skip
        """Generates the answer to a prompt: text, or token ids, which are used as they are.

        ``shortlist``: the method, spelled ``NAME[@BUDGET][:RANKING][+adapt][+suffix]`` (such as
        "evospec@1536", "full", "suffix" without a draft, "autoregressive" for plain decoding), or a
        shortlist of one's own: an instance, a class, a factory, or "MODULE:CLASS". A class is
        called with the parameters that it names, from ``vocab_size``, ``budget``, ``eos_ids``,
        ``ranking`` (N,), ``clusters`` (V,), ``rows`` (V, D), ``tokenizer`` and ``model``;
        parameters with a default keep it, and a single one of another name gets the vocabulary
        size. None: the best that the model has all parts of, evospec first.
        ``gamma``: drafted tokens per round, vLLM's ``num_speculative_tokens``, 1 to 16. ``tree``:
        "4x3x8" drafts trees of depth 4, beam 3, 8 nodes (``growth.TreeShape``). Both take "auto".
        ``temperature``: 0 is greedy; ``top_k`` 0, ``top_p`` 1 and ``min_p`` 0 keep all ids.
        ``repetition_penalty`` (1: none) counts prompt and output, ``presence_penalty`` and
        ``frequency_penalty`` (0: none) the output alone. ``logit_bias``: what is added to the
        logits of some ids. ``bad_words``: texts, or sequences of ids, that are never generated.
        All as in vLLM, but at every position of a speculative round too.
        ``seed``: fixes all draws. ``stop``: text, or several, that ends the answer.
        ``ignore_eos``: continue past the end of the answer. ``verifier``: "token", "block", a
        function like ``minispec.verify.verify``, or "MODULE:FUNCTION". ``adapt``: let the draft
        learn while it decodes. ``raw``: continue the prompt's text, without a chat template; None
        does so for base models only. ``parse_special``: names of special tokens in raw text become
        these tokens, so that turns can be written out.

        The output's distribution is the target's, whatever the shortlist, draft and verifier
        (speculative sampling, arXiv 2211.17192). Raises ArgumentError, TextError, ContextError,
        FileError, FingerprintError, and ShortlistError for a shortlist that breaks its contract.
        """
        request = build_request(
            shortlist=shortlist, gamma=gamma, max_new_tokens=max_new_tokens,
            temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p,
            repetition_penalty=repetition_penalty, presence_penalty=presence_penalty,
            frequency_penalty=frequency_penalty, logit_bias=logit_bias, bad_words=bad_words,
            seed=seed, stop=stop, ignore_eos=ignore_eos, verifier=verifier, adapt=adapt, raw=raw,
            parse_special=parse_special, tree=tree,
        )  # fmt: skip
        started, delays = time.perf_counter(), list[float]()
        ids = self.encode_prompt(prompt, request)
        figures = measure(time_first(self.run(ids, request), started, delays), ids)
        method = str(self.method_of(request))
        return Output.of(figures, method, delays[0] if delays else None)

    def stream(
        self,
        prompt: str | Sequence[int],
        *,
        shortlist: ShortlistLike | None = None, gamma: int | str = 4, max_new_tokens: int = 256,
        temperature: float = 0.0, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0,
        repetition_penalty: float = 1.0, presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0, logit_bias: Mapping[int, float] | None = None,
        bad_words: BadWords = (), seed: int = 0, stop: str | Sequence[str] = (),
        ignore_eos: bool = False, verifier: str | Verifier = "token", adapt: bool = False,
        raw: bool | None = None, parse_special: bool = False, tree: TreeLike = None,
    ) -> Iterator[Round]:  # fmt: skip
        """The same as ``generate``, round by round as they are decoded: ``round.text`` is the text
        that became certain. The iteration can be abandoned at any round. Options and errors as
        ``generate``; all errors of the options come before the first round."""
        request = build_request(
            shortlist=shortlist, gamma=gamma, max_new_tokens=max_new_tokens,
            temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p,
            repetition_penalty=repetition_penalty, presence_penalty=presence_penalty,
            frequency_penalty=frequency_penalty, logit_bias=logit_bias, bad_words=bad_words,
            seed=seed, stop=stop, ignore_eos=ignore_eos, verifier=verifier, adapt=adapt, raw=raw,
            parse_special=parse_special, tree=tree,
        )  # fmt: skip
        return self.run(self.encode_prompt(prompt, request), request)

    def chat(
        self,
        *,
        shortlist: ShortlistLike | None = None, gamma: int | str = 4, max_new_tokens: int = 256,
        temperature: float = 0.0, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0,
        repetition_penalty: float = 1.0, presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0, logit_bias: Mapping[int, float] | None = None,
        bad_words: BadWords = (), seed: int = 0, stop: str | Sequence[str] = (),
        ignore_eos: bool = False, verifier: str | Verifier = "token", adapt: bool = False,
        raw: bool | None = None, parse_special: bool = False, tree: TreeLike = None,
    ) -> Chat:  # fmt: skip
        """A conversation: ``chat.send(text)`` and ``chat.stream(text)`` answer one message each,
        and shortlist and learner keep their state from turn to turn. ``max_new_tokens`` is per
        answer. A base model continues its text. Options and errors as ``generate``."""
        request = build_request(
            shortlist=shortlist, gamma=gamma, max_new_tokens=max_new_tokens,
            temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p,
            repetition_penalty=repetition_penalty, presence_penalty=presence_penalty,
            frequency_penalty=frequency_penalty, logit_bias=logit_bias, bad_words=bad_words,
            seed=seed, stop=stop, ignore_eos=ignore_eos, verifier=verifier, adapt=adapt, raw=raw,
            parse_special=parse_special, tree=tree,
        )  # fmt: skip
        return self.start_chat(request)

    def start_chat(self, request: Request) -> Chat:
        """A conversation with checked options. Raises as ``generate``."""
        return Chat(
            self._build_decoder(request), self.tokenizer, SeededRandom(request.seed),
            str(self.method_of(request)), self.is_raw(request), request.parse_special,
        )  # fmt: skip

    def run(self, ids: Sequence[int], request: Request) -> Iterator[Round]:
        """The rounds of a request for a prompt of ids. Raises as ``generate``."""
        return self._build_decoder(request)(ids, SeededRandom(request.seed))

    def sampling_of(self, request: Request) -> Sampling:
        """The way of sampling of a request, its bad words in this model's ids. Raises
        ArgumentError."""
        return request.sampling.resolve(self.tokenizer)

    def encode_prompt(self, prompt: str | Sequence[int], request: Request) -> list[int]:
        """The ids of a prompt as a request asks for it. Raises ArgumentError, TextError."""
        if isinstance(prompt, str):
            return encode_prompt(
                self.tokenizer, prompt, self.is_raw(request), request.parse_special
            )
        return to_ids(prompt, "the prompt")

    def is_raw(self, request: Request) -> bool:
        """Whether a request continues the prompt's text, without a chat template. Raises
        ArgumentError for names of special tokens to be read in a chat."""
        raw = self.is_base if request.raw is None else request.raw
        if request.parse_special and not raw:
            raise ArgumentError("parse_special reads names in raw text: add raw (--raw)")
        return raw

    def method_of(self, request: Request) -> Method:
        """The method of a request: the one it names, or the best that the model has. Raises
        ArgumentError."""
        method = request.method or default_method(self.pretrained, self.draft is not None)
        return method.with_learning() if request.adapt and not method.adapt else method

    def _build_decoder(self, request: Request) -> Decoder:
        return build_decoder(
            self.method_of(request), self.pretrained, self.draft, None, gamma=request.gamma,
            sampling=self.sampling_of(request), stop=request.stop_rule(self.tokenizer.eos_ids),
            verifier=request.verifier, tree=request.tree,
        )  # fmt: skip
