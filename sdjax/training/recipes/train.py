"""A recipe carried out: autoencoder, tokenizer, latents, diffusion, export; each resumable."""

import contextlib
import dataclasses
from pathlib import Path

import jax
import numpy as np

from sdjax.data import loader
from sdjax.data.source import in_shards
from sdjax.errors import SdjaxError
from sdjax.folders import one_line_errors, writable_folder
from sdjax.mirror import in_turn_at, mirrored, place_of
from sdjax.models.clip import TextEncoderConfig
from sdjax.parallel import in_turn, leader
from sdjax.pipeline.model.captions import distinct
from sdjax.room import told_when_full
from sdjax.text import Tokenizer
from sdjax.text.tokenizer import BEGIN, END
from sdjax.training.loop.feed import ArrayBatches
from sdjax.training.loop.fit import WHEN_FULL, check, fit, has_begun, kept_weights
from sdjax.training.loop.lock import NAME as LOCK, check_shared, locked
from sdjax.training.loop.optimizers import make_optimizer
from sdjax.training.loop.settings import say
from sdjax.training.objectives.latent import LatentObjective, LatentRun
from sdjax.training.objectives.molecules import MoleculeRun
from sdjax.training.objectives.pixel import PixelObjective, PixelRun
from sdjax.training.objectives.tuning import TuningRun
from sdjax.weights import VAE, TextEncoder

from . import export
from .autoencoder import autoencoder
from .base import based
from .datasets import captions
from .encoded import check_made_of, made_of
from .known_data import NAME as DATA, tell_changes
from .loaded import First, NumberBatches, checked_labels
from .material import Material
from .molecules import train_molecules
from .recipe import Recipe, load_config
from .streamed import check_texts
from .tuning import Tuning


def train(recipe: Recipe, workdir) -> bool:
    """Carry out `recipe` in `workdir`, or go on with it; True when it is finished.

    False means that a signal or a time limit stopped it, with everything saved: the same call goes
    on. The result is the diffusers folder workdir/model. Raises SdjaxError for data, settings or
    checkpoints that do not fit, where another training is at work in `workdir`, and where the
    disk is full or fails: what was saved stays.

    Where a job has several processes (`sdjax.parallel.together`), all of them call this, with the
    same recipe and a folder that all of them see. It may be an address such as gs://bucket/run, see
    `sdjax.mirror`.
    """
    with mirrored(workdir) as workdir, _no_trace(workdir):
        with in_turn():
            workdir = writable_folder(workdir)
        if recipe.base and recipe.model is None:
            if not train(load_config(recipe.base), workdir / "base"):
                return False
            recipe = dataclasses.replace(recipe, model=str(workdir / "base" / "model"))
        return _train(recipe, workdir)


@contextlib.contextmanager
def _no_trace(workdir):
    """What is refused before anything is made leaves no folder that was not there."""
    made = [folder for folder in (workdir, *workdir.parents) if not folder.exists()]
    try:
        yield
    except Exception:
        with contextlib.suppress(OSError):
            if made and {path.name for path in workdir.iterdir()} <= {LOCK, DATA}:
                for path in workdir.iterdir():
                    path.unlink()
                for folder in made:
                    folder.rmdir()
        raise


def _train(recipe, workdir):
    lock = locked(workdir) if leader() else contextlib.nullcontext()
    with one_line_errors(workdir), told_when_full(WHEN_FULL), lock:
        check_shared(workdir)
        _check(recipe, workdir)
        if isinstance(recipe.diffusion, MoleculeRun):
            return _told(train_molecules(recipe, workdir), workdir)
        model = None
        if recipe.diffusion is None or isinstance(recipe.diffusion, TuningRun):
            recipe, model = based(recipe)
        stage = _Stages(recipe, workdir)
        if leader():
            tell_changes(workdir, stage.material.content)
        if isinstance(recipe.diffusion, PixelRun):
            finished = stage.pixel()
        elif recipe.diffusion is None:
            return autoencoder(stage, model)
        elif model is not None:
            return Tuning(recipe, workdir, model, stage.material).go(stage.fit)
        else:
            finished = autoencoder(stage) and stage.latent()
        return _told(finished, workdir)


def _told(finished, workdir):
    if finished:
        say(f"finished: the model is in {place_of(workdir / 'model')}")
    return finished


