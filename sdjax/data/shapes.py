"""The `shapes` source: an endless set of captioned pictures, drawn when asked for."""
import functools
import hashlib

import numpy as np

from sdjax.data.content import Content, drawn_content
from sdjax.data.scenes import (
    BACKGROUNDS, COLOURS, RELATIONS, SHAPES, SIZES, SPLITS, Scene, Thing, in_split, single_scenes,
)
from sdjax.errors import SdjaxError

UNIT = 64  # lengths below are given for a picture of this size
MARGIN, GAP, WIDEST_GAP = 1.0, 4.0, 14.0
SLOPE = 0.6  # how far two objects may be shifted across their relation's axis, per unit along it
_SUPERSAMPLES = 8  # per pixel and axis
_STEPS = 4  # object positions are multiples of 1/4 pixel, so that drawn objects can be cached
_PAD = 2

# Where in a large object a small one fits: the offset down from the centre, in half sizes.
_INSIDE = {"circle": 0.0, "square": 0.0, "triangle": 0.42, "star": 0.1, "heart": -0.14}


class Shapes:
    """Captioned pictures of one or two objects; item i depends on (seed, i) and the options only.

    source[i] gives {"image": uint8 [image_size, image_size, 3], "caption": str}.

    Args:
      image_size: side in pixels. At least 32; made for 64.
      objects: "one", "two", or "both" (half and half).
      split: "train", "heldout" (a fifth of the combinations, by a hash), or "all".
      seed: another seed, another sequence.
      length: what len() says. Any index from 0 works, also beyond it.
    """

    def __init__(self, image_size=64, objects="one", split="train", seed=0, length=1_000_000):
        if objects not in ("one", "two", "both"):
            raise SdjaxError(f"objects must be 'one', 'two' or 'both', got {objects!r}")
        if split not in SPLITS:
            raise SdjaxError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
        if image_size < 32:
            raise SdjaxError(f"shapes are readable from 32 pixels on, got image_size {image_size}")
        self.image_size, self.objects, self.split = image_size, objects, split
        self.seed, self.length = seed, length

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        scene, centres = self.layout(index)
        return {"image": draw(scene, centres, self.image_size), "caption": scene.caption}

    def __repr__(self):
        return (
            f"Shapes(image_size={self.image_size}, objects={self.objects!r}, "
            f"split={self.split!r}, seed={self.seed}, length={self.length})"
        )

    def content(self, stamps, count) -> Content:
        """What the items are: by the settings and by drawing the first of them."""
        return drawn_content(self)

    def layout(self, index: int) -> tuple[Scene, list[tuple[float, float]]]:
        """The scene of item `index` and its objects' centres (x, y), in 64ths of the picture."""
        if index < 0:
            raise IndexError(f"index {index} is negative; shapes are numbered from 0")
        attempt = 0
        while True:
            draws = Draws(f"{self.seed}/{index}/{attempt}")
            two = self.objects == "two" or (self.objects == "both" and draws.integer(2))
            if not two:
                scene = draws.choice(single_scenes(self.split))
                return scene, [_place(draws, SIZES[scene.things[0].size])]
            scene = _pair(draws)
            if in_split(scene, self.split):
                return scene, _place_pair(draws, scene)
            attempt += 1


class Draws:
    """Sixteen random numbers from a name, the same on every machine and library version."""

    def __init__(self, name):
        digest = hashlib.blake2b(name.encode()).digest()
        self._words = iter(np.frombuffer(digest, "<u4").tolist())

    def integer(self, bound):
        return next(self._words) * bound >> 32

    def choice(self, options):
        return options[self.integer(len(options))]

    def uniform(self, low, high):
        return low + (high - low) * next(self._words) / 2**32


def _pair(draws):
    """Two objects with a relation; what lies inside is small, in something large."""
    relation = draws.choice(RELATIONS)
    background = draws.choice(BACKGROUNDS)
    colours = [colour for colour in COLOURS if colour != background]
    first, second = draws.choice(colours), draws.choice(colours)
    sizes = draws.choice(tuple(SIZES)), draws.choice(tuple(SIZES))
    if relation == "inside":
        sizes = "small", "large"
        if first == second:
            others = [colour for colour in colours if colour != second]
            first = others[draws.integer(len(others))]
    things = (
        Thing(sizes[0], first, draws.choice(SHAPES)), Thing(sizes[1], second, draws.choice(SHAPES))
    )
    return Scene(background, things, relation)


def _place(draws, size):
    low, high = MARGIN + size / 2, UNIT - MARGIN - size / 2
    return draws.uniform(low, high), draws.uniform(low, high)


