"""Reads clips of the `moving` source back: what their object is, where it goes, and how evenly.

Every frame is read by itself (`sdjax.data.oracle`), then a line is fitted to where the object is.
"""
from typing import NamedTuple

import numpy as np

from sdjax.data.moving import DIRECTIONS, SPEEDS, Motion, parse_moving
from sdjax.data.oracle import placed, read_shapes
from sdjax.data.scenes import Scene
from sdjax.data.shapes import UNIT
from sdjax.errors import SdjaxError

STANDS = 0.7  # slower than this, in 64ths of the picture a frame, an object stands still
QUICK = 2.6  # from this on it is quick
EVEN = 1.0  # pixels of a picture of 32 that the object may leave its line by
_WAYS = {name: np.array(way) / np.linalg.norm(way) for name, way in DIRECTIONS.items()}
ATTRIBUTES = ("object", "identity", "direction", "speed", "even", "all")


class Read(NamedTuple):
    """What a clip shows."""

    scenes: list[Scene]
    """Of each frame."""
    motion: Motion | None
    """None where a frame has not one object."""
    residual: float
    """Root of the mean squared distance of the object from its line, in pixels of a picture of 32;
    NaN as above."""


def read_moving(clips) -> list[Read]:
    """What clips [N, F, side, side, 3], uint8 or float in [-1, 1], of two frames or more show."""
    clips = np.asarray(clips)
    if clips.ndim != 5 or clips.shape[1] < 2 or clips.shape[4] != 3:
        raise SdjaxError(f"expected clips [N, F, side, side, 3], F at least 2, got {clips.shape}")
    count, frames = clips.shape[:2]
    flat = clips.reshape(-1, *clips.shape[2:])
    scenes, places = read_shapes(flat), placed(flat)[:, :2].reshape(count, frames, 2)
    return [
        Read(scenes[i * frames : (i + 1) * frames], *_fitted(places[i])) for i in range(count)
    ]


def _fitted(places) -> tuple[Motion | None, float]:
    """Motion and residual of the middles float [F, 2], down and right."""
    if not np.isfinite(places).all():
        return None, float("nan")
    times = np.arange(len(places)) - (len(places) - 1) / 2
    middle = places.mean(0)
    slope = times @ (places - middle) / (times @ times)
    away = places - middle - times[:, None] * slope
    residual = float(np.sqrt((away**2).sum(1).mean()) * 32 / UNIT)
    speed = float(np.hypot(*slope))
    if speed < STANDS:
        return Motion(), residual
    way = slope[::-1] / speed
    direction = max(_WAYS, key=lambda name: float(_WAYS[name] @ way))
    slow, quick = SPEEDS
    return Motion(direction, quick if speed >= QUICK else slow), residual


def score_moving(clips, captions) -> dict[str, np.ndarray]:
    """What of clips agrees with their captions: name -> bool [N], and "residual" float [N].

    "object": the first frame's scene is the caption's; "identity": all frames show the same one
    object in the same size, colour and shape on the same background; "direction" is one of nine,
    standing still among them; "speed": slow, quick or none; "even": the object stays near a line;
    "all": everything. "moves" says whether it does, whatever is asked.
    """
    captions = [captions] if isinstance(captions, str) else list(captions)
    reads = read_moving(clips)
    if len(reads) != len(captions):
        raise SdjaxError(f"expected one caption a clip, got {len(captions)} for {len(reads)}")
    rows = []
    for read, caption in zip(reads, captions, strict=True):
        scene, motion = parse_moving(caption)
        known, first = read.motion is not None, read.scenes[0]
        row = {
            "object": first == scene,
            "identity": known and all(other == first for other in read.scenes),
            "direction": known and read.motion.direction == motion.direction,
            "speed": known and read.motion.speed == motion.speed,
            "even": known and read.residual <= EVEN,
        }
        rows.append(row | {"all": all(row.values()), "moves": known and read.motion != Motion()})
    found = {name: np.array([row[name] for row in rows], bool) for name in (*ATTRIBUTES, "moves")}
    return found | {"residual": np.array([read.residual for read in reads])}
