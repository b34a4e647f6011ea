"""A folder of pictures with captions beside them."""
import json
import pathlib

from sdjax.data.images import decode_image
from sdjax.errors import SdjaxError

METADATA = "metadata.jsonl"
CAPTION_KEYS = ("caption", "text")
_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm"}


class ImageFolder:
    """Pictures of a folder and its subfolders, in the order of their paths.

    Captions come from `metadata.jsonl` (the layout of Hugging Face's imagefolder: a line a
    picture, with "file_name" and "text" or "caption") where there is one, otherwise from `NAME.txt`
    beside each picture `NAME.png`. Where the folder has a subfolder named like the split, that is
    the source.

    source[i] gives {"image": uint8 [height, width, 3], "caption": str}; the caption is "" where
    there is none. `skipped` names what could not be paired: entries without a file, lines that are
    no JSON.

    Raises:
      SdjaxError: where there is no such folder, or no picture in it.
      BrokenItem: from source[i], where picture i cannot be decoded.
    """

    def __init__(self, path, split: str = "train", caption_key: str | None = None):
        root = pathlib.Path(path).expanduser()
        if not root.is_dir():
            raise SdjaxError(f"expected a folder of pictures, found none at {root}")
        self.root = root / split if (root / split).is_dir() else root
        if self.root == root and split != "train":
            raise SdjaxError(f"{root} has no subfolder for the split {split!r}")
        self.keys = (caption_key,) if caption_key else CAPTION_KEYS
        self.skipped: list[tuple[str, str]] = []
        pictures = sorted(
            p.relative_to(self.root).as_posix()
            for p in self.root.rglob("*")
            if p.suffix.lower() in _SUFFIXES and p.is_file()
        )
        if (self.root / METADATA).is_file():
            captions = self._metadata()
            missing = sorted(set(captions) - set(pictures))
            self.skipped += [(name, f"named in {METADATA}, but there is no such picture")
                             for name in missing]
            self.items = [(name, captions.get(name, "")) for name in pictures]
        else:
            self.items = [(name, self._beside(name)) for name in pictures]
        if not self.items:
            kinds = " ".join(sorted(_SUFFIXES))
            raise SdjaxError(f"found no pictures in {self.root}; expected files such as {kinds}")

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        name, caption = self.items[index]
        return {"image": decode_image(self.root / name, name), "caption": caption}

    def name(self, index) -> str:
        """What item `index` is called in messages."""
        return self.items[index][0]

    def _metadata(self):
        captions = {}
        with open(self.root / METADATA, encoding="utf-8", errors="replace") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                try:
                    entry = json.loads(line)
                    name = pathlib.PurePosixPath(entry["file_name"]).as_posix()
                except (ValueError, KeyError, TypeError):
                    reason = 'not a JSON object with a "file_name"'
                    self.skipped.append((f"{METADATA} line {number}", reason))
                    continue
                texts = (entry[key] for key in self.keys if isinstance(entry.get(key), str))
                captions[name] = next(texts, "").strip()
        return captions

    def _beside(self, name):
        path = (self.root / name).with_suffix(".txt")
        try:
            return " ".join(path.read_text(encoding="utf-8").split())
        except FileNotFoundError:
            return ""
        except (OSError, UnicodeDecodeError) as error:
            self.skipped.append((path.relative_to(self.root).as_posix(), f"unreadable ({error})"))
            return ""
