"""Text in whatever script, drawn with the installed fonts that have its characters."""

import functools
import importlib.util
import os
import unicodedata
import warnings
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

_FOLDERS = (
    "/usr/share/fonts", "/usr/local/share/fonts", "~/.local/share/fonts", "~/.fonts",
    "/System/Library/Fonts", "/Library/Fonts", "~/Library/Fonts",
    os.path.join(os.environ.get("WINDIR", "C:\\Windows"), "Fonts"),
)
# Looked at first, for their many scripts; then any regular font, then all.
_FIRST = ("DejaVuSans.ttf", "NotoSans-Regular", "NotoSansCJK", "NotoSans", "NotoColorEmoji")
_NONE = ("LastResort", "AdobeBlank")  # have signs for everything, none of them the character's
_LACKED = "\U0010ffff"  # no font has it: drawn as the font's sign for what it lacks
_BITMAPS = 109  # the one size of colour fonts made of pictures


class Letters:
    """A text's letters in one size.

    A text is drawn in the first font that has all of its characters: Pillow's own, then installed
    ones; where there is none, each part in a font that has it. Characters that no font has are
    told in a warning and come out as that font's sign for them.

    size: in pixels. texts: all that will be drawn, which the height of a line comes from.
    """

    def __init__(self, size, texts=()):
        self.size = size
        used = {path for text in texts for path, _ in _parts(text)} | {None}
        metrics = [_scaled(path, size) for path in used]
        self.ascent = max(font.getmetrics()[0] * scale for font, scale in metrics)
        self.line_height = round(
            self.ascent + max(font.getmetrics()[1] * scale for font, scale in metrics)) + 1
        lacking = sorted({c for text in texts for c in text if _shows(c) and _font_of(c) is _NO})
        if lacking:
            warnings.warn(
                f"no installed font has the characters {' '.join(lacking[:20])}: they are boxes on "
                "the sheet; install fonts of their scripts, such as Noto's", stacklevel=3
            )

    def getlength(self, text):
        """The width of a text in pixels."""
        fonts = ((_scaled(path, self.size), part) for path, part in _parts(text))
        return sum(font.getlength(part) * scale for (font, scale), part in fonts)

    def draw(self, canvas, place, text, color):
        """Draw a line of text on an RGB image, its upper left corner at `place`."""
        x, y = place[0], place[1] + self.ascent
        for path, part in _parts(text):
            font, scale = _scaled(path, self.size)
            if scale == 1:
                ImageDraw.Draw(canvas).text((x, y), part, fill=color, font=font, anchor="ls")
            else:
                _paste(canvas, (x, y), part, color, font, scale)
            x += font.getlength(part) * scale


_NO = Path()  # in place of a font's path: no font has the character


def _parts(text):
    """[(path of a font, or None for Pillow's own; part of the text)]."""
    fonts = dict.fromkeys(_font_of(c) for c in text if _shows(c))
    for path in fonts:
        if path is not _NO and all(_has(path, c) for c in text if _shows(c)):
            return [(path, text)]
    parts = []
    for character in text:
        path = _font_of(character) if _shows(character) else _NO
        if path is _NO or parts and _has(parts[-1][0], character):
            path = parts[-1][0] if parts else None
        if parts and parts[-1][0] == path:
            parts[-1] = path, parts[-1][1] + character
        else:
            parts.append((path, character))
    return parts


def _shows(character):
    """Whether a character has a sign of its own: no space, control, joiner or combining mark."""
    return unicodedata.category(character)[0] not in "ZCM"


@functools.cache
def _font_of(character):
    return next((path for path in _fonts() if _has(path, character)), _NO)


@functools.cache
def _fonts():
    """Pillow's own font, None, and the paths of all others, the likelier first."""
    folders = [Path(folder).expanduser() for folder in _FOLDERS]
    found = importlib.util.find_spec("matplotlib")  # which brings DejaVu Sans
    if found and found.origin:
        folders.append(Path(found.origin).parent / "mpl-data" / "fonts" / "ttf")
    paths = [path for folder in folders for ending in ("tt[fc]", "otf")
             for path in sorted(folder.rglob(f"*.{ending}")) if not path.name.startswith(_NONE)]

    def rank(path):
        first = [i for i, name in enumerate(_FIRST) if path.name.startswith(name)]
        regular = not any(word in path.stem for word in ("Bold", "Italic", "Oblique"))
        return not regular, first[0] if first else len(_FIRST)

    return None, *sorted(paths, key=rank)


@functools.cache
def _has(path, character):
    try:
        font, _ = _scaled(path, 24)
        mask, lacked = font.getmask(character), font.getmask(_LACKED)
    except OSError:  # damaged, or not for Pillow
        return False
    return mask.getbbox() is not None and (mask.size, bytes(mask)) != (lacked.size, bytes(lacked))


@functools.cache
def _scaled(path, size):
    """A font, and what to multiply its measures with to have them in `size`."""
    if path is None:
        return ImageFont.load_default(size), 1
    try:
        return ImageFont.truetype(str(path), size), 1
    except OSError:
        return ImageFont.truetype(str(path), _BITMAPS), size / _BITMAPS


def _paste(canvas, place, text, color, font, scale):
    """Draw with a font of another size, its pictures in their own colours."""
    left, top, right, bottom = font.getbbox(text, anchor="ls")
    drawn = Image.new("RGBA", (max(1, int(right - left)), max(1, int(bottom - top))), (0, 0, 0, 0))
    ImageDraw.Draw(drawn).text((-left, -top), text, color, font, anchor="ls", embedded_color=True)
    size = [max(1, round(side * scale)) for side in drawn.size]
    drawn = drawn.resize(size, Image.Resampling.LANCZOS)
    canvas.paste(drawn, (round(place[0] + left * scale), round(place[1] + top * scale)), drawn)
