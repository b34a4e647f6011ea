"""The arrays that training on top of a model draws from, for each size of picture."""

import numpy as np

from sdjax.data.beside import pictures_beside
from sdjax.data.buckets import fitted
from sdjax.data.folder import ImageFolder
from sdjax.data.held_out import held_out
from sdjax.data.images import crop_and_resize
from sdjax.errors import SdjaxError
from sdjax.pipeline.plans.told import names
from sdjax.training.adaptations import LearnedWord
from sdjax.training.loop.settings import say

from .pictures import by_size, edges, mirrored


def frames_of(arrays) -> int | None:
    """How many frames the clips of a set have; None of pictures."""
    shown = next((arrays[name] for name in ("image", "mean") if name in arrays), None)
    return shown.shape[1] if np.ndim(shown) == 5 else None


def picture_ids(model, run, shape, count, ids=None):
    """What the model is told of so many pictures, float32 [count, 6], or 5 of SDXL's refiner; None
    of models that are told nothing.

    shape: (height, width). ids: of pictures that were cut, as sources with buckets give them.
    """
    told = names(model.unet.config, [encoder.config for encoder in model.text_encoders])
    if not told:
        return None
    if ids is None:
        ids = np.tile(np.float32([*shape, 0, 0, *shape]), (count, 1))
    if "aesthetic_score" in told:
        score = np.full((len(ids), 1), run.aesthetic_score, np.float32)
        ids = np.concatenate([ids[:, :4], score], axis=1)
    return ids