def _check(recipe, workdir):
    """SdjaxError for what would be refused when the runs before it are done."""
    trained = list(recipe.runs)[-1]
    if (workdir / "model").exists() and not (workdir / trained / "checkpoints").is_dir():
        raise SdjaxError(
            f"{workdir / 'model'} was not made by a training in {workdir}: move it away, or train "
            "into another folder"
        )
    devices = recipe.placement.laid_out().groups
    for name, run in recipe.runs.items():
        if run.batch_size % devices:
            raise SdjaxError(
                f"{name}.batch_size {run.batch_size} cannot be split over {devices} devices: "
                f"choose a multiple of {devices}"
            )
        try:
            make_optimizer(run.optimizer, run.steps)
            adversary = getattr(run, "adversary", None)
            if adversary is not None:
                make_optimizer(adversary.optimizer, run.steps)
        except SdjaxError as error:
            raise SdjaxError(f"{name}.{error}") from error
    if isinstance(recipe.diffusion, TuningRun):
        check_texts(recipe)
    elif recipe.diffusion is not None:
        recipe.diffusion.sheet.table(recipe.diffusion.denoising)


def kept_models(recipe: Recipe, workdir):
    """The text-to-image models of the diffusion's kept checkpoints, oldest first.

    Yields (step, seconds of training, sdjax.StableDiffusion with the averaged weights). Raises
    SdjaxError where `recipe` has not made checkpoints in `workdir`.
    """
    if not isinstance(recipe.diffusion, LatentRun):
        raise SdjaxError("kept_models reads the checkpoints of a LatentRun, a model from noise")
    folder = Path(workdir) / "diffusion"
    if not (folder / "checkpoints").is_dir():
        raise SdjaxError(f"{folder} has no checkpoints: train into {workdir} first")
    parts = _Stages(recipe, Path(workdir)).latent_parts()
    for step, seconds, ema in kept_weights(parts.objective, parts.config, folder):
        yield step, seconds, parts.model(ema)


@dataclasses.dataclass(frozen=True)
class _LatentParts:
    """The frozen networks, the tokenizer, and the run with the tokenizer's vocabulary."""

    given: Path
    vae: VAE
    vae_params: dict
    tokenizer: Tokenizer
    config: LatentRun
    frozen: dict
    captions: tuple[str, ...] = ()
    """What the model is trained on, where that is all that it knows."""

    @property
    def objective(self):
        return LatentObjective(self.config, self.vae.config)

    def model(self, ema):
        """The pipeline of these averaged weights."""
        text = {"text_encoder": self.frozen.get("text_encoder")}
        return export.latent_model(
            self.config, self.vae, self.config.text_encoder, self.tokenizer,
            {**text, **ema, "vae": self.vae_params}, self.captions,
        )


