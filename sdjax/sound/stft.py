"""Short-time Fourier transforms of sound, and sound of magnitudes alone.

Frames stand in the middle of their sample: sound is continued by its reflection at both ends. The
window is Hann's, periodic, in the middle of the frame. As in librosa and PyTorch.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from sdjax.errors import SdjaxError

SMALLEST = 1e-16  # of a magnitude that is divided by
COVERED = 1e-6  # of the squared windows over a sample that is known


@functools.cache
def hann(n_fft: int, window: int) -> np.ndarray:
    """float32[n_fft]: a periodic Hann window of `window` samples, zeros around it."""
    wave = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)
    before = (n_fft - window) // 2
    return np.float32(np.pad(wave, (before, n_fft - window - before)))


def _framed(x: jax.Array, n_fft: int, hop: int) -> jax.Array:
    count = 1 + (x.shape[-1] - n_fft) // hop
    return x[..., np.arange(count)[:, None] * hop + np.arange(n_fft)]


def stft(x: jax.Array, n_fft: int, hop: int, window: int | None = None) -> jax.Array:
    """complex64 [..., 1 + n // hop, 1 + n_fft // 2] of sound float [..., n].

    n_fft: samples of a frame, even. hop: from a frame to the next. window: samples under the
    window, n_fft where it is None. Raises SdjaxError for sound of half a frame or less, which
    cannot be reflected.
    """
    if x.shape[-1] <= n_fft // 2:
        raise SdjaxError(
            f"sound must be longer than half a frame, {n_fft // 2} samples, got {x.shape[-1]}"
        )
    around = [(0, 0)] * (x.ndim - 1) + [(n_fft // 2,) * 2]
    x = jnp.pad(jnp.asarray(x, jnp.float32), around, mode="reflect")
    return jnp.fft.rfft(_framed(x, n_fft, hop) * hann(n_fft, window or n_fft))


def istft(
    frames: jax.Array, n_fft: int, hop: int, window: int | None = None, length: int | None = None
) -> jax.Array:
    """float32 [..., n]: the sound whose `stft` is nearest to frames [..., F, 1 + n_fft // 2].

    Griffin and Lim 1984, equation 6. length: samples; hop · (F - 1) where it is None.
    """
    wave, count = hann(n_fft, window or n_fft), frames.shape[-2]
    parts = jnp.fft.irfft(frames, n_fft) * wave
    places = np.arange(count)[:, None] * hop + np.arange(n_fft)
    total = (count - 1) * hop + n_fft
    squares = np.tile(np.float64(wave) ** 2, count)
    weight = np.bincount(places.ravel(), squares, total)
    weight = np.float32(np.where(weight > COVERED, weight, 1))
    added = jnp.zeros((*frames.shape[:-2], total), jnp.float32).at[..., places].add(parts)
    x = (added / weight)[..., n_fft // 2 :]
    length = (count - 1) * hop if length is None else length
    return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, max(0, length - x.shape[-1]))])[..., :length]


@functools.partial(jax.jit, static_argnames=("n_fft", "hop", "window", "rounds", "momentum"))
def griffin_lim(
    magnitudes: jax.Array,
    n_fft: int,
    hop: int,
    window: int | None = None,
    rounds: int = 32,
    momentum: float = 0.99,
    key: jax.Array | None = None,
) -> jax.Array:
    """float32 [..., hop · (F - 1)]: sound with these magnitudes [..., F, 1 + n_fft // 2].

    Griffin and Lim 1984, with the momentum of Perraudin et al. 2013 ("A fast Griffin-Lim
    algorithm"). key: of the phases that it begins with; phases of 0 where it is None.
    """
    magnitudes = jnp.asarray(magnitudes, jnp.float32)
    if key is None:
        phases = jnp.ones(magnitudes.shape, jnp.complex64)
    else:
        phases = jnp.exp(2j * np.pi * jax.random.uniform(key, magnitudes.shape))
    share = momentum / (1 + momentum)
    # Sound of a single frame, or few, is shorter than what is reflected of it.
    length = max((magnitudes.shape[-2] - 1) * hop, n_fft // 2 + 1)

    def again(_, state):
        phases, before = state
        sound = istft(magnitudes * phases, n_fft, hop, window, length)
        now = stft(sound, n_fft, hop, window)[..., : magnitudes.shape[-2], :]
        moved = now - share * before
        return moved / (jnp.abs(moved) + SMALLEST), now

    phases, _ = jax.lax.fori_loop(0, rounds, again, (phases, jnp.zeros_like(phases)))
    return istft(magnitudes * phases, n_fft, hop, window)
