"""MP4 files of clips, with a comment inside; written by ffmpeg, which the package imageio-ffmpeg
brings."""

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from sdjax.errors import SdjaxError


def check_there() -> None:
    """SdjaxError where the package that writes MP4 files is missing."""
    try:
        import imageio_ffmpeg  # noqa: F401
    except ImportError as error:
        raise SdjaxError(
            'mp4 needs imageio-ffmpeg: `pip install "sdjax[video]"`, or take gif or webp'
        ) from error


def write_mp4(
    path: str | os.PathLike, frames: Sequence[Image.Image], fps: float, comment: str
) -> None:
    """Writes the frames as H.264; OSError where that fails.

    Sides are made even, as the format wants them, with a black row or column.
    """
    import imageio_ffmpeg

    width, height = frames[0].size
    even = f"pad={width + width % 2}:{height + height % 2}"
    given = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", f"{fps:g}"]
    coded = ["-vf", even, "-c:v", "libx264", "-crf", "16", "-pix_fmt", "yuv420p", "-f", "mp4"]
    done = subprocess.run(
        [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-v", "error", *given, "-i", "-", *coded,
         "-metadata", f"comment={comment}", str(path)],
        input=b"".join(frame.tobytes() for frame in frames), capture_output=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise OSError(done.stderr.decode("utf-8", "replace").strip().rpartition("\n")[2])


def is_mp4(path: str | os.PathLike) -> bool:
    """Whether a file says that it is of the MP4 family."""
    with Path(path).open("rb") as file:
        return file.read(8)[4:] == b"ftyp"


def comment(path: str | os.PathLike, start: str) -> str:
    """The JSON of a comment that begins with `start`; ValueError where there is none."""
    content = Path(path).read_bytes()
    place = content.rfind(start.encode())
    if place < 0:
        raise ValueError("it holds no settings")
    text = content[place + len(start) :].decode("ascii", "replace")
    _, end = json.JSONDecoder().raw_decode(text)
    return text[:end]
