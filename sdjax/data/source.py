"""Opens a source by name and prepares its pictures; broken ones are counted and skipped."""
import importlib
import logging
import threading

import numpy as np

from sdjax.data.buckets import Buckets, fitted
from sdjax.data.config import DataConfig
from sdjax.data.content import Content, Stamps
from sdjax.data.folder import ImageFolder
from sdjax.data.images import crop_and_resize
from sdjax.data.moving import Moving
from sdjax.data.pictures import BrokenItem
from sdjax.data.shapes import Shapes
from sdjax.data.sounds import SoundFolder, holds_sounds
from sdjax.errors import SdjaxError
from sdjax.folders import check_local

_log = logging.getLogger(__name__)
_LOOKED_AT, _NAMED = 1000, 20  # items looked at, and named, before a run is stopped
_KINDS = (
    '"shapes", "moving", "emoji", "folder:PATH", "tfds:NAME", "tar:PATH", "parquet:PATH", '
    '"array_record:PATH" or "encoded:PATH"'
)
_SHARDS = {
    "tar": ("sdjax.data.tar_shards", "TarShards"),
    "encoded": ("sdjax.data.tar_shards", "TarShards"),
    "parquet": ("sdjax.data.parquet_shards", "ParquetShards"),
    "array_record": ("sdjax.data.record_shards", "RecordShards"),
}


def open_source(config: DataConfig, index=None) -> "Source":
    """The source that a configuration names, its pictures prepared to `config.image_size`.

    index: a folder or address where is kept what is found out about shards; None keeps nothing.

    Raises:
      SdjaxError: where the source is unknown, absent, or broken beyond `max_broken_share`.
    """
    if not config.image_size:
        raise SdjaxError("data.image_size 0 is that of a model that is trained on: there is none")
    kind, _, name = config.source.partition(":")
    if kind not in _SHARDS:
        check_local(name)
        if config.filter:
            raise SdjaxError(
                "data.smallest, max_aspect and keep are for tar:, parquet: and array_record:, not "
                f"for {config.source!r}"
            )
    check_local(config.data_dir or "")
    if kind == "shapes" and not name:
        raw = Shapes(config.image_size, config.objects, config.split, config.seed)
    elif kind == "moving" and not name:
        raw = Moving(config.image_size, config.split, config.seed, config.frames)
    elif kind == "emoji" and not name:
        from sdjax.data.emoji import open_emoji  # tensorflow-datasets takes seconds to import

        raw = open_emoji(config.subset, config.data_dir, split=config.split)
    elif kind == "folder" and name and holds_sounds(name):
        raw = SoundFolder(name, config.split)
    elif kind == "folder" and name:
        raw = ImageFolder(name, config.split, config.caption_key, config.caption_lines)
    elif kind == "tfds" and name:
        from sdjax.data.tfds_source import open_tfds

        raw = open_tfds(name, config.split, config.data_dir, config.image_key, config.caption_key)
    elif kind == "qm9":
        raise SdjaxError("qm9 has molecules, not pictures: train on it by configs/molecules.py")
    elif kind in _SHARDS and name:
        raw = _open_shards(config, kind, name, index)
    else:
        raise SdjaxError(f"unknown data source {config.source!r}; expected {_KINDS}")
    return Source(
        raw, config.image_size, require_captions=config.require_captions,
        max_broken_share=config.max_broken_share, cache=config.cache,
        buckets=_buckets(config),
    )


def in_shards(config: DataConfig) -> bool:
    """Whether a source is made for sets that do not fit into memory."""
    return config.source.partition(":")[0] in _SHARDS


def _open_shards(config, kind, name, index):
    from sdjax.data.shards import Shards

    module, reader = _SHARDS[kind]
    options = {"caption_key": config.caption_key}
    if kind in ("parquet", "array_record"):
        options["image_key"] = config.image_key
    if not config.buckets:  # which want to know how large a picture was
        options["size"] = config.image_size
    return Shards(
        getattr(importlib.import_module(module), reader), name, config.filter, index,
        config.max_broken_share, config.split, **options,
    )


def _buckets(config):
    if not config.buckets:
        return None
    return Buckets(config.image_size, config.bucket_smallest, config.bucket_largest,
                   config.bucket_step, config.bucket_enlarge)


