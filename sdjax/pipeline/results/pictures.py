"""Pictures out of arrays, and on disk: numbered files that never replace one another."""

import json
import os
import re
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from sdjax.errors import SdjaxError
from sdjax.folders import writable_folder
from sdjax.pipeline.results.movies import write_mp4
from sdjax.pipeline.results.notes import CLIPS, FORMATS, described, file_options
from sdjax.sound.files import FORMATS as SOUNDS
from sdjax.sound.files import encoded
from sdjax.sound.sounds import Sound
from sdjax.weights.arrays import all_finite

FPS = 8.0  # frames a second of a clip, as the motion modules of AnimateDiff are trained
SHOWN = 192  # pixels that a small picture is enlarged to, at least, on a sheet


def check_finite_images(images: np.ndarray, seeds: Sequence[int]) -> None:
    """SdjaxError, with the first one's seed, where images are not finite."""
    bad = [seed for image, seed in zip(images, seeds, strict=True) if not all_finite(image)]
    if bad:
        raise SdjaxError(
            f"{len(bad)} of {len(images)} images (seed {bad[0]} first) came out as numbers "
            "that are not finite: the model or the sampler overflowed; load it with "
            'dtype="bfloat16" or "float32", or lower guidance_scale and adapter weights'
        )


def to_pictures(images: np.ndarray, seeds: Sequence[int]) -> list[Image.Image]:
    """PIL images of pixels [N, H, W, 3] in [-1, 1], each with its seed as `info["seed"]`."""
    pictures = [Image.fromarray(np.uint8(np.round((image + 1) * 127.5))) for image in images]
    for picture, seed in zip(pictures, seeds, strict=True):
        picture.info["seed"] = seed
    return pictures


def to_clips(clips: np.ndarray, seeds: Sequence[int]) -> list[list[Image.Image]]:
    """The same of clips [N, F, H, W, 3]: a list of frames each."""
    return [
        to_pictures(clip, [seed] * len(clip)) for clip, seed in zip(clips, seeds, strict=True)
    ]


def to_sounds(heard, rate: int, seeds: Sequence[int]) -> list[Sound]:
    """Sounds of waveforms [N, n] and spectrograms, each with its seed as `info["seed"]`."""
    made = zip(heard.sound, heard.mel, seeds, strict=True)
    return [Sound(sound, rate, mel, {"seed": seed}) for sound, mel, seed in made]


class PictureFolder:
    """A folder whose pictures are numbered, NNNNN.png, on from the highest that is there.

    kind: of the pictures' files, one of `notes.FORMATS`, of clips' one of `notes.CLIPS`, or of
    sounds' "wav" or "flac"; sheets of them are always PNG.

    Several processes may write into it. A picture appears whole or not at all. Raises SdjaxError
    where nothing can be written.
    """

    def __init__(self, folder: str | os.PathLike, kind: str = "png"):
        self.folder, self.kind = writable_folder(folder), kind
        endings = "|".join({*FORMATS, *CLIPS, *SOUNDS})
        names = (
            re.match(rf"(\d+)(-\w+)?\.({endings})$", path.name) for path in self.folder.iterdir()
        )
        self._next = max((int(name[1]) for name in names if name), default=-1) + 1

    def save(
        self,
        image: Image.Image | Sequence[Image.Image] | Sound,
        notes: Mapping[str, object],
        parameters: str = "",
        beside: bool = False,
        fps: float = FPS,
    ) -> Path:
        """Writes a picture, the frames of a clip, or a sound, under the next number, with its
        settings inside.

        notes, parameters: see `notes.file_options`. beside: also writes the notes as a JSON file of
        the picture's name. fps: a clip's frames a second.
        """
        if isinstance(image, Sound):
            content = encoded(image.samples, image.rate, notes, self.kind)
            path = self._write(lambda file: file.write(content))
        elif isinstance(image, Image.Image):
            options = file_options(self.kind, notes, parameters)
            path = self._write(lambda file: image.save(file, **options))
        elif self.kind == "mp4":
            comment = described(notes)
            path = self._write(lambda file: write_mp4(file.name, image, fps, comment))
        else:
            first, *others = image
            options = {"save_all": True, "append_images": others, "loop": 0}
            options |= {"duration": round(1000 / fps), **file_options(self.kind, notes, parameters)}
            path = self._write(lambda file: first.save(file, **options))
        if beside:
            text = json.dumps(dict(notes), ensure_ascii=False, indent=2, default=str)
            try:
                path.with_suffix(".json").write_text(text + "\n", encoding="utf-8")
            except OSError as error:
                raise SdjaxError(
                    f"cannot write the settings beside {path}: {error.strerror or error}"
                ) from error
        return path

    def save_sheet(
        self,
        images: Sequence[Image.Image],
        captions: Sequence[str],
        first: Path,
        columns: int | None = None,
    ) -> Path:
        """Writes one captioned sheet of all, named after the first picture."""
        from sdjax.evaluation.sheets import sheet  # evaluations take long to import

        scale = max(1, SHOWN // max(images[0].size))
        drawn = sheet(images, captions, columns, scale=scale, smooth=True)
        return self.save_beside(drawn, first, "sheet")

    def save_beside(self, image: Image.Image, first: Path, word: str) -> Path:
        """Writes a picture that belongs to another one, as NNNNN-word.png."""
        path = first.with_name(f"{first.stem}-{word}.png")
        return self._write(lambda file: image.save(file, format="png"), path)

    def _write(self, save: Callable[[BinaryIO], None], path: Path | None = None) -> Path:
        unfinished = self.folder / f".{uuid.uuid4().hex}.part"
        try:
            with unfinished.open("xb") as file:
                save(file)
            path = path or self._claimed()
            try:
                unfinished.replace(path)
            except BaseException:
                path.unlink()
                raise
        except OSError as error:
            raise SdjaxError(
                f"cannot write a picture to {self.folder}: {error.strerror or error}"
            ) from error
        finally:
            unfinished.unlink(missing_ok=True)
        return path

    def _claimed(self) -> Path:
        """The next number that no other process has, as an empty file."""
        while True:
            path = self.folder / f"{self._next:05d}.{self.kind}"
            self._next += 1
            try:
                path.touch(exist_ok=False)
                return path
            except FileExistsError:
                pass
