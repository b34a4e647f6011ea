"""Pictures that are spectrograms: what a model of pictures sees of sound, and back."""

import dataclasses
from typing import Literal

import numpy as np
from PIL import Image

from sdjax.errors import SdjaxError
from sdjax.sound.files import resampled
from sdjax.sound.mel import Mel
from sdjax.sound.sounds import Sound

SMALLEST = 1e-10
LOUD = 0.95  # the peak of what is made of a picture


@dataclasses.dataclass(frozen=True)
class Layout:
    """How the grey values of a picture stand for a mel spectrogram: time goes to the right, low
    frequencies lie below.

    kind: "power": dark is loud, 255 - 255 · (S / loudest) ** low; back, the loudest is `high`.
    "decibels": bright is loud, from `low` to `high` dB of S, of sound whose peak is 1.
    frames: the width of a picture, where sound is cut to it or silence added; None for any.
    """

    mel: Mel
    kind: Literal["power", "decibels"]
    low: float
    high: float
    frames: int | None = None

    @property
    def samples(self) -> int | None:
        """Of a picture's sound; None for any."""
        return None if self.frames is None else (self.frames - 1) * self.mel.hop

    def picture(self, samples: np.ndarray, rate: int) -> np.ndarray:
        """uint8 [bins, frames, 3] of sound float [n], resampled where its rate is another."""
        samples = resampled(np.asarray(samples, np.float32), rate, self.mel.rate)
        if self.samples is not None:
            samples = np.pad(samples[: self.samples], (0, max(0, self.samples - len(samples))))
        if self.kind == "decibels":
            samples = samples / max(np.abs(samples).max(), SMALLEST)
        found = np.asarray(self.mel.spectrogram(samples), np.float64)
        if self.kind == "power":
            shown = 1 - (found / max(found.max(), SMALLEST)) ** self.low
        else:
            decibels = 20 * np.log10(np.maximum(found, SMALLEST))
            shown = np.clip((decibels - self.low) / (self.high - self.low), 0, 1)
        grey = np.uint8(np.round(255 * shown.T[::-1]))
        return np.repeat(grey[..., None], 3, axis=-1)

    def spectrogram(self, pictures: np.ndarray | Image.Image) -> np.ndarray:
        """float32 [..., frames, bins]: the mel spectrograms of pictures uint8 [..., bins, frames, 3].

        Raises SdjaxError for pictures of another height.
        """
        pictures = np.asarray(pictures)
        if pictures.ndim < 3 or pictures.shape[-3] != self.mel.bins:
            raise SdjaxError(
                f"a picture of this sound must be {self.mel.bins} pixels high, got an array of "
                f"shape {pictures.shape}"
            )
        shown = np.float64(pictures[..., 0]) / 255
        shown = np.moveaxis(shown[..., ::-1, :], -1, -2)
        if self.kind == "power":
            return np.float32((1 - shown) ** (1 / self.low) * self.high)
        made = 10 ** ((self.low + (self.high - self.low) * shown) / 20)
        return np.float32(np.where(shown > 0, made, 0))

    def sounds(self, pictures: np.ndarray, seed: int = 0) -> np.ndarray:
        """float32 [N, n]: the sound of pictures uint8 [N, bins, frames, 3], as loud as can be."""
        mel = self.spectrogram(pictures)
        made = np.asarray(self.mel.sound(mel, seed=seed))
        peaks = np.abs(made).max(axis=-1, keepdims=True)
        return made * (LOUD / np.maximum(peaks, SMALLEST))

    def sound(self, picture: np.ndarray | Image.Image, seed: int = 0) -> Sound:
        """The sound of one picture."""
        pixels = np.asarray(picture)[None]
        (made,) = self.sounds(pixels, seed)
        (mel,) = self.spectrogram(pixels)
        info = dict(getattr(picture, "info", {}))
        return Sound(made, self.mel.rate, np.log(np.maximum(mel, SMALLEST)), info)


LAYOUTS = {
    # Riffusion's, https://github.com/riffusion/riffusion-hobby: 10 ms of 44.1 kHz a column; its
    # loudest, 30e6, is of samples of 16 bits.
    "riffusion": Layout(
        Mel(44_100, 17_640, 441, 4_410, 512, 0, 10_000, "htk", False), "power", 0.25, 30e6 / 32768
    ),
    # Words of a second: 64x64 pixels.
    "speech": Layout(
        Mel(8_000, 512, 128, 384, 64, 60, 4_000, "htk", False), "decibels", -35, 35, 64
    ),
}
"""How models that make pictures of sound have it, by name."""


def layout(name: str) -> Layout:
    """One of LAYOUTS; SdjaxError for another name."""
    if name not in LAYOUTS:
        raise SdjaxError(f"pictures of sound are {' or '.join(LAYOUTS)}, got {name!r}")
    return LAYOUTS[name]
