"""A recipe on top of a model carried out: pictures, batches, sample pictures, export."""

import dataclasses
import inspect
from pathlib import Path

import jax
import numpy as np

from sdjax.data.source import in_shards
from sdjax.data.tags import CaptionConfig
from sdjax.errors import SdjaxError
from sdjax.mirror import in_turn_at
from sdjax.models.quantized import narrow_leaves
from sdjax.parallel import leader
from sdjax.pipeline.stable_diffusion import StableDiffusion
from sdjax.pipeline.steering.control import Control
from sdjax.training.adaptations import Networks
from sdjax.training.adaptations.adaptation import adapted
from sdjax.training.loop.fit import best_weights, check
from sdjax.training.loop.validation import Validation, spread_timesteps
from sdjax.training.objectives.tuning import check_few_bits, empty_ids, tuned

from . import streamed, streams
from .about import metadata, tell_result
from .export import scheduler_config
from .material import Material
from .pictures import make_class_pictures
from .sets import Sets, frames_of
from .text_cache import Contexts, empty_contexts


class Tuning:
    """The training of an adaptation in a work folder. fit: as `sdjax.training.fit`, in its place.

    material: the recipe's pictures.
    """

    def __init__(self, recipe, workdir: Path, model: StableDiffusion, material: Material):
        self.recipe, self.workdir, self.model, self.material = recipe, workdir, model, material
        self.run = recipe.diffusion
        networks = Networks.of(model)
        self.objective = tuned(
            self.run, networks, model.scheduler_config, model.zero_negative
        )
        self.networks = self.objective.networks
        self.base = dict(model.params)
        if narrow_leaves(self.base):
            check_few_bits(self.run.adaptation)
        self.size = recipe.data.image_size
        self.makes = Sets(recipe, self.objective, model, self.base)
        model.scheduler_config = self._scheduler()
        if self.run.distillation is not None:
            if recipe.data.validation or recipe.data.validation_source:
                raise SdjaxError("a distillation has no validation loss: leave data.validation out")
            model.guidance_scale = self.run.distillation.own_scale
        known = inspect.signature(StableDiffusion.generate).parameters
        for name, _ in self.run.sheet.options:
            if name not in known:
                raise SdjaxError(f"diffusion.sheet.options: there is no option {name!r} of generate")

    def go(self, fit) -> bool:
        """Trains, or goes on; True when it is finished and exported."""
        objective, run, folder = self.objective, self.run, self.workdir / "diffusion"
        frozen = {**self.base, **empty_ids(self.networks)}
        check(objective, run, folder, frozen)
        jax.eval_shape(objective.init, jax.random.key(0), frozen)  # refuses what does not fit
        streaming = in_shards(self.recipe.data)
        with in_turn_at(self.workdir):
            if streaming:
                sets, judged = [streamed.first_items(self)], self.judged()
            else:
                sets, judged = self.sets()
            if run.cache_texts:
                self.contexts = Contexts(run, self.networks, self.base, self.workdir / "texts.npz")
                frozen |= empty_contexts(self.contexts)
                judged = self._embedded(judged)
                sets = sets if streaming else self._embedded(sets)
            batches = streamed.batches(self) if streaming else self.batches(sets)
        texts = [str(text).split("\n")[0] for arrays in sets for text in arrays["caption"]]
        prompts = list(run.sheet.prompts) or texts[:run.sheet.images]
        outcome = fit(objective, frozen, batches, run, "diffusion",
                      self.sheet(prompts, sets[0]), self.validation(judged))
        best = None
        if outcome.finished and judged and run.validation.export == "best":
            best = best_weights(objective, run, folder, frozen)
        if outcome.finished and leader():
            place = objective.adaptation.export(
                objective.result(outcome.ema if best is None else best.ema), self.workdir,
                self.model, self.networks, self.recipe.export_dtype,
                metadata(self.recipe, self.workdir, texts, best.step if best else outcome.step),
            )
            tell_result(self.workdir, place, outcome.step, best)
        return outcome.finished

    def _embedded(self, sets):
        """Sets with what their captions are embedded as, where that is kept."""
        if not self.run.cache_texts:
            return sets
        return [arrays | self.contexts.of(arrays["caption"].tolist()) for arrays in sets]

    def sets(self):
        """(what is drawn from, what it is judged by), for each size of picture."""
        if self.recipe.data.validation:
            return self.makes.split(self.material)
        judged = self.judged()
        return self.makes.of(self.material), judged

    def judged(self):
        """What it is judged by, of another source."""
        data = self.recipe.data
        if not data.validation_source:
            return []
        other = dataclasses.replace(
            data, source=data.validation_source, flip=False, smallest=0, max_aspect=0.0, keep=(),
        )
        return self._made(other, "validation", 0, self.run.captions, self.run.masks)

    def validation(self, sets):
        """What judges the run; None without pictures for it."""
        if not sets:
            return None
        objective, run = self.objective, self.run
        times = spread_timesteps(run.validation.timesteps, len(objective.schedule))
        sets = [streams.numbers(run, self.networks.tokenizers, arrays) for arrays in sets]
        return Validation(
            objective.validation_losses, sets, times, run.batch_size, run.seed,
            self.recipe.placement.laid_out(),
        )

    def batches(self, sets):
        """Batches of the data; of DreamBooth's half of them, and half of the class."""
        others = None
        if self.run.prior is not None:
            if len(sets) > 1 or self.recipe.data.buckets:
                raise SdjaxError("a prior goes with square pictures: set data.buckets to False")
            (others,) = self._embedded([self.class_arrays()])
        repeats = streams.repeated(self.material.source.raw, sets)
        return streams.batches(self.run, self.networks.tokenizers, sets, repeats, others)

    def class_arrays(self):
        """Pictures of the class, made by the model where there are too few."""
        prior = self.run.prior
        folder = Path(prior.folder or self.workdir / "class")
        folder.mkdir(parents=True, exist_ok=True)
        make_class_pictures(self.model, prior, folder, self.size, self.run.sheet)
        data = dataclasses.replace(
            self.recipe.data, source=f"folder:{folder}", require_captions=False
        )
        (arrays,) = self._made(data, "class-latents", prior.count,
                               CaptionConfig(prompt=prior.prompt))
        return arrays

    def _made(self, data, name, count, captions, masks=""):
        """The sets of other pictures, their latents kept in a folder of that name."""
        data = dataclasses.replace(data, validation=0.0, validation_source="")
        run = dataclasses.replace(self.run, captions=captions, masks=masks)
        recipe = dataclasses.replace(self.recipe, data=data, examples=count, diffusion=run)
        place = self.workdir / name
        place.mkdir(exist_ok=True)
        return Sets(recipe, self.objective, self.model, self.base).of(Material(recipe, place))

    def _scheduler(self):
        """The model's scheduler_config.json, with the schedule and prediction that are trained."""
        asked, before = self.run.denoising, self.model.scheduler_config
        if self.run.distillation is not None:
            return self.run.distillation.scheduler(self.run, before)
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

        if (frames := frames_of(arrays)) is not None:
            given["frames"] = frames

        def make(ema):
            nonlocal pipeline
            parts = adaptation.apply(self.base, self.objective.result(ema))
            if pipeline is None:
                pipeline = adapted(self.model, self.networks, parts)
            pipeline.params = {name: parts[name] for name in pipeline.params}
            options = {**dict(config.options), **given}
            if self.networks.control is not None:
                control = Control(self.networks.control, parts["controlnet"])
                options["controls"] = [control(list(given["controls"]))]
            options = {
                "steps": config.steps, "guidance_scale": config.guidance_scale,
                "seed": config.seed, "height": self.size, "width": self.size,
                "clip_skip": self.run.clip_skip, **options, "output": "numpy", "progress": False,
            }
            made = pipeline.generate(prompts, **options)
            if made.ndim == 5:  # a clip's frames beside each other
                made = np.concatenate(np.moveaxis(made, 1, 0), axis=2)
            return made, prompts

        return make
