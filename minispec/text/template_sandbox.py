"""Rendering of a Jinja template that comes with a model: code from a stranger.

It runs in jinja2's sandbox, which lets it read what it is given and nothing else, and within limits
that the sandbox does not have: one second, and operations that make at most 16 million characters.

Knows nothing of chats.
"""

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import cache, wraps
from typing import Any

from minispec.errors import TextError

_LARGEST_TEMPLATE = 2**20  # characters; the largest published ones have some 20,000
_LARGEST_TEXT = 2**24  # characters that one operation of a template may make
_LARGEST_NUMBER = 100_000  # as jinja2's own limit for `range`
_SECONDS = 1.0


@contextmanager
def _limit_time() -> Iterator[None]:
    """A context in which Python code of this thread is stopped after a second, with
    TimeoutError."""
    end, before = time.perf_counter() + _SECONDS, sys.gettrace()

    def check(frame: Any, event: str, argument: Any) -> Any:
        if time.perf_counter() > end:
            raise TimeoutError("it takes more than a second")
        return check

    sys.settrace(check)
    try:
        yield
    finally:
        sys.settrace(before)


def render_template(source: str, variables: Mapping[str, Any]) -> str:
    """Render a chat template with these variables, up to the start of an answer. Raises TextError
    for one that cannot be read, raises an error itself, or goes beyond the limits."""
    if len(source) > _LARGEST_TEMPLATE:
        raise TextError(
            f"the model's chat template has {len(source):,} characters, "
            f"at most {_LARGEST_TEMPLATE:,} are read"
        )
    import jinja2  # a tenth of a second that text without a template does not need

    try:
        with _limit_time():
            values = {"tools": None, "documents": None, **variables, "add_generation_prompt": True}
            return str(_compile(source).render(values))
    except (
        jinja2.TemplateError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError,
        RecursionError, MemoryError, AssertionError, SyntaxError, TimeoutError,
    ) as error:  # fmt: skip
        detail = ascii(f"{type(error).__name__}: {error}")[1:-1][:200]
        raise TextError(f"the model's chat template cannot be used ({detail})") from None


@cache
def _compile(source: str) -> Any:
    """The template in jinja2's sandbox, with the functions that transformers gives templates.
    Operations that could make texts or numbers without end are counted before they run."""
    import jinja2
    from jinja2 import nodes
    from jinja2.exceptions import SecurityError
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from jinja2.visitor import NodeTransformer

    class Generation(Extension):
        """The tag `generation`, which marks answers for training and prints what is in it."""

        tags = {"generation"}  # noqa: RUF012  # as jinja2 declares it

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    class ConcatToJoin(NodeTransformer):
        """`a ~ b` cannot be limited; `[a, b] | join` can."""

        def visit_Concat(self, node: nodes.Concat) -> nodes.Filter:  # noqa: N802  # jinja2's name
            self.generic_visit(node)
            return nodes.Filter(nodes.List(node.nodes), "join", [], [], None, None)

    class Environment(ImmutableSandboxedEnvironment):
        intercepted_binops = frozenset(("*", "**", "%", "+"))

        def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
            tree: nodes.Template = ConcatToJoin().visit(super()._parse(source, name, filename))
            return tree

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            _check_operands(operator, left, right, SecurityError)
            return super().call_binop(context, operator, left, right)

        def call(self, context: Any, function: Any, *args: Any, **options: Any) -> Any:
            owner = getattr(function, "__self__", None)
            _check_arguments((owner, *args, *options.values()), SecurityError)
            return super().call(context, function, *args, **options)

        def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
            if super().wrap_str_format(value) is None:
                return None
            raise SecurityError("str.format is not supported")

        @staticmethod
        def concat(parts: Iterable[str]) -> str:
            return "".join(_count(parts, SecurityError))

    def limit(function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def call(*args: Any, **options: Any) -> Any:
            _check_arguments((*args, *options.values()), SecurityError)
            return function(*args, **options)

        return call

    def to_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, **options)

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    environment = Environment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = to_json
    del environment.filters["format"], environment.globals["lipsum"]
    environment.filters = {name: limit(made) for name, made in environment.filters.items()}
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment.from_string(source)


def _check_operands(operator: str, left: Any, right: Any, error: type[Exception]) -> None:
    """Raises ``error`` for `*`, `**`, `%` or `+` whose result could be endless."""
    numbers = [n for n in (left, right) if isinstance(n, int)]
    size = sum(len(value) for value in (left, right) if isinstance(value, str | list | tuple))
    if operator == "*" and size:
        size *= max(map(abs, numbers), default=1)
    if size > _LARGEST_TEXT:
        raise error(f"{operator} makes more than {_LARGEST_TEXT:,} characters")
    if any(n.bit_length() > (10_000 if operator != "**" else 10) for n in numbers):
        raise error(f"{operator} makes a huge number")
    if operator == "%" and isinstance(left, str):
        raise error("formatting with % is not supported")


def _check_arguments(arguments: Sequence[Any], error: type[Exception]) -> None:
    """Raises ``error`` for arguments from which a function could make an endless text:
    `ljust(10**9)`, or `replace` of many characters by many."""
    if any(isinstance(n, int) and abs(n) > _LARGEST_NUMBER for n in arguments):
        raise error(f"a number above {_LARGEST_NUMBER:,}")
    sizes = sorted(len(value) for value in arguments if isinstance(value, str | list | tuple))[-2:]
    if len(sizes) == 2 and sizes[0] * sizes[1] > _LARGEST_TEXT:
        raise error(f"texts of {sizes[0]:,} and {sizes[1]:,} characters")
    for value in arguments:
        if isinstance(value, list | tuple):
            for _ in _count((part for part in value if isinstance(part, str)), error):
                pass


def _count(parts: Iterable[str], error: type[Exception]) -> Iterator[str]:
    """The same texts. Raises ``error`` once they are too large together."""
    size = 0
    for part in parts:
        size += len(part)
        if size > _LARGEST_TEXT:
            raise error(f"it makes more than {_LARGEST_TEXT:,} characters")
        yield part
