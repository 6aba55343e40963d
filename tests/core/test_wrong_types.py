"""Values of a wrong type at every public entry: taken where their meaning is clear, else refused
by an error of ours that names the argument."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import minispec
from helpers import tiny_model
from helpers.tiny_model import Tiny
from minispec.api.model import Model
from minispec.errors import MinispecError
from minispec.sampling import Sampling, SeededRandom
from minispec.shortlists.full import FullShortlist

NAN = float("nan")
NOT_WHOLE = (None, True, 1.5, NAN, "4", b"4", [4], {}, object(), int)
NOT_REAL = (None, True, "warm", b"1", [1.0], {}, 1j, object(), torch.ones(2))
NOT_FLAG = ("yes", 1, 0, [], object())
NOT_TEXT = (None, True, 3, b"hi", 1.5, object())
NOT_IDS = (
    None, True, 3, 1.5, b"ab", Path("x"), {1: 2}, {1}, object(), [1.5], ["a"], [None], [True],
    [[1, 2]], torch.ones(3), torch.ones(2, 2, dtype=torch.int64), torch.tensor(3), np.ones(2),
)  # fmt: skip
NOT_RANDOM = (None, True, 3, "x", torch.Generator(), random.Random(0), np.random.default_rng(0))
NOT_PART = (None, True, 3, "full", b"x", [], object(), FullShortlist)

OPTIONS: dict[str, tuple[Any, ...]] = {
    "gamma": (*NOT_WHOLE, 0, -1, 17),
    "max_new_tokens": (*NOT_WHOLE, -1),
    "temperature": (*NOT_REAL, NAN, -1, float("inf")),
    "top_k": (*NOT_WHOLE, -1),
    "top_p": (*NOT_REAL, NAN, 0, 1.5, -1),
    "min_p": (*NOT_REAL, NAN, -1, 1.5),
    "repetition_penalty": (*NOT_REAL, NAN, 0, -1),
    "presence_penalty": (*NOT_REAL, NAN, 3),
    "frequency_penalty": (*NOT_REAL, NAN, 3),
    "logit_bias": (True, 3, "x", [3], {"a": 1}, {1: "x"}, {1: None}, {1: NAN}, {-1: 0.5}),
    "bad_words": (None, True, 3, b"x", {}, [3], [None], [""], [[]], [["a"]], [b"x"]),
    "seed": (*NOT_WHOLE, -1, 2**31, torch.Generator(), random.Random(0)),
    "tree": (True, 3, "x", "4x3", "2x2x99", b"x", object()),
    "verifier": (None, True, 3, "nosuch", b"x", [], object()),
    "ignore_eos": NOT_FLAG,
}
ANSWERS = {
    "shortlist": (True, 3, "nosuch", "", b"x", [], object(), Sampling()),
    "stop": (None, True, 3, b"x", [3], [None], [""], [b"x"]),
    "adapt": NOT_FLAG,
    "raw": NOT_FLAG,
    "parse_special": NOT_FLAG,
}
ENTRIES = ("generate", "stream", "chat")


def flatten(table: dict[str, tuple[Any, ...]]) -> list[Any]:
    return [
        pytest.param(name, value, id=f"{name}-{index}")
        for name, values in table.items()
        for index, value in enumerate(values)
    ]


@pytest.fixture(scope="module")
def model(tiny: Tiny) -> Model:
    return minispec.load(tiny.folder, draft=tiny.draft_path)


def check_refused(call: Callable[[], object]) -> None:
    with pytest.raises(MinispecError) as caught:
        call()
    assert str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "value"), flatten(OPTIONS | ANSWERS))
def test_model_refuses_options_of_a_wrong_type(model: Model, name: str, value: Any) -> None:
    options = {"shortlist": "full", "max_new_tokens": 2} | {name: value}
    for entry in ENTRIES:
        given = () if entry == "chat" else ("hi",)
        check_refused(lambda: getattr(model, entry)(*given, **options))  # noqa: B023


@pytest.mark.parametrize(("name", "value"), flatten(OPTIONS))
def test_compare_refuses_options_of_a_wrong_type(model: Model, name: str, value: Any) -> None:
    if name == "gamma" and value == [4]:
        return  # several gammas may be compared
    options = {"max_new_tokens": 2} | {name: value}
    check_refused(lambda: minispec.compare(model, ["full"], prompts=["hi"], **options))


@pytest.mark.parametrize(
    ("name", "value"),
    flatten({
        "model": (None, True, "pocket", object()),
        "methods": (None, True, 3, b"x", [None], [3], [], {}, ["nosuch"]),
        "prompts": (True, 3, b"x", "hi", [3], [None], [], {"a": 3}, {3: ["hi"]}, {"a": "hi"}),
    }),
)  # fmt: skip
def test_compare_refuses_arguments_of_a_wrong_type(model: Model, name: str, value: Any) -> None:
    arguments = {"model": model, "methods": ["full"], "prompts": ["hi"]} | {name: value}
    check_refused(lambda: minispec.compare(**arguments))


@pytest.mark.parametrize("value", [value for value in NOT_IDS if value is not None] + [None, []])
def test_model_refuses_prompts_of_a_wrong_type(model: Model, value: Any) -> None:
    for entry in (model.generate, model.stream):
        check_refused(lambda: entry(value, shortlist="full", max_new_tokens=2))  # noqa: B023


@pytest.mark.parametrize("value", NOT_TEXT)
def test_chat_refuses_messages_that_are_not_text(model: Model, value: Any) -> None:
    chat = model.chat(shortlist="full", max_new_tokens=2)
    for entry in (chat.send, chat.stream):
        check_refused(lambda: entry(value))  # noqa: B023


@pytest.mark.parametrize(
    ("name", "value"),
    flatten({
        "name": (None, True, 3, b"pocket", ["pocket"], object(), ""),
        "dtype": (True, 3, "float8", torch.int32),
        "backend": (None, True, 3, "nosuch", []),
        "device": (True, 3, "tpu"),
        "draft": (True, 3, b"x", [], object(), "nosuch"),
        "index": (True, 3, b"x", []),
        "threads": (True, 1.5, "4", 0, -1, []),
        "adapt": (None, *NOT_FLAG),
    }),
)  # fmt: skip
def test_load_refuses_arguments_of_a_wrong_type(tiny: Tiny, name: str, value: Any) -> None:
    arguments = {"name": tiny.folder, "draft": tiny.draft_path} | {name: value}
    check_refused(lambda: minispec.load(**arguments))


def test_load_takes_torchs_own_names_and_a_text(tiny: Tiny) -> None:
    found = minispec.load(
        str(tiny.folder),
        draft=str(tiny.draft_path),
        dtype=torch.float64,
        device=torch.device("cpu"),
    )
    assert (found.pretrained.dtype, found.pretrained.device) == ("float64", "cpu")


@pytest.mark.parametrize(
    ("name", "value"),
    flatten({
        "target": NOT_PART, "draft": NOT_PART, "shortlist": NOT_PART,
        "prompt": (*NOT_IDS, "hi", [], [-1], [10_000]),
        "gamma": OPTIONS["gamma"],
        "sampling": (*NOT_PART, 0.8), "rng": NOT_RANDOM, "stop": NOT_PART,
        "tokenizer": (True, 3, "x", object()),
        "tree": (True, 3, "2x2x4", object()),
    }),
)  # fmt: skip
def test_decoding_refuses_arguments_of_a_wrong_type(model: Model, name: str, value: Any) -> None:
    arguments: dict[str, Any] = {
        "target": model.target, "draft": model.draft,
        "shortlist": FullShortlist(model.target.head.vocab_size), "prompt": [5, 6], "gamma": 2,
        "sampling": Sampling(), "rng": SeededRandom(0), "stop": minispec.StopRule(2),
    } | {name: value}  # fmt: skip
    check_refused(lambda: minispec.speculative(**arguments))
    plain = {k: v for k, v in arguments.items() if k not in ("draft", "shortlist", "gamma", "tree")}
    if name in plain:
        check_refused(lambda: minispec.autoregressive(**plain))


PARTS: dict[Callable[..., Any], dict[str, tuple[Any, ...]]] = {
    Sampling: {name: OPTIONS[name] for name in (
        "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty",
        "frequency_penalty",
    )} | {"logit_bias": OPTIONS["logit_bias"], "bad_words": (3, b"x", [3], "x", [[]], [["a"]])},
    minispec.StopRule: {
        "max_new_tokens": OPTIONS["max_new_tokens"],
        "eos_ids": NOT_IDS,
        "stop_strings": ANSWERS["stop"],
    },
    SeededRandom: {"seed": (*NOT_WHOLE, torch.Generator())},
    minispec.certify: {"part": (None, True, 3, "full", b"x", []), "verifier": (True, 3, "token"),
                       "shortlist": (True, 3, "full")},
}  # fmt: skip


@pytest.mark.parametrize(
    ("build", "name", "value"),
    [
        pytest.param(build, name, value, id=f"{build.__name__}-{name}-{index}")
        for build, table in PARTS.items()
        for name, values in table.items()
        for index, value in enumerate(values)
    ],
)
def test_parts_refuse_arguments_of_a_wrong_type(
    build: Callable[..., Any], name: str, value: Any
) -> None:
    needed = {"max_new_tokens": 2} if build is minispec.StopRule else {}
    check_refused(lambda: build(**needed | {name: value}))


def test_generate_takes_prompts_and_numbers_of_clear_meaning(model: Model) -> None:
    ids = model.tokenizer.encode("The wind")
    options = {"shortlist": "full", "max_new_tokens": 5, "gamma": 2, "temperature": 1.0, "seed": 3}
    expected = model.generate(ids, **options).token_ids
    tensor = torch.tensor(ids)
    for prompt in (tuple(ids), tensor, tensor.int(), tensor[None], np.array(ids), iter(ids)):
        assert model.generate(prompt, **options).token_ids == expected
    numbers = {
        "max_new_tokens": np.int64(5), "gamma": np.int32(2), "temperature": np.float32(1),
        "seed": torch.tensor(3), "top_k": np.int64(0), "top_p": torch.tensor(1.0),
    }  # fmt: skip
    assert model.generate(ids, **options | numbers).token_ids == expected
    assert model.generate(ids, **options, stop="never").token_ids == expected


def test_errors_name_the_argument_and_what_would_be_right(model: Model) -> None:
    shortlist = FullShortlist(tiny_model.CONTEXT)
    decode = dict(
        gamma=2, sampling=Sampling(), rng=SeededRandom(0), stop=minispec.StopRule(2)
    )  # fmt: skip
    for call, words in (
        (lambda: minispec.speculative(model.target, model.draft, shortlist, "hi", **decode),
         ("the prompt", "str 'hi'", "token ids", "tokenizer.encode")),
        (lambda: minispec.speculative(
            model.target, model.draft, shortlist, [5], **decode | {"rng": torch.Generator()}),
         ("rng", "torch.Generator", "minispec.SeededRandom(seed)")),
        (lambda: model.generate("hi", seed=torch.Generator()), ("seed", "torch.Generator")),
        (lambda: model.generate("hi", gamma=2.5), ("gamma", "whole number", "float 2.5")),
        (lambda: minispec.StopRule(8, stop_strings=[3]), ("stop-strings", "int 3")),
    ):  # fmt: skip
        with pytest.raises(MinispecError) as caught:
            call()
        assert all(word in str(caught.value) for word in words), str(caught.value)