class Sets:
    """Makes the arrays of a `TuningRun`'s pictures.

    objective: as `tuned` makes it. base: the model's parameters by their parts.
    """

    def __init__(self, recipe, objective, model, base):
        self.recipe, self.run, self.model, self.base = recipe, recipe.diffusion, model, base
        self.objective, self.vae = objective, model.vae

    def of(self, material) -> list[dict]:
        """For each bucket, or the one size: "caption", "index", "mean" and "std" of latents or
        "image", and what the adaptation needs; for SDXL "time_ids".
        """
        return [self._mirrored(arrays) for arrays in self._prepared(material)]

    def split(self, material) -> tuple[list[dict], list[dict]]:
        """(what is trained on, as `of` gives it; what data.validation keeps out, never mirrored).
        """
        share = self.recipe.data.validation
        held_out([material.source.name(i) for i in range(material.count)], share)  # if it can be
        sets = self._prepared(material)
        index = np.concatenate([arrays["index"] for arrays in sets])
        names = [material.source.name(int(i)) for i in index]
        out = index[held_out(names, share)]
        kept, judged = [], []
        for arrays in sets:
            own = np.isin(arrays["index"], out)
            for rows, found in ((~own, kept), (own, judged)):
                if rows.any():
                    found.append({name: array[rows] for name, array in arrays.items()})
        judged = [
            {name: a for name, a in arrays.items() if not name.startswith("flipped_")}
            for arrays in judged
        ]
        return [self._mirrored(arrays) for arrays in kept], judged

    def _mirrored(self, arrays):
        return mirrored(arrays) if self.recipe.data.flip else arrays

    def _prepared(self, material):
        self._check_word(material.known_captions())
        self._check_beside(material)
        sets = self._read(material)
        self._check_clips(sets[0])
        sizes = {self._shape(arrays): len(arrays["index"]) for arrays in sets}
        if self.recipe.data.buckets:
            say(f"{sum(sizes.values())} pictures in {len(sizes)} buckets: " + ", ".join(
                f"{width}x{height} ({count})" for (height, width), count in sizes.items()))
        sets = [self._whole(arrays, material) for arrays in sets]
        self._check_word([text for arrays in sets for text in arrays["caption"]], True)
        return sets

    def _check_clips(self, arrays):
        """SdjaxError where clips are given to what learns from pictures, or the other way round."""
        adaptation, clips = self.objective.adaptation, frames_of(arrays) is not None
        if clips != adaptation.of_clips:
            name, source = type(adaptation).__name__, self.recipe.data.source
            raise SdjaxError(
                f"{name} learns from {'clips' if adaptation.of_clips else 'pictures'}, data.source "
                f"{source} has {'clips' if clips else 'pictures'}: set data.source, or data.frames"
            )

    def _read(self, material):
        data = self.recipe.data
        if self.run.cache_latents and "image" not in self.objective.adaptation.needs:
            return material.latents(None, self.vae, self.base["vae"], data.flip)
        if not data.buckets:
            return [dict(material.all_pictures())]
        sets = by_size(material.source, range(material.count))
        if not sets:
            raise SdjaxError("the data has no usable picture")
        return sets

    def _shape(self, arrays):
        """(height, width) of the pictures."""
        if "image" in arrays:
            return arrays["image"].shape[-3:-1]
        return tuple(side * self.vae.config.downsampling for side in arrays["mean"].shape[-3:-1])

    def _whole(self, arrays, material):
        arrays.pop("label", None)
        shape = self._shape(arrays)
        for name in self.objective.adaptation.needs:
            if name != "image":
                arrays[name] = self._beside(name, material, arrays, shape)
        if self.run.masks:
            arrays["mask"] = self._masks(material, arrays, shape)
        captions = [self.run.captions.of(str(text)) for text in arrays["caption"]]
        arrays["caption"] = np.array(captions)
        ids = picture_ids(self.model, self.run, shape, len(captions), arrays.pop("time_ids", None))
        if ids is not None:
            arrays["time_ids"] = ids
        return arrays

    def _check_word(self, texts, whole=False):
        """SdjaxError where no caption has the word to be learned. whole: texts are those that are
        trained on, not the pictures' own.
        """
        adaptation, captions, prior = self.run.adaptation, self.run.captions, self.run.prior
        if not isinstance(adaptation, LearnedWord) or not len(texts):
            return
        if prior is not None and captions.prompt == prior.prompt:
            return
        word = adaptation.word.lower()
        if not any(word in (text if whole else captions.of(text)).lower() for text in texts):
            raise SdjaxError(
                f"no caption has the word {adaptation.word!r} that is to be learned: set "
                f"diffusion.captions.prompt, such as 'a picture of {adaptation.word}'"
            )

    def _beside(self, name, material, arrays, shape):
        """The pictures that steer, or are edited: uint8 or float32 [N, H, W, channels]."""
        if self.run.beside == "edges":
            images = arrays["image"] if "image" in arrays else (
                material.pictures(arrays["index"])["image"])  # fmt: skip
            return edges(images)
        pictures = self._found_beside(self.run.beside, material, arrays, shape)
        return pictures if name == "original" else pictures / np.float32(255)

    def _check_beside(self, material):
        """SdjaxError where pictures that are needed beside the data's cannot be had."""
        run, needs = self.run, self.objective.adaptation.needs
        if run.beside == "edges" and "original" in needs:
            raise SdjaxError("diffusion.beside 'edges' is for a ControlNet")
        if not run.beside and {"original", "control"} & set(needs):
            raise SdjaxError(
                f"{type(self.objective.adaptation).__name__} on this model needs a picture beside "
                "each of the data's: "
                "set diffusion.beside to a folder with pictures of the same names, for a "
                "data.source of folder:…, or, for a ControlNet, to 'edges'"
            )
        for option in ("beside", "masks"):
            if getattr(run, option) not in ("", "edges"):
                if not isinstance(material.source.raw, ImageFolder):
                    raise SdjaxError(f"diffusion.{option} goes with a data.source of folder:…")

    def _found_beside(self, folder, material, arrays, shape):
        raw = material.source.raw
        found = pictures_beside(raw, folder, arrays["index"])
        buckets = material.source.buckets
        if buckets is None:
            size = self.recipe.data.image_size
            return np.stack([crop_and_resize(picture, size) for picture in found])
        fits = [buckets.fit(*picture.shape[1::-1]) for picture in found]
        for fit, index in zip(fits, arrays["index"], strict=True):
            if fit.bucket != shape[::-1]:
                raise SdjaxError(
                    f"the picture in {folder} beside {raw.name(int(index))} has other proportions"
                )
        return np.stack([fitted(picture, fit) for picture, fit in zip(found, fits, strict=True)])

    def _masks(self, material, arrays, shape):
        """What each place of the loss counts, float32 [N, h, w, 1], the means of the masks."""
        masks = self._found_beside(self.run.masks, material, arrays, shape)
        factor = self.model.vae.config.downsampling
        light = masks.mean(-1, dtype=np.float32) / 255
        count, height, width = light.shape
        cells = light.reshape(count, height // factor, factor, width // factor, factor)
        return cells.mean((2, 4))[..., None]
