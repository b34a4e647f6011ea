"""Finds the objects of a `shapes` picture, their colours, and how much of each pixel they cover.

The background is the commonest colour of the border. Colours that fill whole neighbourhoods are
those of objects. A pixel's coverage is how far it has gone from the background to an object's
colour; connected covered areas are objects, or one object inside another.
"""
import dataclasses
import itertools

import numpy as np
from scipy import ndimage

from sdjax.data.scenes import COLOURS

_NAMES = list(COLOURS)
_PALETTE = np.array(list(COLOURS.values()), np.float32)
_CORE = 8  # pixels well inside an area that make its colour an object's
_LEAST_AREA = 24  # pixels; a small star has about 60
_MIXED = 30.0  # distance in RGB within which a colour counts as a mixture of two others
_IN_PICTURE = np.zeros((3, 3, 3), bool)  # neighbours side by side, never across pictures
_IN_PICTURE[1] = ndimage.generate_binary_structure(2, 1)


@dataclasses.dataclass
class Region:
    """One object: its mean colour [3], its coverage [h, w] in 0…1, and where that lies, (y, x)."""

    colour: np.ndarray
    cover: np.ndarray
    corner: np.ndarray


def find_objects(images):
    """The objects of pictures.

    Args:
      images: uint8 [n, 64, 64, 3].

    Returns:
      The mean background colours, float [n, 3]; and for each picture a list of groups, a group
      being the list of `Region`s of one connected area. What lies inside another object shares its
      group and comes before it.
    """
    pixels = images.astype(np.float32)
    nearest = np.argmin((_PALETTE**2).sum(1) - 2 * pixels @ _PALETTE.T, -1).astype(np.int8)
    background, ground = _background(pixels, nearest)
    # An object's own colour fills 3x3 neighbourhoods; the mixed colours of an edge do not.
    low = ndimage.minimum_filter(nearest, (1, 3, 3))
    high = ndimage.maximum_filter(nearest, (1, 3, 3))
    core = np.where((low == high) & (nearest != background[:, None, None]), nearest, -1)
    present, means = _object_colours(pixels, core, ground)
    core = np.where(present[np.arange(len(core))[:, None, None], core], core, -1)
    cover, owner = _coverage(pixels, ground, present, means)
    labels = _labels(cover, core, present)
    found = [[] for _ in images]
    for label, where in enumerate(ndimage.find_objects(labels), 1):
        n = where[0].start
        window = tuple(slice(max(s.start - 3, 0), s.stop + 3) for s in where[1:])
        near = labels[n][window]
        mask = near == label
        if mask.sum() < _LEAST_AREA:
            continue
        area = _Area(
            cover[n][window], owner[n][window], core[n][window], pixels[n][window],
            np.array([window[0].start, window[1].start]), means[n],
        )
        found[n].append(area.objects(mask, (near > 0) & ~mask))
    return ground, found


def _labels(cover, core, present):
    """Numbers the connected covered areas of all pictures, int [n, h, w]; 0 is background."""
    covered = cover > 0.5
    for n in np.flatnonzero(present.sum(1) == 2):
        # Where one object lies inside another, their mixed edge may look like the ground: close it.
        first, second = (core[n] == k for k in np.flatnonzero(present[n]))
        if _surrounds(first, second) or _surrounds(second, first):
            covered[n] |= ndimage.binary_closing(covered[n], iterations=2)
    covered = ndimage.binary_fill_holes(covered, _IN_PICTURE)
    return ndimage.label(covered, _IN_PICTURE)[0]


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


@dataclasses.dataclass
class _Area:
    """The neighbourhood of one connected covered area: cut-outs [h, w] of the picture's maps."""

    cover: np.ndarray
    owner: np.ndarray
    core: np.ndarray
    pixels: np.ndarray
    corner: np.ndarray
    means: np.ndarray  # of each named colour in the whole picture, [8, 3]

    def objects(self, mask, others):
        """The area's Regions; mask is the area itself, others the areas beside it."""
        counts = np.bincount(self.core[mask] + 1, minlength=len(_NAMES) + 1)[1:]
        colours = [k for k in np.argsort(-counts, kind="stable") if counts[k] >= _CORE]
        if not colours:
            colours = [np.bincount(self.owner[mask]).argmax()]
        if len(colours) == 1:
            return [self._object(colours[0], mask, others)]
        first, second = colours[:2]
        masks = [mask & ((self.owner == k) | (self.core == k)) for k in (first, second)]
        if _surrounds(masks[1], masks[0]):
            first, second = second, first
        elif not _surrounds(masks[0], masks[1]):
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
        return Region(self.means[colour], cover, self.corner)

    def _inner(self, colour, outer, mask):
        start = self.means[outer]
        line = self.means[colour] - start
        part = np.clip((self.pixels - start) @ line / (line @ line), 0, 1)
        body = ndimage.binary_opening(mask & (self.owner == colour) & (part > 0.5))
        area = ndimage.binary_dilation(body, iterations=2) & mask
        return Region(self.means[colour], part * area, self.corner)


def _surrounds(outer, inner):
    """Whether the bounding box of `outer` reaches beyond that of `inner`: on three sides at least,
    and on the fourth, where a thin rim may be lost, as far."""
    room = []
    for axis in (0, 1):
        o, i = (np.flatnonzero(m.any(axis)) for m in (outer, inner))
        room += [i[0] - o[0], o[-1] - i[-1]]
    return min(room) >= 0 and sum(r > 0 for r in room) >= 3
