"""The pocket pair: a target and its draft, both trained from scratch on a laptop in under an hour.

A tokenizer and a small Llama are trained on installed text (``minispec.tools.data.corpus``); the
model then gets a draft, rankings and an index as any other model does
(``minispec.tools.training.recipe``). The output folder has the layout of ``minispec/artifacts``.

A model of this size has learned little more than which words follow each other: it is for teaching
and for tests. An interrupted run resumes when it is started again.
"""

import hashlib
import io
import itertools
import math
import random
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import sentencepiece
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn
from tqdm import tqdm

from minispec.errors import FileError
from minispec.io.files import (
    Fingerprints,
    TensorSpec,
    check_fingerprints,
    read_metadata,
    read_tensors,
    write_aside,
    write_tensors,
)
from minispec.models.model_config import ModelConfig, default_aux_layer_ids
from minispec.models.transformer import Layer, Transformer
from minispec.tools.data import corpus
from minispec.tools.models import hf_folder, matmul_dtype
from minispec.tools.models.tokenizer_files import from_sentencepiece
from minispec.tools.training import indices, recipe
from minispec.tools.training.resumable import LogLine, TrainingConfig, TrainingRun, read_log

SHAPE = ModelConfig(
    vocab_size=8192,
    hidden_size=128,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,
    intermediate_size=384,
    context_limit=1024,
    aux_hidden_state_layer_ids=default_aux_layer_ids(4),
)
_BYTES = 8_000_000  # of installed text per domain, at most
_HELD_OUT = 40  # one in so many documents is held out of training
_HELD_OUT_WINDOWS = 32
_CLUSTERS = 512


@dataclass(frozen=True)
class TargetConfig(TrainingConfig):
    """How the target is trained; an update reads ``windows`` windows of ``length`` tokens."""

    peak_rate: float = 4e-3
    report: int = 100_000
    windows: int = 4
    length: int = 512


def make(folder: Path, tokens: int, draft_tokens: int, epochs: float, seed: int) -> Path:
    """Trains the target on ``tokens`` tokens, generates ``draft_tokens`` with it, and trains its
    draft on those for ``epochs`` epochs; returns the folder ``artifacts``, with the layout of
    ``minispec/artifacts/pocket``. ``curves.png`` in ``folder`` is redrawn after each log line.

    Raises ArgumentError if ``folder`` holds another run, FileError if no text is installed.
    """
    artifacts = folder / "artifacts"
    model = artifacts / "model"
    text = _prepare_text(folder / "text.safetensors", model / "tokenizer.model")
    dtype = matmul_dtype.keep_dtype(folder)
    if not (model / "model.safetensors").exists():
        _train_target(folder, text, TargetConfig(tokens, seed, dtype=dtype), model)
    draft = recipe.make_draft(
        str(model), corpus.DOMAINS, draft_tokens, epochs, seed, folder / "draft",
        raw=True, report=lambda: draw_curves(folder), dtype=dtype,
    )  # fmt: skip
    draw_curves(folder)  # a run that was killed before its last picture has no line left to draw
    copies = {
        folder / "target" / "training.json": model / "training.json",
        folder / "draft" / "training.json": artifacts / "draft.json",
        folder / "curves.png": model / "curves.png",
        draft: artifacts / "draft.safetensors",
    }
    for source, destination in copies.items():
        with write_aside(destination) as aside:
            aside.write_bytes(source.read_bytes())
    indices.make_clusters(str(model), _CLUSTERS, seed, artifacts / "index.safetensors")
    recipe.make_rankings(str(model), folder / "draft", artifacts / "rankings")
    return artifacts


