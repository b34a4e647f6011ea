"""Drawing emoji from an installed font."""
import pathlib

import numpy as np
from PIL import Image, ImageDraw, ImageFont, features

from sdjax.errors import SdjaxError

_ROOTS = (
    "/usr/share/fonts", "/usr/local/share/fonts", "~/.local/share/fonts", "~/.fonts",
    "/Library/Fonts", "~/Library/Fonts",
)
_PIXELS = 109  # the one size at which Noto Color Emoji holds its bitmaps
_MISSING = "\U0010ffff"  # no font has it: drawn as the font's sign for what it lacks


def find_font() -> str:
    """The path of an installed NotoColorEmoji.ttf; SdjaxError where there is none."""
    for root in map(pathlib.Path, _ROOTS):
        found = sorted(root.expanduser().rglob("NotoColorEmoji.ttf"))
        if found:
            return str(found[0])
    raise SdjaxError(
        "found no NotoColorEmoji.ttf; install it with 'apt install fonts-noto-color-emoji' or your "
        "system's like package, or give the path of the font"
    )


class EmojiFont:
    """Draws emoji, sequences included, from a font with bitmaps of 109 pixels or with outlines.

    Raises:
      SdjaxError: where the font cannot be opened, or Pillow lacks the layout engine for sequences.
    """

    def __init__(self, path):
        if not features.check("raqm"):
            raise SdjaxError(
                "this Pillow lacks libraqm, which joins emoji sequences; install Pillow from its "
                "wheel with 'pip install --force-reinstall --only-binary :all: pillow'"
            )
        try:
            self.font = ImageFont.truetype(
                str(path), _PIXELS, layout_engine=ImageFont.Layout.RAQM
            )
        except OSError as error:
            raise SdjaxError(
                f"cannot open the font {path} at {_PIXELS} pixels ({error}); expected the bitmap "
                "NotoColorEmoji.ttf or an outline font"
            ) from error
        self._missing = self._picture(_MISSING)

    def draw(self, characters: str, size: int) -> Image.Image | None:
        """The emoji on white, RGB of size x size; None where the font lacks it."""
        # A sequence that the font does not know comes out as its parts, side by side.
        parts = max(self.font.getlength(character) for character in characters)
        if self.font.getlength(characters) > 1.5 * parts:
            return None
        picture = self._picture(characters)
        drawn = np.asarray(picture)
        if (drawn == 255).all() or np.array_equal(drawn, np.asarray(self._missing)):
            return None
        return picture.resize((size, size), Image.Resampling.LANCZOS)

    def _picture(self, characters):
        left, top, right, bottom = self.font.getbbox(characters)
        width, height = right - left, bottom - top
        side = max(width, height, 1)
        picture = Image.new("RGB", (side, side), "white")
        at = ((side - width) // 2 - left, (side - height) // 2 - top)
        ImageDraw.Draw(picture).text(at, characters, "black", self.font, embedded_color=True)
        return picture
