"""A folder of pictures with captions beside them."""
import logging
import os
import pathlib
import re
import unicodedata

from sdjax.data.content import Content, Stamps
from sdjax.data.images import decode_image
from sdjax.data.metadata import NAMES, metadata_file, read_metadata
from sdjax.errors import SdjaxError
from sdjax.text_files import read_text

CAPTION_KEYS = ("caption", "text")
CAPTION_SUFFIXES = (".txt", ".caption")
# Also what Pillow reads only with a plugin, so that it is named as broken and not passed over.
_SUFFIXES = {
    ".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".gif", ".bmp", ".dib", ".tif",
    ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".avif", ".jp2", ".j2k", ".jpx", ".tga",
    ".heic", ".heif", ".jxl",
}
_SPLITS = {"train", "training", "test", "testing", "validation", "valid", "val", "dev", "eval"}
# sd-scripts' folders: so many repeats, and the caption of pictures without one of their own.
_REPEATED = re.compile(r"(\d+)_(.+)")
_SHEET = re.compile(r"\d{5,}-sheet\.png")  # what `sample` writes beside its pictures

_log = logging.getLogger(__name__)


class ImageFolder:
    """Pictures of a folder and its subfolders, in the order of their paths.

    Captions come from `metadata.jsonl` or `metadata.csv` in it or in subfolders (the layout of
    Hugging Face's imagefolder: a row a picture, with "file_name", relative to the file, and "text"
    or "caption"; a picture with several rows is several items). What no such file names has its
    caption in `NAME.txt` or `NAME.caption` beside `NAME.png`, and without these the name of its
    folder, where that is of sd-scripts' kind: `10_sks dog` for ten repeats of "sks dog". Where the
    folder has a subfolder named like the split, that is the source, and a metadata file above it
    counts as well. Hidden files and folders (a dot or two underscores before the name) are none of
    it, nor are the sheets that `sample` writes.

    source[i] gives {"image": uint8 [height, width, 3], "caption": str}; the caption is "" where
    there is none. `repeats` says how often an epoch of sd-scripts draws each. `skipped` names what
    could not be paired: rows without a picture, or unreadable. lines: keep the lines of a caption's
    file apart, by line breaks, as captions of their own.

    Raises:
      SdjaxError: where there is no such folder, no picture in it, or a metadata file that cannot be
        read.
      BrokenItem: from source[i], where picture i cannot be decoded.
    """

    def __init__(
        self, path, split: str = "train", caption_key: str | None = None, lines: bool = False
    ):
        self._lines = lines
        above = pathlib.Path(path).expanduser()
        if not above.is_dir():
            raise SdjaxError(f"expected a folder of pictures, found none at {above}")
        self.root = above / split if (above / split).is_dir() else above
        if self.root == above and split != "train":
            raise SdjaxError(f"{above} has no subfolder for the split {split!r}")
        self.skipped: list[tuple[str, str]] = []
        pictures, metadata = _found(self.root)
        if self.root != above:
            metadata[:0] = [file for file in [metadata_file(above)] if file]
            _tell_others(above, self.root)
        if not pictures:
            raise SdjaxError(f"found no pictures in {self.root}; expected files such as "
                             f"{' '.join(sorted(_SUFFIXES))}")
        rows = self._rows(pictures, metadata, (caption_key,) if caption_key else CAPTION_KEYS)
        self.items, self._why = [], {}
        for name in sorted(pictures):
            for caption, problem in rows.get(name) or [self._beside(name, metadata)]:
                self._why[len(self.items)] = problem
                self.items.append((name, caption))

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        name, caption = self.items[index]
        return {"image": decode_image(self.root / name, name), "caption": caption}

    @property
    def repeats(self) -> list[int]:
        """For each item how often an epoch draws it: 10 in a folder `10_name`, else 1."""
        found = (self._repeated(name) for name, _ in self.items)
        return [int(match[1]) if match else 1 for match in found]

    def name(self, index) -> str:
        """What item `index` is called in messages."""
        return self.items[index][0]

    def why_no_caption(self, index) -> str | None:
        """Why the caption of item `index` is empty; None where it is not."""
        return self._why[index]

    def content(self, stamps: Stamps, count: int) -> Content:
        """What the first `count` items are, without decoding their pictures."""
        items = self.items[:count]
        return Content({n: stamps.of(self.root / n, n) for n in dict(items)}, tuple(items))

    def _rows(self, pictures, metadata, keys):
        """Picture -> its (caption, problem) in the metadata file that is nearest to it."""
        known = {unicodedata.normalize("NFC", name): name for name in pictures}
        found = {}
        for file in metadata:  # those of a folder before those of its subfolders
            rows, broken = read_metadata(file, keys)
            place = os.path.relpath(file, self.root)
            self.skipped += [(place.removesuffix(file.name) + line, why) for line, why in broken]
            own = {}
            for written, caption, problem in rows:
                path = _located(file.parent, written)
                name = os.path.relpath(path, self.root).replace(os.sep, "/")
                picture = known.get(unicodedata.normalize("NFC", name))
                if picture is None and path.is_file():
                    if name.startswith("../"):
                        continue  # another split's
                    picture = known[unicodedata.normalize("NFC", name)] = name
                    pictures.append(name)
                if picture is None:
                    self.skipped.append(
                        (written, f"named in {place}, but there is no such picture"))
                else:
                    own.setdefault(picture, []).append((caption, problem))
            found |= own
        return found

    def _repeated(self, name):
        return _REPEATED.fullmatch((self.root / name).absolute().parent.name)

    def _beside(self, name, metadata):
        """(caption, problem) of a picture that no metadata file names."""
        paths = [(self.root / name).with_suffix(suffix) for suffix in CAPTION_SUFFIXES]
        path = next((path for path in paths if path.is_file()), None)
        if path is not None:
            try:
                written = [" ".join(line.split()) for line in read_text(path).splitlines()]
                caption = ("\n" if self._lines else " ").join(filter(None, written))
            except SdjaxError as error:
                return "", str(error)
            return caption, None if caption else f"{path.name} is empty"
        if match := self._repeated(name):
            return match[2].strip(), None
        if metadata:
            named = ", ".join(os.path.relpath(file, self.root) for file in metadata[:3])
            return "", f"named neither in {named} nor in a {paths[0].name} beside it"
        reason = f"there is no {paths[0].name} beside it and no {NAMES[0]} in {self.root}"
        above = [f for f in map(self.root.resolve().parent.joinpath, NAMES) if f.is_file()]
        return "", reason + (f"; for {above[0]} give the folder it lies in" if above else "")


