"""Tokenizers that several test files share: SmolLM2's, and small ones trained here."""

from pathlib import Path

import gguf
import pytest
import tokenizers
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence

from helpers.small_tokenizers import LOSSLESS, to_gguf_fields, train_byte_level, train_sentencepiece
from minispec.errors import FetchError
from minispec.text.hugging_face_tokenizer import HuggingFaceTokenizer
from minispec.text.sentencepiece_tokenizer import SentencePieceTokenizer
from minispec.tools.models import known_models
from minispec.tools.models.gguf_tokenizer import from_gguf_fields
from minispec.tools.models.tokenizer_files import from_sentencepiece


@pytest.fixture(scope="session")
def gguf_path() -> Path:
    try:
        return known_models.fetch("smollm2")
    except FetchError as error:
        pytest.skip(f"needs the real model: {error}")


@pytest.fixture(scope="session")
def metadata(gguf_path):
    reader = gguf.GGUFReader(gguf_path)
    return {
        name: field.contents()
        for name, field in reader.fields.items()
        if name.startswith("tokenizer.")
    }


@pytest.fixture(scope="session")
def smollm2(metadata) -> HuggingFaceTokenizer:
    return from_gguf_fields(metadata)


@pytest.fixture(scope="session")
def oracle(gguf_path):
    """The tokenizer of transformers, with the digit split that its GGUF reader omits."""
    transformers = pytest.importorskip("transformers")
    oracle = transformers.AutoTokenizer.from_pretrained(gguf_path.parent, gguf_file=gguf_path.name)
    backend = oracle.backend_tokenizer
    backend.pre_tokenizer = Sequence([Digits(individual_digits=True), backend.pre_tokenizer])
    return oracle


@pytest.fixture(scope="session")
def small() -> tokenizers.Tokenizer:
    return train_byte_level(
        Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)])
    )


@pytest.fixture(scope="session")
def small_gguf(small) -> dict:
    return to_gguf_fields(small, "smollm")


@pytest.fixture(scope="session")
def small_tokenizer(small_gguf) -> HuggingFaceTokenizer:
    return from_gguf_fields(small_gguf)


@pytest.fixture(scope="session")
def pieces(tmp_path_factory) -> SentencePieceTokenizer:
    return from_sentencepiece(train_sentencepiece(tmp_path_factory.mktemp("sp"), **LOSSLESS))


@pytest.fixture(params=["small_tokenizer", "pieces", "smollm2"])
def any_tokenizer(request):
    return request.getfixturevalue(request.param)