class _Stages:
    def __init__(self, recipe, workdir):
        self.recipe, self.workdir = recipe, workdir
        self.material = Material(recipe, workdir)

    def settings(self, *names):
        """These values of the recipe as a dict, beside those of what it is given; "pictures" is
        another where a picture or caption is.
        """
        values = dataclasses.asdict(self.recipe)
        always = ("data", "examples", "pretrained", "model")
        values = {name: values[name] for name in (*always, *names)}
        content = self.material.content
        if content is not None and (self.recipe.in_memory or in_shards(self.recipe.data)):
            values["pictures"] = f"{self.material.count} ({content.digest()})"
        return values

    def fit(self, objective, frozen, batches, run, name, sheet, validation=None):
        """`fit` in the run's own folder of the work folder."""
        about, folder = self.settings(name), self.workdir / name
        return fit(
            objective, frozen, batches, run, folder, name=name, sheet=sheet, about=about,
            validation=validation, placement=self.recipe.placement,
        )

    def batches(self, run, arrays, tokenize=None, classes=0, lessons=()):
        """Batches from memory, or from the loader where arrays is None, their labels checked."""
        if arrays is not None:
            return ArrayBatches(arrays, run.batch_size, run.seed, self.recipe.data.flip, lessons)
        data = dataclasses.replace(self.recipe.data, seed=run.seed)
        source = self.material.source
        if self.recipe.examples:
            source = First(source, self.recipe.examples)
        rows = None
        if jax.process_count() > 1 or source.sizes is not None:
            rows = self.recipe.placement.laid_out().rows(run.batch_size)
        return NumberBatches(loader(source, data, run.batch_size, tokenize, rows=rows), classes)

    def pixel(self):
        config = self.recipe.diffusion
        objective = PixelObjective(config)
        check(objective, config, self.workdir / "diffusion")
        arrays = None
        if self.recipe.in_memory and config.cache_images:
            pictures = self.material.all_pictures()
            arrays = {"image": pictures["image"]}
            if config.classes:
                arrays["label"] = checked_labels(pictures, config.classes)
        batches = self.batches(config, arrays, classes=config.classes)
        outcome = self.fit(
            objective, {}, batches, config, "diffusion", _captioned(objective.sheet(), None)
        )
        if outcome.finished and leader():
            export.export_pixel(
                self.workdir / "model", config, outcome.ema, self.recipe.export_dtype
            )
        return outcome.finished

    def latent_parts(self):
        """What the diffusion of latents needs beside its data."""
        given = Path(self.recipe.pretrained or self.workdir / "autoencoder" / "model")
        vae, vae_params = VAE.from_pretrained(given)
        self.recipe.check_autoencoder(vae.config)
        begun = has_begun(self.workdir / "diffusion")
        with in_turn_at(self.workdir):
            tokenizer = self.material.tokenizer(begun)
        config = dataclasses.replace(
            self.recipe.diffusion,
            text_encoder=_for_tokenizer(self.recipe.diffusion.text_encoder, tokenizer),
        )
        frozen = {"empty_ids": tokenizer.encode([""])[0]}
        if not config.train_text_encoder:
            encoder, frozen["text_encoder"] = TextEncoder.from_pretrained(given)
            begun = config.text_encoder.initializer_range  # nothing to a finished encoder
            if dataclasses.replace(encoder.config, initializer_range=begun) != config.text_encoder:
                raise SdjaxError(f"text_encoder must be that of {given} where it is frozen: "
                                 f"{encoder.config}, got {config.text_encoder}")
        return _LatentParts(given, vae, vae_params, tokenizer, config, frozen)

    def latent(self):
        parts = self.latent_parts()
        config, objective, frozen = parts.config, parts.objective, parts.frozen
        check(objective, config, self.workdir / "diffusion")
        prompts = list(config.sheet.prompts) or captions(self.material.source, config.sheet.images)
        given = {**frozen, "vae": parts.vae_params}
        sheet = objective.sheet(given, parts.tokenizer.encode(prompts))
        arrays, lessons, texts = None, (), self.material.known_captions()
        if self.recipe.in_memory and config.cache_latents:
            with in_turn_at(self.workdir):
                (arrays,) = self.material.latents(parts.given, parts.vae, parts.vae_params)
            texts = arrays.pop("caption").tolist()
            arrays.pop("index")
            arrays["ids"] = _encoded(parts.tokenizer, texts)
            lessons = [(lesson.items(texts), lesson.examples) for lesson in config.curriculum]
        elif self.recipe.data.source.startswith("encoded:"):
            folder = self.recipe.data.source.partition(":")[2]
            check_made_of(folder, made_of(self.recipe, None, {"vae": parts.vae_params}))
        else:
            frozen = given
        batches = self.batches(config, arrays, parts.tokenizer.encode, lessons=lessons)
        outcome = self.fit(
            objective, frozen, batches, config, "diffusion", _captioned(sheet, prompts)
        )
        if outcome.finished and leader():
            if self.recipe.pretrained is None:
                parts = dataclasses.replace(parts, captions=distinct(texts))
            export.export_latent(
                self.workdir / "model", parts.model(outcome.ema), self.recipe.export_dtype
            )
        return outcome.finished


def _encoded(tokenizer, texts):
    parts = [tokenizer.encode(texts[i:i + 1024]) for i in range(0, len(texts), 1024)]
    return np.concatenate(parts)


def _for_tokenizer(config: TextEncoderConfig, tokenizer):
    if config.max_position_embeddings != tokenizer.max_length:
        raise SdjaxError(
            f"text_encoder.max_position_embeddings must be the tokenizer's length "
            f"{tokenizer.max_length}, got {config.max_position_embeddings}"
        )
    return dataclasses.replace(
        config,
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.vocabulary[BEGIN],
        eos_token_id=tokenizer.vocabulary[END],
        pad_token_id=tokenizer.pad_id,
    )


def _captioned(sheet, prompts):
    return lambda ema: (sheet(ema), prompts)
