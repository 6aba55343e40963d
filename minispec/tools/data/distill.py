"""Text that the target wrote itself, with all that a draft can learn from it.

A draft is asked to guess what *this* target says next, so it learns from what this target
says. Prompts are made, not taken: an opener (the beginning of a user's message, one of ours)
is continued by the target into a whole message, and then answered by it, greedily or sampled.
For a base model the opener begins a text of any kind, and the answer is how it goes on. A
message that shares a run of eight words with an evaluation prompt is thrown away.

Each shard depends on the model, on the dtype that it is quicker in here (``products``) and on its
domain, number and seed alone: work that was interrupted goes on with the first shard that is
missing. Knows nothing of drafts.
"""

import itertools
import os
import random
import signal
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from multiprocessing import active_children, get_context, parent_process
from pathlib import Path
from threading import Thread

import torch
from torch import Tensor

from minispec.errors import ArgumentError, MinispecError
from minispec.io.files import open_safetensors, read_metadata, write_tensors
from minispec.models.transformer import Transformer
from minispec.sampling import Sampling, SeededRandom
from minispec.text.tokenizer import prompt_ids
from minispec.tools.data import corpus
from minispec.tools.data.batched_decode import decode_batch
from minispec.tools.models import matmul_dtype, pretrained
from minispec.types import Tokenizer

_ROWS = 96  # decoded at once
_MESSAGE_TOKENS = 40
_MESSAGE = Sampling(temperature=1.0, top_p=0.95)
_ANSWERS = (Sampling(temperature=0.0), Sampling(temperature=0.8))
_LENGTHS = (128, 128, 128, 320)  # new tokens at most, by shard: mostly short, some long


@dataclass(frozen=True, eq=False)
class Shard:
    """Sequences laid end to end: ``n`` ids, and the target's features at the same places.

    ``tokens`` (n,) int64; ``hidden`` (n, D) and ``aux_hidden_states`` (n, n_aux * D) bfloat16, the last
    position of each sequence zero, since the target never read it; ``starts`` (S,), ``answers``
    (S,) and ``ends`` (S,) int64: where each sequence, its answer and its end lie.
    """

    tokens: Tensor
    hidden: Tensor
    aux_hidden_states: Tensor
    starts: Tensor
    answers: Tensor
    ends: Tensor


def shard_path(folder: Path, domain: str, number: int) -> Path:
    """Where a shard is kept in a folder of them."""
    return folder / f"{domain}-{number:04d}.safetensors"


def write_shards(
    folder: Path,
    model: str,
    domains: Sequence[str],
    tokens: int,
    seed: int,
    processes: int,
    shard_prompts: int = 512,
    base: bool = False,
) -> Iterator[Path]:
    """Writes shards, round robin over the domains, until they hold ``tokens`` answer tokens;
    yields each path in order, of those that exist already at once. Each process decodes on
    one thread, which together write faster than one process does on as many threads. Raises
    ArgumentError for a folder of another run, MinispecError where a process dies."""
    written = 0
    shards: Iterator[tuple[str, int]]
    shards = ((domain, number) for number in itertools.count() for domain in domains)
    # What is there from an earlier call needs no processes.
    for domain, number in shards:
        path = shard_path(folder, domain, number)
        if written >= tokens or not path.exists():
            shards = itertools.chain([(domain, number)], shards)
            break
        _check_origin(path, model, seed)
        written += answer_tokens(path)
        yield path
    if written >= tokens:
        return
    work = partial(_write_shard, folder, model, seed, shard_prompts, base)
    others = set(active_children())
    with ProcessPoolExecutor(processes, get_context("spawn"), _prepare_process) as pool:
        try:
            ahead = deque(pool.submit(work, *next(shards)) for _ in range(processes + 1))
            while written < tokens:
                path = ahead.popleft().result()
                ahead.append(pool.submit(work, *next(shards)))
                written += answer_tokens(path)
                yield path
        except BrokenProcessPool:
            raise MinispecError(
                "a process that writes text was killed, perhaps for want of memory: "
                "use fewer --threads, since each has a process of its own"
            ) from None
        finally:
            # Processes are ended whatever they are at, perhaps in the middle of a file.
            for process in set(active_children()) - others:
                process.terminate()
            pool.shutdown(cancel_futures=True)
            for unfinished in folder.glob(".*.safetensors.*"):
                unfinished.unlink(missing_ok=True)


