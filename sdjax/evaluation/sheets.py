"""Sheets: a grid of pictures, each with its caption wrapped below it, as one PIL image."""

import math

import numpy as np
from PIL import Image

from sdjax.errors import SdjaxError

from .letters import Letters

INK, PAPER = "#1f2328", "#ffffff"


def to_uint8(images):
    """Images as uint8 [N, H, W, C].

    Takes float [N, H, W, C] in [-1, 1] (values outside are clipped), uint8 [N, H, W, C], or a
    sequence of PIL images of one size. Raises SdjaxError for any other shape or dtype, and for
    values that are not finite.
    """
    if not hasattr(images, "dtype"):
        images = [np.asarray(i.convert("RGB")) if isinstance(i, Image.Image) else np.asarray(i)
                  for i in images]
        shapes = {i.shape for i in images}
        if len(shapes) > 1:
            raise SdjaxError(f"images of one size expected, got {sorted(shapes)}")
    images = np.asarray(images)
    if images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise SdjaxError(f"images [N, H, W, 1 or 3] expected, got shape {images.shape}")
    if images.dtype == np.uint8:
        return images
    if images.dtype.kind in "iub":
        raise SdjaxError(f"images in uint8, or float in [-1, 1], expected, got {images.dtype}")
    images = images.astype(np.float32)
    if not np.isfinite(images).all():
        raise SdjaxError("images hold NaN or infinite values")
    return np.round((np.clip(images, -1, 1) + 1) * 127.5).astype(np.uint8)


def to_pil(images):
    """List of RGB PIL images, of anything that `to_uint8` takes. Sizes may differ in a list."""
    if not hasattr(images, "dtype"):
        return [i.convert("RGB") if isinstance(i, Image.Image)
                else to_pil(np.asarray(i)[None])[0] for i in images]
    return [Image.fromarray(i[..., 0] if i.shape[-1] == 1 else i).convert("RGB")
            for i in to_uint8(images)]


def wrap(text, font, width):
    """Lines of `text` no wider than `width` pixels; a longer word is broken within."""
    lines, line = [], ""
    for word in text.split():
        candidate = f"{line} {word}".strip()
        if font.getlength(candidate) <= width:
            line = candidate
            continue
        if line:
            lines.append(line)
        while font.getlength(word) > width and len(word) > 1:
            cut = len(word) - 1
            while cut > 1 and font.getlength(word[:cut]) > width:
                cut -= 1
            lines.append(word[:cut])
            word = word[cut:]
        line = word
    return lines + [line] if line else lines


def sheet(images, captions=None, columns=None, scale=1, *, font_size=13, margin=8, title=None,
          caption_colors=None, smooth=False):
    """A captioned grid.

    images: float [N, H, W, C] in [-1, 1], uint8 [N, H, W, C], or a sequence of PIL images or
      single arrays (sizes may differ).
    captions: N strings, drawn in full under their pictures; `caption_colors` gives N colours.
    columns: pictures in a row; the nearest to a square grid by default.
    scale: magnification of the pictures (not of the text); `smooth` uses a Lanczos filter
      instead of repeating pixels.
    font_size, margin: in pixels. title: a heading over the whole sheet.

    Returns an RGB PIL.Image. Raises SdjaxError where the counts differ or nothing is given.
    """
    pictures = to_pil(images)
    if not pictures:
        raise SdjaxError("a sheet needs at least one picture, got none")
    captions = [""] * len(pictures) if captions is None else [str(c) for c in captions]
    colors = [INK] * len(pictures) if caption_colors is None else list(caption_colors)
    for name, values in (("captions", captions), ("caption_colors", colors)):
        if len(values) != len(pictures):
            raise SdjaxError(f"one of {name} per picture expected: {len(pictures)} pictures, "
                             f"{len(values)} {name}")
    if scale != 1:
        filter_ = Image.Resampling.LANCZOS if smooth else Image.Resampling.NEAREST
        pictures = [p.resize((max(1, round(p.width * scale)), max(1, round(p.height * scale))),
                             filter_) for p in pictures]
    columns = min(columns or math.ceil(math.sqrt(len(pictures))), len(pictures))
    width, height = max(p.width for p in pictures), max(p.height for p in pictures)
    if any(captions):
        width = max(width, 8 * font_size)  # text under tiny pictures would be unreadable

    font = Letters(font_size, captions)
    texts = [wrap(caption, font, width) for caption in captions]
    row_starts = range(0, len(pictures), columns)
    # A row is as high as its longest caption, so that short captions cost no space.
    heights = [height + font.line_height * max(map(len, texts[i:i + columns])) for i in row_starts]

    total_width = margin + columns * (width + margin)
    title_font = Letters(font_size * 1.3, [title or ""])
    title_lines = wrap(title, title_font, total_width - 2 * margin) if title else []
    top = margin + len(title_lines) * title_font.line_height + (margin if title_lines else 0)
    canvas = Image.new("RGB", (total_width, top + sum(heights) + margin * len(heights)), PAPER)
    for i, line in enumerate(title_lines):
        title_font.draw(canvas, (margin, margin + i * title_font.line_height), line, INK)
    for start, row_height in zip(row_starts, heights):
        for column, index in enumerate(range(start, min(start + columns, len(pictures)))):
            left = margin + column * (width + margin)
            picture = pictures[index]
            canvas.paste(picture, (left + (width - picture.width) // 2, top))
            for i, line in enumerate(texts[index]):
                x = left + (width - font.getlength(line)) / 2
                font.draw(canvas, (x, top + height + i * font.line_height), line, colors[index])
        top += row_height + margin
    return canvas
