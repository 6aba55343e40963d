"""Peak memory of a learner: the bytes of live tensors, by kind.

A dispatch mode sees every tensor that an operation creates, those of the backward pass included.
The storage of a tensor is counted from then until it is freed. Unlike
``torch.cuda.max_memory_allocated`` this works on any device, and counts requested bytes.
"""

import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Counts storages created inside the mode until they are freed, inside or outside of it.

    ``live`` and ``peak`` are in bytes.
    """

    def __init__(self, find_tensors: Callable[[], Mapping[str, Iterable[torch.Tensor]]]) -> None:
        """``find_tensors``: returns the persistent tensors by kind, called at each new peak. All
        other tensors alive then are counted as activations."""
        super().__init__()
        self.live, self.peak = 0, 0
        self._peak_by_kind: dict[str, int] = {}
        self._find_tensors = find_tensors
        self._seen: set[int] = set()  # storages that are counted already, or excluded

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        return result

    def exclude(self, tensors: Any) -> None:
        """Do not count the storages of these tensors (any nesting), nor views of them."""
        for leaf in tree_leaves(tensors):
            if isinstance(leaf, torch.Tensor):
                self._seen.add(leaf.untyped_storage()._cdata)

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._seen or not size:
            return
        self._seen.add(key)
        weakref.finalize(storage, self._on_free, key, size)
        self.live += size
        if self.live > self.peak:
            self.peak = self.live
            kinds = self._find_tensors().items()
            self._peak_by_kind = {kind: _num_bytes(tensors) for kind, tensors in kinds}

    def _on_free(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.live -= size

    def peak_by_kind(self) -> dict[str, int]:
        """The bytes of each kind at the peak, the ``activations``, and the ``peak`` itself."""
        kinds = dict(self._peak_by_kind)
        return {**kinds, "activations": self.peak - sum(kinds.values()), "peak": self.peak}


def _num_bytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum(tensor.untyped_storage().nbytes() for tensor in tensors)


class MeasuredLearner:
    """A learner whose memory is counted, from its construction by ``build`` on.

    ``shared``: tensors of the draft and the target, which plain speculative decoding needs as
    well; they are not counted.
    """

    def __init__(self, build: Callable[[], Any], shared: Iterable[torch.Tensor]) -> None:
        self.learner: Any = None
        self.memory = LiveBytes(lambda: self.learner.tensors() if self.learner else {})
        self._shared = list(shared)  # kept alive, so that no other storage takes their address
        self.memory.exclude(self._shared)
        with self.memory:
            self.learner = build()
        self.draft, self.invalidates_cache = self.learner.draft, self.learner.invalidates_cache

    def __getattr__(self, name: str) -> Any:
        if name not in ("start", "on_prefill", "adjust_logits", "observe"):
            raise AttributeError(name)

        def call(*arguments: Any) -> Any:
            self.memory.exclude(arguments)  # the caller's
            with self.memory:
                return getattr(self.learner, name)(*arguments)

        return call
