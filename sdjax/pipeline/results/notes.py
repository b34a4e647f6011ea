"""Settings inside a picture's file: PNG text, or EXIF in WebP and JPEG, and back.

A file holds them twice: in A1111's words (`infotext`), for other programs, and as JSON, from which
the same picture is made again.
"""

import json
import os
from collections.abc import Mapping

from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngInfo

from sdjax.errors import SdjaxError
from sdjax.pipeline.results import infotext, movies
from sdjax.sound.files import is_sound, read_notes

OURS, A1111 = "sdjax", "parameters"
"""Names of the two texts in a PNG."""
_DESCRIBED = f"{OURS}: "  # what ours begins with in EXIF, where other programs write too
FORMATS = {
    "png": {},
    "webp": {"quality": 90, "method": 4},
    "jpeg": {"quality": 95, "subsampling": 0},
}
"""Of picture files -> how PIL writes them."""
CLIPS = ("gif", "webp", "mp4")
"""Of files that hold a clip."""
_CODES = {b"UNICODE\0": "utf-16-be", b"ASCII\0\0\0": "ascii", b"\0" * 8: "utf-8"}


def described(notes: Mapping[str, object]) -> str:
    """Our settings as a line of ASCII, for comments."""
    return _DESCRIBED + json.dumps(dict(notes), default=str)


def file_options(kind: str, notes: Mapping[str, object], parameters: str = "") -> dict[str, object]:
    """What PIL's `save` takes for a file of a kind of FORMATS, or a GIF, that holds these settings.

    notes: ours, by name; a PNG holds each of them as a text of its own too. parameters: A1111's.
    """
    options = {"format": kind, **FORMATS.get(kind, {})}
    if not notes:
        return options
    ours = json.dumps(dict(notes), ensure_ascii=kind != "png", default=str)  # EXIF has ASCII
    if kind == "gif":
        return options | {"comment": described(notes).encode()}
    if kind == "png":
        text = PngInfo()
        for name, value in {**notes, A1111: parameters, OURS: ours}.items():
            shown = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
            text.add_itxt(name, shown)
        return options | {"pnginfo": text}
    exif = Image.Exif()
    exif[ExifTags.Base.ImageDescription] = _DESCRIBED + ours
    comment = b"UNICODE\0" + parameters.encode("utf-16-be")
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = comment
    return options | {"exif": exif.tobytes()}


def read_settings(path: str | os.PathLike) -> tuple[dict[str, object], dict[str, str]]:
    """(arguments of the command `sample`, what was not understood) of a picture's file, or a sound's.

    The second is empty for pictures of this project. Raises SdjaxError where there is no picture
    or it holds no settings.
    """
    try:
        if is_sound(path):
            return read_notes(path), {}
        if movies.is_mp4(path):
            return json.loads(movies.comment(path, _DESCRIBED)), {}
        with Image.open(path) as picture:
            picture.load()
            texts, exif = dict(getattr(picture, "text", {})), picture.getexif()
            remark = picture.info.get("comment", "")  # bytes in a GIF and a JPEG
            remark = remark.decode("ascii", "replace") if isinstance(remark, bytes) else remark
    except (OSError, ValueError, SyntaxError) as error:
        raise SdjaxError(f"{path}: not a readable picture ({error})") from error
    for said in (str(exif.get(ExifTags.Base.ImageDescription, "")), remark):
        if said.startswith(_DESCRIBED):
            texts[OURS] = said.removeprefix(_DESCRIBED)
    if OURS in texts:
        try:
            found = json.loads(texts[OURS])
        except json.JSONDecodeError as error:
            raise SdjaxError(f"{path}: its settings are damaged ({error})") from error
        if isinstance(found, dict):
            return found, {}
    comment = exif.get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.UserComment)
    theirs = texts.get(A1111) or _commented(comment)
    if not theirs:
        other = ", a workflow of ComfyUI, which is no list of settings" * ("workflow" in texts)
        holds = ", ".join(texts) or "no text"
        raise SdjaxError(
            f"{path} holds no settings: expected a picture of sdjax or with A1111's parameters, "
            f"got {holds}{other}"
        )
    try:
        return infotext.read(theirs)
    except SdjaxError as error:
        raise SdjaxError(f"{path}: {error}") from error


def _commented(comment: bytes | str | None) -> str:
    """The text of an EXIF comment, whose first eight bytes say in what it is written."""
    if not isinstance(comment, bytes):
        return comment or ""
    coding = _CODES.get(comment[:8])
    text = (comment[8:] if coding else comment).decode(coding or "utf-8", "replace")
    if coding == "utf-16-be" and comment[8:9] != b"\0" == comment[9:10]:
        text = comment[8:].decode("utf-16-le", "replace")  # as some programs write it
    return text
