r"""How byte-level BPE splits text before it merges, under the names of llama.cpp's pre-tokenizers.

One or several patterns, each of which splits the pieces that the one before it left; what a pattern
does not match is a piece too. No token crosses a split.

The facts are those of llama.cpp's `src/llama-vocab.cpp`. Only names whose patterns are among these
are known: others split in ways that nothing here was compared with.

Knows nothing of files.
"""

from dataclasses import dataclass

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_UPPER, _LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]*[{_LOWER}]+|[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]+[{_LOWER}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class Splitting:
    """Patterns, and what llama.cpp sets with them: whether a piece that is a token is that token,
    even if no merges lead to it, and whether BOS goes before a text unless the file says it."""

    patterns: tuple[str, ...]
    ignore_merges: bool = False
    add_bos: bool = False


_GROUPS = {
    Splitting((_GPT2,)): (
        "gpt-2 phi-2 jina-es jina-de jina-v2-es jina-v2-de gigachat a.x-4.0 mellum modern-bert mpt "
        "olmo jais trillion granite-docling exaone4"
    ),
    # Every digit alone, and the rest as GPT-2 does.
    Splitting((r"\p{N}", _GPT2)): (
        "smollm starcoder refact command-r codeshell exaone minerva-7b mellum2"
    ),
    Splitting((LLAMA3,), ignore_merges=True, add_bos=True): (
        "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2"
    ),
    Splitting((LLAMA3,)): "dbrx smaug-bpe glm4 chatglm-bpe",
    Splitting((_QWEN2,)): (
        "qwen2 deepseek-r1-qwen kormo f2llmv2 stablelm2 hunyuan solar-open megrez"
    ),
    Splitting((_TEKKEN,), ignore_merges=True, add_bos=True): "tekken",
    # llama.cpp's choice for files that do not know better.
    Splitting((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")): "default",
}
SPLITTINGS = {name: splitting for splitting, names in _GROUPS.items() for name in names.split()}
