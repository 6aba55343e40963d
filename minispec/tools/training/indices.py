"""What shortlists search, made from a model and from installed text: clusters of its head rows, a
graph of bigrams, a low-rank head.

Knows nothing of the shortlists that search them.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from minispec.decode import prefill
from minispec.errors import ArgumentError
from minispec.io import bigram_file, index_file, lowrank_file
from minispec.models.eagle_draft import EagleDraft
from minispec.shortlists import bigrams, kmeans
from minispec.shortlists.lowrank import fit_factors
from minispec.tools.data import corpus
from minispec.tools.models import pretrained
from minispec.tools.models.pretrained import Pretrained

_COUNTED_BYTES = 64_000_000  # of installed text per domain, for bigrams
_READ_TOKENS, _DOCUMENT = 8192, 512  # per domain and per document, for a low-rank head


def make_clusters(model: str, clusters: int, seed: int, out: Path) -> None:
    """Clusters the rows of a model's LM head by k-means and writes the cluster of each id. Raises
    ArgumentError, FileError."""
    loaded, rounds = pretrained.load(model), 20
    with tqdm(total=rounds, desc="clustering", unit="round", disable=None) as bar:
        assigned = kmeans.cluster_rows(
            loaded.reference.head.tensor, clusters, seed, rounds, bar.update
        )
    index_file.write_index(out, assigned, {}, loaded.fingerprint, loaded.tokenizer.fingerprint)


def make_bigrams(model: str, domains: Sequence[str], out: Path) -> None:
    """Counts the bigrams of installed text and writes their graph. Raises ArgumentError,
    FileError."""
    loaded = pretrained.load(model)
    vocab_size, count = loaded.target.head.vocab_size, 0

    def read() -> Iterator[list[int]]:
        nonlocal count
        for domain in domains:
            documents = corpus.load_documents(domain, _COUNTED_BYTES)
            for text in tqdm(documents, domain, disable=None):
                ids = loaded.tokenizer.encode(text)
                count += len(ids)
                yield ids

    graph = bigrams.build_graph(*bigrams.count_bigrams(read(), vocab_size), vocab_size)
    details = {"domains": " ".join(domains), "tokens": str(count)}
    bigram_file.write_bigrams(out, graph, loaded.tokenizer.fingerprint, details)


def make_lowrank(
    model: Pretrained, draft: EagleDraft, rank: int, domains: Sequence[str], out: Path
) -> None:
    """Fits a low-rank head to the hidden states that the draft has on installed text, and writes
    its factors. Raises ArgumentError, FileError."""
    rows = model.reference.head.tensor
    if not 1 <= rank <= rows.shape[1]:  # before the draft reads any text
        raise ArgumentError(f"lowrank {rank} must lie in 1..{rows.shape[1]}, the hidden size")
    moment = torch.zeros(rows.shape[1], rows.shape[1], dtype=torch.float64)
    count = 0
    with tqdm(total=_READ_TOKENS * len(domains), unit="token", disable=None) as bar:
        for domain in domains:
            for hidden in _read_hidden_states(model, draft, domain):
                moment += hidden.double().T @ hidden.double()
                count += len(hidden)
                bar.update(len(hidden))
    factors = fit_factors(rows.float(), moment / max(count, 1), rank)
    lowrank_file.write_factors(out, factors, model.fingerprint)


def _read_hidden_states(model: Pretrained, draft: EagleDraft, domain: str) -> Iterator[Tensor]:
    """The draft's hidden states (T, D) on beginnings of a domain's documents."""
    left = _READ_TOKENS
    for text in corpus.load_documents(domain):
        ids = model.tokenizer.encode(text)[: min(_DOCUMENT, left)]
        if len(ids) < 2:
            continue
        [features] = prefill(model.reference, ids[:-1], model.reference.new_cache(len(ids)))
        states = draft.fuse(features.aux_hidden_states)
        output = draft.step(torch.tensor(ids[1:]), states, draft.new_cache(len(ids)))
        yield draft.apply_final_norm(output)
        left -= len(ids) - 1
        if left < 2:
            return
