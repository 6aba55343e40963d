"""The map of a reduced draft vocabulary: ``d2t`` and ``t2d`` of an EAGLE-3 draft.

``d2t[i]`` is an offset: draft id i stands for the target's id i + d2t[i]. ``t2d`` marks the ids of
the target that have a draft id. A wrong map changes no output, since verification corrects it, but
hardly anything is accepted; so everything that gives one away is refused, or warned of.

Knows nothing of files.
"""

import warnings
from collections.abc import Mapping

import torch
from torch import Tensor

from minispec.errors import FileError, FileWarning, FingerprintError

_INTEGERS = (torch.int32, torch.int64)
_LEAST_COVERED = 0.5  # of ordinary text; useful maps have nearly all of it
_LONG = 64  # ids; so many of a frequency list are never two or more apart throughout
ORDINARY_TEXT = """\
The sky is blue because the air scatters short waves more than long ones. When the sun is low, its
light has a longer way through the air, so that what is left of it looks red. People have asked
about this for a long time, and the answer was found only in the last two hundred years. You can
see the same thing at home: put some milk into a glass of water, hold a lamp next to it, and look
at the light from the side and from the other end.
"""


def read_map(tensors: Mapping[str, Tensor], rows: int, vocab_size: int, origin: str) -> Tensor:
    """The target's id of each of ``rows`` rows of the draft's head: (K,) int64, in their order.

    ``tensors`` has "d2t" (K,), "t2d" (V,), one or both. Raises FileError for a map that cannot be
    right, FingerprintError for one of another vocabulary; warns of one that names the first ids.
    """
    d2t, t2d = tensors.get("d2t"), tensors.get("t2d")
    marked = None if t2d is None else _read_mask(t2d, rows, vocab_size, origin)
    if d2t is None:
        assert marked is not None
        return marked
    if d2t.dim() != 1 or d2t.dtype not in _INTEGERS:
        raise FileError(
            f"{origin}: d2t is {_name(d2t)}, expected offsets: one int64 for each draft id"
        )
    if len(d2t) != rows:
        hint = ", as if the target's head had overwritten the draft's" if rows == vocab_size else ""
        raise FileError(
            f"{origin}: d2t has {len(d2t)} entries, but lm_head {rows} rows{hint}: they must be as "
            "many"
        )
    ids = torch.arange(rows) + d2t.to(torch.int64)  # (K,)
    ascending = rows > 1 and bool((d2t[1:] > d2t[:-1]).all())
    if ascending and (rows >= _LONG or int(ids.max()) >= vocab_size):
        raise FileError(
            f"{origin}: d2t looks like ids, not like offsets: store ids - arange(len(ids))"
        )
    if int(ids.min()) < 0 or int(ids.max()) >= vocab_size:
        raise FingerprintError(
            f"{origin}: d2t leads to ids {int(ids.min())}..{int(ids.max())}, the model has "
            f"0..{vocab_size - 1}: the map is of another tokenizer"
        )
    _check_filled(d2t, marked, vocab_size, origin)
    if repeated := rows - len(ids.unique()):
        raise FileError(f"{origin}: d2t leads to {repeated} ids twice: the map is damaged")
    if marked is not None and not torch.equal(ids.sort().values, marked):
        wrong = len(set(marked.tolist()) - set(ids.tolist()))
        raise FileError(
            f"{origin}: t2d disagrees with d2t: {wrong} of {rows} ids that it marks have no entry "
            "in d2t"
        )
    return ids


def _read_mask(t2d: Tensor, rows: int, vocab_size: int, origin: str) -> Tensor:
    """The ids (K,) that t2d marks, ascending."""
    if t2d.dim() != 1 or t2d.dtype != torch.bool:
        raise FileError(
            f"{origin}: t2d is {_name(t2d)}, expected a mask: one bool for each id of the target"
        )
    if len(t2d) != vocab_size:
        raise FingerprintError(
            f"{origin}: t2d has {len(t2d)} entries, the model {vocab_size} ids: the map is of "
            "another tokenizer"
        )
    marked = t2d.nonzero().flatten()
    if len(marked) != rows:
        raise FileError(f"{origin}: t2d marks {len(marked)} ids, but lm_head has {rows} rows")
    return marked


def _check_filled(d2t: Tensor, marked: Tensor | None, vocab_size: int, origin: str) -> None:
    """Offsets of zero name the first K ids: mostly a map that was created and never filled."""
    rows = len(d2t)
    if rows == vocab_size or bool(d2t.any()):
        return
    if marked is None or int(marked[-1]) != rows - 1:
        what = "" if marked is None else ", but t2d marks others"
        raise FileError(
            f"{origin}: d2t is all zeros, which names the first {rows} ids{what}: the map was "
            "never filled"
        )
    warnings.warn(
        f"{origin}: d2t is all zeros and t2d marks the first {rows} ids: right only if the draft "
        "was trained on these; few tokens are accepted otherwise",
        FileWarning,
        stacklevel=4,
    )


def check_head(rows: Tensor, ids: Tensor, target_rows: Tensor, origin: str) -> None:
    """Raises FileError if the rows (K, D) of a draft's head, those of the target's ``ids`` (K,),
    are the first K of the target's rows (V, D): a loader wrote its head over the draft's."""
    count = len(rows)
    if rows.shape[1] != target_rows.shape[1] or torch.equal(ids, torch.arange(count)):
        return
    if torch.equal(rows.to(target_rows.dtype), target_rows[:count]):
        raise FileError(
            f"{origin}: lm_head holds the target's first {count} rows, not those of the ids in "
            "d2t: the target's head was written over the draft's"
        )


def check_coverage(ids: Tensor, text: Tensor, origin: str) -> None:
    """Warn if the map's ids (K,) have little of ordinary text, ids (T,): those of another tokenizer
    with as large a vocabulary are all in range."""
    share = float(torch.isin(text, ids).double().mean())
    if share < _LEAST_COVERED:
        warnings.warn(
            f"{origin}: only {share:.0%} of ordinary English text is in the {len(ids)} ids of d2t: "
            "a map of another tokenizer, or a draft for other text",
            FileWarning,
            stacklevel=4,
        )


def _name(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
