"""Comparisons on a tiny model: prompts, fake decoders with given durations, rows of a report."""

import json
from collections.abc import Callable, Iterator, Sequence
from importlib import resources
from typing import Any

from helpers.tiny_model import Tiny
from minispec.sampling import Sampling
from minispec.tools.data.streams import Stream
from minispec.tools.evaluation import assembly, compare
from minispec.tools.evaluation.compare import Settings
from minispec.tools.evaluation.methods import Method
from minispec.types import Round

SCHEMA = json.loads(resources.files("minispec").joinpath("data/report.schema.json").read_text())
STREAMS = {
    "law": ["The court must decide.", "A party may appeal.", "This licence ends."],
    "code": ["def run():", "import this"],
}
VOCAB_SIZE = 320
Row = dict[str, Any]


def select_rows(found: dict[str, Any], **wanted: Any) -> list[Row]:
    """The rows with the given values; the ordinary ones unless ``best`` is given."""
    wanted = {"best": False} | wanted
    return [row for row in found["results"] if all(row[key] == wanted[key] for key in wanted)]


def select_row(found: dict[str, Any], **wanted: Any) -> Row:
    (row,) = select_rows(found, **wanted)
    return row


Seconds = Callable[[str, int, Sequence[int]], float]


class FakeDecoders:
    """Replaces ``assembly.build_decoder``: each prompt is one round of ``tokens`` that takes
    ``seconds``. ``log``: method, gamma, prompt and first random number of each run, in order."""

    def __init__(self, seconds: Seconds = lambda method, gamma, prompt: 1.0) -> None:
        self.seconds = seconds
        self.tokens: Callable[[str, Sequence[int]], tuple[int, ...]] = lambda method, prompt: (5, 6)
        self.log: list[tuple[str, int, tuple[int, ...], float]] = []

    def __call__(
        self, method: Method, model: Any, draft: Any, domain: str, *, gamma: int, **rest: Any
    ) -> assembly.Decoder:
        def decode(
            prompt: Sequence[int], source: Any, *, continued: bool = False
        ) -> Iterator[Round]:
            self.log.append((str(method), gamma, tuple(prompt), source.uniform()))
            seconds = {"prefill": 99.0, "target": self.seconds(str(method), gamma, prompt)}
            yield Round(self.tokens(str(method), prompt), "", (), (), (), seconds, "length")

        return decode


def run_compare(
    tiny: Tiny,
    names: str,
    gammas: tuple[int, ...] = (4,),
    prompts: dict[str, list[str]] = STREAMS,
    temperature: float = 1.0,
    **options: Any,
) -> dict[str, Any]:
    settings = Settings(
        tuple(Method.parse(name) for name in names.split(",")), gammas, Sampling(temperature),
        max_new_tokens=8, seed=3, **options,
    )  # fmt: skip
    found = [Stream(name, tuple(texts)) for name, texts in prompts.items()]
    return compare.compare(tiny.model, tiny.draft, found, settings)
