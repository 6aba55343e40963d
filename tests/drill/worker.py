"""A process that loads damaged folders, one after the other."""

import os
import shutil
import tempfile
import warnings
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

from drill import sandbox
from drill.cases import Damage, explain, make_case
from drill.reader import Outcome, Reader, find_changes
from drill.sandbox import Watch

_TRIES = 3  # a case that took too long is tried again: the machine may have been busy
# A resumed run writes its checkpoint and log, and a damaged index is built again: in the case.
_ALLOWED = dict.fromkeys(("training checkpoint", "training settings", "HNSW index"), ("/case",))


@dataclass(frozen=True)
class Finding:
    """``kind``: "refused", "same", "unnoticed" (legal values: ``fields``), or a failure."""

    reader: str
    number: int
    kind: str
    damages: list[tuple[str, str, str, bool]] = field(default_factory=list)
    detail: str = ""
    fields: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def failed(self) -> bool:
        """Whether this is a fault of a reader."""
        return self.kind not in ("refused", "same", "unnoticed")


class Worker:
    """Runs cases in this process; keeps the intact outcome of every reader."""

    def __init__(self, readers: dict[str, Reader], intact: Path, seed: int) -> None:
        import torch

        torch.set_num_threads(1)
        warnings.simplefilter("ignore")  # of files that are read in part
        self.readers, self.intact, self.seed = readers, intact, seed
        self.folder = Path(tempfile.mkdtemp(prefix="worker-", dir=intact.parent))
        os.environ["DRILL_FOLDER"] = str(self.folder)
        os.chdir(self.folder)
        self.watch = Watch()
        self.outcomes: dict[str, Outcome] = {}

    def intact_outcome(self, name: str) -> Outcome:
        """What the reader gives for the intact files; loaded twice, so that imports are done."""
        if name not in self.outcomes:
            for _ in range(2):
                folder = self.folder / "intact"
                shutil.copytree(self.intact / name, folder)
                self.outcomes[name] = self.readers[name].load(folder)
                shutil.rmtree(folder)
        return self.outcomes[name]

    def run(self, name: str, number: int, only: int | None = None) -> Finding:
        """The finding of one case, or of ``only`` one of its two damages."""
        reader, expected = self.readers[name], self.intact_outcome(name)
        folder, intact = self.folder / "case", self.intact / name
        for _ in range(_TRIES):
            shutil.rmtree(folder, ignore_errors=True)
            done = make_case(reader, intact, folder, self.seed, number, only)
            result = sandbox.run(reader.load, folder, self.watch, _ALLOWED.get(name, ()))
            if result.kind != "too long":
                break
        kind, detail, fields = result.kind, result.detail, list[str]()
        if kind == "read":
            assert result.outcome is not None
            changes = find_changes(expected, result.outcome)
            kind = "same"
            if changes:
                shutil.rmtree(folder)  # what was read may have been written to since
                make_case(reader, intact, folder, self.seed, number, only)
                fields, illegal = explain(reader, intact, folder)
                kind = "in silence" if illegal else "unnoticed"
                detail = f"{', '.join(changes[:4])} changed by {', '.join(illegal)}"
        shutil.rmtree(folder, ignore_errors=True)
        if kind == "in silence" and only is None and len(done) == 2:
            # The change may be the work of the other damage, whose value is legal.
            alone = [self.run(name, number, each) for each in (0, 1)]
            if not any(each.failed for each in alone):
                kind = "unnoticed"
        damages = [_plain(each) for each in done]
        return Finding(name, number, kind, damages, detail, fields, result.seconds)


def _plain(damage: Damage) -> tuple[str, str, str, bool]:
    return damage.part.file, damage.field, damage.how, damage.structured


def serve(connection: Connection, intact: Path, seed: int) -> None:
    """Answer (reader, number) with a finding until the other end is closed."""
    from drill.readers import READERS

    worker = Worker({reader.name: reader for reader in READERS}, intact, seed)
    try:
        while True:
            connection.send(worker.run(*connection.recv()))
    except EOFError:
        shutil.rmtree(worker.folder, ignore_errors=True)
