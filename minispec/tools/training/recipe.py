"""The whole recipe of a shipped part, from nothing to the file: what ``minispec train draft``,
``minispec rank`` and ``minispec index build`` do. Each step is elsewhere; here they are put in
order, and what came out is kept together with the settings and figures that made it."""

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
from minispec.models import eagle_draft as drafts
from minispec.models.eagle_draft import EagleDraft
from minispec.shortlists import semantic
from minispec.shortlists.dynaspec import Router
from minispec.shortlists.frspec import truncate_ranking
from minispec.tools.data import corpus, distill, ranking
from minispec.tools.data.batches import ShardDataset, is_greedy
from minispec.tools.models import pretrained
from minispec.tools.models.pretrained import Pretrained
from minispec.tools.training import train_draft, train_router

_HELD_OUT = 40  # one sequence in so many is never trained on
_HELD_OUT_MOST = 48  # sequences that tau is measured on
_PROCESSES = 4  # that write text, of some 1.7 GB each
_DOCUMENT_BYTES = 4_000_000  # of installed text that a ranking counts, for each domain


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
) -> Path:
    """Has the target write ``tokens`` tokens, trains a draft on them ``epochs`` times, and
    keeps it as ``draft.safetensors`` beside ``training.json``. Goes on with what it finds.
    A model that is to continue texts is ``raw``. The weights are at first a copy of the target's
    last layer, or those of the draft in ``start``; ``rate`` is the highest learning rate.
    ``report`` is called at each line of figures."""
    base = raw or pretrained.is_base(model)
    for domain in domains:
        corpus.load_openers(domain, base)  # an unknown one is refused before any work
    if model in pretrained.SOURCES:
        pretrained.fetch(model)
    loaded = pretrained.load(model)
    torch.manual_seed(seed)
    if start:
        draft = draft_file.load_draft(start, loaded.reference, loaded.fingerprint)
    else:
        draft = drafts.init_from_target(loaded.reference)
    processes = min(torch.get_num_threads(), _PROCESSES)
    paths = []
    with tqdm(total=tokens, desc="writing", unit="token", disable=None) as bar:
        for path in distill.write_shards(
            folder, model, domains, tokens, seed, processes, base=base
        ):
            paths.append(path)
            bar.update(distill.count_answer_tokens(path))

    material = ShardDataset(paths)
    held_out = material.split(_HELD_OUT)
    greedy = (s for s in held_out if is_greedy(s, loaded.reference.head))
    examples = list(islice(greedy, _HELD_OUT_MOST))
    seen = math.ceil(epochs * sum(map(material.answer_tokens, range(len(material.places)))))
    config = train_draft.TrainConfig(
        tokens=seen, seed=seed, peak_rate=rate, start=str(start) if start else None
    )
    size = draft.head.vocab_size  # of a small one a part is enough as well
    common, others = min(config.common_ids, size // 4), min(config.random_ids, size // 8)
    config = replace(config, common_ids=common, random_ids=others)
    with tqdm(total=seen, desc="training", unit="token", disable=None) as bar:

        def progress(seen: int) -> None:
            bar.update(seen - bar.n)

        for line in train_draft.train(
            draft, material, examples, config, folder, loaded.fingerprint, progress
        ):
            bar.set_postfix(tau=line.get("tau"), loss=line["loss_1"])
            report()
    path = folder / "draft.safetensors"
    draft_file.save_draft(path, draft, loaded.fingerprint)
    return path


def count(
    model: Pretrained, texts: Sequence[Path], domains: Sequence[str], written: Path | None
) -> tuple[Tensor, dict[str, str]]:
    """Counts text into a ranking (V,): files, installed text of some domains, and what the
    model itself wrote on them (shards in ``written``), each source weighing the same; and says
    what was counted. Raises FileError for a source that cannot be read."""
    size = model.target.head.vocab_size
    sources = []
    for path in tqdm(texts, "counting", unit="file", disable=None):
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise FileError(f"cannot count {path}: {error}") from None
        sources.append(ranking.count_ids([model.tokenizer.encode(text)], size))
    for domain in domains:
        sources += _domain_counts(model, domain, written)
    return _ranked(sources, domains, texts)


def _domain_counts(model: Pretrained, domain: str, written: Path | None) -> list[Tensor]:
    size = model.target.head.vocab_size
    documents = corpus.load_documents(domain, _DOCUMENT_BYTES)
    encoded = (model.tokenizer.encode(text) for text in tqdm(documents, domain, disable=None))
    sources = [ranking.count_ids(encoded, size)]
    if written:
        shards = sorted(written.glob(f"{domain}-*.safetensors"))
        if not shards:
            raise FileError(f"{written} holds no text of domain {domain}")
        sources.append(ShardDataset(shards).counts(size))
    return sources


def _ranked(
    sources: Sequence[Tensor], domains: Sequence[str], texts: Sequence[Path]
) -> tuple[Tensor, dict[str, str]]:
    details = {
        "domains": " ".join(domains),
        "texts": " ".join(path.name for path in texts),
        "tokens": " ".join(str(int(counts.sum())) for counts in sources),
    }
    return ranking.rank_ids(ranking.mean_frequencies(sources)), details


def make_rankings(model: str, written: Path, folder: Path) -> None:
    """Writes all the rankings that a known model has, of installed text of each domain and of
    what the model wrote. Raises ArgumentError, FileError."""
    loaded = pretrained.load(model)
    counts = {}
    for domain in corpus.DOMAINS:  # a short run may not have come to all of them
        wrote = written if any(written.glob(f"{domain}-*")) else None
        counts[domain] = _domain_counts(loaded, domain, wrote)
    for name in ranking.NAMES:
        left_out = name.removeprefix("without-")
        domains = [d for d in corpus.DOMAINS if d != left_out]
        domains = ["general"] if name == "general" else domains
        ids, details = _ranked([c for d in domains for c in counts[d]], domains, ())
        keep_ranking(loaded, ids, None, details, folder / f"{name}.safetensors")


def keep_ranking(
    model: Pretrained, ids: Tensor, budget: int | None, details: dict[str, str], out: Path
) -> None:
    """Writes a ranking (N,), cut to a budget, the end ids in it, as ``.safetensors`` or ``.pt``."""
    if budget is not None:
        ids = truncate_ranking(ids, budget, model.tokenizer.eos_ids)
    if out.suffix == ".pt":
        ranking.write_token_map(out, ids)
    else:
        ranking.write_ranking(out, ids, model.tokenizer.fingerprint, details)


def make_index(model: str, clusters: int, seed: int, out: Path) -> None:
    """Clusters the rows of a model's head, and writes which id is in which cluster."""
    loaded, rounds = pretrained.load(model), 20
    with tqdm(total=rounds, desc="clustering", unit="round", disable=None) as bar:
        found = semantic.cluster_rows(
            loaded.reference.head.weight, clusters, seed, rounds, bar.update
        )
    index_file.write_index(out, found, {}, loaded.fingerprint, loaded.tokenizer.fingerprint)


def make_router(
    model: Pretrained, draft: EagleDraft, written: Path, tokens: int, seed: int, out: Path
) -> None:
    """Trains a router to the clusters of the model's index on text that the model wrote, and
    writes the index with it. Raises ArgumentError, FileError, FingerprintError."""
    identity = model.fingerprint, model.tokenizer.fingerprint
    index = index_file.find_index(model.name, model.index)
    clusters, _ = index_file.read_index(index, model.target.head.vocab_size, *identity)
    shards = sorted(written.glob("*-*.safetensors"))
    if not shards:
        raise FileError(f"{written} holds no text: give a folder made by `minispec train draft`")
    torch.manual_seed(seed)
    router, material = Router(draft.config.hidden_size, int(clusters.max()) + 1), ShardDataset(shards)
    with tqdm(total=tokens, desc="training", unit="token", disable=None) as bar:
        for seen, loss in train_router.train(router, draft, material, clusters, tokens, seed):
            bar.update(seen - bar.n)
            bar.set_postfix(loss=loss)
    index_file.write_index(out, clusters, router.state_dict(), *identity)
