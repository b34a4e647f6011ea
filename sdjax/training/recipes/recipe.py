"""Recipes: what a config file holds, and how the command line changes it."""

import runpy
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import tyro

from sdjax.data import DataConfig
from sdjax.data.source import in_shards
from sdjax.errors import SdjaxError, check_at_least, check_choices
from sdjax.folders import check_local
from sdjax.models.vae import VAEConfig
from sdjax.parallel import Distributed, Placement
from sdjax.training.loop.config import RunConfig
from sdjax.training.objectives.autoencoder import AutoencoderRun
from sdjax.training.objectives.latent import LatentRun
from sdjax.training.objectives.molecules import MoleculeRun
from sdjax.training.objectives.pixel import PixelRun
from sdjax.training.objectives.tuning import TuningRun

from .names import find_recipe
from .streamed import check_streamed


@dataclass(frozen=True)
class Recipe:
    """One command's worth of training: an autoencoder where one is wanted, then the diffusion."""

    data: DataConfig = field(default_factory=DataConfig)
    diffusion: LatentRun | PixelRun | TuningRun | MoleculeRun | None = field(default_factory=PixelRun)
    """None to train the autoencoder of a model alone."""
    model: str | None = None
    """What a TuningRun, or an autoencoder alone, trains on top of: a diffusers folder, a single
    file, a hub id; or sd15, sd21 or sdxl for the published architecture with random weights."""
    base: str = ""
    """A recipe whose result is the model where none is named: trained into WORKDIR/base first."""
    autoencoder: AutoencoderRun | None = None
    """Trained first; None where `pretrained` brings one, or for pixels."""
    pretrained: str | None = None
    """A diffusers folder whose autoencoder, tokenizer and, where frozen, text encoder are used."""
    examples: int = 0
    """Pictures used, the source's first; 0 for all. What is kept in memory has this size."""
    placement: Placement = field(default_factory=Placement)
    """How many devices share a copy of what is trained, for models larger than one."""
    distributed: Distributed = field(default_factory=Distributed)
    """How several processes find each other, where nothing tells them."""
    export_dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Of the weights in WORKDIR/model."""

    def __post_init__(self):
        check_choices(self)
        check_at_least(0, self, "examples")
        alone = self.diffusion is None
        if self.base and not isinstance(self.diffusion, TuningRun):
            raise SdjaxError("base is for a TuningRun, which trains on top of a model")
        if not alone and self.data.source == "moving" and self.data.frames > 1:
            if not isinstance(self.diffusion, TuningRun):
                raise SdjaxError("training from noise takes pictures: set data.frames to 1")
        if self.model is not None and not alone and not isinstance(self.diffusion, TuningRun):
            raise SdjaxError(
                "model is what a TuningRun trains on top of; this recipe trains from noise: use "
                "one such as configs/lora.py"
            )
        if not isinstance(self.diffusion, TuningRun):
            self._check_validation()
        if alone:
            self._check_alone()
        elif isinstance(self.diffusion, PixelRun):
            self._check_pixels()
        elif isinstance(self.diffusion, TuningRun):
            self._check_tuning()
        elif isinstance(self.diffusion, MoleculeRun):
            self._check_molecules()
        else:
            self._check_latents()

    def _check_alone(self):
        if self.autoencoder is None or self.pretrained is not None:
            raise SdjaxError("without diffusion a recipe trains an autoencoder, and no pretrained")
        self._check_memory("the autoencoder's training")

    def _check_validation(self):
        if self.data.validation or self.data.validation_source:
            raise SdjaxError("data.validation is for training on top of a model")
        if self.data.caption_lines:
            raise SdjaxError("data.caption_lines is for training on top of a model")

    def _check_pixels(self):
        if self.autoencoder is not None or self.pretrained is not None:
            raise SdjaxError("a pixel model takes neither autoencoder nor pretrained")
        if self.diffusion.cache_images:
            self._check_memory("diffusion.cache_images")
        _same_size(self.diffusion.unet.sample_size, self.data.image_size, "data.image_size")

    def _check_tuning(self):
        if self.autoencoder is not None or self.pretrained is not None:
            raise SdjaxError("training on a model takes it as `model`, no autoencoder, pretrained")
        self._check_memory("training on a model")
        if in_shards(self.data):
            check_streamed(self)

    def _check_molecules(self):
        if self.autoencoder is not None or self.pretrained is not None:
            raise SdjaxError("a model of molecules takes neither autoencoder nor pretrained")
        if self.data.source.partition(":")[0] != "qm9":
            raise SdjaxError(
                'molecules are read from a data.source of "qm9" or "qm9:FOLDER", got '
                f"{self.data.source!r}"
            )
        if self.data.flip:
            raise SdjaxError("data.flip mirrors pictures: leave it out for molecules")

    def _check_latents(self):
        if (self.autoencoder is None) == (self.pretrained is None):
            raise SdjaxError(
                "a latent model takes either an autoencoder run or a pretrained folder"
            )
        if not self.diffusion.train_text_encoder and self.pretrained is None:
            raise SdjaxError("a frozen text encoder needs a pretrained folder to take it from")
        if in_shards(self.data) and self.diffusion.curriculum:
            raise SdjaxError("a curriculum wants all captions at hand, not those of shards")
        cached = self.data.source.startswith("encoded:")
        if self.data.flip and (self.diffusion.cache_latents or cached):
            raise SdjaxError(
                "data.flip cannot mirror cached latents: set diffusion.cache_latents to False, "
                "or data.flip to False"
            )
        if self.autoencoder is not None:
            if self.autoencoder.trained != "all":
                raise SdjaxError("autoencoder.trained 'decoder' is for that of a model: name it")
            self._check_memory("the autoencoder's training")
            self.check_autoencoder(self.autoencoder.vae)
        elif self.diffusion.cache_latents:
            self._check_memory("diffusion.cache_latents")

    def check_autoencoder(self, vae: VAEConfig):
        """SdjaxError where the U-Net does not fit this autoencoder's latents."""
        unet = self.diffusion.unet
        _same_size(unet.sample_size, self.data.image_size // vae.downsampling,
                   f"data.image_size / {vae.downsampling}")
        if not unet.in_channels == unet.out_channels == vae.latent_channels:
            raise SdjaxError(
                f"unet.in_channels and out_channels must be the autoencoder's latent_channels "
                f"{vae.latent_channels}, got {unet.in_channels} and {unet.out_channels}"
            )

    def _check_memory(self, what):
        if self.data.source in ("shapes", "moving") and not self.examples:
            raise SdjaxError(
                f"{what} keeps all pictures in memory, and {self.data.source} has no end: set "
                "examples to the number to be used"
            )

    @property
    def in_memory(self) -> bool:
        """Whether the pictures, or what is made of them, are read into memory before a run. Those
        of shards are not, but for an autoencoder.
        """
        if in_shards(self.data) and self.autoencoder is None:
            return False
        if self.diffusion is None or isinstance(self.diffusion, TuningRun | MoleculeRun):
            return True
        if isinstance(self.diffusion, PixelRun):
            return self.diffusion.cache_images
        return self.autoencoder is not None or self.diffusion.cache_latents

    @property
    def runs(self) -> dict[str, RunConfig]:
        """The trainings of the recipe by name, in order."""
        named = {"autoencoder": self.autoencoder, "diffusion": self.diffusion}
        return {name: run for name, run in named.items() if run is not None}


