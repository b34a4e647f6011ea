"""Skeletons of people drawn from OpenPose's points, as networks for poses were trained on them."""

import json
import math
import os
from collections.abc import Mapping

import numpy as np
from PIL import Image, ImageDraw

from sdjax.errors import SdjaxError
from sdjax.text_files import read_text

POINTS = 18
# OpenPose's 25 points without the middle of the hip and the feet.
_OF_25 = (*range(8), *range(9, 19))
# Pairs of points, counted from 0, in the order in which limbs are drawn.
_LIMBS = (
    (1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10), (1, 11), (11, 12),
    (12, 13), (1, 0), (0, 14), (14, 16), (0, 15), (15, 17),
)  # fmt: skip
# Around the circle of colours; the first 17 are those of the limbs.
_COLOURS = (
    (255, 0, 0), (255, 85, 0), (255, 170, 0), (255, 255, 0), (170, 255, 0), (85, 255, 0),
    (0, 255, 0), (0, 255, 85), (0, 255, 170), (0, 255, 255), (0, 170, 255), (0, 85, 255),
    (0, 0, 255), (85, 0, 255), (170, 0, 255), (255, 0, 255), (255, 0, 170), (255, 0, 85),
)  # fmt: skip
_THICK = 4  # pixels: half the width of a limb, and the radius of a point
_DARKER = 0.6  # of limbs, points are drawn in full


def pose(points: str | os.PathLike | Mapping, size: tuple[int, int]) -> Image.Image:
    """People as coloured limbs and points on black, an RGB picture of `size` (height, width).

    points: OpenPose's JSON, or its path: {"people": [{"pose_keypoints_2d": [x, y, confidence, …]}]}
    with 18 points (COCO) or 25 of which 18 are drawn; those with confidence 0 are not there. They
    are pixels of the picture, of canvas_width and canvas_height where the JSON has them, or where
    none is above 1, shares of its sides. Raises SdjaxError for anything else.
    """
    if not isinstance(points, Mapping):
        points = _read(points)
    height, width = size
    picture = Image.new("RGB", (width, height))
    draw = ImageDraw.Draw(picture)
    people = [_placed(person, points, size) for person in _people(points)]
    for limb, colour in zip(_LIMBS, _COLOURS, strict=False):
        for person in people:
            ends = [person[end] for end in limb]
            if None not in ends:
                draw.polygon(_ellipse(*ends), fill=tuple(int(_DARKER * c) for c in colour))
    for number, colour in enumerate(_COLOURS):
        for person in people:
            if person[number] is not None:
                x, y = map(int, person[number])
                draw.ellipse((x - _THICK, y - _THICK, x + _THICK, y + _THICK), fill=colour)
    return picture


def _read(path: str | os.PathLike) -> Mapping:
    try:
        content = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise SdjaxError(f"{os.fspath(path)} is not JSON: {error}") from error
    if not isinstance(content, Mapping):
        raise SdjaxError(
            f"{os.fspath(path)} must hold a JSON object of OpenPose, found a "
            f"{type(content).__name__}"
        )
    return content


def _people(points: Mapping) -> list[np.ndarray]:
    """float [18, 3] of each person: x, y, confidence."""
    people = points.get("people")
    if not isinstance(people, list) or not people:
        raise SdjaxError('OpenPose\'s JSON must have "people", a list of at least one')
    found = []
    for number, person in enumerate(people):
        given = person.get("pose_keypoints_2d") if isinstance(person, Mapping) else None
        try:
            array = np.asarray(given, np.float64).reshape(-1, 3)
        except (TypeError, ValueError):
            array = np.zeros((0, 3))
        if len(array) not in (POINTS, 25) or not np.isfinite(array).all():
            raise SdjaxError(
                f"person {number} must have pose_keypoints_2d of 18 or 25 points, each three "
                f"finite numbers, got {len(array)} points"
            )
        found.append(array if len(array) == POINTS else array[list(_OF_25)])
    return found


def _placed(person: np.ndarray, points: Mapping, size: tuple[int, int]) -> list:
    """(x, y) of each point in pixels of the picture, or None."""
    height, width = size
    sides = [points.get(name) for name in ("canvas_width", "canvas_height")]
    for side in sides:
        if side is not None and not (isinstance(side, int | float) and side > 0):
            raise SdjaxError(f"canvas_width and canvas_height must be above 0, got {side!r:.40}")
    seen = person[:, 2] > 0
    if person[seen, :2].max(initial=0) <= 1:
        sides = [1, 1]
    scale = [
        to / (to if side is None else side)
        for to, side in zip((width, height), sides, strict=True)
    ]
    places = person[:, :2] * scale
    return [tuple(xy) if there else None for xy, there in zip(places, seen, strict=True)]


def _ellipse(start: tuple[float, float], end: tuple[float, float]) -> list[tuple[int, int]]:
    """The corners of a limb: an ellipse between two points, in whole pixels and degrees."""
    x, y = ((a + b) / 2 for a, b in zip(start, end, strict=True))
    across, down = (a - b for a, b in zip(start, end, strict=True))
    long = int(math.hypot(across, down) / 2)
    turn = math.radians(int(math.degrees(math.atan2(down, across))))
    around = np.radians(np.arange(360))
    a, b = long * np.cos(around), _THICK * np.sin(around)
    xs = np.rint(int(x) + a * np.cos(turn) - b * np.sin(turn)).astype(int)
    ys = np.rint(int(y) + a * np.sin(turn) + b * np.cos(turn)).astype(int)
    return list(zip(xs.tolist(), ys.tolist(), strict=True))
