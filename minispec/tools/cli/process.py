"""The process that a command runs in: its streams, its signals and its arguments.

Knows nothing of commands, and imports nothing slow.
"""

import io
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from minispec.io.utf8 import decode_utf8


class Terminated(BaseException):
    """SIGTERM: unfinished files and folders are removed before the process ends."""


def open_streams() -> None:
    """Makes sure that all three streams are there, and that stdout takes every text."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:  # closed by the caller, as in `minispec ... >&-`
            setattr(sys, name, open(os.devnull, "w" if number else "r"))  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a question mark is better than no answer


def discard_stdout() -> None:
    """Drops output that stdout refuses: at exit Python would try to write it again, and fail."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def decode_argument(text: str, origin: str) -> str:
    """An argument that is text, such as a prompt: Python keeps bytes that are not text in the
    locale's encoding as halves of surrogate pairs; they are read as UTF-8 here. Raises
    TextError."""
    try:
        text.encode()
        return text
    except UnicodeEncodeError:
        pass
    try:
        content = os.fsencode(text)
    except UnicodeEncodeError:
        return text  # never was bytes: the tokenizer names the half of a pair
    return decode_utf8(content, origin)


def read_stdin() -> str:
    """All of stdin as UTF-8, whatever the locale, with Unix line ends. Raises TextError."""
    content = getattr(sys.stdin, "buffer", None)
    return sys.stdin.read() if content is None else decode_utf8(content.read(), "stdin")


def print_kept(text: str) -> None:
    """Prints what the command also writes to files: a reader that has gone does not stop it."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        discard_stdout()


@contextmanager
def catch_signals() -> Iterator[None]:
    """Ctrl-C ends in KeyboardInterrupt and SIGTERM in ``Terminated``, even where the library at
    work turns them into another error or loses them in a callback. A signal that the caller
    ignores stays ignored."""
    received: list[type[BaseException]] = []

    def receive(number: int, frame: object) -> None:
        received.append(KeyboardInterrupt if number == signal.SIGINT else Terminated)
        raise received[-1]

    def raise_again(unraisable: Any) -> None:
        if received and issubclass(unraisable.exc_type, received[-1]):
            # It was lost in a callback or destructor. This is one too: send it again later.
            again = threading.Timer(0.05, os.kill, (os.getpid(), _NUMBERS[received[-1]]))
            again.daemon = True
            again.start()
        else:
            hook(unraisable)

    hook = sys.unraisablehook
    usual = (signal.default_int_handler, signal.SIG_DFL)
    before = {n: signal.getsignal(n) for n in _NUMBERS.values() if signal.getsignal(n) in usual}
    for number in before:
        signal.signal(number, receive)
    sys.unraisablehook = raise_again
    try:
        yield
    except Exception:
        if received:
            raise received[-1] from None
        raise
    finally:
        sys.unraisablehook = hook
        for number, handler in before.items():
            signal.signal(number, handler)


_NUMBERS: dict[type[BaseException], signal.Signals] = {
    KeyboardInterrupt: signal.SIGINT,
    Terminated: signal.SIGTERM,
}


def report_signal(error: BaseException) -> int:
    """Says in one line which signal ended the command; returns the exit code of a shell."""
    name = "terminated" if isinstance(error, Terminated) else "interrupted"
    if sys.stderr.isatty():
        print(file=sys.stderr)  # ends the line with the text so far and the terminal's ^C
    print(f"minispec: {name}", file=sys.stderr)
    return 128 + _NUMBERS[type(error)]
