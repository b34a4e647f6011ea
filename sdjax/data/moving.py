"""The `moving` source: short clips of one object that moves, or stands still, drawn when asked for.

A clip is a scene of one object, as of `sdjax.data.scenes`, and a motion: a direction of eight and a
speed of two, or none. Its caption says both: "a large red circle on a yellow background moving
slowly up left".
"""
import dataclasses
import functools
import hashlib
import re

import numpy as np

from sdjax.data.content import Content, drawn_content
from sdjax.data.scenes import SIZES, SPLITS, Scene, parse_caption, single_scenes
from sdjax.data.shapes import MARGIN, UNIT, Draws, draw
from sdjax.errors import SdjaxError

SPEEDS = {"slowly": 1.4, "quickly": 4.2}  # a frame, in 64ths of the picture
DIRECTIONS = {
    "left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1),
    "up left": (-1, -1), "up right": (1, -1), "down left": (-1, 1), "down right": (1, 1),
}  # fmt: skip
FRAMES = 8
STILL = "standing still"
_CAPTION = re.compile(
    rf"(.*) (?:{STILL}|moving ({'|'.join(SPEEDS)}) ({'|'.join(sorted(DIRECTIONS, key=len))}))"
)


@dataclasses.dataclass(frozen=True)
class Motion:
    """Where an object goes, of DIRECTIONS, and how fast, of SPEEDS; None where it stands still.
    """

    direction: str | None = None
    speed: str | None = None

    def __str__(self):
        return STILL if self.direction is None else f"moving {self.speed} {self.direction}"

    @property
    def velocity(self) -> np.ndarray:
        """64ths of the picture a frame: float [2], right and down."""
        if self.direction is None:
            return np.zeros(2)
        way = np.array(DIRECTIONS[self.direction], float)
        return SPEEDS[self.speed] * way / np.linalg.norm(way)


MOTIONS = (Motion(), *(Motion(way, speed) for way in DIRECTIONS for speed in SPEEDS))


def caption_of(scene: Scene, motion: Motion) -> str:
    """A clip in words, which `parse_moving` reads."""
    return f"{scene.caption} {motion}"


@functools.lru_cache(maxsize=4096)
def parse_moving(caption: str) -> tuple[Scene, Motion]:
    """The scene and motion of a caption; SdjaxError where it is none of a clip."""
    match = _CAPTION.fullmatch(caption.strip().lower())
    if match is None:
        raise SdjaxError(
            f"not a caption of the moving clips: {caption!r}; expected e.g. 'a large red circle on "
            "a yellow background moving slowly left', or '… standing still'"
        )
    return parse_caption(match[1]), Motion(match[3], match[2])


@functools.lru_cache(maxsize=1 << 16)
def kept_out(scene: Scene, motion: Motion) -> bool:
    """Whether a pair of an object and its motion is of the fifth kept out, by a hash."""
    digest = hashlib.blake2b(caption_of(scene, motion).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") % 5 == 0


class Moving:
    """Captioned clips; item i depends on (seed, i) and the options only.

    source[i] gives {"image": uint8 [frames, image_size, image_size, 3], "caption": str}.

    Args:
      image_size: side in pixels, at least 32.
      split: "train", "heldout" (a fifth of the pairs of object and motion), or "all".
      seed: another seed, another sequence.
      frames: of a clip, 2 to 8; 1 gives pictures without that axis, each from some place of a
        clip, early ones more often, and with its caption.
      length: what len() says. Any index from 0 works, also beyond it.
    """

    def __init__(self, image_size=32, split="train", seed=0, frames=FRAMES, length=1_000_000):
        if split not in SPLITS:
            raise SdjaxError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
        if image_size < 32:
            raise SdjaxError(f"shapes are readable from 32 pixels on, got image_size {image_size}")
        if not 1 <= frames <= FRAMES:
            raise SdjaxError(f"moving clips have 1 to {FRAMES} frames, got {frames}")
        self.image_size, self.split, self.seed = image_size, split, seed
        self.frames, self.length = frames, length

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        scene, motion, centres = self.layout(index)
        if self.frames == 1:
            draws = Draws(f"moving/{self.seed}/{index}/frame")
            # Early ones more often: over whole clips, left and right would look the same.
            place = min(draws.integer(FRAMES), draws.integer(FRAMES))
            image = draw(scene, [centres[place]], self.image_size)
        else:
            image = np.stack(
                [draw(scene, [centre], self.image_size) for centre in centres[: self.frames]]
            )
        return {"image": image, "caption": caption_of(scene, motion)}

    def __repr__(self):
        return (
            f"Moving(image_size={self.image_size}, split={self.split!r}, seed={self.seed}, "
            f"frames={self.frames}, length={self.length})"
        )

    def content(self, stamps, count) -> Content:
        """What the items are: by the settings and by drawing the first of them."""
        return drawn_content(self)

    def layout(self, index: int) -> tuple[Scene, Motion, np.ndarray]:
        """The scene, the motion, and the object's centres float [FRAMES, 2], (x, y) in 64ths."""
        if index < 0:
            raise IndexError(f"index {index} is negative; clips are numbered from 0")
        attempt = 0
        while True:
            draws = Draws(f"moving/{self.seed}/{index}/{attempt}")
            scene, motion = draws.choice(single_scenes()), draws.choice(MOTIONS)
            if self.split == "all" or kept_out(scene, motion) == (self.split == "heldout"):
                break
            attempt += 1
        half = SIZES[scene.things[0].size] / 2
        way = motion.velocity * (FRAMES - 1)
        low = MARGIN + half - np.minimum(way, 0)
        high = UNIT - MARGIN - half - np.maximum(way, 0)
        start = np.array([draws.uniform(*ends) for ends in zip(low, high)])
        return scene, motion, start + np.arange(FRAMES)[:, None] * motion.velocity


def moving_captions(count: int, split: str = "train", seed: int = 0) -> list[str]:
    """Up to `count` different captions of a split, in the order in which a seed draws them."""
    source, found = Moving(split=split, seed=seed), {}
    for i in range(4 * count + 400):
        found.setdefault(caption_of(*source.layout(i)[:2]))
        if len(found) == count:
            break
    return list(found)