def _place_pair(draws, scene):
    first, second = (SIZES[thing.size] for thing in scene.things)
    if scene.relation == "inside":
        x, y = _place(draws, second)
        down = _INSIDE[scene.things[1].shape] * second / 2
        return [(x + draws.uniform(-0.5, 0.5), y + down + draws.uniform(-0.5, 0.5)), (x, y)]
    room = UNIT - 2 * MARGIN
    along = (first + second) / 2 + draws.uniform(GAP, min(WIDEST_GAP, room - first - second))
    limit = min(SLOPE * along, room - (first + second) / 2)
    across = draws.uniform(-limit, limit)
    if scene.relation in ("above", "left of"):
        along = -along
    # Offsets of the first object's centre from the second's, then both moved into the picture.
    offset = (along, across) if scene.relation in ("left of", "right of") else (across, along)
    centre = []
    for shift in offset:
        low = max(second / 2, first / 2 - shift) + MARGIN
        high = min(UNIT - second / 2, UNIT - first / 2 - shift) - MARGIN
        centre.append(draws.uniform(low, high))
    return [(centre[0] + offset[0], centre[1] + offset[1]), (centre[0], centre[1])]


def draw(scene: Scene, centres, image_size: int = UNIT) -> np.ndarray:
    """The picture of a scene, uint8 [image_size, image_size, 3], antialiased.

    centres: for each thing, (x, y) in 64ths of the picture; rounded to 1/4 pixel.
    """
    side = image_size + 2 * _PAD
    canvas = np.empty((side, side, 3), np.float32)
    canvas[:] = COLOURS[scene.background]
    for thing, centre in reversed(list(zip(scene.things, centres))):
        steps = [int(c * image_size / UNIT * _STEPS + 0.5) for c in centre]
        (x, right), (y, down) = (divmod(s, _STEPS) for s in steps)
        cover = sprite(thing.shape, SIZES[thing.size] * image_size / UNIT, right, down)
        half = len(cover) // 2
        top, left = max(y - half + _PAD, 0), max(x - half + _PAD, 0)
        region = canvas[top : y + half + _PAD, left : x + half + _PAD]
        cover = cover[top - (y - half + _PAD) :, left - (x - half + _PAD) :]
        cover = cover[: region.shape[0], : region.shape[1]]
        region += cover * (np.array(COLOURS[thing.colour], np.float32) - region)
    return (canvas[_PAD:-_PAD, _PAD:-_PAD] + 0.5).astype(np.uint8)


@functools.lru_cache(maxsize=4096)
def sprite(shape: str, size: float, right: int = 0, down: int = 0) -> np.ndarray:
    """How much of each pixel a shape covers: float32 [n, n, 1] in 0…1, n even.

    The shape's bounding box has side `size` and lies centred on pixel corner (n/2, n/2), moved by
    `right` and `down` quarters of a pixel.
    """
    fine = _fine_mask(shape, size)
    shift = _SUPERSAMPLES // _STEPS
    fine = np.roll(fine, (down * shift, right * shift), (0, 1))
    n = len(fine) // _SUPERSAMPLES
    cover = fine.reshape(n, _SUPERSAMPLES, n, _SUPERSAMPLES).mean((1, 3), dtype=np.float32)
    return cover[..., None]


@functools.lru_cache(maxsize=256)
def _fine_mask(shape, size):
    n = 2 * int(np.ceil(size / 2 + 1))
    points = ((np.arange(n * _SUPERSAMPLES) + 0.5) / _SUPERSAMPLES - n / 2) / (size / 2)
    x, y = points[None, :], points[:, None]
    if shape == "circle":
        return x**2 + y**2 <= 1
    if shape == "square":
        return np.maximum(abs(x), abs(y)) <= 1
    return _in_polygon(x, y, _outline(shape))


def _outline(shape):
    """Corners [k, 2] of a shape whose bounding box is -1…1, y down."""
    if shape == "triangle":
        corners = np.array([[0, -1], [1, 1], [-1, 1]], float)
    elif shape == "star":
        angle = np.pi * (np.arange(10) / 5 - 0.5)
        radius = np.where(np.arange(10) % 2, 0.47, 1.0)
        corners = np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1)
    else:  # heart
        t = np.linspace(0, 2 * np.pi, 96, endpoint=False)
        y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
        corners = np.stack([16 * np.sin(t) ** 3, -y], 1)
    low, high = corners.min(0), corners.max(0)
    return (corners - low) / (high - low) * 2 - 1


def _in_polygon(x, y, corners):
    """Even–odd rule, for a row x [1, n] and a column y [n, 1] of coordinates."""
    inside = np.zeros((y.size, x.size), bool)
    for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, -1, 0)):
        if y0 != y1:
            inside ^= ((y0 <= y) != (y1 <= y)) & (x < x0 + (y - y0) / (y1 - y0) * (x1 - x0))
    return inside
