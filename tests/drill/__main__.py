"""``python -m drill``: all parts, or one of them, or a single case again."""

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any


def main() -> int:
    """Run the parts that were asked for; the exit code is 1 if anything failed."""
    parser = argparse.ArgumentParser(prog="python -m drill", description=__doc__)
    parser.add_argument("part", nargs="?", default="all",
                        choices=("all", "files", "kills", "places", "soak", "case"))  # fmt: skip
    parser.add_argument("case", nargs="*", help="of `case`: reader and number")
    parser.add_argument("--files", type=int, default=10_000, help="(default: 10000)")
    parser.add_argument("--kills", type=int, default=100, help="(default: 100)")
    parser.add_argument("--tokens", type=int, default=100_000, help="of the soak (default: 100000)")
    parser.add_argument("--readers", help="only readers whose name contains this")
    parser.add_argument("--writers", help="only writers whose name contains this")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--json", type=Path, default=Path("build/drill.json"))
    options = parser.parse_args()
    options.json = options.json.absolute()
    os.environ["OMP_WAIT_POLICY"] = "passive"  # processes take turns on few cores
    with tempfile.TemporaryDirectory(prefix="minispec-drill-") as folder:
        if options.part == "case":
            return _run_case(*options.case, options.seed, Path(folder))
        return _run_parts(options, Path(folder))


def _run_parts(options: argparse.Namespace, folder: Path) -> int:
    """The soak runs beside kills and places: each keeps one processor busy."""
    summary: dict[str, Any] = {"seed": options.seed}
    wanted = [part for part in _PARTS if options.part in ("all", part)]
    if options.part == "all":
        from drill.soak import drill_soak

        summary |= _run("files", options, folder)
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, context) as pool:
            started = time.monotonic()
            soak = pool.submit(drill_soak, options.tokens, options.seed)
            for part in ("kills", "places"):
                summary |= _run(part, options, folder)
            summary |= _report("soak", soak.result(), started)
    else:
        summary |= _run(options.part, options, folder)
    failed = sum(len(summary[part]["failures"]) for part in wanted)
    summary["failed"] = failed
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(summary, indent=1) + "\n")
    print(f"{failed} failures; wrote {options.json}")
    return int(failed > 0)


def _run(part: str, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    started = time.monotonic()
    (folder / part).mkdir()
    return _report(part, _PARTS[part](options, folder / part), started)


def _report(part: str, found: dict[str, Any], started: float) -> dict[str, Any]:
    """One part of the summary; its failures are printed."""
    found["seconds"] = round(time.monotonic() - started, 1)
    counts = {key: value for key, value in found.items() if isinstance(value, int | float)}
    print(f"{part}: {len(found['failures'])} failures, {counts}", flush=True)
    for failure in found["failures"]:
        print(f"  {failure}", flush=True)
    return {part: found}


def _drill_files(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    from drill.hostile_files import drill_files, plan, print_summary
    from drill.readers import READERS

    readers = [r for r in READERS if not options.readers or options.readers in r.name]
    cases = plan(readers, options.files)
    summary = drill_files(readers, cases, folder, options.seed, options.processes)
    print_summary(summary)
    return summary


def _run_case(name: str, number: str, seed: int, folder: Path) -> int:
    from drill.hostile_files import prepare
    from drill.readers import READERS
    from drill.worker import Worker

    readers = [reader for reader in READERS if reader.name == name]
    if not readers:
        print(f"no reader {name!r}: {', '.join(r.name for r in READERS)}", file=sys.stderr)
        return 2
    finding = Worker({name: readers[0]}, prepare(readers, folder), seed).run(name, int(number))
    print(finding)
    return int(finding.failed)


def _drill_kills(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    from drill.kills import drill_kills

    return drill_kills(options.kills, folder, options.seed, _choose_writers(options))


def _drill_places(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    from drill.places import drill_places

    return drill_places(folder, _choose_writers(options))


def _choose_writers(options: argparse.Namespace) -> Any:
    from drill.writers import WRITERS

    return tuple(w for w in WRITERS if not options.writers or options.writers in w.name)


def _drill_soak(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    from drill.soak import drill_soak

    return drill_soak(options.tokens, seed=options.seed)


_PARTS = {
    "files": _drill_files, "kills": _drill_kills, "places": _drill_places, "soak": _drill_soak,
}  # fmt: skip

if __name__ == "__main__":
    sys.exit(main())
