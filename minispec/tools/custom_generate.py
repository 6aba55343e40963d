"""Exact speculative decoding in ``generate`` of transformers, through its ``custom_generate``.

    speculative = minispec.load(model, tokenizer=tokenizer, draft="draft.safetensors")
    model.generate(**inputs, custom_generate=CustomGenerate(speculative, "evospec@1536"))

``generate`` prepares the inputs, the logits processors and the stopping criteria, and then calls
the object in place of its own loop. The tokens follow the distribution that its own loop would
draw them from. Whatever could not be kept exactly is refused by name, nothing is ignored.

Knows nothing of files and of how tokens are drafted.
"""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from minispec.api.model import Model
from minispec.commit import StopRule
from minispec.errors import ArgumentError
from minispec.growth import TreeShape
from minispec.sampling import Sampling, SeededRandom
from minispec.tools.evaluation.assembly import build_decoder, build_shortlist, default_method
from minispec.tools.evaluation.methods import Method
from minispec.types import RandomSource
from minispec.verify import Verifier

# Settings of a GenerationConfig that neither a processor nor a criterion stands for, with the
# values that change nothing.
_ONLY: dict[str, tuple[Any, ...]] = {
    "num_beams": (None, 1),
    "num_return_sequences": (None, 1),
    "output_scores": (None, False),
    "output_logits": (None, False),
    "output_attentions": (None, False),
    "output_hidden_states": (None, False),
    "return_dict_in_generate": (None, False),
    "use_cache": (None, True),
    "cache_implementation": (None,),
    "prefill_chunk_size": (None,),
    "prompt_lookup_num_tokens": (None,),
    "assistant_early_exit": (None,),
    "penalty_alpha": (None,),
    "dola_layers": (None,),
}
# What generate() takes and hands on to no callable: read from its frame, so as to refuse it.
_DROPPED = ("streamer", "assistant_model", "synced_gpus", "negative_prompt_ids")
# The attribute of a logits processor that is a setting of ours.
_SETTINGS = {
    "TemperatureLogitsWarper": ("temperature", "temperature"),
    "TopKLogitsWarper": ("top_k", "top_k"),
    "TopPLogitsWarper": ("top_p", "top_p"),
    "MinPLogitsWarper": ("min_p", "min_p"),
    "RepetitionPenaltyLogitsProcessor": ("repetition_penalty", "penalty"),
}
_HARMLESS = ("LogitNormalization",)  # the distribution stays the same
_CACHES = ("cache", "past_key_values")
_HARMLESS_INPUTS = ("logits_to_keep", "use_cache")  # made by generate()


class CustomGenerate:
    """A value for ``custom_generate``: a loaded model, and how it drafts."""

    def __init__(
        self,
        model: Model,
        shortlist: Any = None,
        *,
        gamma: int = 4,
        verifier: str | Verifier = "token",
        tree: str | TreeShape | None = None,
        rng: RandomSource | None = None,
    ) -> None:
        """``model``: made by ``minispec.load`` from the PreTrainedModel itself. ``shortlist``,
        ``gamma``, ``verifier`` and ``tree`` as in ``Model.generate``, without "auto". ``rng``: the
        source of all draws, by default one seeded from torch's generator at each call, so that
        ``torch.manual_seed`` fixes a sampled text. Raises ArgumentError, FileError and
        FingerprintError."""
        self._model, self._rng = model, rng
        self._loaded = getattr(model.pretrained.reference, "model", None)
        if self._loaded is None:
            raise ArgumentError(
                f"model {model.name} is not run by transformers: load the PreTrainedModel itself, "
                "minispec.load(model, tokenizer=tokenizer)"
            )
        has_draft = model.draft is not None
        self._method = (
            default_method(model.pretrained, has_draft)
            if shortlist is None
            else Method.of(shortlist)
        )
        self._shortlist = None
        if self._method.needs_draft:
            self._shortlist = build_shortlist(self._method, model.pretrained, None)
        self._gamma, self._verifier = gamma, verifier
        self._tree = TreeShape.parse(tree) if isinstance(tree, str) else tree

    def __call__(
        self,
        model: Any,
        input_ids: Tensor,
        logits_processor: Sequence[Any],
        stopping_criteria: Sequence[Any],
        generation_config: Any,
        **model_kwargs: Any,
    ) -> Tensor:
        """What ``generate`` calls: input_ids (1, T) -> input and output ids (1, T + n). Raises
        ArgumentError for options that it does not support, ContextError."""
        if model is not self._loaded:
            raise ArgumentError("custom_generate was made for another model: load this one")
        frame = inspect.currentframe()
        caller = frame.f_back if frame else None
        _check_dropped(caller.f_locals if caller and caller.f_code.co_name == "generate" else {})
        _check_config(generation_config)
        _check_inputs(input_ids, model_kwargs)
        sampling = _read_sampling(logits_processor, bool(generation_config.do_sample))
        prompt = input_ids[0].tolist()
        decode = build_decoder(
            self._method, self._model.pretrained, self._model.draft, None, gamma=self._gamma,
            sampling=sampling, stop=_read_stop(stopping_criteria, len(prompt)),
            verifier=self._verifier, shortlist=self._shortlist, tree=self._tree,
        )  # fmt: skip
        rounds = decode(prompt, self._rng or SeededRandom(_draw_seed(sampling)))
        tokens = [token for finished in rounds for token in finished.tokens]
        return torch.cat((input_ids, input_ids.new_tensor([tokens]).long()), dim=1)


