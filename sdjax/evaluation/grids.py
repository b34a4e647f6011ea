"""Grids of pictures whose columns and rows have labels, as one PIL image."""

from collections.abc import Sequence

from PIL import Image

from sdjax.errors import SdjaxError

from .letters import Letters
from .sheets import INK, PAPER, to_pil, wrap


def labelled_grid(
    rows: Sequence[Sequence[Image.Image]],
    columns: Sequence[str],
    labels: Sequence[str],
    *,
    font_size: int = 13,
    margin: int = 8,
) -> Image.Image:
    """Rows of pictures with a label over each column and before each row; RGB.

    rows: of PIL images or arrays that `sheets.to_pil` takes; each place is as large as the largest.
    columns, labels: one text for each column and each row; empty ones take no room.
    font_size, margin: in pixels. Raises SdjaxError where the counts differ.
    """
    if len(rows) != len(labels) or any(len(row) != len(columns) for row in rows):
        raise SdjaxError(
            f"a grid of {len(labels)} labelled rows and {len(columns)} columns expected, got rows "
            f"of {[len(row) for row in rows]} pictures"
        )
    pictures = [to_pil(row) for row in rows]
    width = max(picture.width for row in pictures for picture in row)
    height = max(picture.height for row in pictures for picture in row)
    width = max(width, 8 * font_size) if any(columns) else width
    font = Letters(font_size, [*columns, *labels])
    above = [wrap(text, font, width) for text in columns]
    beside = [wrap(text, font, 12 * font_size) for text in labels]
    top = margin + font.line_height * max(map(len, above))
    lines = [line for text in beside for line in text]
    left = margin + round(max(map(font.getlength, lines), default=0)) + margin * bool(lines)
    size = left + len(columns) * (width + margin), top + len(rows) * (height + margin)
    canvas = Image.new("RGB", size, PAPER)
    for column, texts in enumerate(above):
        start = left + column * (width + margin)
        for i, line in enumerate(texts):
            place = start + (width - font.getlength(line)) / 2
            font.draw(canvas, (place, margin + i * font.line_height), line, INK)
    for row, texts in enumerate(beside):
        start = top + row * (height + margin)
        first = start + (height - len(texts) * font.line_height) / 2
        for i, line in enumerate(texts):
            font.draw(canvas, (margin, first + i * font.line_height), line, INK)
        for column, picture in enumerate(pictures[row]):
            place = left + column * (width + margin) + (width - picture.width) // 2
            canvas.paste(picture, (place, start))
    return canvas
