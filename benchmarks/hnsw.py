"""Libraries for the HNSW index of an LM head: build time, recall, size and search time of each.

The same augmented rows, M, beams and queries for all; seconds are a processor's. Queries are the
draft's hidden states over prompts: what ``evospec-paper`` searches with. One thread each. A library
that is not installed is named and left out: usearch comes with the extra [hnsw], faiss with
`pip install faiss-cpu`, hnswlib with `pip install hnswlib`, which needs a C++ compiler.

    python -m benchmarks hnsw --json build/hnsw.json
"""

import argparse
import importlib.util
import json
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

import minispec
from minispec.commit import StopRule
from minispec.decode import speculative
from minispec.sampling import Sampling, SeededRandom
from minispec.shortlists.full import FullShortlist
from minispec.shortlists.hnsw import NEIGHBOURS, augment_rows
from minispec.tools.data import corpus

BUILD_BEAM, SEARCH_BEAMS, COUNT = 128, (64, 128, 256, 512), 10

# (rows (V, D + 1)) -> an index; (index, query, beam) -> ids; (index, path) -> None
Library = tuple[Callable[[Any], Any], Callable[[Any, Any, int], Any], Callable[[Any, str], None]]


def collect_queries(model: minispec.Model, prompts: int, tokens: int) -> torch.Tensor:
    """Hidden states (T, D) of the draft, from decoding some prompts of each domain."""
    target, tokenizer = model.pretrained.target, model.tokenizer
    assert model.draft is not None
    found: list[torch.Tensor] = []
    for text in (t for name in corpus.DOMAINS for t in corpus.load_prompts(name)[:prompts]):
        rounds = speculative(
            target, model.draft, FullShortlist(target.head.vocab_size), tokenizer.chat(text),
            gamma=4, sampling=Sampling(), rng=SeededRandom(0), trace=True,
            stop=StopRule(tokens, tokenizer.eos_ids),
        )  # fmt: skip
        found += [r.evidence.draft_hidden for r in rounds if r.evidence and not r.stop]
    return torch.cat(found).float()


def open_usearch() -> Library:
    from usearch.index import Index

    def build(rows: Any) -> Any:
        index = Index(
            ndim=rows.shape[1], metric="ip", dtype="f32", connectivity=NEIGHBOURS,
            expansion_add=BUILD_BEAM,
        )  # fmt: skip
        index.add(np.arange(len(rows)), rows, threads=1)
        return index

    def search(index: Any, query: Any, beam: int) -> Any:
        index.expansion_search = beam
        return index.search(query, COUNT).keys

    return build, search, lambda index, path: index.save(path)


def open_faiss() -> Library:
    import faiss

    faiss.omp_set_num_threads(1)

    def build(rows: Any) -> Any:
        index = faiss.IndexHNSWFlat(rows.shape[1], NEIGHBOURS, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = BUILD_BEAM
        index.add(rows)
        return index

    def search(index: Any, query: Any, beam: int) -> Any:
        index.hnsw.efSearch = beam
        return index.search(query[None], COUNT)[1][0]

    return build, search, lambda index, path: faiss.write_index(index, path)


def open_hnswlib() -> Library:
    import hnswlib

    def build(rows: Any) -> Any:
        index = hnswlib.Index("ip", rows.shape[1])
        index.init_index(len(rows), M=NEIGHBOURS, ef_construction=BUILD_BEAM, random_seed=0)
        index.set_num_threads(1)
        index.add_items(rows)
        return index

    def search(index: Any, query: Any, beam: int) -> Any:
        index.set_ef(beam)
        return index.knn_query(query[None], COUNT)[0][0]

    return build, search, lambda index, path: index.save_index(path)


# By the name of the module: that of the distribution, and what opens it.
LIBRARIES: dict[str, tuple[str, Callable[[], Library]]] = {
    "usearch": ("usearch", open_usearch),
    "faiss": ("faiss-cpu", open_faiss),
    "hnswlib": ("hnswlib", open_hnswlib),
}


def measure_library(library: Library, rows: Any, queries: Any, exact: Any) -> dict[str, Any]:
    """Build, search and save with one library. ``exact`` (T, 10): the true nearest ids."""
    build, search, save = library
    started = time.process_time()
    index = build(rows)
    seconds = time.process_time() - started
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "index"
        save(index, str(path))
        size = path.stat().st_size
    beams = {}
    for beam in SEARCH_BEAMS:
        started = time.process_time()
        found = [search(index, query, beam) for query in queries]
        spent = (time.process_time() - started) / len(queries)
        recall = np.mean([np.isin(a, b).mean() for a, b in zip(exact, found, strict=True)])
        beams[beam] = {"recall": round(float(recall), 4), "milliseconds": round(1000 * spent, 3)}
    return {"build_seconds": round(seconds, 1), "bytes": size, "search": beams}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2", help="(default: smollm2)")
    parser.add_argument("--prompts", type=int, default=2, help="of each domain (default: 2)")
    parser.add_argument("--tokens", type=int, default=48, help="of each answer (default: 48)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures as JSON")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = minispec.load(options.model, backend="reference")
    head = model.pretrained.reference.head.weight.float()  # (V, D)
    hidden = collect_queries(model, options.prompts, options.tokens)  # (T, D)
    rows = augment_rows(head).numpy()
    queries = np.concatenate((hidden.numpy(), np.zeros((len(hidden), 1), np.float32)), 1)
    exact = (hidden @ head.T).topk(COUNT).indices.numpy()  # (T, 10)
    started = time.process_time()
    for state in hidden:
        (head @ state).topk(COUNT)
    brute = 1000 * (time.process_time() - started) / len(hidden)
    report: dict[str, Any] = {
        "model": options.model, "rows": len(rows), "queries": len(queries), "M": NEIGHBOURS,
        "build_beam": BUILD_BEAM, "exact_search_milliseconds": round(brute, 3), "libraries": {},
    }  # fmt: skip
    for module, (distribution, open_library) in LIBRARIES.items():
        if importlib.util.find_spec(module) is None:
            print(f"{module} is left out: it is not installed")
            continue
        figures = measure_library(open_library(), rows, queries, exact)
        report["libraries"][module] = {"version": metadata.version(distribution), **figures}
        print(module, json.dumps(report["libraries"][module]))
    print(f"exact search: {brute:.3f} ms")
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(report, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
