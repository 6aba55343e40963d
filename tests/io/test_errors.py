"""Messages of errors: one line, whatever a damaged file has put into them."""

import pytest

from minispec.errors import FileError, MinispecError


@pytest.mark.parametrize("quoted", ["x" * 100_000, "a\nb\x1b[2J\0", "\ud800", "\n" * 5000])
def test_minispec_error_is_one_line(quoted: str) -> None:
    message = str(FileError(f"model/config.json: {quoted} is damaged"))
    assert message.isprintable() and len(message) <= 500
    assert message.startswith("model/config.json: ") and message.endswith(" is damaged")


def test_minispec_error_keeps_a_clear_message() -> None:
    message = "größe 東京: id 5 is outside 0..3; give one of them"
    assert str(MinispecError(message)) == message
