"""Reads `shapes` pictures back: what stands where, in which shape, colour and size.

The reading uses no caption and no network. It finds the background on the border, then the
colours that fill whole neighbourhoods, and turns the picture into a coverage map: how far each
pixel has gone from the background to an object's colour. Connected covered areas are objects, and
each one's coverage is compared with drawn shapes. Coverage rather than hard pixels makes it
tolerant of the blur and noise of a generated or decoded picture.
"""
import functools
import itertools

import numpy as np
from PIL import Image
from scipy import ndimage

from sdjax.data.scenes import COLOURS, SHAPES, SIZES, Scene, Thing, parse_caption
from sdjax.data.shapes import UNIT, sprite
from sdjax.errors import SdjaxError

ATTRIBUTES = ("count", "shape", "colour", "size", "background", "relation", "all")

_NAMES = list(COLOURS)
_PALETTE = np.array(list(COLOURS.values()), np.float32)
_CORE = 8  # pixels well inside an area that make its colour an object's
_LEAST_AREA = 24  # pixels; a small star has about 60
_FIT = 0.3  # the largest squared misfit, relative to the shape, that still counts as that shape
_FAR = 90.0  # distance in RGB beyond which a colour has no name
_MIXED = 30.0  # distance in RGB within which a colour counts as a mixture of two others
_WINDOW = 40  # holds a large object with room around it
_BLURS = (0.0, 0.8, 1.5)
_IN_PICTURE = np.stack([np.zeros((3, 3)), ndimage.generate_binary_structure(2, 1), np.zeros((3, 3))])
_CHUNK = 64


def read_shapes(images) -> list[Scene] | Scene:
    """The scenes in pictures.

    Args:
      images: uint8, or float in [-1, 1], of shape [batch, side, side, 3] for a list of scenes or
        [side, side, 3] for one; resized where the side is not 64.

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
    better. "relation" is True where caption and picture have one object.
    """
    captions = [captions] if isinstance(captions, str) else list(captions)
    batch = _as_batch(images)
    if len(captions) != len(batch):
        raise SdjaxError(f"expected one caption a picture, got {len(captions)} for {len(batch)}")
    rows = [_score(parse_caption(c), read) for c, read in zip(captions, read_shapes(batch))]
    return {name: np.array([row[name] for row in rows], bool) for name in ATTRIBUTES}


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
    pixels = images.astype(np.float32)
    nearest = np.argmin((_PALETTE**2).sum(1) - 2 * pixels @ _PALETTE.T, -1).astype(np.int8)
    background, ground = _background(pixels, nearest)
    # An object's own colour fills 3x3 neighbourhoods; the mixed colours of an edge do not.
    low = ndimage.minimum_filter(nearest, (1, 3, 3))
    high = ndimage.maximum_filter(nearest, (1, 3, 3))
    core = np.where((low == high) & (nearest != background[:, None, None]), nearest, -1)
    present, means = _object_colours(pixels, core, ground)
    cover, owner = _coverage(pixels, ground, present, means)
    covered = cover > 0.5
    for n in np.flatnonzero(present.sum(1) == 2):
        # Where one object lies inside another, their mixed edge may look like the ground: close it.
        first, second = (core[n] == k for k in np.flatnonzero(present[n]))
        if _surrounds(first, second) or _surrounds(second, first):
            covered[n] |= ndimage.binary_closing(covered[n], iterations=2)
    covered = ndimage.binary_fill_holes(covered, _IN_PICTURE)
    labels, _ = ndimage.label(covered, _IN_PICTURE)
    found = [[] for _ in images]
    for label, where in enumerate(ndimage.find_objects(labels), 1):
        n = where[0].start
        window = tuple(slice(max(s.start - 3, 0), s.stop + 3) for s in where[1:])
        near = labels[n][window]
        mask = near == label
        if mask.sum() < _LEAST_AREA:
            continue
        part = _Part(
            cover[n][window], owner[n][window], core[n][window], pixels[n][window],
            (window[0].start, window[1].start), means[n],
        )
        found[n].append(part.objects(mask, (near > 0) & ~mask))
    flat = [thing for groups in found for group in groups for thing in group]
    readings = iter(_match([cover for _, cover, _ in flat], [at for _, _, at in flat]))
    return [
        _scene(name, [[(colour, *next(readings)) for colour, _, _ in group] for group in groups])
        for name, groups in zip(_colour_names(ground), found)
    ]


