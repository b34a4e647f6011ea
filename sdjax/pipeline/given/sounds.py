"""Sound: what a request of a model with a vocoder may ask for, and how long it is."""

from typing import NamedTuple

from sdjax.errors import SdjaxError
from sdjax.text.grammar import weighted

# Arguments that such a model does not take, with what they hold where they are not given.
_NOT_TAKEN = {
    "image": None, "mask": None, "extend": None, "depth": None, "hires": None, "refiner": None,
    "preview": None, "safety_checker": None, "frames": None, "height": None, "width": None,
    "tile": None, "windows": None, "vae_tile": None, "controls": [], "regions": [], "clip_skip": 0,
}  # fmt: skip


class Length(NamedTuple):
    """Of a sound."""

    frames: int
    """Of its spectrogram, which the latents divide."""
    samples: int
    """That are kept of its waveform."""


def check(asked) -> None:
    """SdjaxError for what a request asks of a model of sound that has no meaning there."""
    for name, nothing in _NOT_TAKEN.items():
        value = getattr(asked, name)
        if value is not None and value != nothing and not (nothing == [] and not len(value)):
            raise SdjaxError(f"this model makes sound and takes no {name}: leave {name} out")
    if asked.weighting is None:
        return
    for text in (*asked.prompt, *asked.negatives):
        for group in weighted(text or "", asked.weighting == "comfy"):
            if any(piece.weight != 1 for piece in group):
                raise SdjaxError(
                    f"this model has one vector for a whole prompt, in which no part weighs more: "
                    f"write {text!r} without weights, or take weighting=None"
                )


def length(seconds: float | None, rows: int, vocoder, bins: int, factor: int) -> Length:
    """How long a sound gets: so many seconds, or `rows` of latents where they are not given.

    vocoder: its configuration. bins: of the spectrogram. factor: the autoencoder's.
    """
    if bins % factor:
        raise SdjaxError(f"the vocoder's {bins} bins are no multiple of the autoencoder's {factor}")
    frame = vocoder.hop / vocoder.sampling_rate
    seconds = rows * factor * frame if seconds is None else seconds
    if seconds < factor * frame:
        raise SdjaxError(f"seconds must be at least {factor * frame:g}, got {seconds:g}")
    frames = -(-int(seconds / frame) // factor) * factor
    return Length(frames, int(seconds * vocoder.sampling_rate))
