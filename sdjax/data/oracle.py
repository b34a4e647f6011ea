"""Reads `shapes` pictures back: what stands where, in which shape, colour and size.

The reading uses no caption and no network, and bears the blur and noise of a generated or decoded
picture: `sdjax.data.segments` finds the objects, `sdjax.data.templates` their shapes and sizes.
"""
import numpy as np
from PIL import Image

from sdjax.data.scenes import COLOURS, Scene, Thing, parse_caption
from sdjax.data.segments import find_objects
from sdjax.data.shapes import UNIT
from sdjax.data.templates import match
from sdjax.errors import SdjaxError

ATTRIBUTES = (
    "count", "shape", "colour", "shape_and_colour", "size", "background", "relation", "all",
)

_PALETTE = np.array(list(COLOURS.values()), np.float32)
_FAR = 90.0  # distance in RGB beyond which a colour has no name
_OFF_CENTRE = 8.0  # pixels between the centres of an object and of what it lies inside
_CHUNK = 64  # pictures read at once


def read_shapes(images) -> list[Scene] | Scene:
    """The scenes in pictures.

    Args:
      images: uint8, or float in [-1, 1]: [batch, side, side, 3] gives a list of scenes,
        [side, side, 3] one scene. Resized where the side is not 64.

    Returns:
      A Scene a picture, its relation "above", "left of" or "inside", and None unless there are
      two objects. An attribute that cannot be told is None.
    """
    batch = _as_batch(images)
    scenes = []
    for start in range(0, len(batch), _CHUNK):
        scenes += _read(batch[start : start + _CHUNK])
    return scenes if np.ndim(images) == 4 else scenes[0]


def score(images, captions) -> dict[str, np.ndarray]:
    """Which attributes of pictures agree with their captions: name -> bool [batch].

    Names are `ATTRIBUTES`. "shape", "colour" and "size" ask it of all objects at once, and are
    False where the number of objects differs. Two objects are matched the way round that agrees
    better. "shape_and_colour" asks both. "relation" is True where caption and picture have one
    object.
    """
    captions = [captions] if isinstance(captions, str) else list(captions)
    batch = _as_batch(images)
    if len(captions) != len(batch):
        raise SdjaxError(f"expected one caption a picture, got {len(captions)} for {len(batch)}")
    rows = [_score(parse_caption(c), read) for c, read in zip(captions, read_shapes(batch))]
    return {name: np.array([row[name] for row in rows], bool) for name in ATTRIBUTES}


def placed(images) -> np.ndarray:
    """Where the one object of each picture lies, and how large it is: float [batch, 3].

    Its middle down and right, and the square root of its area, in 64ths of the picture; NaN where a
    picture has another number of objects. Images are as of `read_shapes`, a batch.
    """
    batch = _as_batch(images)
    found = np.full((len(batch), 3), np.nan)
    for start in range(0, len(batch), _CHUNK):
        _, pictures = find_objects(batch[start : start + _CHUNK])
        for i, groups in enumerate(pictures):
            regions = [region for group in groups for region in group]
            if len(regions) == 1:
                cover = regions[0].cover
                area = cover.sum()
                middle = [cover.sum(1 - axis) @ (np.arange(cover.shape[axis]) + 0.5) / area
                          for axis in (0, 1)]
                found[start + i] = *(regions[0].corner + middle), np.sqrt(area)
    return found


def _score(said, read):
    said = said.canonical()
    row = dict.fromkeys(ATTRIBUTES, False)
    row["background"] = said.background == read.background
    if len(said.things) == len(read.things):
        orders = [read.things, read.things[::-1]][: len(read.things)]
        options = []
        for order, things in enumerate(orders):
            pairs = list(zip(said.things, things))
            options.append({
                "count": True,
                "shape": all(a.shape == b.shape for a, b in pairs),
                "colour": all(a.colour == b.colour for a, b in pairs),
                "size": all(a.size == b.size for a, b in pairs),
                "relation": said.relation == read.relation and order == 0,
            })
        row.update(max(options, key=lambda option: sum(option.values())))
    row["shape_and_colour"] = row["shape"] and row["colour"]
    row["all"] = all(row[name] for name in ATTRIBUTES[:-1])
    return row


def _as_batch(images):
    images = np.asarray(images)
    images = images[None] if images.ndim == 3 else images
    if images.ndim != 4 or images.shape[3] != 3 or images.shape[1] != images.shape[2]:
        raise SdjaxError(f"expected square RGB pictures [batch, side, side, 3], got {images.shape}")
    if images.dtype != np.uint8:
        images = np.clip(images.astype(np.float32) * 127.5 + 128, 0, 255).astype(np.uint8)
    if images.shape[1] != UNIT and len(images):
        resized = (Image.fromarray(i).resize((UNIT, UNIT), Image.Resampling.BOX) for i in images)
        images = np.stack([np.asarray(i) for i in resized])
    return images


def _read(images):
    """Scenes of a chunk of pictures, uint8 [n, 64, 64, 3]."""
    grounds, pictures = find_objects(images)
    regions = [region for groups in pictures for group in groups for region in group]
    forms = iter(match([region.cover for region in regions]))
    scenes = []
    for name, groups in zip(_colour_names(grounds), pictures):
        # Regions and forms come in the same order: the forms are dealt out again.
        readings = [[(region, *next(forms)) for region in group] for group in groups]
        scenes.append(_scene(name, readings))
    return scenes


def _colour_names(values):
    """The name of each colour, float [n, 3]; None where no named colour is near."""
    distances = np.linalg.norm(np.asarray(values)[:, None] - _PALETTE, axis=-1)
    names = list(COLOURS)
    return [names[d.argmin()] if d.min() <= _FAR else None for d in distances]


def _scene(background, groups):
    """A scene from groups of (region, size, shape, centre in the region), a group an outer area."""
    readings = [reading for group in groups for reading in group]
    names = _colour_names([region.colour for region, *_ in readings]) if readings else []
    things = [Thing(size, name, shape) for name, (_, size, shape, _) in zip(names, readings)]
    relation = None
    if len(things) == 2:
        first, second = (region.corner + centre for region, _, _, centre in readings)
        down, right = second - first
        if len(groups) == 1 and max(abs(down), abs(right)) < _OFF_CENTRE:
            relation = "inside"
        else:
            relation = "above" if abs(down) > abs(right) else "left of"
            if (down if relation == "above" else right) < 0:
                things.reverse()
    return Scene(background, tuple(things), relation)
