"""What a run says about its data."""
import dataclasses
from typing import Literal

from sdjax.data.filters import Filter
from sdjax.errors import SdjaxError, check_at_least


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where captioned pictures come from, and how they are prepared and batched."""

    source: str = "shapes"
    """"shapes", "moving", "emoji", "folder:PATH", "tfds:NAME" (of tensorflow-datasets); or for sets
    larger than memory, here or at addresses such as gs://bucket/folder, "tar:PATH" (WebDataset, as
    img2dataset writes it), "parquet:PATH" (as Hugging Face has it), "array_record:PATH", or
    "encoded:PATH", what `data encode` wrote: a folder, or names with {0000..0099}. For molecules
    "qm9" or "qm9:FOLDER"."""
    split: str = "train"
    """The source's split; shapes, moving and folders of recordings have train, heldout and all, qm9
    train, valid, test and all."""
    image_size: int = 64
    """Side of the square pictures; others are cropped to their middle and resized. 0 for that of
    the model that is trained on."""
    buckets: bool = False
    """Fit each picture to the aspect-ratio bucket of about its proportions instead of cutting out
    its middle square, as sd-scripts does; for training on top of a model."""
    bucket_smallest: int = 256
    """Shortest side of a bucket."""
    bucket_largest: int = 1024
    """Longest side of a bucket."""
    bucket_step: int = 64
    """What a bucket's sides are multiples of."""
    bucket_enlarge: bool = True
    """Whether small pictures are enlarged to their bucket; otherwise they are cut to the step."""
    seed: int = 0
    """Order of the pictures, and the pictures themselves where they are drawn."""
    objects: Literal["one", "two", "both"] = "one"
    """shapes: objects in a picture."""
    frames: int = 8
    """moving: of a clip, up to 8; 1 gives pictures, each from some place of a clip."""
    subset: str = "all"
    """emoji: "all", "core", or Unicode groups and subgroups, separated by commas."""
    image_key: str = "image"
    """tfds: the feature that holds the picture."""
    caption_key: str | None = None
    """tfds and folder: what holds the caption; by default caption, text, or the label's name."""
    data_dir: str | None = None
    """tfds and emoji: where prepared data sets lie; by default tensorflow-datasets' own folder."""
    require_captions: bool = True
    """Whether a picture without a caption counts as broken."""
    max_broken_share: float = 0.01
    """The run stops when more than this share of the source is broken, and more than one item, or
    with 0 any; less is skipped. Counted anew by each start of the program."""
    caption_lines: bool = False
    """folder: each line of a caption's file is a caption of its own, one of which is drawn each
    time in training on top of a model; otherwise all are one."""
    validation: float = 0.0
    """Share of the pictures that are kept out of training on top of a model, to judge it by; their
    names choose them, so that they are the same each time."""
    validation_source: str = ""
    """Another source, such as "folder:PATH", all of whose pictures are for that."""
    flip: bool = False
    """Mirrors half of the pictures, by chance each time. Wrong for captions that say left, right or
    words; not for cached latents."""
    cache: int = 0
    """Keeps up to so many prepared pictures in memory, where a run reads them as it goes, which it
    does without cache_images or cache_latents."""
    smallest: int = 0
    """Shards: pictures whose shorter side has fewer pixels are left out."""
    max_aspect: float = 0.0
    """Shards: those whose longer side is more than so many times the shorter; 0 for none."""
    keep: tuple[str, ...] = ()
    """Shards: conditions on what is known of a sample, its JSON or columns, such as
    "similarity>=0.3" "punsafe<0.1"; samples that fail one, or lack what it is about, are left
    out."""
    window: int = 1024
    """Shards: samples that lie together and change places at random."""
    streams: int = 16
    """Shards: places of the data that are drawn from in turn, best a multiple of the number of
    hosts, each of which then reads its share of the shards."""
    threads: int = 1
    """Threads that read and prepare ahead of a run that reads as it goes."""

    def __post_init__(self):
        check_at_least(0, self, "image_size", "cache", "threads", "smallest", "max_aspect")
        check_at_least(1, self, "window", "streams")
        self.filter  # refuses conditions that are none
        if not 0 <= self.validation < 1:
            raise SdjaxError(f"validation is a share in [0, 1), got {self.validation}")
        if self.validation and self.validation_source:
            raise SdjaxError("validation and validation_source exclude each other")
        if not 0 <= self.max_broken_share <= 1:
            raise SdjaxError(
                f"max_broken_share is a share between 0 and 1, got {self.max_broken_share}"
            )

    @property
    def filter(self) -> Filter:
        """Which samples of shards are used."""
        return Filter(self.smallest, self.max_aspect, self.keep)
