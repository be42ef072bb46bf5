"""Text files that people write: editors and shells save them with marks and in encodings of their
own."""

from pathlib import Path

MARKS = (
    (b"\xff\xfe\x00\x00", "utf-32"),
    (b"\x00\x00\xfe\xff", "utf-32"),
    (b"\xef\xbb\xbf", "utf-8-sig"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)
"""Byte order marks; those of UTF-32 first, as one of them begins like one of UTF-16."""


def read_text(path: Path) -> str:
    """The text of a file: UTF-8, with or without a byte order mark, or UTF-16 or UTF-32 with one.

    Raises:
      OSError: the file cannot be read.
      UnicodeDecodeError: it is no such text.
    """
    return text_of(path.read_bytes())


def text_of(content: bytes) -> str:
    """The same, of a file's bytes."""
    text = content.decode(encoding_of(content) or "utf-8")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def encoding_of(content: bytes) -> str | None:
    """The encoding that the first bytes of a text tell; None where they tell none.

    UTF-16 without a mark is known by the zeros of its first letter.
    """
    for mark, encoding in MARKS:
        if content.startswith(mark):
            return encoding
    first = content[:2]
    if len(first) == 2 and first.count(0) == 1:
        return "utf-16-le" if first[1] == 0 else "utf-16-be"
    return None