def _draw_seed(sampling: Sampling) -> int:
    """A seed from torch's generator; greedy decoding draws nothing."""
    return int(torch.randint(2**31, ())) if sampling.temperature else 0


def _refuse(name: str, what: str = "") -> ArgumentError:
    return ArgumentError(
        f"custom_generate of minispec does not support {name}{what}: leave it out, or generate "
        "without custom_generate"
    )


def _check_dropped(values: Mapping[str, Any]) -> None:
    for name in _DROPPED:
        if values.get(name):
            raise _refuse(name)


def _check_config(config: Any) -> None:
    for name, harmless in _ONLY.items():
        value = getattr(config, name, None)
        if value not in harmless:
            raise _refuse(name, f"={value!r}")


def _check_inputs(input_ids: Tensor, given: Mapping[str, Any]) -> None:
    """Refuse batches, padding, and inputs beside the ids."""
    if len(input_ids) != 1:
        raise _refuse("batches", f" ({len(input_ids)} sequences)")
    for name, value in given.items():
        if value is None or name in _HARMLESS_INPUTS:
            continue
        if name in _CACHES:
            if value.get_seq_length():
                raise _refuse(name, " that holds positions")
        elif name == "attention_mask":
            if not bool(value.all()):
                raise _refuse("padding", " (an attention_mask with zeros)")
        elif name == "position_ids":
            if value.flatten().tolist() != [*range(input_ids.shape[1])]:
                raise _refuse("position_ids", " other than 0, 1, ...")
        else:
            raise _refuse(name)


def _read_sampling(processors: Sequence[Any], do_sample: bool) -> Sampling:
    """The way of sampling that logits processors stand for."""
    settings: dict[str, Any] = {"temperature": 1.0 if do_sample else 0.0}
    for processor in processors:
        kind = type(processor).__name__
        if kind in _HARMLESS:
            continue
        if kind not in _SETTINGS:
            raise _refuse(f"the logits processor {kind}")
        if getattr(processor, "prompt_ignore_length", None):
            raise _refuse("a repetition penalty that ignores the prompt")
        ours, theirs = _SETTINGS[kind]
        settings[ours] = getattr(processor, theirs)
    if "min_p" in settings and "top_p" in settings:  # with top_k alone the order does not matter
        raise _refuse("min_p with top_p", ", which transformers applies in another order")
    return Sampling(**settings)


def _read_stop(criteria: Sequence[Any], prompt_length: int) -> StopRule:
    """The rule that stopping criteria stand for."""
    limits, eos_ids = list[int](), list[int]()
    for criterion in criteria:
        kind = type(criterion).__name__
        if kind == "MaxLengthCriteria":
            limits.append(criterion.max_length - prompt_length)
        elif kind == "EosTokenCriteria":
            eos_ids += criterion.eos_token_id.flatten().tolist()
        else:
            raise _refuse(f"the stopping criterion {kind}")
    if not limits:
        raise _refuse("generation without a limit", ": give max_new_tokens")
    return StopRule(max(0, min(limits)), tuple(eos_ids))
