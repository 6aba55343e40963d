"""All readers that are drilled."""

from drill import (
    readers_indexes,
    readers_models,
    readers_own,
    readers_text,
    readers_tokenizers,
    readers_training,
)
from drill.reader import Reader

READERS: tuple[Reader, ...] = (
    *readers_models.READERS,
    *readers_tokenizers.READERS,
    *readers_own.READERS,
    *readers_indexes.READERS,
    *readers_training.READERS,
    *readers_text.READERS,
)
