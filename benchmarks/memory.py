"""Peak bytes of live tensors, for what runs under it and nothing else.

A dispatch mode sees every tensor that an operation makes, the backward pass's too; a storage
counts from then until it is freed. On a CUDA device ``torch.cuda.max_memory_allocated`` would
say the same of the allocator; this counts what was asked for, on any device.
"""

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Counts storages made while it is entered, until they are freed, in or out of it."""

    def __init__(self, ours: Callable[[], dict[str, Iterable[torch.Tensor]]]) -> None:
        """``ours``: the lasting tensors by kind, asked for at each peak; all else that lives
        then is called activations."""
        super().__init__()
        self.live, self.peak = 0, 0
        self.kinds: dict[str, int] = {}
        self._ours = ours
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known or not size:
            return
        self._known.add(key)
        weakref.finalize(storage, self._freed, key, size)
        self.live += size
        if self.live > self.peak:
            self.peak = self.live
            self.kinds = {name: _bytes(tensors) for name, tensors in self._ours().items()}

    def _freed(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size

    def split(self) -> dict[str, int]:
        """The peak by kind, in bytes."""
        kinds = dict(self.kinds)
        return {**kinds, "activations": self.peak - sum(kinds.values()), "peak": self.peak}


def _bytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum(tensor.untyped_storage().nbytes() for tensor in tensors)


class Watched:
    """A learner whose every call is counted, the making of it included: ``make`` makes it.
    The tensors of the draft and of the target, which plain speculation has too, are not."""

    def __init__(self, make: Callable[[], Any], shared: Iterable[torch.Tensor]) -> None:
        self.learner: Any = None
        self.live = LiveBytes(lambda: self.learner.tensors() if self.learner else {})
        self._shared = list(shared)
        for tensor in self._shared:
            self.live._known.add(tensor.untyped_storage()._cdata)
        with self.live:
            self.learner = make()
        self.draft, self.reaches_cache = self.learner.draft, self.learner.reaches_cache

    def __getattr__(self, name: str) -> Any:
        if name not in ("start", "on_prefill", "adjust_logits", "observe"):
            raise AttributeError(name)

        def counted(*arguments: Any) -> Any:
            # What a caller hands in was there before; views of it are not new either.
            for leaf in tree_leaves(arguments):
                if isinstance(leaf, torch.Tensor):
                    self.live._known.add(leaf.untyped_storage()._cdata)
            with self.live:
                return getattr(self.learner, name)(*arguments)

        return counted
