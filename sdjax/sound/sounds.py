"""A sound that was made, with the spectrogram that it is of."""

import dataclasses
import os
from typing import Any

import numpy as np
from PIL import Image

from sdjax.sound.files import write_sound


@dataclasses.dataclass(frozen=True)
class Sound:
    """samples: float32[n] in [-1, 1]; rate: of them a second. mel: float32[frames, bins], the
    log-mel spectrogram. info: {"seed": its seed}."""

    samples: np.ndarray
    rate: int
    mel: np.ndarray
    info: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """How long it is."""
        return len(self.samples) / self.rate

    @property
    def picture(self) -> Image.Image:
        """The spectrogram as a grey picture: time goes to the right, low frequencies lie below."""
        low, high = self.mel.min(), self.mel.max()
        shown = (self.mel.T[::-1] - low) / max(float(high - low), 1e-6)
        picture = Image.fromarray(np.uint8(np.round(255 * shown))).convert("RGB")
        picture.info.update(self.info)
        return picture

    def save(self, path: str | os.PathLike) -> None:
        """Writes a WAV or FLAC file, by the name's ending, with `info` inside."""
        write_sound(path, self.samples, self.rate, self.info)
