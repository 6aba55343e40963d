"""Damage that knows nothing of a format: truncation, bit flips, splices, random bytes, and places
in the file system that are not files."""

import os
import random
import socket
from contextlib import suppress
from pathlib import Path


def damage_bytes(content: bytes, rng: random.Random) -> tuple[bytes, str]:
    """The damaged content, and what was done to it."""
    size = len(content)
    how = rng.choice(("cut", "cut", "flip", "flip", "flips", "splice", "insert", "random", "zeros",
                      "empty", "twice"))  # fmt: skip
    # Most of a file's rules are about its first bytes.
    limit = size if rng.random() < 0.5 else min(size, 4096)
    at, other = rng.randrange(max(1, limit)), rng.randrange(max(1, size))
    length = rng.choice((1, 2, 4, 8, 16, 64, 1000))
    if how == "cut":
        return content[: rng.choice((at, other, size - 1))], how
    if how in ("flip", "flips"):
        changed = bytearray(content)
        for _ in range(1 if how == "flip" else 16):
            if size:
                changed[rng.randrange(max(1, limit))] ^= 1 << rng.randrange(8)
        return bytes(changed), how
    if how == "splice":
        return content[:at] + content[other : other + length] + content[at + length :], how
    if how == "insert":
        return content[:at] + rng.randbytes(length) + content[at:], how
    if how == "random":
        return rng.randbytes(rng.choice((1, 8, 100, 5000))), how
    if how == "zeros":
        return content[:at] + bytes(length) + content[at + length :], how
    return (content + content if how == "twice" else b""), how


SPECIAL = ("pipe", "link to /dev/zero", "link to /dev/urandom", "link to itself", "folder",
           "broken link", "socket", "link to a folder", "two links in a circle", "missing",
           "link to /dev/stdin", "link to /proc/self/mem")  # fmt: skip


def place_special(path: Path, rng: random.Random) -> str:
    """Replace a file by something that is not one; returns what."""
    kind = rng.choice(SPECIAL)
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "link to itself":
        path.symlink_to(path)
    elif kind == "broken link":
        path.symlink_to(path.with_name("nowhere"))
    elif kind == "link to a folder":
        path.symlink_to(path.parent)
    elif kind == "two links in a circle":
        other = path.with_name(path.name + ".other")
        other.symlink_to(path)
        path.symlink_to(other)
    elif kind == "socket":
        with suppress(OSError), socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))  # a path of more than 107 bytes is refused
    elif kind.startswith("link to /"):
        path.symlink_to(kind.removeprefix("link to "))
    return kind