def _background(pixels, nearest):
    """The commonest named colour of the border, int [n], and its mean value, float [n, 3]."""
    border = np.ones(nearest.shape[1:], bool)
    border[2:-2, 2:-2] = False
    edge, values = nearest[:, border], pixels[:, border]
    background = np.stack([(edge == k).sum(1) for k in range(len(_NAMES))], 1).argmax(1)
    own = (edge == background[:, None])[..., None]
    return background, (values * own).sum(1) / own.sum(1)


def _object_colours(pixels, core, ground):
    """Which named colours fill areas, bool [n, 8], and their mean values, float [n, 8, 3]."""
    n = len(core)
    slot = (np.arange(n)[:, None, None] * (len(_NAMES) + 1) + core + 1).ravel()
    bins = n * (len(_NAMES) + 1)
    counts = np.bincount(slot, minlength=bins)
    sums = [np.bincount(slot, pixels[..., c].ravel(), minlength=bins) for c in range(3)]
    means = np.stack(sums, -1) / np.maximum(counts, 1)[:, None]
    counts = counts.reshape(n, -1)[:, 1:]
    means = means.reshape(n, -1, 3)[:, 1:].astype(np.float32)
    present = counts >= _CORE
    for i in np.flatnonzero(present.sum(1) > 1):
        order = np.argsort(-counts[i], kind="stable")[: present[i].sum()]
        ends = [ground[i], means[i, order[0]]]
        for k in order[1:]:
            if _mixed(means[i, k], ends):
                present[i, k] = False
            else:
                ends.append(means[i, k])
    return present, means


def _mixed(colour, ends):
    """Whether a colour is a mixture of two others: the broad edge of a blurred object."""
    for start, end in itertools.combinations(ends, 2):
        line = end - start
        part = (colour - start) @ line / (line @ line)
        if 0.1 < part < 0.9 and np.linalg.norm(colour - start - part * line) < _MIXED:
            return True
    return False


def _coverage(pixels, ground, present, means):
    """How far each pixel is on its way from the ground to the object colour that explains it best.

    Returns float [n, h, w] in 0…1 and the index of that colour, int [n, h, w].
    """
    away = pixels - ground[:, None, None].astype(np.float32)
    cover = np.zeros(pixels.shape[:3], np.float32)
    owner = np.full(pixels.shape[:3], -1, np.int8)
    least = np.full(pixels.shape[:3], np.inf, np.float32)
    for k in range(len(_NAMES)):
        which = np.flatnonzero(present[:, k])
        if not len(which):
            continue
        line = (means[which, k] - ground[which]).astype(np.float32)
        length = (line**2).sum(1)[:, None, None]
        along = np.einsum("nhwc,nc->nhw", away[which], line)
        part = np.clip(along / length, 0, 1)
        misfit = part**2 * length - 2 * part * along  # up to |away|², the same for every colour
        better = misfit < least[which]
        cover[which] = np.where(better, part, cover[which])
        owner[which] = np.where(better, k, owner[which])
        least[which] = np.where(better, misfit, least[which])
    return cover, owner


class _Part:
    """The neighbourhood of one connected covered area."""

    def __init__(self, cover, owner, core, pixels, corner, means):
        self.cover, self.owner, self.core = cover, owner, core
        self.pixels, self.corner, self.means = pixels, np.array(corner), means

    def objects(self, mask, others):
        """[(colour name, coverage, corner)] of the area; an inner object before its outer one."""
        counts = np.bincount(self.core[mask] + 1, minlength=len(_NAMES) + 1)[1:]
        colours = [k for k in np.argsort(-counts, kind="stable") if counts[k] >= _CORE]
        if not colours:
            colours = [np.bincount(self.owner[mask]).argmax()]
        if len(colours) == 1:
            return [self._object(colours[0], mask, others)]
        first, second = colours[:2]
        if _surrounds(mask & (self.core == second), mask & (self.core == first)):
            first, second = second, first
        if not _surrounds(mask & (self.core == first), mask & (self.core == second)):
            masks = [mask & (self.owner == k) for k in (first, second)]
            return [
                self._object(first, masks[0], others | masks[1]),
                self._object(second, masks[1], others | masks[0]),
            ]
        return [self._inner(second, first, mask), self._object(first, mask, others, second)]

    def _object(self, colour, mask, others, inner=None):
        area = ndimage.binary_dilation(mask, iterations=2) & ~others
        cover = self.cover * area
        if inner is not None:
            hole = ndimage.binary_dilation(mask & (self.owner == inner)) | (self.cover <= 0.5)
            cover = np.where(hole & mask, 1, cover)
        return self.means[colour], cover, self.corner

    def _inner(self, colour, outer, mask):
        start = self.means[outer]
        line = self.means[colour] - start
        part = np.clip((self.pixels - start) @ line / (line @ line), 0, 1)
        body = ndimage.binary_opening(mask & (self.owner == colour) & (part > 0.5))
        area = ndimage.binary_dilation(body, iterations=2) & mask
        return self.means[colour], part * area, self.corner