def _prepare_text(path: Path, tokenizer_path: Path) -> dict[str, Tensor]:
    """Trains the tokenizer and encodes the text: ``train`` (n,) and ``held_out`` (m,), both int16,
    installed documents between BOS and EOS ids. Reads both from their files if they exist."""
    if path.exists():
        return _read_text(path, from_sentencepiece(tokenizer_path).fingerprint)
    kinds = itertools.product(corpus.DOMAINS, (False, True))
    guard = corpus.OverlapGuard(text for kind in kinds for text in corpus.load_prompts(*kind))
    documents = [
        document
        for domain in corpus.DOMAINS
        for document in tqdm(corpus.load_documents(domain, _BYTES), domain, disable=None)
        if guard.find_shared_run(document) is None
    ]
    # Every second line: this sample is enough to find the same pieces.
    lines = (line for text in documents for line in text.split("\n")[::2] if line)
    content = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=lines,
        model_writer=content,
        model_type="bpe",
        vocab_size=SHAPE.vocab_size,
        byte_fallback=True,  # any text can be encoded: characters without a piece become bytes
        # Decoding restores the text exactly, spaces and line breaks included.
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=False,
        allow_whitespace_only_pieces=True,
        split_digits=True,
        max_sentence_length=corpus.MAX_CHARACTERS,
        minloglevel=2,
    )
    with write_aside(tokenizer_path) as aside:
        aside.write_bytes(content.getvalue())
    tokenizer = from_sentencepiece(tokenizer_path)
    parts: dict[str, list[Tensor]] = {"train": [], "held_out": []}
    for number, document in enumerate(tqdm(documents, "encoding", disable=None)):
        ids = [tokenizer.bos_id, *tokenizer.encode(document), *tokenizer.eos_ids]
        part = parts["train" if number % _HELD_OUT else "held_out"]
        part.append(torch.tensor(ids, dtype=torch.int16))
    text = {part: torch.cat(pieces) for part, pieces in parts.items()}
    write_tensors(path, text, {"tokenizer": tokenizer.fingerprint})
    return text


def _read_text(path: Path, tokenizer: str) -> dict[str, Tensor]:
    """The text that ``_prepare_text`` wrote. Raises FileError, FingerprintError."""
    remedy = "delete it, and it is made again"
    check_fingerprints(path, read_metadata(path, Fingerprints), {"tokenizer": tokenizer}, remedy)
    spec = TensorSpec((None,), frozenset((torch.int16,)))
    text = read_tensors(path, {"train": spec, "held_out": spec})
    for part, ids in text.items():
        if not len(ids) or not 0 <= int(ids.min()) <= int(ids.max()) < SHAPE.vocab_size:
            raise FileError(
                f"{path}: {part} is empty or has ids outside 0..{SHAPE.vocab_size - 1}: {remedy}"
            )
    return text


def _train_target(folder: Path, text: dict[str, Tensor], config: TargetConfig, out: Path) -> None:
    needed = {"train": (config.windows + 1) * config.length, "held_out": config.length}
    for part, least in needed.items():
        if len(text[part]) <= least:
            raise FileError(
                f"the installed text has {len(text[part])} tokens for {part}, expected more than "
                f"{least}: install more packages with documentation"
            )
    run = _TargetRun(init_target(config.seed), text, config)
    digest = hashlib.sha256(text["train"].numpy().tobytes()).hexdigest()
    identity = {
        "config": asdict(config),
        "shape": asdict(SHAPE),
        "text": digest,
        "tokens": len(text["train"]),
    }
    with tqdm(total=config.tokens, desc="training", unit="token", disable=None) as bar:

        def progress(seen: int) -> None:
            bar.update(seen - bar.n)

        for line in run.train(folder / "target", identity, progress):
            bar.set_postfix(loss=line["loss_1"], held_out=line["held_out"])
            draw_curves(folder)
    hf_folder.save(out, run.model)


