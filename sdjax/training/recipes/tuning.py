"""A recipe on top of a model carried out: pictures, batches, sample pictures, export."""

import dataclasses
import json
import time
from collections import Counter
from pathlib import Path

import numpy as np

from sdjax.data.beside import pictures_beside
from sdjax.data.buckets import fitted
from sdjax.data.folder import ImageFolder
from sdjax.data.images import crop_and_resize
from sdjax.data.tags import CaptionConfig
from sdjax.errors import SdjaxError
from sdjax.pipeline.control import Control
from sdjax.pipeline.stable_diffusion import StableDiffusion
from sdjax.training.adaptations import LearnedWord, Networks
from sdjax.training.adaptations.adaptation import adapted
from sdjax.training.loop.bucket_feed import BucketBatches
from sdjax.training.loop.feed import ArrayBatches
from sdjax.training.loop.fit import check
from sdjax.training.loop.settings import say
from sdjax.training.objectives.tuning import empty_ids, tuned

from .datasets import encode_all
from .export import scheduler_config
from .material import Material
from .pictures import by_size, edges, make_class_pictures, mirrored
from .texts import Halves, VariedTexts, encoded


class Tuning:
    """The training of an adaptation in a work folder. fit: as `sdjax.training.fit`, in its place.

    material: the recipe's pictures.
    """

    def __init__(self, recipe, workdir: Path, model: StableDiffusion, material: Material):
        self.recipe, self.workdir, self.model, self.material = recipe, workdir, model, material
        self.run = recipe.diffusion
        networks = Networks.of(model)
        self.objective = tuned(self.run, networks, model.scheduler_config)
        self.networks = self.objective.networks
        self.base = dict(model.params)
        self.size = recipe.data.image_size
        model.scheduler_config = self._scheduler()

    def go(self, fit) -> bool:
        """Trains, or goes on; True when it is finished and exported."""
        objective, run, folder = self.objective, self.run, self.workdir / "diffusion"
        frozen = {**self.base, **empty_ids(self.networks)}
        check(objective, run, folder, frozen)
        sets = self.sets(self.material)
        texts = [str(text) for arrays in sets for text in arrays["caption"]]
        prompts = list(run.sheet.prompts) or texts[:run.sheet.images]
        outcome = fit(objective, frozen, self.batches(sets), run, "diffusion",
                      self.sheet(prompts, sets[0]))
        if outcome.finished:
            tags = Counter(tag.strip() for text in texts for tag in text.split(","))
            place = objective.adaptation.export(
                outcome.ema, self.workdir, self.model, self.networks,
                self.recipe.export_dtype, self._about(len(texts), tags),
            )
            say(f"finished: {place}")
        return outcome.finished

    def sets(self, material) -> list[dict]:
        """What is drawn from, for each bucket: "caption", "index", latents or pictures, and what
        the adaptation needs. Without buckets there is one.
        """
        needs, vae = self.objective.adaptation.needs, self.networks.vae
        cached = self.run.cache_latents and "image" not in needs
        if self.recipe.data.buckets:
            sets = by_size(material.source, material.count)
        elif cached and not self.recipe.data.flip and not self.run.masks:
            sets = [material.latents(None, vae, self.base["vae"])]
        else:
            sets = [dict(material.all_pictures())]
        sets = [self._prepared(arrays, material, cached) for arrays in sets]
        self._check_word([text for arrays in sets for text in arrays["caption"]])
        return sets

    def _prepared(self, arrays, material, cached):
        arrays.pop("label", None)
        shape = arrays["image"].shape[1:3] if "image" in arrays else (self.size, self.size)
        for name in self.objective.adaptation.needs:
            if name != "image":
                arrays[name] = self._beside(name, material, arrays, shape)
        if self.run.masks:
            arrays["mask"] = self._masks(material, arrays, shape)
        captions = [self.run.captions.of(str(text)) for text in arrays["caption"]]
        arrays["caption"] = np.array(captions)
        if self.model.unet.config.addition_embed_type != "text_time":
            arrays.pop("time_ids", None)
        elif "time_ids" not in arrays:
            ids = np.float32([*shape, 0, 0, *shape])
            arrays["time_ids"] = np.tile(ids, (len(captions), 1))
        if self.recipe.data.flip:
            arrays = mirrored(arrays)
        if cached and "image" in arrays:
            images = arrays.pop("image")
            arrays["mean"], arrays["std"] = encode_all(
                self.networks.vae, self.base["vae"], images)
        return arrays

    def _check_word(self, texts):
        adaptation, prior = self.run.adaptation, self.run.prior
        own = prior is None or self.run.captions.prompt != prior.prompt
        if isinstance(adaptation, LearnedWord) and own:
            word = adaptation.word.lower()
            if not any(word in text.lower() for text in texts):
                raise SdjaxError(
                    f"no caption has the word {adaptation.word!r} that is to be learned: set "
                    f"diffusion.captions.prompt, such as 'a picture of {adaptation.word}'"
                )

    def _beside(self, name, material, arrays, shape):
        """The pictures that steer, or are edited: uint8 or float32 [N, H, W, channels]."""
        if self.run.beside == "edges":
            if name != "control":
                raise SdjaxError("diffusion.beside 'edges' is for a ControlNet")
            images = arrays["image"] if "image" in arrays else (
                material.pictures(arrays["index"])["image"])  # fmt: skip
            return edges(images)
        if not self.run.beside:
            raise SdjaxError(
                f"{type(self.run.adaptation).__name__} needs a picture beside each of the data's: "
                "set diffusion.beside to a folder with pictures of the same names, for a "
                "data.source of folder:…, or, for a ControlNet, to 'edges'"
            )
        pictures = self._found_beside(self.run.beside, "beside", material, arrays, shape)
        return pictures if name == "original" else pictures / np.float32(255)

    def _found_beside(self, folder, option, material, arrays, shape):
        raw = material.source.raw
        if not isinstance(raw, ImageFolder):
            raise SdjaxError(f"diffusion.{option} goes with a data.source of folder:…")
        found = pictures_beside(raw, folder, arrays["index"])
        buckets = material.source.buckets
        if buckets is None:
            return np.stack([crop_and_resize(picture, self.size) for picture in found])
        fits = [buckets.fit(*picture.shape[1::-1]) for picture in found]
        for fit, index in zip(fits, arrays["index"], strict=True):
            if fit.bucket != shape[::-1]:
                raise SdjaxError(
                    f"the picture in {folder} beside {raw.name(int(index))} has other proportions"
                )
        return np.stack([fitted(picture, fit) for picture, fit in zip(found, fits, strict=True)])

    def _masks(self, material, arrays, shape):
        """What each place of the loss counts, float32 [N, h, w, 1], the means of the masks."""
        masks = self._found_beside(self.run.masks, "masks", material, arrays, shape)
        factor = self.model.vae.config.downsampling
        light = masks.mean(-1, dtype=np.float32) / 255
        count, height, width = light.shape
        cells = light.reshape(count, height // factor, factor, width // factor, factor)
        return cells.mean((2, 4))[..., None]

    def batches(self, sets):
        """Batches of the data; of DreamBooth's half of them, and half of the class."""
        run, prior = self.run, self.run.prior
        if prior is None:
            return self._stream(sets, run.batch_size, run.seed, self._repeats(sets))
        if run.batch_size % 2:
            raise SdjaxError(f"batch_size must be even with a prior, got {run.batch_size}")
        if len(sets) > 1 or self.recipe.data.buckets:
            raise SdjaxError("a prior goes with square pictures: set data.buckets to False")
        for arrays in sets:
            arrays["weight"] = np.ones(len(arrays["caption"]), np.float32)
        others = self.class_arrays()
        others["weight"] = np.full(len(others["caption"]), prior.weight, np.float32)
        half = run.batch_size // 2
        own = self._stream(sets, half, run.seed, self._repeats(sets))
        return Halves(own, self._stream([others], half, run.seed + 1, None))

    def _repeats(self, sets):
        """For each bucket what an epoch draws, where folders say how often; else None."""
        raw = self.material.source.raw
        repeats = np.array(raw.repeats) if isinstance(raw, ImageFolder) else np.ones(1, int)
        if (repeats == 1).all():
            return None
        return [
            np.repeat(np.arange(len(arrays["index"])), repeats[arrays["index"].astype(int)])
            for arrays in sets
        ]

    def _stream(self, sets, size, seed, repeats):
        captions, tokenizers = self.run.captions, self.networks.tokenizers
        sets = [{name: a for name, a in arrays.items() if name != "index"} for arrays in sets]
        if not captions.varies:
            sets = [
                {name: a for name, a in arrays.items() if name != "caption"}
                | encoded(tokenizers, arrays["caption"].tolist()) for arrays in sets
            ]
        if len(sets) == 1:
            items = None if repeats is None else repeats[0]
            stream = ArrayBatches(sets[0], size, seed, items=items)
        else:
            group = self.run.accumulation * self.run.steps_per_call
            stream = BucketBatches(sets, size, seed, group=group, items=repeats)
        return VariedTexts(stream, tokenizers, captions, seed) if captions.varies else stream

    def class_arrays(self):
        """Pictures of the class, made by the model where there are too few."""
        prior = self.run.prior
        folder = Path(prior.folder or self.workdir / "class")
        folder.mkdir(parents=True, exist_ok=True)
        make_class_pictures(self.model, prior, folder, self.size, self.run.sheet)
        data = dataclasses.replace(
            self.recipe.data, source=f"folder:{folder}", require_captions=False
        )
        recipe = dataclasses.replace(self.recipe, data=data, examples=prior.count)
        place = self.workdir / "class-latents"
        place.mkdir(exist_ok=True)
        material = Material(recipe, place)
        run, self.run = self.run, dataclasses.replace(
            self.run, captions=CaptionConfig(prompt=prior.prompt), masks="")
        try:
            (arrays,) = self.sets(material)
        finally:
            self.run = run
        return arrays

    def _scheduler(self):
        """The model's scheduler_config.json, with the schedule and prediction that are trained."""
        asked, before = self.run.denoising, self.model.scheduler_config
        if asked.schedule is not None:
            return scheduler_config(self.objective.config.denoising, clip_sample=False)
        if asked.prediction is not None:
            kind = "sample" if asked.prediction == "x_0" else asked.prediction
            return {**before, "prediction_type": kind}
        return before

    def sheet(self, prompts, arrays):
        """A function ema -> (images float32 [n, H, W, 3], prompts) by the pipeline itself."""
        config, adaptation = self.run.sheet, self.objective.adaptation
        pipeline = None
        given = adaptation.shown(
            {name: array[np.arange(len(prompts)) % len(array)] for name, array in arrays.items()
             if name in adaptation.needs}
        )

        def make(ema):
            nonlocal pipeline
            parts = adaptation.apply(self.base, ema)
            if pipeline is None:
                pipeline = adapted(self.model, self.networks, parts)
            pipeline.params = {name: parts[name] for name in pipeline.params}
            options = dict(given)
            if self.networks.control is not None:
                control = Control(self.networks.control, parts["controlnet"])
                options = {"controls": [control(list(given["controls"]))]}
            images = pipeline.generate(
                prompts, steps=config.steps, guidance_scale=config.guidance_scale,
                seed=config.seed, height=self.size, width=self.size, output="numpy",
                clip_skip=self.run.clip_skip, progress=False, **options,
            )
            return images, prompts

        return make

    def _about(self, count, tags):
        run = self.run
        return {
            "ss_output_name": self.workdir.resolve().name,
            "ss_sd_model_name": str(self.recipe.model),
            "ss_learning_rate": str(run.optimizer.learning_rate),
            "ss_optimizer": run.optimizer.name,
            "ss_lr_scheduler": run.optimizer.schedule,
            "ss_max_train_steps": str(run.steps),
            "ss_steps": str(run.steps),
            "ss_total_batch_size": str(run.images_per_step),
            "ss_seed": str(run.seed),
            "ss_resolution": str((self.size, self.size)),
            "ss_clip_skip": str(run.clip_skip + 1) if run.clip_skip else "None",
            "ss_mixed_precision": {"bfloat16": "bf16", "float16": "fp16"}.get(run.precision, "no"),
            "ss_num_train_images": str(count),
            "ss_dataset_dirs": json.dumps({
                self.recipe.data.source.rpartition("/")[2]: {"n_repeats": 1, "img_count": count}
            }),
            "ss_tag_frequency": json.dumps({self.recipe.data.source.rpartition("/")[2]: tags}),
            "ss_training_finished_at": str(time.time()),
        }