class Source:
    """A random-access source with its pictures cropped and resized, its broken items counted.

    source[i] gives {"image": uint8 [size, size, 3], "caption": str} and, where the raw source has
    one, "label": int; or None where item i is broken. `broken` maps the names of all broken items
    met so far to the reasons.

    Args:
      raw: anything with len() and [i] giving such items with pictures of any size; it may raise
        BrokenItem, name its items by name(i), say why a caption is empty by why_no_caption(i), list
        in `skipped` what it left out on opening, and tell its `content`, without which nothing made
        of it is kept.
      buckets: fit pictures to these in place of the square; items then have "time_ids" float32
        [6]: height and width as they came, top and left of what is cut out of the resized
        picture, height and width of the bucket.
      cache: keeps up to so many prepared items in memory.

    Raises:
      SdjaxError: as soon as more than `max_broken_share` of the source is known to be broken, and
        more than one item, unless the share is 0; others that are broken are looked for first, so
        that all are told at once.
    """

    def __init__(self, raw, image_size, require_captions=True, max_broken_share=0.01, cache=0,
                 buckets=None):
        self.buckets = buckets
        self.raw, self.image_size = raw, image_size
        self.require_captions, self.max_broken_share = require_captions, max_broken_share
        self.broken: dict[str, str] = {}
        self._lock = threading.Lock()
        self._cache, self._room = {}, cache
        self._stopping = False
        skipped = getattr(raw, "skipped", [])
        self._total = len(raw) + len(skipped)
        for name, reason in skipped:
            self._count(BrokenItem(name, reason))

    @property
    def sizes(self) -> list[int] | None:
        """Items of each shard; None where there are none."""
        return getattr(self.raw, "sizes", None)

    def __len__(self):
        return len(self.raw)

    def __getitem__(self, index):
        item = self._cache.get(index)
        if item is None:
            item = self._prepared(index)
            if item is not None and len(self._cache) < self._room:
                self._cache[index] = item
        return item

    def check(self) -> dict[str, str]:
        """Reads every item once, and returns the broken ones: name -> reason."""
        for index in range(len(self)):
            self._prepared(index)
        return dict(self.broken)

    def content(self, stamps: Stamps, count: int) -> Content | None:
        """What the first `count` items are; None where the raw source cannot tell."""
        return self.raw.content(stamps, count) if hasattr(self.raw, "content") else None

    def has_caption(self, index, caption: str) -> bool:
        """Whether this caption of item `index` will do; where it will not, the item is broken."""
        if self.require_captions and not caption.strip():
            why = getattr(self.raw, "why_no_caption", lambda index: None)(index)
            self._count(BrokenItem(
                self.name(index), "has no caption" + (f": {why}" if why else "")
            ))
            return False
        return True

    def _prepared(self, index):
        try:
            item = dict(self.raw[index])
            if not self.has_caption(index, item["caption"]):
                return None
            if "image" not in item:
                return item
            if item["image"].ndim == 4:  # a clip, drawn at this size
                if self.buckets is not None:
                    raise SdjaxError("buckets are for pictures: set data.buckets to False")
                return item
            if self.buckets is None:
                item["image"] = crop_and_resize(item["image"], self.image_size)
                return item
            return item | self._fitted(index, item["image"])
        except BrokenItem as broken:
            self._count(broken)
            return None

    def _fitted(self, index, image):
        height, width = image.shape[:2]
        try:
            fit = self.buckets.fit(width, height)
        except SdjaxError as error:
            raise BrokenItem(self.name(index), str(error)) from error
        ids = height, width, *fit.crop[::-1], *fit.bucket[::-1]
        return {"image": fitted(image, fit), "time_ids": np.float32(ids)}

    def name(self, index) -> str:
        """What item `index` is called in messages."""
        return self.raw.name(index) if hasattr(self.raw, "name") else f"item {index}"

    def _count(self, broken):
        with self._lock:
            if broken.name in self.broken:
                return
            self.broken[broken.name] = broken.reason
            count = len(self.broken)
            least = 1 if self.max_broken_share and self._total > 1 else 0
            stop = count > max(self.max_broken_share * self._total, least) and not self._stopping
            self._stopping |= stop
        _log.warning("skipped %s (%d broken of %d)", broken, count, self._total)
        if stop:
            self._stop()

    def _stop(self):
        try:
            for index in range(min(len(self), _LOOKED_AT)):
                if len(self.broken) < _NAMED:
                    self._prepared(index)
        finally:
            self._stopping = False
        named = "; ".join(f"{name}: {why}" for name, why in list(self.broken.items())[:_NAMED])
        raise SdjaxError(
            f"{len(self.broken)} of {self._total} items are broken, more than the share "
            f"max_broken_share={self.max_broken_share:g} allows; mend them or raise the share. "
            f"They are {named}"
        )


def stack(items) -> dict[str, np.ndarray]:
    """Items as one batch: "image" uint8 [n, h, w, 3], "caption" str [n], "label" where given."""
    batch = {key: np.stack([item[key] for item in items]) for key in items[0] if key != "caption"}
    return batch | {"caption": np.array([item["caption"] for item in items])}
