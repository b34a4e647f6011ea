"""Mel spectrograms, and their inverse."""

import dataclasses
import functools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from sdjax.errors import SdjaxError
from sdjax.sound.stft import griffin_lim, stft

INVERSE_ROUNDS = 60
SMALLEST = 1e-10


@dataclasses.dataclass(frozen=True)
class Mel:
    """How sound becomes a mel spectrogram; the defaults are those of AudioLDM and of HiFi-GAN's
    vocoder there (arXiv 2301.12503, section 4).

    rate: samples a second. n_fft, hop, window: samples of a frame, to the next, and under the
    window. bins, low, high: of the filters, and their range in Hz. scale: of frequencies, Slaney's
    or HTK's. norm: whether each filter has the area 1 (Slaney), or the height.
    """

    rate: int = 16_000
    n_fft: int = 1024
    hop: int = 160
    window: int = 1024
    bins: int = 64
    low: float = 0.0
    high: float = 8_000.0
    scale: Literal["slaney", "htk"] = "slaney"
    norm: bool = True

    def __post_init__(self):
        if not 0 <= self.low < self.high <= self.rate / 2:
            raise SdjaxError(
                f"frequencies must lie in 0 … {self.rate / 2:g} Hz, half the rate, got "
                f"{self.low:g} … {self.high:g}"
            )
        if not 0 < self.window <= self.n_fft or self.n_fft % 2:
            raise SdjaxError(
                f"n_fft must be even and at least the window's {self.window}, got {self.n_fft}"
            )

    @property
    def filters(self) -> np.ndarray:
        """float32[1 + n_fft // 2, bins]: the triangles, each between its neighbours' middles."""
        return _filters(self)

    def spectrogram(self, sound: jax.Array) -> jax.Array:
        """float32 [..., 1 + n // hop, bins] of sound [..., n]: magnitudes through the filters."""
        return _spectrogram(sound, self.filters, self)

    def magnitudes(self, mel: jax.Array, rounds: int = INVERSE_ROUNDS) -> jax.Array:
        """float32 [..., F, 1 + n_fft // 2], not negative, whose mel spectrogram is nearest to mel.

        By the multiplicative updates of Lee and Seung 2001 ("Algorithms for non-negative matrix
        factorization", theorem 1).
        """
        return _magnitudes(mel, self.filters, rounds)

    def sound(self, mel: jax.Array, rounds: int = 32, seed: int = 0) -> jax.Array:
        """float32 [..., hop · (F - 1)]: sound of a mel spectrogram [..., F, bins], by Griffin–Lim
        from phases of a seed."""
        sizes = self.n_fft, self.hop, self.window
        return griffin_lim(self.magnitudes(mel), *sizes, rounds, key=jax.random.key(seed))


def to_mels(hertz: np.ndarray, scale: str) -> np.ndarray:
    """Frequencies as mels: HTK's formula, or Slaney's, linear below 1 kHz."""
    hertz = np.asarray(hertz, np.float64)
    if scale == "htk":
        return 2595 * np.log10(1 + hertz / 700)
    above = 15 + np.log(np.maximum(hertz, 1000) / 1000) * 27 / np.log(6.4)
    return np.where(hertz < 1000, hertz * 3 / 200, above)


def to_hertz(mels: np.ndarray, scale: str) -> np.ndarray:
    """The inverse of `to_mels`."""
    mels = np.asarray(mels, np.float64)
    if scale == "htk":
        return 700 * (10 ** (mels / 2595) - 1)
    above = 1000 * np.exp((mels - 15) * np.log(6.4) / 27)
    return np.where(mels < 15, mels * 200 / 3, above)


@functools.cache
def _filters(mel: Mel) -> np.ndarray:
    ends = to_mels(np.array([mel.low, mel.high]), mel.scale)
    places = to_hertz(np.linspace(*ends, mel.bins + 2), mel.scale)
    width, grid = np.diff(places), np.linspace(0, mel.rate / 2, 1 + mel.n_fft // 2)[:, None]
    up, down = (grid - places[:-2]) / width[:-1], (places[2:] - grid) / width[1:]
    made = np.maximum(0, np.minimum(up, down))
    return np.float32(made * (2 / (places[2:] - places[:-2]) if mel.norm else 1))


@functools.partial(jax.jit, static_argnames="mel")
def _spectrogram(sound, filters, mel):
    frames = stft(sound, mel.n_fft, mel.hop, mel.window)
    return jnp.dot(jnp.abs(frames), filters, precision="highest")


@functools.partial(jax.jit, static_argnames="rounds")
def _magnitudes(given, filters, rounds):
    reached = jnp.dot(jnp.asarray(given, jnp.float32), filters.T)
    x = reached / (jnp.dot(filters, filters.sum(0)) + SMALLEST)

    def again(_, x):
        return x * reached / (jnp.dot(jnp.dot(x, filters), filters.T) + SMALLEST)

    return jax.lax.fori_loop(0, rounds, again, x)
