"""MP4 files of clips, with a comment inside; written by ffmpeg, which the package imageio-ffmpeg
brings."""

import json
import os
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

    Sides are made even, as the format wants them, by repeating the last row or column.
    """
    import imageio_ffmpeg

    width, height = (side + side % 2 for side in frames[0].size)
    writer = imageio_ffmpeg.write_frames(
        str(path),
        (width, height),
        fps=fps,
        macro_block_size=2,
        quality=8,
        output_params=["-f", "mp4", "-metadata", f"comment={comment}"],
    )
    writer.send(None)
    for frame in frames:
        whole = Image.new("RGB", (width, height))
        whole.paste(frame.resize((width, height), box=(0, 0, *frame.size)))
        whole.paste(frame)
        writer.send(whole.tobytes())
    writer.close()


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
