"""The command ``generate``: one prompt, or a chat on the terminal."""

import argparse
import re
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from minispec.errors import ArgumentError, TextError
from minispec.tools.cli.prepare import check_prompt, list_shaping, load_decoding_model, read_prompt
from minispec.tools.cli.process import decode_argument

if TYPE_CHECKING:
    from minispec.api.model import Model
    from minispec.api.request import Request

_ADDITIONS = re.compile(r"(\+adapt(:paper)?|\+suffix)*$")  # at the end of a method


def generate(options: argparse.Namespace) -> None:
    """Answers a prompt, given or read from stdin; without either, chats on the terminal. Raises
    ArgumentError, TextError, and what loading raises."""
    from minispec.api.request import build_request

    chats = options.prompt is None and sys.stdin.isatty()
    prompt = "" if chats else read_prompt(options.prompt)
    if not chats:
        check_prompt(prompt)
    request = build_request(
        shortlist=_spell_method(options.method, options.budget, options.ranking),
        gamma=options.gamma,
        max_new_tokens=options.max_new_tokens,
        **list_shaping(options),
        seed=options.seed,
        stop=options.stop,
        ignore_eos=options.ignore_eos,
        verifier=options.verifier,
        adapt=options.adapt,
        raw=True if options.raw else None,
        parse_special=options.parse_special,
        tree=options.tree,
    )
    model = load_decoding_model(options, plain=request.is_plain, learns=request.learns)
    if chats:
        _chat(model, request, options.trace, options.json)
    else:
        _answer(model, request, prompt, options.trace, options.json, options.started)


def _answer(
    model: "Model", request: "Request", prompt: str, trace: bool, as_json: bool, started: float
) -> None:
    from minispec.tools.reporting.generate import write_legend, write_rounds

    ids = model.encode_prompt(prompt, request)
    rounds = model.run(ids, request)
    _report_default(model, request)
    if trace:
        write_legend(sys.stdout)
    write_rounds(
        rounds, model.tokenizer, trace=trace, as_json=as_json, started=started,
        details=_describe(model, request, len(ids)),
    )  # fmt: skip


def _chat(model: "Model", request: "Request", trace: bool, as_json: bool) -> None:
    """Turns until the end of the input. Shortlist and learner keep their state between them."""
    from minispec.tools.reporting.generate import write_legend, write_rounds

    raw = model.is_raw(request)
    if not raw:
        model.tokenizer.chat("Hello")  # refuses an unknown chat template before anything is typed
    elif model.is_base:
        note = f"{model.name} is a base model without a chat template: it continues your text"
        print(f"minispec: {note}", file=sys.stderr)
    chat = model.start_chat(request)
    _report_default(model, request)
    print(f"minispec: {model.name}, {chat.method}; Ctrl-D ends the chat", file=sys.stderr)
    if trace:
        write_legend(sys.stdout)
    while (message := _read_message()) is not None:
        if message.strip():
            started = time.perf_counter()
            prompt = chat.build_prompt(message)
            write_rounds(
                chat.stream(message), model.tokenizer, trace=trace, as_json=as_json,
                started=started, details=_describe(model, request, len(prompt)),
            )  # fmt: skip


def _report_default(model: "Model", request: "Request") -> None:
    """One line on stderr where plain decoding was not asked for."""
    if request.method is None and model.method_of(request).name == "autoregressive":
        note = f"model {model.name} has no draft, so it decodes plainly"
        print(f"minispec: {note}", file=sys.stderr)


def _describe(model: "Model", request: "Request", prompt_tokens: int) -> dict[str, Any]:
    """The settings of a request, for the JSON object."""
    from minispec.tools.evaluation.plugins import verifier_name

    method, parts = model.method_of(request), model.pretrained
    plain = method.name == "autoregressive"
    return {
        "model": model.name,
        "method": str(method),
        "gamma": None if plain or request.tree else request.gamma,
        "tree": None if plain or request.tree is None else str(request.tree),
        "budget": method.ids(model.target.head.vocab_size),
        "sampling": model.sampling_of(request).to_json(),
        "verifier": None if plain else verifier_name(request.verifier),
        "seed": request.seed,
        "dtype": parts.dtype,
        "backend": parts.backend,
        "prompt_tokens": prompt_tokens,
    }


def _spell_method(method: str | None, budget: str | None, ranking: str | None) -> str | None:
    """``--method`` with ``--budget`` and ``--ranking`` spelled out in it; None for none of them.
    Raises ArgumentError where one is given twice."""
    from minispec.tools.evaluation.methods import NAMES

    if budget is None and ranking is None:
        return method
    spelled = _ADDITIONS.sub("", method or "frspec")
    additions = (method or "frspec")[len(spelled) :]
    if budget is not None and "@" in spelled:
        raise ArgumentError(f"--budget and a budget in {spelled!r}: give one of them")
    if spelled.partition(":")[0].partition("@")[0] not in NAMES:  # MODULE:CLASS
        if ranking is not None:
            raise ArgumentError(f"--ranking does not apply to {spelled!r}: leave it out")
        return f"{spelled}@{budget}{additions}"
    name, colon, own_ranking = spelled.partition(":")
    if ranking is not None and colon:
        raise ArgumentError(f"--ranking and a ranking in {spelled!r}: give one of them")
    at = "" if budget is None else f"@{budget}"
    end = f":{ranking}" if ranking is not None else f"{colon}{own_ranking}"
    return f"{name}{at}{end}{additions}"


def _read_message() -> str | None:
    """The next message of a chat, None at its end. Raises TextError."""
    with suppress(ImportError):
        import readline  # noqa: F401  # gives ``input`` line editing and a history
    try:
        if sys.stdout.isatty():
            return decode_argument(input("> "), "the message")
        sys.stderr.write("> ")  # ``input`` would write it into stdout
        sys.stderr.flush()
        line = sys.stdin.readline()
        return decode_argument(line.rstrip("\r\n"), "the message") if line else None
    except EOFError:
        print(file=sys.stderr)  # the next prompt of the shell starts on a new line
        return None
    except UnicodeDecodeError as error:
        raise TextError(f"the message is not UTF-8: {error}") from None
