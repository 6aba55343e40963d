"""Small tokenizers trained on a module of the standard library, and their files."""

import json
from pathlib import Path

import pytest
import sentencepiece
import tokenizers
from tokenizers import decoders, normalizers, pre_tokenizers
from tokenizers.pre_tokenizers import ByteLevel

from helpers.texts import STDLIB

# Settings with which SentencePiece gives back every text unchanged.
LOSSLESS = {
    "vocab_size": 600,
    "byte_fallback": True,
    "normalization_rule_name": "identity",
    "remove_extra_whitespaces": False,
}


def train_byte_level(pre_tokenizer, **options) -> tokenizers.Tokenizer:
    """A byte-level BPE of 700 tokens, all 256 bytes included, trained on a stdlib module."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(**options))
    tokenizer.pre_tokenizer = pre_tokenizer
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=["<|im_start|>", "<|im_end|>", "<|im"],
        initial_alphabet=ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([(STDLIB / "argparse.py").read_text("utf-8")], trainer)
    return tokenizer


def to_gguf_fields(tokenizer: tokenizers.Tokenizer, pre: str) -> dict:
    """The GGUF metadata of a tokenizer of the `tokenizers` library."""
    data = json.loads(tokenizer.to_str())
    names = sorted(data["model"]["vocab"], key=data["model"]["vocab"].get)
    special = {token["content"] for token in data["added_tokens"]}
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": names,
        "tokenizer.ggml.token_type": [3 if name in special else 1 for name in names],
        "tokenizer.ggml.merges": [" ".join(pair) for pair in data["model"]["merges"]],
        "tokenizer.ggml.eos_token_id": 1,
    }


def save_tokenizer(tokenizer: tokenizers.Tokenizer, folder: Path, change=lambda data: None) -> Path:
    """The tokenizer's tokenizer.json, changed, in a folder."""
    data = json.loads(tokenizer.to_str())
    change(data)
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(data), "utf-8")
    return path


def train_sentencepiece(folder: Path, **options) -> Path:
    """A SentencePiece model trained on a stdlib module."""
    text = folder / "text.txt"
    text.write_text((STDLIB / "argparse.py").read_text("utf-8"), "utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(folder / "small"), minloglevel=2, **options
    )
    return folder / "small.model"


def one_line(error: pytest.ExceptionInfo) -> str:
    """The message of an error, which must be one short line."""
    message = str(error.value)
    assert "\n" not in message and len(message.encode()) < 500
    return message


def convert_sentencepiece(path: Path, scheme: str) -> tokenizers.Tokenizer:
    """A SentencePiece BPE model as a `tokenizer.json` has it. ``scheme``: as transformers 5 writes
    it, with a space before a text's first part ("first"), as older versions do ("prepend"), or
    without that space, as Gemma ("never")."""
    model = sentencepiece.SentencePieceProcessor(model_file=str(path))
    ids = range(model.get_piece_size())
    vocab = {model.id_to_piece(i): i for i in ids}
    pairs = [
        (-model.get_score(i), len(piece[:k]), piece[:k], piece[k:])
        for piece, i in vocab.items()
        for k in range(1, len(piece))
        if piece[:k] in vocab and piece[k:] in vocab and not model.is_byte(i)
    ]
    merges = [(left, right) for _, _, left, right in sorted(pairs)]
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.BPE(
            vocab=vocab, merges=merges, byte_fallback=True, fuse_unk=True, unk_token="<unk>"
        )
    )
    space = "\u2581"
    steps = [decoders.Replace(space, " "), decoders.ByteFallback(), decoders.Fuse()]
    if scheme == "first":
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    elif scheme == "prepend":
        parts = [normalizers.Prepend(space), normalizers.Replace(" ", space)]
        tokenizer.normalizer = normalizers.Sequence(parts)
    else:
        tokenizer.normalizer = normalizers.Replace(" ", space)
        tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    steps += [] if scheme == "never" else [decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return tokenizer
