"""Bytes as text: UTF-8 alone, and what is not is named with its place.

Knows nothing of files.
"""

from minispec.errors import TextError


def decode_utf8(content: bytes, origin: str) -> str:
    """UTF-8, with or without a byte order mark, as text with Unix line ends. ``origin`` names the
    source in errors. Raises TextError."""
    try:
        return content.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        before = content[: error.start].decode()
        line, column = before.count("\n") + 1, len(before) - before.rfind("\n") - 1
        at = f"line {line}, character {column}" if line > 1 else f"character {column}"
        raise TextError(
            f"{origin} is not UTF-8: byte 0x{content[error.start]:02x} at {at}; convert it to UTF-8"
        ) from None
