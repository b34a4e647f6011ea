"""Which samples of a large data set are used: by size, proportions, and what is known of them."""

import operator
import re
from dataclasses import dataclass

from sdjax.errors import SdjaxError

_COMPARED = {
    ">=": operator.ge, "<=": operator.le, "==": operator.eq, "!=": operator.ne, ">": operator.gt,
    "<": operator.lt,
}
_CONDITION = re.compile(r"\s*([\w.:-]+)\s*(>=|<=|==|!=|>|<)\s*(\S.*?)\s*")


@dataclass(frozen=True)
class Filter:
    """What a sample must satisfy.

    smallest: pixels of the shorter side, at least. max_aspect: of the longer side over the
    shorter, at most; 0 for any. keep: conditions such as "similarity>=0.3" on what comes with a
    sample, its JSON or its columns.
    """

    smallest: int = 0
    max_aspect: float = 0.0
    keep: tuple[str, ...] = ()

    def __post_init__(self):
        _parsed(self.keep)

    @property
    def of_sizes(self) -> bool:
        """Whether the size of a picture counts."""
        return bool(self.smallest or self.max_aspect)

    @property
    def names(self) -> list[str]:
        """Of what `keep` asks for."""
        return [name for name, _, _ in _parsed(self.keep)]

    def __bool__(self):
        return self.of_sizes or bool(self.keep)

    def accepts(self, width: int, height: int, known: dict) -> bool:
        """Whether a sample of this size, of which this is known, is used; one that lacks what a
        condition is about is not.
        """
        shorter, longer = sorted((width, height))
        if self.smallest and shorter < self.smallest:
            return False
        if self.max_aspect and longer > self.max_aspect * shorter:
            return False
        return all(
            _holds(known.get(name), compare, wanted)
            for name, compare, wanted in _parsed(self.keep)
        )


def _parsed(keep):
    found = []
    for text in keep:
        match = _CONDITION.fullmatch(text)
        if match is None:
            raise SdjaxError(
                f"data.keep: {text!r} is no condition such as similarity>=0.3: expected a name, "
                f"one of {' '.join(_COMPARED)}, and a value"
            )
        found.append((match[1], match[2], match[3]))
    return found


def _holds(value, compare, wanted):
    if value is None:
        return False
    try:
        return bool(_COMPARED[compare](float(value), float(wanted)))
    except (TypeError, ValueError):
        same = str(value) == wanted
        if compare not in ("==", "!="):
            return False
        return same if compare == "==" else not same
