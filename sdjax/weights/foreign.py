"""Files that are no weights or weights in a form that is not read, told by what they begin with."""

import re
from collections.abc import Iterable
from pathlib import Path

from sdjax.errors import SdjaxError
from sdjax.text_files import LFS_POINTER

SAFETENSORS = b"\0\0\0\0{"  # the end of a header's length, and the header's first letter
_LENGTH = 64
_BEGINNINGS = (
    (
        re.compile(re.escape(LFS_POINTER)),
        "is a git-lfs pointer, not the weights themselves: run `git lfs pull` in its repository, or "
        "download the file itself",
    ),
    (
        re.compile(rb"\s*<(!doctype|html|\?xml)", re.IGNORECASE),
        "is a web page, not weights: the download was answered by a page, perhaps one that asks to "
        "log in",
    ),
    (
        re.compile(rb"\s*\{\s*\""),
        "is a text file of JSON, not weights",
    ),
    (
        re.compile(rb"GGUF"),
        "is a GGUF file, which holds a model: it cannot be read as anything else",
    ),
)
_QUANTISED = (
    (re.compile(r".*\.(absmax|quant_map|nested_absmax|quant_state\..*)$"),
     "of 4 bits by bitsandbytes that are not whole"),
    (re.compile(r".*\.(SCB|weight_format)$"), "of 8 bits by bitsandbytes that are not whole"),
    (re.compile(r".*\.(qweight|qzeros)$"), "quantised by GPTQ or AWQ"),
)  # fmt: skip


def first_bytes(path: Path) -> bytes:
    """The first bytes of a file; SdjaxError where they are those of something else than weights."""
    try:
        with path.open("rb") as file:
            head = file.read(_LENGTH)
    except OSError as error:
        raise SdjaxError(f"cannot read {path}: {error.strerror}") from error
    if head[4:9] == SAFETENSORS:
        return head
    for pattern, what in _BEGINNINGS:
        if pattern.match(head):
            raise SdjaxError(f"{path} {what}")
    return head


def is_gguf(path: Path) -> bool:
    """Whether a file begins as GGUF does."""
    try:
        with path.open("rb") as file:
            return file.read(4) == b"GGUF"
    except OSError as error:
        raise SdjaxError(f"cannot read {path}: {error.strerror}") from error


def refuse_quantised(path: Path, keys: Iterable[str]) -> None:
    """Raises SdjaxError where tensors say that the weights are quantised in a way not read."""
    for key in keys:
        for pattern, what in _QUANTISED:
            if pattern.match(key):
                raise SdjaxError(
                    f"{path} holds weights {what} ({key}): these are not read; take the model in "
                    "float32, float16, bfloat16, fp8, GGUF, or the nf4 or int8 of bitsandbytes"
                )