def _prepare_process() -> None:
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends this one
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Ends this process when the one that began it was killed and could not."""
    if parent := parent_process():
        parent.join()
        os._exit(1)


def _check_origin(path: Path, model: str, seed: int) -> None:
    metadata = read_metadata(path)
    if (metadata.get("model"), metadata.get("seed")) != (model, str(seed)):
        raise ArgumentError(
            f"{path} was written by model {metadata.get('model')} with seed "
            f"{metadata.get('seed')}, not by {model} with {seed}: give another folder"
        )


def answer_tokens(path: Path) -> int:
    """How many tokens of a shard are the target's answers. Raises FileError."""
    with open_safetensors(path) as file:
        return int((file.get_tensor("ends") - file.get_tensor("answers")).sum())


def messages(
    target: Transformer,
    tokenizer: Tokenizer,
    domain: str,
    count: int,
    seed: str,
    base: bool = False,
) -> list[str]:
    """``count`` user messages of a domain, or beginnings of texts: openers, continued by the
    target."""
    shuffled = random.Random(seed)
    openers = corpus.load_openers(domain, base)
    guard = corpus.OverlapGuard(
        text for name in corpus.DOMAINS for text in corpus.load_prompts(name, base)
    )
    beginning = prompt_ids(tokenizer, "", base)
    if not base:
        # An empty message shows where the user's words stand: before the last end of a turn.
        ends = [place for place, token in enumerate(beginning) if token in tokenizer.eos_ids]
        beginning = beginning[: ends[-1]]
    kept: list[str] = []
    while len(kept) < count:
        starts = [shuffled.choice(openers) for _ in range(count - len(kept))]
        prompts = [[*beginning, *tokenizer.encode(start)] for start in starts]
        randoms = [SeededRandom(shuffled.getrandbits(64)) for _ in starts]
        rows = sorted(
            decode_batch(
                target,
                prompts,
                [_MESSAGE] * len(starts),
                randoms,
                rows=_ROWS,
                max_new_tokens=_MESSAGE_TOKENS,
                eos_ids=tokenizer.eos_ids,
            ),
            key=lambda row: row.index,
        )
        if base:  # a text that has ended cannot go on
            rows = [row for row in rows if row.tokens[-1] not in tokenizer.eos_ids]
        texts = [starts[row.index] + tokenizer.decode(row.tokens) for row in rows]
        # A message twice would be answered twice, greedily in the same words.
        fresh = [text for text in dict.fromkeys(texts) if text not in kept]
        kept += [text for text in fresh if guard.shared(text) is None]
    return kept


def _write_shard(
    folder: Path, model: str, seed: int, shard_prompts: int, base: bool, domain: str, number: int
) -> Path:
    path = shard_path(folder, domain, number)
    if path.exists():
        _check_origin(path, model, seed)
        return path
    loaded = pretrained.load(model, str(matmul_dtype.fastest_dtype()).removeprefix("torch."))
    target, tokenizer = loaded.reference, loaded.tokenizer
    name = f"{seed} {domain} {number}"
    texts = messages(target, tokenizer, domain, shard_prompts, name, base)
    prompts = [prompt_ids(tokenizer, text, base) for text in texts]
    tokens: list[Tensor] = []
    hidden: list[Tensor] = []
    aux_hidden_states: list[Tensor] = []
    lengths: list[tuple[int, int]] = []
    for row in decode_batch(
        target,
        prompts,
        [_ANSWERS[i % len(_ANSWERS)] for i in range(len(prompts))],
        [SeededRandom(random.Random(f"{name} {i}").getrandbits(64)) for i in range(len(prompts))],
        rows=_ROWS,
        max_new_tokens=_LENGTHS[number % len(_LENGTHS)],
        eos_ids=tokenizer.eos_ids,
        keep_features=True,
    ):
        prompt, features = prompts[row.index], row.features
        assert features is not None  # asked for above
        tokens.append(torch.tensor([*prompt, *row.tokens]))
        unread = torch.zeros(1, features.hidden.shape[1], dtype=torch.bfloat16)
        hidden += [features.hidden.bfloat16(), unread]
        aux_hidden_states += [
            features.aux_hidden_states.bfloat16(),
            unread.repeat(1, len(target.config.aux_hidden_state_layer_ids)),
        ]
        lengths.append((len(prompt), len(prompt) + len(row.tokens)))
    answers, ends = torch.tensor(lengths).T
    starts = ends.cumsum(0) - ends
    write_tensors(
        path,
        {
            "tokens": torch.cat(tokens),
            "hidden": torch.cat(hidden),
            "aux_hidden_states": torch.cat(aux_hidden_states),
            "starts": starts,
            "answers": starts + answers,
            "ends": starts + ends,
        },
        {"model": model, "domain": domain, "seed": str(seed)},
    )
    return path
