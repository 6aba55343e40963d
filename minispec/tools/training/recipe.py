"""How each shipped artifact is made, from start to file: what ``minispec train draft``, ``minispec
rank``, ``minispec index build`` and ``minispec train router`` run.

The steps themselves are in other modules; here they are put in order.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from minispec.errors import FileError
from minispec.io import draft_file, index_file
from minispec.io.schema import read_bytes
from minispec.models import eagle_draft as drafts
from minispec.models.eagle_draft import EagleDraft
from minispec.shortlists.dynaspec import Router
from minispec.shortlists.frspec import truncate_ranking
from minispec.tools.data import corpus, distill, ranking
from minispec.tools.data.batches import ShardDataset, is_greedy, make_batch
from minispec.tools.data.shards import count_answer_tokens, find_shards
from minispec.tools.models import known_models, pretrained
from minispec.tools.models.matmul_dtype import MatmulDtype, keep_dtype
from minispec.tools.models.pretrained import Pretrained
from minispec.tools.training import train_draft, train_router
from minispec.tools.training.draft_norms import add_norms

_HELD_OUT = 40  # one in so many sequences is held out of training
_HELD_OUT_MOST = 48  # held-out sequences that tau is measured on, at most
_NORMED = 16  # sequences that norms are fitted to, at most
_PROCESSES = 4  # that generate text, at most; each takes about 1.7 GB
_LARGEST_TEXT = 2**32  # bytes of a text to count
_DOCUMENT_BYTES = 4_000_000  # of installed text per domain that a ranking counts


def make_draft(
    model: str,
    domains: Sequence[str],
    tokens: int,
    epochs: float,
    seed: int,
    folder: Path,
    raw: bool = False,
    start: Path | None = None,
    rate: float = 2e-3,
    report: Callable[[], object] = lambda: None,
    dtype: MatmulDtype | None = None,
    on_loaded: Callable[[Pretrained], object] = lambda model: None,
    feature_weight: float = 0.5,
    norms: bool = False,
) -> Path:
    """Generates ``tokens`` answer tokens with the target, trains a draft on them for ``epochs``
    epochs, and writes it to ``draft.safetensors`` in ``folder``; returns that path. An interrupted
    call resumes when repeated.

    ``raw`` continues texts without a chat template, as base models always do. The draft starts
    from the target's last layer, or from the draft in ``start``; ``rate`` is the peak learning
    rate; ``report`` is called after each log line, ``on_loaded`` with the model; ``dtype``: in
    which matrices are multiplied, by default as ``keep_dtype`` says. ``feature_weight``: see
    ``TrainConfig``. ``norms`` adds those of EAGLE-3.1; a draft in ``start`` that has them keeps
    them.

    Raises ArgumentError for an unknown model or domain or the folder of another run, FileError for
    a damaged file, FingerprintError for a ``start`` of another model.
    """
    base = raw or known_models.is_base(model)
    for domain in domains:
        corpus.load_openers(domain, base)  # raises for an unknown domain before any work
    if model in known_models.SOURCES:
        known_models.fetch(model)
    loaded = pretrained.load(model)
    on_loaded(loaded)
    torch.manual_seed(seed)
    if start:
        draft = draft_file.load_draft(start, loaded.reference, loaded.fingerprint)
    else:
        draft = drafts.init_draft(loaded.reference)
    dtype = dtype or keep_dtype(folder)
    processes = min(torch.get_num_threads(), _PROCESSES)
    paths = []
    with tqdm(total=tokens, desc="generating", unit="token", disable=None) as bar:
        for path in distill.write_shards(
            folder, model, domains, tokens, seed, processes, base=base, dtype=dtype
        ):
            paths.append(path)
            bar.update(count_answer_tokens(path))

    dataset = ShardDataset(paths, loaded.reference.config)
    greedy = (s for s in dataset.hold_out(_HELD_OUT) if is_greedy(s, loaded.reference.head))
    held_out = list(islice(greedy, _HELD_OUT_MOST))
    if norms and not draft.norms:
        few = [dataset.read_sequence(index) for index in range(min(_NORMED, len(dataset)))]
        draft = add_norms(draft, make_batch(few))
    seen = math.ceil(epochs * sum(map(dataset.answer_length, range(len(dataset)))))
    config = train_draft.TrainConfig(
        tokens=seen, seed=seed, peak_rate=rate, start=str(start) if start else None, dtype=dtype,
        feature_weight=feature_weight, norms=draft.norms,
    )  # fmt: skip
    size = draft.head.vocab_size  # of a small vocabulary too, a part is enough for the loss
    common, others = min(config.common_ids, size // 4), min(config.random_ids, size // 8)
    config = replace(config, common_ids=common, random_ids=others)
    with tqdm(total=seen, desc="training", unit="token", disable=None) as bar:

        def progress(seen: int) -> None:
            bar.update(seen - bar.n)

        for line in train_draft.train(
            draft,
            dataset,
            held_out,
            config,
            folder,
            loaded.fingerprint,
            progress,
            loaded.reference.head,
        ):
            bar.set_postfix(tau=line.get("tau"), loss=line["loss_1"])
            report()
    path = folder / "draft.safetensors"
    draft_file.save_draft(path, draft, loaded.fingerprint)
    return path


def count_texts(
    model: Pretrained, texts: Sequence[Path], domains: Sequence[str], shards: Path | None
) -> tuple[Tensor, dict[str, str]]:
    """Counts text into a ranking (V,): files, installed text of some domains, and text that the
    model generated on them (in a folder of ``shards``). Each source has the same weight. Returns
    the ranking and the details of its sources for its file. Raises FileError for a source that
    cannot be read."""
    size = model.target.head.vocab_size
    sources = []
    for path in tqdm(texts, "counting", unit="file", disable=None):
        try:
            text = read_bytes(path, _LARGEST_TEXT).decode()
        except UnicodeDecodeError as error:
            raise FileError(
                f"{path} is not UTF-8 text: {error.reason} at byte {error.start}"
            ) from None
        sources.append(ranking.count_ids([model.tokenizer.encode(text)], size))
    for domain in domains:
        sources += _count_domain(model, domain, shards)
    return _rank_counts(sources, domains, texts)


def _count_domain(model: Pretrained, domain: str, shards: Path | None) -> list[Tensor]:
    """Counts (V,) of a domain's installed text and, given a folder of shards, generated text."""
    size = model.target.head.vocab_size
    documents = corpus.load_documents(domain, _DOCUMENT_BYTES)
    encoded = (model.tokenizer.encode(text) for text in tqdm(documents, domain, disable=None))
    sources = [ranking.count_ids(encoded, size)]
    if shards:
        paths = find_shards(shards, domain)
        if not paths:
            raise FileError(f"{shards} holds no generated text of domain {domain}")
        sources.append(ShardDataset(paths, model.reference.config).count_ids(size))
    return sources


