"""A folder of recordings of words, as pictures of their sound."""

import pathlib
import re

from sdjax.data.content import Content, Stamps
from sdjax.data.pictures import BrokenItem
from sdjax.errors import SdjaxError
from sdjax.sound.files import read_sound
from sdjax.sound.pictures import LAYOUTS

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
HELD_OUT = 5
"""Recordings of each digit and speaker that are kept out of training: the first, as the set's authors
have it."""
SUFFIXES = (".wav", ".flac")
_NAME = re.compile(r"(\d+)_([A-Za-z]+)_(\d+)")
_SPLITS = ("train", "heldout", "all")


def holds_sounds(path) -> bool:
    """Whether a folder holds files of sound."""
    folder = pathlib.Path(path).expanduser()
    return folder.is_dir() and any(p.suffix.lower() in SUFFIXES for p in folder.iterdir())


def caption_of(digit: int, speaker: str) -> str:
    """What a recording is told by: "seven by jackson"."""
    return f"{DIGITS[digit]} by {speaker}"


class SoundFolder:
    """Recordings of digits, DIGIT_SPEAKER_NUMBER.wav, as the Free Spoken Digit Dataset has them.

    split: "train", "heldout" (the numbers below HELD_OUT) or "all". source[i] gives {"image": uint8
    [64, 64, 3], "caption": "seven by jackson"}, the picture in the layout "speech"; sound of another
    rate is resampled. `skipped` names the files that are called otherwise.

    Raises:
      SdjaxError: where there is no such folder, no such split, or no recording in it.
      BrokenItem: from source[i], where recording i cannot be read.
    """

    layout = LAYOUTS["speech"]

    def __init__(self, path, split: str = "train"):
        self.root = pathlib.Path(path).expanduser()
        if split not in _SPLITS:
            raise SdjaxError(f"recordings have the splits {', '.join(_SPLITS)}, got {split!r}")
        if not self.root.is_dir():
            raise SdjaxError(f"expected a folder of recordings, found none at {self.root}")
        self.items, self.skipped = [], []
        for file in sorted(p for p in self.root.iterdir() if p.suffix.lower() in SUFFIXES):
            match = _NAME.fullmatch(file.stem)
            if match is None or int(match[1]) >= len(DIGITS):
                self.skipped.append((file.name, "expected a name such as 7_jackson_32.wav, with a "
                                     "digit from 0 to 9"))  # fmt: skip
                continue
            kept_out = int(match[3]) < HELD_OUT
            if split == "all" or kept_out == (split == "heldout"):
                self.items.append((file.name, int(match[1]), match[2].lower()))
        if not self.items:
            why = f"; {self.skipped[0][0]}: {self.skipped[0][1]}" if self.skipped else ""
            raise SdjaxError(f"found no recordings of the split {split!r} in {self.root}{why}")

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        _, digit, speaker = self.items[index]
        picture = self.layout.picture(self.sound(index), self.layout.mel.rate)
        return {"image": picture, "caption": caption_of(digit, speaker)}

    def sound(self, index):
        """float32 [n]: recording `index` at the layout's rate."""
        name = self.items[index][0]
        try:
            return read_sound(self.root / name, self.layout.mel.rate)[0]
        except SdjaxError as error:
            raise BrokenItem(name, str(error)) from error

    def name(self, index) -> str:
        """What item `index` is called in messages."""
        return self.items[index][0]

    def content(self, stamps: Stamps, count: int) -> Content:
        """What the first `count` items are, without reading them as sound."""
        items = self.items[:count]
        files = {name: stamps.of(self.root / name, name) for name, *_ in items}
        told = tuple((name, caption_of(digit, speaker)) for name, digit, speaker in items)
        return Content(files, told, made_by=repr(self.layout))