def _surrounds(outer, inner):
    """Whether the bounding box of `outer` reaches beyond that of `inner` on every side."""
    for axis in (0, 1):
        o, i = (np.flatnonzero(m.any(axis)) for m in (outer, inner))
        if not (o[0] < i[0] and i[-1] < o[-1]):
            return False
    return True


def _match(covers, corners):
    """For coverage maps: (size, shape, centre [y, x]); size and shape None where nothing fits."""
    if not covers:
        return []
    shapes, powers, centres, kinds = _templates()
    windows = np.zeros((len(covers), _WINDOW, _WINDOW), np.float32)
    starts = np.zeros((len(covers), 2), int)
    for n, (cover, corner) in enumerate(zip(covers, corners)):
        starts[n] = _centred(cover, windows[n]) + corner
    flat = windows.reshape(len(windows), -1)
    misfit = powers - 2 * flat @ shapes.T
    best = misfit.argmin(1)
    misfit = (misfit[np.arange(len(best)), best] + (flat**2).sum(1)) / powers[best]
    return [
        (*(kinds[b] if m <= _FIT else (None, None)), start + centres[b])
        for b, m, start in zip(best, misfit, starts)
    ]


def _centred(cover, window):
    """Copies a map into a window with its centre of mass in the middle; returns where it began."""
    total = max(cover.sum(), 1e-6)
    middle = [(cover.sum(1 - axis) @ np.arange(cover.shape[axis])) / total for axis in (0, 1)]
    start = np.floor(np.array(middle) + 0.5).astype(int) - _WINDOW // 2
    low, high = np.maximum(start, 0), np.minimum(start + _WINDOW, cover.shape)
    target = tuple(slice(a - s, b - s) for a, b, s in zip(low, high, start))
    window[target] = cover[low[0] : high[0], low[1] : high[1]]
    return start


@functools.cache
def _templates():
    """Every size and shape, at quarter pixels and several blurs.

    Returns their windows float [k, 1600], the windows' powers [k], the centres of the bounding
    boxes in the windows [k, 2] (y, x), and (size, shape) for each.
    """
    windows, centres, kinds = [], [], []
    for size in SIZES:
        for shape in SHAPES:
            for right, down in np.ndindex(4, 4):
                for blur in _BLURS:
                    cover = np.pad(sprite(shape, SIZES[size], right, down)[..., 0], 6)
                    middle = len(cover) / 2 - 0.5 + np.array([down, right]) / 4
                    cover = ndimage.gaussian_filter(cover, blur) if blur else cover
                    window = np.zeros((_WINDOW, _WINDOW), np.float32)
                    centres.append(middle - _centred(cover, window))
                    windows.append(window.ravel())
                    kinds.append((size, shape))
    windows = np.stack(windows)
    return windows, (windows**2).sum(1), np.stack(centres), kinds


def _colour_names(values):
    """The name of each colour, float [n, 3]; None where no named colour is near."""
    distances = np.linalg.norm(np.asarray(values)[:, None] - _PALETTE, axis=-1)
    return [_NAMES[d.argmin()] if d.min() <= _FAR else None for d in distances]


def _scene(background, groups):
    """A scene from groups of (colour value, size, shape, centre), a group an outer area."""
    readings = [reading for group in groups for reading in group]
    names = _colour_names([r[0] for r in readings]) if readings else []
    things = [Thing(size, name, shape) for name, (_, size, shape, _) in zip(names, readings)]
    relation = None
    if len(things) == 2:
        down, right = readings[1][3] - readings[0][3]
        if len(groups) == 1 and max(abs(down), abs(right)) < 8:
            relation = "inside"
        else:
            relation = "above" if abs(down) > abs(right) else "left of"
            if (down if relation == "above" else right) < 0:
                things.reverse()
    return Scene(background, tuple(things), relation)