def _rank_counts(
    sources: Sequence[Tensor], domains: Sequence[str], texts: Sequence[Path]
) -> tuple[Tensor, dict[str, str]]:
    details = {
        "domains": " ".join(domains),
        "texts": " ".join(path.name for path in texts),
        "tokens": " ".join(str(int(counts.sum())) for counts in sources),
    }
    return ranking.rank_ids(ranking.mean_frequencies(sources)), details


def make_rankings(model: str, shards: Path, folder: Path) -> None:
    """Writes all rankings that ship with a model (``ranking.NAMES``), counted on installed text of
    each domain and on text that the model generated. Raises ArgumentError, FileError."""
    loaded = pretrained.load(model)
    counts = {}
    for domain in corpus.DOMAINS:  # a short run may not have generated text of each domain
        generated = shards if find_shards(shards, domain) else None
        counts[domain] = _count_domain(loaded, domain, generated)
    for name in ranking.NAMES:
        left_out = name.removeprefix("without-")
        domains = [d for d in corpus.DOMAINS if d != left_out]
        domains = ["general"] if name == "general" else domains
        ids, details = _rank_counts([c for d in domains for c in counts[d]], domains, ())
        save_ranking(loaded, ids, None, details, folder / f"{name}.safetensors")


def save_ranking(
    model: Pretrained, ids: Tensor, budget: int | None, details: dict[str, str], out: Path
) -> None:
    """Writes a ranking (N,) as ``.safetensors`` or as a token map (``.pt``), given a budget cut to
    so many ids, the EOS ids among them."""
    if budget is not None:
        ids = truncate_ranking(ids, budget, model.tokenizer.eos_ids)
    if out.suffix == ".pt":
        ranking.write_token_map(out, ids)
    else:
        ranking.write_ranking(out, ids, model.tokenizer.fingerprint, details)


def make_router(
    model: Pretrained, draft: EagleDraft, shards: Path, tokens: int, seed: int, out: Path
) -> None:
    """Trains a router over the clusters of the model's index on text that the model generated, and
    writes the index with the router. Raises ArgumentError, FileError, FingerprintError."""
    identity = model.fingerprint, model.tokenizer.fingerprint
    index = index_file.find_index(model.name, model.index)
    clusters, _ = index_file.read_index(index, model.target.head.vocab_size, *identity)
    paths = find_shards(shards)
    if not paths:
        raise FileError(
            f"{shards} holds no generated text: give a folder made by `minispec train draft`"
        )
    torch.manual_seed(seed)
    router = Router(draft.config.hidden_size, int(clusters.max()) + 1)
    dataset = ShardDataset(paths, draft.config)
    with tqdm(total=tokens, desc="training", unit="token", disable=None) as bar:
        for seen, loss in train_router.train(router, draft, dataset, clusters, tokens, seed):
            bar.update(seen - bar.n)
            bar.set_postfix(loss=loss)
    index_file.write_index(out, clusters, router.state_dict(), *identity)
