"""An engine in a process of its own, which waits while other sides have their turn.

Engines in one process disturb each other: threads of one spin while another computes, and AMX tiles
that llama.cpp has set up once are released by oneDNN's products, after which its next product ends
the process. Answers are timed where they are computed.
"""

import importlib
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

from benchmarks.peers.sides import Answer, Engine, Work
from minispec.errors import ArgumentError, MinispecError


def build_apart(module: str, work: Work) -> Engine:
    """The engine that ``benchmarks.peers.MODULE.build_sides`` builds, in a process of its own.
    Raises what it raises, and ArgumentError if the process ends."""
    context = get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(module, work, there), daemon=True)
    process.start()
    there.close()
    engine = _receive(module, process, here)
    sides = [
        replace(side, run=partial(_ask, module, process, here, number))
        for number, side in enumerate(engine.sides)
    ]
    return replace(engine, sides=tuple(sides))


def _ask(
    module: str, process: Any, here: Connection, number: int, ids: Sequence[int], *options: Any
) -> Answer:
    here.send((number, tuple(ids), *options))
    return _receive(module, process, here)


def _receive(module: str, process: Any, here: Connection) -> Any:
    try:
        found = here.recv()
    except (EOFError, ConnectionError):
        process.join()
        raise ArgumentError(
            f"the process of {module} ended with exit code {process.exitcode}; below 0 it is a "
            "signal: is its library built for this processor? (docs/measurements.md, Other engines)"
        ) from None
    if isinstance(found, MinispecError):
        raise found
    return found


def _serve(module: str, work: Work, there: Connection) -> None:
    """Builds the engine, sends its description, and then answers what it is asked."""
    try:
        engine = importlib.import_module(f"benchmarks.peers.{module}").build_sides(work)
    except MinispecError as error:
        there.send(error)
        return
    there.send(replace(engine, sides=tuple(replace(side, run=None) for side in engine.sides)))
    while True:
        try:
            number, *arguments = there.recv()
        except EOFError:
            return
        there.send(engine.sides[number].run(*arguments))