def init_target(seed: int) -> Transformer:
    """An untrained target, initialised as GPT-2: embeddings with standard deviation 0.02, and
    output projections scaled by 1 / sqrt(2 * layers)."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        target = Transformer(SHAPE)
        nn.init.normal_(target.embedding.weight, std=0.02)
        with torch.no_grad():
            for layer in _layers(target):
                layer.attention.output.weight *= (2 * SHAPE.num_hidden_layers) ** -0.5
                layer.mlp.down.weight *= (2 * SHAPE.num_hidden_layers) ** -0.5
    return target


def _layers(target: Transformer) -> list[Layer]:
    return [layer for layer in target.layers if isinstance(layer, Layer)]


def cross_entropy(target: Transformer, ids: Tensor) -> Tensor:
    """The mean cross-entropy (scalar, nats per token) of predicting each next id of (B, T + 1)."""
    (rows, length), weight = ids[:, 1:].shape, target.embedding.weight
    metadata = target.rope.attention_metadata(target.new_cache(length, rows), length)
    x = target.embedding(ids[:, :-1])  # (B, T, D)
    for layer in _layers(target):
        # Without the cache: writing into it in place would break the gradient.
        projected = layer.attention.project(layer.attention_norm(x), metadata.cos, metadata.sin)
        x = x + layer.attention.attend(*projected, metadata.mask)
        x = x + layer.mlp(layer.mlp_norm(x))
    # Row by row: logits that do not fit the processor's cache take twice as long. Not through
    # ``target.head``, whose weights are detached from the gradient.
    pairs = zip(target.norm(x), ids[:, 1:], strict=True)
    losses = [F.cross_entropy(F.linear(h, weight).float(), labels) for h, labels in pairs]
    return torch.stack(losses).mean()


class _TargetRun(TrainingRun):
    model: Transformer
    config: TargetConfig

    def __init__(self, target: Transformer, text: dict[str, Tensor], config: TargetConfig) -> None:
        super().__init__("target", target, config, _shuffle_windows(len(text["train"]), config))
        self.text = text
        ends = len(text["held_out"]) - config.length
        self.held_out = range(0, ends, max(1, ends // _HELD_OUT_WINDOWS))

    def compute_loss(self, generator: torch.Generator) -> tuple[Tensor, list[float], int]:
        ids = self._windows("train", next(self.order))
        loss = self._cross_entropy(ids)
        return loss, [loss.item()], ids[:, 1:].numel()

    @torch.no_grad()
    def evaluate(self) -> LogLine:
        losses = [self._cross_entropy(self._windows("held_out", [i])) for i in self.held_out]
        return {"held_out": round(float(torch.stack(losses).mean()), 4)}

    def _windows(self, part: str, starts: Iterable[int]) -> Tensor:
        length = self.config.length + 1
        return torch.stack([self.text[part][i : i + length] for i in starts]).long()

    def _cross_entropy(self, ids: Tensor) -> Tensor:
        with matmul_dtype.autocast(self.config.dtype):
            return cross_entropy(self.model, ids)


def _shuffle_windows(size: int, config: TargetConfig) -> Iterator[tuple[int, ...]]:
    """The starts of each update's windows: in each epoch all of the text once, in random order and
    cut at another offset."""
    for epoch in itertools.count():
        shuffled = random.Random(f"{config.seed} {epoch}")
        starts = list(range(shuffled.randrange(config.length), size - config.length, config.length))
        shuffled.shuffle(starts)
        yield from zip(*[iter(starts)] * config.windows, strict=False)  # full updates only


def draw_curves(folder: Path) -> None:
    """Draws the training logs in ``folder`` into its ``curves.png``."""
    figure = Figure(figsize=(12, 4), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    for part, axis, names, label in (
        ("target", left, ("loss_1", "held_out"), "target: cross-entropy, nats per token"),
        ("draft", middle, [f"loss_{n}" for n in (1, 2, 3, 4)], "draft: cross-entropy by step"),
        ("draft", right, ("tau",), "draft: tokens per target pass (tau), held out"),
    ):
        path = folder / part / "training.json"
        log = read_log(path) if path.exists() else []
        seen = [line["tokens"] / 1e6 for line in log]
        for name in names:
            axis.plot(seen, [line.get(name, math.nan) for line in log], label=name)
        axis.set(title=label, xlabel="million tokens seen")
        axis.grid(alpha=0.3)
        axis.legend()
    with write_aside(folder / "curves.png") as aside:
        figure.savefig(aside, format="png", dpi=100)
