"""The vocabulary of the `shapes` pictures: scenes, their captions, and which are held out.

A scene is one or two objects on a plain background. An object has a size, a colour and a shape;
two objects have a relation. Captions and scenes map to each other exactly, so that a caption can
be scored against what the oracle (`sdjax.data.oracle`) reads back from a picture.
"""
import dataclasses
import functools
import hashlib
import itertools
import re

from sdjax.errors import SdjaxError

SIZES = {"small": 13.0, "medium": 19.0, "large": 28.0}  # side of the bounding box, in 64ths
COLOURS = {
    "red": (222, 30, 36),
    "green": (28, 150, 54),
    "blue": (38, 62, 224),
    "yellow": (250, 222, 44),
    "pink": (252, 96, 196),
    "cyan": (44, 210, 232),
    "white": (250, 250, 250),
    "black": (16, 16, 16),
}
SHAPES = ("circle", "square", "triangle", "star", "heart")
RELATIONS = ("above", "below", "left of", "right of", "inside")
BACKGROUNDS = tuple(COLOURS)
SPLITS = ("train", "heldout", "all")

_MIRRORED = {"below": "above", "right of": "left of"}
_THING = rf"an? ({'|'.join(SIZES)}) ({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})"
_CAPTION = re.compile(
    rf"{_THING}(?: ({'|'.join(RELATIONS)}) {_THING})? on an? ({'|'.join(BACKGROUNDS)}) background"
)


@dataclasses.dataclass(frozen=True)
class Thing:
    """One object. An attribute that cannot be told from a picture is None."""

    size: str | None
    colour: str | None
    shape: str | None

    def __str__(self):
        return f"{self.size or 'unclear'} {self.colour or 'unclear'} {self.shape or 'form'}"


@dataclasses.dataclass(frozen=True)
class Scene:
    """`things` on a `background`; `relation` tells how the first of two lies to the second.

    A scene read from a picture may have any number of things; a caption has one or two.
    """

    background: str | None
    things: tuple[Thing, ...]
    relation: str | None = None

    @property
    def caption(self) -> str:
        """The scene in words, e.g. "a large red circle above a small blue square on a …"."""
        link = f" {self.relation} " if self.relation else " and "
        things = link.join(f"a {thing}" for thing in self.things) or "nothing"
        return f"{things} on a {self.background or 'unclear'} background"

    def canonical(self) -> "Scene":
        """The same picture said with "above", "left of" or "inside" only."""
        if self.relation not in _MIRRORED:
            return self
        return Scene(self.background, self.things[::-1], _MIRRORED[self.relation])


@functools.lru_cache(maxsize=4096)
def parse_caption(caption: str) -> Scene:
    """The scene that a caption describes; SdjaxError where it is not one of the grammar."""
    match = _CAPTION.fullmatch(caption.strip().lower())
    if match is None:
        raise SdjaxError(
            f"not a caption of the shapes pictures: {caption!r}; expected e.g. 'a large red circle "
            "above a small blue square on a yellow background'"
        )
    parts = match.groups()
    things = (Thing(*parts[:3]),) + ((Thing(*parts[4:7]),) if parts[3] else ())
    return Scene(parts[7], things, parts[3])


@functools.lru_cache(maxsize=1 << 16)
def held_out(scene: Scene) -> bool:
    """Whether the scene belongs to the held-out fifth, by a hash of its combination.

    Two captions of the same picture ("A above B", "B below A") fall on the same side.
    """
    digest = hashlib.blake2b(scene.canonical().caption.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") % 5 == 0


def in_split(scene: Scene, split: str) -> bool:
    """Whether the scene belongs to "train", "heldout" or "all"."""
    return split == "all" or held_out(scene) == (split == "heldout")


@functools.cache
def single_scenes(split: str = "all") -> tuple[Scene, ...]:
    """All one-object scenes of a split, in a fixed order (840 in "all")."""
    scenes = (
        Scene(background, (Thing(size, colour, shape),))
        for size, colour, shape, background in itertools.product(
            SIZES, COLOURS, SHAPES, BACKGROUNDS
        )
        if colour != background
    )
    return tuple(scene for scene in scenes if in_split(scene, split))
