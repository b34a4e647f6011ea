"""Files of sound: WAV by itself, FLAC and others with the package soundfile."""

import json
import math
import os
import struct
import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from sdjax.errors import SdjaxError
from sdjax.folders import check_local

FORMATS = ("wav", "flac")
_OURS = "sdjax: "  # what our comment begins with
_FULL = 32767


def read_sound(path: str | os.PathLike, rate: int | None = None) -> tuple[np.ndarray, int]:
    """(float32[n] in [-1, 1], samples a second) of a file; several channels are averaged.

    rate: what it is resampled to where it has another; None keeps the file's. Raises SdjaxError for
    files that are missing, broken, empty or not sound.
    """
    check_local(path)
    path = Path(path)
    if not path.is_file():
        raise SdjaxError(f"there is no file {path}")
    samples, found = _of_wav(path) if _is_wav(path) else _of_other(path)
    if not samples.size:
        raise SdjaxError(f"{path} is silent: it holds no samples")
    if not np.isfinite(samples).all():
        raise SdjaxError(f"{path} holds samples that are not finite")
    mono = samples if samples.ndim == 1 else samples.mean(axis=1)
    return resampled(np.float32(mono), found, rate or found), rate or found


def _is_wav(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(12)
    return head[:4] in (b"RIFF", b"RIFX") and head[8:12] == b"WAVE"


def is_sound(path: str | os.PathLike) -> bool:
    """Whether a file is of a kind that `write_sound` writes, by its first bytes."""
    with Path(path).open("rb") as file:
        flac = file.read(4) == b"fLaC"
    return flac or _is_wav(Path(path))


def _of_wav(path: Path) -> tuple[np.ndarray, int]:
    from scipy.io import wavfile  # which takes long to import, as scipy.signal does

    try:
        with warnings.catch_warnings():
            # Of chunks with texts it tells too, which are no fault.
            warnings.filterwarnings("ignore", category=wavfile.WavFileWarning)
            warnings.filterwarnings("error", "Reached EOF", wavfile.WavFileWarning)
            rate, samples = wavfile.read(path)
    except (wavfile.WavFileWarning, ValueError, OSError, EOFError, struct.error) as error:
        raise SdjaxError(f"{path} is a broken WAV file: {error}") from error
    if samples.dtype == np.uint8:
        return (np.float32(samples) - 128) / 128, rate
    if samples.dtype.kind == "i":
        return np.float32(samples / -float(np.iinfo(samples.dtype).min)), rate
    return np.float32(samples), rate


def _of_other(path: Path) -> tuple[np.ndarray, int]:
    soundfile = _soundfile(path)
    try:
        return soundfile.read(path, dtype="float32")
    except (soundfile.SoundFileError, RuntimeError, OSError) as error:
        raise SdjaxError(f"{path} is no file of sound that can be read: {error}") from error


def _soundfile(path: Path):
    try:
        import soundfile
    except ImportError as error:
        raise SdjaxError(
            f'{path} is no WAV file, and others need soundfile: `pip install "sdjax[sound]"`'
        ) from error
    return soundfile


def resampled(samples: np.ndarray, found: int, rate: int) -> np.ndarray:
    """float32 [..., n · rate / found]: sound at another rate, without what that cannot hold."""
    if found == rate:
        return samples
    from scipy import signal

    common = math.gcd(found, rate)
    return np.float32(signal.resample_poly(samples, rate // common, found // common, axis=-1))


def write_sound(
    path: str | os.PathLike, samples: np.ndarray, rate: int, notes: Mapping[str, object] = {}
) -> None:
    """Writes float [n] in [-1, 1] as 16-bit WAV, or FLAC by the name's ending, with notes inside.

    Sound that is louder than 1 is made quieter as a whole. Raises SdjaxError for other endings and
    where it cannot be written.
    """
    check_local(path)
    path = Path(path)
    kind = path.suffix.lower().removeprefix(".")
    if kind not in FORMATS:
        raise SdjaxError(f"{path}: sound is written as {' or '.join(FORMATS)}")
    try:
        path.write_bytes(encoded(samples, rate, notes, kind))
    except OSError as error:
        raise SdjaxError(f"cannot write {path}: {error.strerror or error}") from error


def encoded(
    samples: np.ndarray, rate: int, notes: Mapping[str, object] = {}, kind: str = "wav"
) -> bytes:
    """The bytes of such a file."""
    samples = np.asarray(samples, np.float64)
    whole = np.int16(np.round(samples / max(1, np.abs(samples).max(initial=0)) * _FULL))
    comment = _OURS + json.dumps(dict(notes), default=str) if notes else ""
    if kind == "flac":
        return _flac(whole, rate, comment)
    data = whole.astype("<i2").tobytes()
    chunks = [(b"fmt ", struct.pack("<HHIIHH", 1, 1, rate, 2 * rate, 2, 16)), (b"data", data)]
    if comment:
        text = comment.encode("ascii") + b"\0"
        chunks.insert(1, (b"LIST", b"INFO" + _chunk(b"ICMT", text)))
    body = b"WAVE" + b"".join(_chunk(name, content) for name, content in chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _chunk(name: bytes, content: bytes) -> bytes:
    return name + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2)


def _flac(samples: np.ndarray, rate: int, comment: str) -> bytes:
    import io

    soundfile = _soundfile(Path("FLAC"))
    made = io.BytesIO()
    with soundfile.SoundFile(made, "w", rate, 1, "PCM_16", format="FLAC") as file:
        if comment:
            file.comment = comment
        file.write(samples)
    return made.getvalue()


def read_notes(path: str | os.PathLike) -> dict[str, object]:
    """The notes that `write_sound` left in a file; SdjaxError where there are none."""
    path = Path(path)
    if not path.is_file():
        raise SdjaxError(f"there is no file {path}")
    comment = _wav_comment(path.read_bytes()) if _is_wav(path) else _other_comment(path)
    if not comment.startswith(_OURS):
        raise SdjaxError(f"{path} holds no settings of sdjax")
    return json.loads(comment.removeprefix(_OURS))


def _wav_comment(data: bytes) -> str:
    place = 12
    while place + 8 <= len(data):
        name, (size,) = data[place : place + 4], struct.unpack("<I", data[place + 4 : place + 8])
        content = data[place + 8 : place + 8 + size]
        if name == b"LIST" and content[:8] == b"INFOICMT":
            (length,) = struct.unpack("<I", content[8:12])
            return content[12 : 12 + length].rstrip(b"\0").decode("ascii", "replace")
        place += 8 + size + size % 2
    return ""


def _other_comment(path: Path) -> str:
    with _soundfile(path).SoundFile(path) as file:
        return file.comment
