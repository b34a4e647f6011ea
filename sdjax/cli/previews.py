"""The option of `sdjax sample` for pictures on the way: --preview, files and a sheet of them."""

from pathlib import Path

from PIL import Image


class Previews:
    """Small pictures in a folder, numbered, as `generate` shows them.

    every: evaluations from one to the next. vae: a folder or file of TAESD, None for the linear
    approximation. Raises SdjaxError for what does not fit.
    """

    def __init__(self, folder: Path, every: int, vae: str | None):
        import sdjax
        from sdjax.pipeline.given.arguments import whole
        from sdjax.pipeline.results.pictures import PictureFolder

        every = whole(1)("preview", every)
        decoder = (None, None) if vae is None else sdjax.TinyVAE.from_pretrained(vae)
        self.preview = sdjax.Preview(self._show, every, *decoder)
        self._folder, self._paths, self._captions, self._calls = PictureFolder(folder), [], [], 0

    def _show(self, step: int, steps: int, pictures: list[Image.Image]) -> None:
        for picture in pictures:
            seed = picture.info["seed"]
            self._paths.append(self._folder.save(picture, {"seed": seed, "step": step}))
            self._captions.append(f"seed {seed}, {step} of {steps}")
        self._calls += 1

    def sheet(self, columns: int | None) -> Path:
        """Writes one sheet of all: a row for each call of several pictures, or a row of one's.

        columns: pictures in a row, where that is asked for.
        """
        pictures = []
        for path in self._paths:
            with Image.open(path) as picture:
                pictures.append(picture.convert("RGB"))
        at_once = len(pictures) // self._calls
        columns = columns or (at_once if at_once > 1 else None)
        return self._folder.save_sheet(pictures, self._captions, self._paths[0], columns)
