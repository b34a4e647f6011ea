"""Text files that a person may have edited, with whatever editor."""

import codecs
import os
from pathlib import Path

from .errors import SdjaxError

# The marks that editors put before a text, UTF-32's before UTF-16's, which begins like it.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)

LFS_POINTER = b"version https://git-lfs"
"""What a file begins with that git-lfs left in place of another one."""


def is_pointer(path: str | os.PathLike) -> bool:
    """Whether a file is a pointer of git-lfs; False where it cannot be read."""
    try:
        with open(path, "rb") as file:
            return file.read(len(LFS_POINTER)) == LFS_POINTER
    except (OSError, ValueError):
        return False


def read_text(path: str | os.PathLike) -> str:
    """The text of a file in UTF-8, or in the UTF that a byte-order mark at its start names.

    The mark is no part of the text. Line ends are as in the file. Raises SdjaxError, which names
    the file, where it cannot be read or is no such text.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise SdjaxError(f"cannot read {path}: {error.strerror}") from error
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise SdjaxError(
            f"{path} is not {encoding.removesuffix('-sig').upper()} text (line {line}): "
            "save it as UTF-8"
        ) from error
    if "\0" in text:  # UTF-16 without a mark, or no text at all
        raise SdjaxError(f"{path} is not UTF-8 text (it holds zero bytes): save it as UTF-8")
    return text
