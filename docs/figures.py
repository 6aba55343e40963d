"""Draws the book's figures into ``docs/figures``, as SVG.

    python docs/figures.py            # all; "budget" runs the real model for some minutes
    python docs/figures.py bytes round

Drawings are in ``docs/drawing``, a file for each kind. ``bytes``, ``roofline``, ``overlap`` and
``branches`` are computed from sizes and toy distributions, ``curriculum`` from the curriculum
itself; ``round`` shows the table in ``docs/measurements.md``, ``learning`` the training logs of the
shipped drafts. Two are measured: ``parts`` records a text of the pocket pair, and for ``budget``
the target answers our prompts, and shortlists of every size are replayed over the answers.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from drawing import measured, models, rounds, shortlists, trees
from drawing.measured import BUDGET

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "docs" / "figures"
_PROMPTS, _TOKENS = 3, 48  # prompts per domain, and tokens per answer, of ``budget``


def measure_budget() -> None:
    """Measures shortlists of every size over the target's own answers, by replay; writes JSON."""
    from dataclasses import replace
    from statistics import fmean

    from minispec.commit import StopRule
    from minispec.decode import autoregressive
    from minispec.io import draft_file, files
    from minispec.sampling import Sampling, SeededRandom
    from minispec.tools.data import corpus
    from minispec.tools.evaluation import assembly, methods
    from minispec.tools.evaluation.measure import measure, pool
    from minispec.tools.evaluation.replay import RecordedTarget, replay_text
    from minispec.tools.models import backend, known_models, pretrained

    known_models.fetch("smollm2")
    model = pretrained.load("smollm2")
    path = draft_file.find_draft("smollm2")
    assert path is not None
    eagle = draft_file.load_draft(path, model.reference, model.fingerprint)
    model, draft = backend.place_on_backend(model, eagle, "cpu")
    assert draft is not None
    size, stop = model.target.head.vocab_size, StopRule(_TOKENS, model.tokenizer.eos_ids)
    greedy = {"sampling": Sampling(), "rng": SeededRandom(0), "stop": stop}
    texts = []
    for domain in corpus.DOMAINS:
        for prompt in corpus.load_prompts(domain)[:_PROMPTS]:
            ids = model.tokenizer.chat(prompt)
            answer = measure(autoregressive(model.target, ids, **greedy)).tokens
            texts.append(RecordedTarget(model.target, ids, answer))
    points = []
    for name in ("full", "frspec", "evospec"):
        for budget in (256, 512, 1024, 2048, 4096, 8192, 16384, size):
            method = methods.Method.parse(name)
            if name != "full":
                method = replace(method, budget=budget, spelled="")
            elif budget != size:
                continue
            shortlist = assembly.build_shortlist(method, model, None)
            replays = [replay_text(text, draft, shortlist, gamma=4, stop=stop) for text in texts]
            overlap = fmean(value for replay in replays for value in replay.overlaps)
            tau = pool([replay.figures for replay in replays])["tau"]
            points.append({"curve": name, "budget": budget, "tau": tau, "overlap": overlap})
            print(points[-1], flush=True)
    setting = {"prompts": len(texts), "tokens": _TOKENS, "draft": "smollm2"}
    files.write_json(BUDGET, {**setting, "points": points})


DRAWN = {
    "bytes": measured.draw_bytes,
    "roofline": measured.draw_roofline,
    "speculative-round": rounds.draw_speculative_round,
    "overlap": rounds.draw_overlap,
    "choose": rounds.draw_choose,
    "rollback": rounds.draw_rollback,
    "layer": models.draw_layer,
    "learning": measured.draw_learning,
    "round": measured.draw_round,
    "budget": measured.draw_budget,
    "inverted-index": shortlists.draw_inverted_index,
    "successors": shortlists.draw_successors,
    "parts": shortlists.draw_parts,
    "arc": shortlists.draw_arc,
    "curriculum": measured.draw_curriculum,
    "packing": models.draw_packing,
    "tree": trees.draw_tree,
    "branches": trees.draw_branches,
}
MEASURED = {"budget": measure_budget, "parts": shortlists.measure_parts}


def main(names: list[str]) -> None:
    """Draws the named figures, or all; what is measured is measured again."""
    FOLDER.mkdir(exist_ok=True)
    for name in names or DRAWN:
        if name in MEASURED:
            MEASURED[name]()
        DRAWN[name](FOLDER)
        print(f"wrote {(FOLDER / name).relative_to(ROOT)}.svg")


if __name__ == "__main__":
    if unknown := set(sys.argv[1:]) - DRAWN.keys():
        sys.exit(f"unknown figure {', '.join(sorted(unknown))}: choose from {', '.join(DRAWN)}")
    main(sys.argv[1:])
