"""`sdjax draw`: pictures for the networks that steer, and of sound, made of others."""

from pathlib import Path
from typing import Literal

import tyro

from sdjax.errors import SdjaxError
from sdjax.folders import check_local

from .common import check_known, description


def canny(
    source: tyro.conf.Positional[Path],
    out: tyro.conf.Positional[Path],
    low: float = 100,
    high: float = 200,
) -> None:
    """Draw the edges of a picture, white on black, for networks that take Canny edges.

    sdjax draw canny photo.png edges.png

    Args:
        source: The picture.
        out: Where to write; it must not exist.
        low: An edge goes on where the gradient is above this.
        high: An edge has somewhere a gradient above this.
    """
    from sdjax.data.canny import canny

    _save(canny(source, low, high), out)


def pose(
    source: tyro.conf.Positional[Path],
    out: tyro.conf.Positional[Path],
    height: int = 512,
    width: int = 512,
) -> None:
    """Draw people as coloured skeletons, for networks that take poses.

    sdjax draw pose keypoints.json pose.png --height 768

    Args:
        source: OpenPose's JSON, with 18 or 25 points for each of its people.
        out: Where to write; it must not exist.
        height: Of the picture, in pixels.
        width: Of the picture, in pixels.
    """
    from sdjax.data.pose import pose

    _save(pose(source, (height, width)), out)


def spectrogram(
    source: tyro.conf.Positional[Path],
    out: tyro.conf.Positional[Path],
    layout: Literal["riffusion", "speech"] = "riffusion",
) -> None:
    """Draw the spectrogram of a sound, for models whose pictures are spectrograms.

    sdjax draw spectrogram song.wav song.png

    Args:
        source: The sound; of another rate it is resampled.
        out: Where to write; it must not exist.
        layout: As Riffusion's pictures, or as those of configs/spoken_digits.py.
    """
    from PIL import Image

    from sdjax.sound import LAYOUTS, read_sound

    _save(Image.fromarray(LAYOUTS[layout].picture(*read_sound(source))), out)


def sound(
    source: tyro.conf.Positional[Path],
    out: tyro.conf.Positional[Path],
    layout: Literal["riffusion", "speech"] = "riffusion",
) -> None:
    """Write what is heard of a picture that is a spectrogram, as WAV or FLAC.

    sdjax draw sound song.png song.wav

    Args:
        source: The picture.
        out: Where to write; it must not exist.
        layout: As Riffusion's pictures, or as those of configs/spoken_digits.py.
    """
    from sdjax.data.pictures import open_picture
    from sdjax.sound import LAYOUTS

    _save(LAYOUTS[layout].sound(open_picture(source, str(source))), out)


def _save(picture, out: Path) -> None:
    check_local(out)
    if out.exists():
        raise SdjaxError(f"{out} exists already: remove it or choose another name")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        picture.save(out)
    except (OSError, ValueError) as error:
        raise SdjaxError(f"cannot write {out}: {error}") from error
    print(out)


def run(arguments: list[str], program: str) -> int:
    """Reads the options, and draws."""
    commands = {"canny": canny, "pose": pose, "spectrogram": spectrogram, "sound": sound}
    if not arguments or arguments[0] in ("-h", "--help"):
        lines = [f"  {name:<12}{_first_line(command)}" for name, command in commands.items()]
        print("\n".join([f"{program} draw …\n", *lines]))
        return 0
    name, *rest = arguments
    check_known("drawing", name, commands)
    tyro.cli(
        commands[name],
        prog=f"{program} draw {name}",
        description=description(commands[name], program),
        args=rest,
    )
    return 0


def _first_line(command) -> str:
    return command.__doc__.partition("\n")[0]
