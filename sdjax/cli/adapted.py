"""The options of `sdjax sample` for what was trained on top of a model: --lora and --word."""

from collections.abc import Mapping
from pathlib import Path

from sdjax.errors import SdjaxError, check_finite


def weights(lora: tuple[str, ...]) -> dict[str, float]:
    """The weight of each file that --lora names, as FILE or FILE:WEIGHT.

    Raises SdjaxError for what is neither, or not there, before anything is read.
    """
    found = {}
    for one in lora:
        path, weight = one, 1.0
        if not Path(one).exists() and ":" in one:
            path, _, number = one.rpartition(":")
            try:
                weight = float(number)
            except ValueError:
                raise SdjaxError(f"--lora must be FILE or FILE:WEIGHT, got {one}") from None
        check_finite(**{f"the weight of --lora {path}": weight})
        if not Path(path).exists():
            raise SdjaxError(f"no such adapter: {path}")
        if path in found:
            raise SdjaxError(f"--lora names {path} twice: give it once")
        found[path] = weight
    return found


def check_words(word: tuple[Path, ...]) -> None:
    """SdjaxError for a learned word that is not there, before anything is read."""
    for path in word:
        if not path.is_file():
            raise SdjaxError(f"no such learned word: {path}")


class Adapters:
    """Those of a model, each read once; others count from picture to picture."""

    def __init__(self, model):
        self.model, self.counting = model, {}

    def count(self, wanted: Mapping[str, float]) -> None:
        """Makes these the ones that count, with their weights."""
        added = {path: weight for path, weight in wanted.items() if path not in self.counting}
        for path, weight in added.items():
            self.model.load_lora(path, weight, name=path)
        changed = {
            path: wanted.get(path, 0.0) for path, weight in self.counting.items()
            if wanted.get(path, 0.0) != weight
        }  # fmt: skip
        if changed:
            self.model.set_lora_weights(**changed)
        self.counting |= added | changed