def _same_size(size, wanted, name):
    if size not in (wanted, (wanted, wanted)):
        raise SdjaxError(f"unet.sample_size must be {name} = {wanted}, got {size}")


def load_config(path) -> Recipe:
    """The `config` of a Python file, or of a recipe that comes with the project, such as "shapes".

    SdjaxError where there is none, or the file does not run.
    """
    check_local(path)
    path = find_recipe(path)
    try:
        config = runpy.run_path(str(path)).get("config")
    except SdjaxError:
        raise
    except Exception as error:
        places = traceback.extract_tb(error.__traceback__)
        lines = [f" line {place.lineno}:" for place in places if place.filename == str(path)]
        raise SdjaxError(
            f"{path} does not run:{''.join(lines[-1:])} {type(error).__name__}: {error}"
        ) from error
    if not isinstance(config, Recipe):
        raise SdjaxError(
            f"{path} must set `config` to a sdjax.training.Recipe, got {type(config).__name__}"
        )
    return config


def with_overrides(recipe: Recipe, arguments: Sequence[str], prog: str | None = None) -> Recipe:
    """`recipe` changed by command-line arguments such as ["--diffusion.steps", "2000"].

    The prompts of the recipe's sample sheets are about its own pictures: where other pictures are
    asked for, the captions of these take their place, unless prompts are asked for too. An unknown
    option ends the program with tyro's suggestion; --help lists all with their types.
    """
    changed = tyro.cli(
        Recipe, prog=prog, args=list(arguments), default=recipe,
        config=(tyro.conf.AvoidSubcommands,),
    )
    if isinstance(changed.diffusion, TuningRun) and not changed.diffusion.captions.takes_own:
        changed = replace(changed, data=replace(changed.data, require_captions=False))
    asked = any(argument.startswith("--diffusion.sheet.prompts") for argument in arguments)
    prompts = changed.diffusion is not None and changed.diffusion.sheet.prompts
    if asked or not prompts or not _other_pictures(recipe, changed):
        return changed
    sheet = replace(changed.diffusion.sheet, prompts=())
    return replace(changed, diffusion=replace(changed.diffusion, sheet=sheet))


def _other_pictures(recipe, changed):
    """Whether the pictures or captions are of another kind."""
    names = ("source", "objects", "subset", "image_key", "caption_key")
    return any(getattr(recipe.data, name) != getattr(changed.data, name) for name in names)