def _found(root):
    """Paths of all pictures relative to a folder, and its metadata files, those above first."""
    pictures, metadata, sheets, seen = [], [], 0, set()
    for folder, folders, files in os.walk(root, followlinks=True):
        folders[:] = sorted(f for f in folders if not f.startswith((".", "__")))
        if os.path.realpath(folder) in seen:  # a link that leads back
            folders[:] = []
            continue
        seen.add(os.path.realpath(folder))
        folder = pathlib.Path(folder)
        if any(name in files for name in NAMES):
            metadata.append(metadata_file(folder))
        for file in files:
            if file.startswith(".") or pathlib.PurePath(file).suffix.lower() not in _SUFFIXES:
                continue
            if _SHEET.fullmatch(file):
                sheets += 1
                continue
            pictures.append((folder / file).relative_to(root).as_posix())
    if sheets:
        _log.warning("%s: left out %d sheets of samples, NNNNN-sheet.png", root, sheets)
    return pictures, metadata


def _tell_others(above, root):
    """A warning where pictures lie beside the folder of a split, and in that of no other."""
    others = [p for p in above.iterdir() if p != root and not p.name.startswith((".", "__"))
              and p.name not in _SPLITS]
    count = sum(
        len(_found(p)[0]) if p.is_dir() else p.suffix.lower() in _SUFFIXES for p in others
    )
    if count:
        _log.warning("%s is read as the split %r of %s; %d pictures beside it are left out",
                     root, root.name, above, count)


def _located(folder, written):
    """The path that a metadata file's folder and "file_name" give, Windows' backslashes too."""
    path = folder / written
    if "\\" in written and not path.is_file():
        path = folder / written.replace("\\", "/")
    return pathlib.Path(os.path.normpath(path))
