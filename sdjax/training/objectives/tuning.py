"""Training on top of a checkpoint: the run, and its objective for whichever adaptation."""

from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from sdjax import diffusion
from sdjax.data.tags import CaptionConfig
from sdjax.diffusion.predictions import prediction_name
from sdjax.errors import SdjaxError, check_at_least, check_choices
from sdjax.training.adaptations import (
    Adaptation,
    ControlNet,
    Full,
    Inpaint,
    InstructPix2Pix,
    LearnedWord,
    LoRA,
    Motion,
    Networks,
    with_channels,
)
from sdjax.training.loop.config import RunConfig

from .consistency import ECT
from .denoising import DenoisingConfig
from .distilled import DistilledObjective, distilled
from .dmd2 import DMD2
from .latent_loss import IDS, latent_losses
from .lcm import LCM
from .progressive import Progressive


@dataclass(frozen=True)
class TuningSheet:
    """Sample pictures while it trains, drawn by the pipeline."""

    prompts: tuple[str, ...] = ()
    """Where empty, the first captions of the data."""
    images: int = 4
    """Images of the sheet, where prompts do not give the number."""
    steps: int = 30
    guidance_scale: float | None = None
    """None for the model's own."""
    seed: int = 0
    options: tuple[tuple[str, int | float | bool | str], ...] = ()
    """Any other arguments of `generate` by their names, such as negative_prompt and sampler."""

    def __post_init__(self):
        check_at_least(1, self, "images", "steps")


@dataclass(frozen=True)
class PriorConfig:
    """Pictures of the class that a subject is one of, so that it is not forgotten (DreamBooth,
    arXiv 2208.12242): half of each batch.
    """

    prompt: str
    """The class, such as "a dog"."""
    folder: str = ""
    """Where its pictures lie, and missing ones are made; empty for `class` in the work folder."""
    count: int = 100
    weight: float = 1.0
    """What their loss counts."""
    seed: int = 0
    batch_size: int = 4
    """Of the pictures that are made."""

    def __post_init__(self):
        check_at_least(1, self, "count", "batch_size")
        check_at_least(0, self, "weight")
        if not self.prompt.strip():
            raise SdjaxError("prior.prompt is empty: expected the class, such as 'a dog'")


@dataclass(frozen=True)
class ValidationConfig:
    """How a run is judged by the pictures that data.validation keeps out: before each checkpoint,
    by its averaged weights, always at the same timesteps and with the same noise.
    """

    timesteps: int = 4
    """At how many timesteps, evenly spread, each picture is looked at."""
    export: Literal["best", "last"] = "best"
    """Which checkpoint becomes the result: that of the least validation loss, which is kept, or the
    last one."""

    def __post_init__(self):
        check_at_least(1, self, "timesteps")
        check_choices(self)


@dataclass(frozen=True)
class TuningRun(RunConfig):
    """Training of an adaptation on top of a model."""

    adaptation: (
        LoRA | Full | LearnedWord | ControlNet | Inpaint | InstructPix2Pix | Motion
    ) = field(default_factory=LoRA)
    denoising: DenoisingConfig = field(
        default_factory=lambda: DenoisingConfig(schedule=None, prediction=None)
    )
    distillation: LCM | Progressive | ECT | DMD2 | None = None
    """What is learned from the model in place of denoising: to need fewer evaluations."""
    caption_dropout: float = 0.0
    """Share of images trained with the empty prompt."""
    captions: CaptionConfig = field(default_factory=CaptionConfig)
    prior: PriorConfig | None = None
    beside: str = ""
    """A folder of the pictures that a ControlNet is steered by, or that are edited, of the same
    names as those of the data; "edges" for outlines of the data's own."""
    masks: str = ""
    """A folder of masks of the same names as the data's pictures: what each place of the loss
    counts, white for all and black for nothing."""
    base_dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of the model's parameters, where they are not trained."""
    quantize: Literal["int8", "fp8", "int4", "nf4"] | None = None
    """Holds the model's large weights in few bits under a LoRA (QLoRA, arXiv 2305.14314), which is
    trained in float32 and added where they are used; see `sdjax.quantize`."""
    clip_skip: int = 0
    """Layers left out at the end of the text encoder, as the pipeline counts them."""
    text_chunks: int = 1
    """How many chunks of a prompt's length, 75 tokens of Stable Diffusion, are read of captions."""
    aesthetic_score: float = 6.0
    """What SDXL's refiner is told of the pictures."""
    cache_texts: bool = False
    """Embed the captions once and keep them in memory and on disk, where neither text encoders are
    trained nor captions vary. The text encoders then take no memory in training."""
    cache_latents: bool = True
    """Encode the whole set once and keep it in memory, where the adaptation needs no pictures."""
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    sheet: TuningSheet = field(default_factory=TuningSheet)

    def __post_init__(self):
        super().__post_init__()
        check_at_least(0, self, "clip_skip")
        check_at_least(1, self, "text_chunks")
        if not 0 <= self.caption_dropout < 1:
            raise SdjaxError(f"caption_dropout must be in [0, 1), got {self.caption_dropout}")
        if self.quantize is not None:
            check_few_bits(self.adaptation)
        if self.distillation is not None:
            self._check_distillation()

    def _check_distillation(self):
        if self.prior is not None or self.masks or self.beside:
            raise SdjaxError("a distillation takes no prior, masks or pictures beside")
        self.distillation.check_run(self)


@dataclass(frozen=True)
class TuningObjective:
    """Denoising of latents under a caption, by a model with an adaptation.

    config: its denoising has a prediction. networks: fitted to the adaptation, as `tuned` does. The
    frozen tree is the base's parameters with the empty prompt's ids, "empty_ids" and "empty_ids_2".
    """

    config: TuningRun
    adaptation: Adaptation
    networks: Networks
    schedule: diffusion.Schedule

    def init(self, key, frozen):
        """The adaptation's tree."""
        return self.adaptation.init(key, _base(frozen))

    def kept(self, frozen):
        """What of the frozen tree the loss needs."""
        rest = {name: value for name, value in frozen.items() if name not in _base(frozen)}
        kept = self.adaptation.kept(_base(frozen))
        if self.config.cache_texts:
            kept = {name: tree for name, tree in kept.items() if name not in self.networks.encoders}
        return {**rest, **kept}

    def rates(self, params):
        """What the learning rate of each leaf is multiplied with."""
        return self.adaptation.rates(params, self.config.optimizer.learning_rate)

    def result(self, params):
        """What the adaptation applies and exports."""
        return params

    def loss(self, params, frozen, batch, keys):
        """Of a batch as `latent_losses` takes it, with what the adaptation `needs`."""
        parts = self.adaptation.apply(frozen, params, keys[0])
        return self._losses(parts, batch, keys, self.config.caption_dropout).mean(), {}

    def validation_losses(self, params, frozen, batch, keys):
        """Of each image, float32 [b], without what is left out by chance in training."""
        return self._losses(self.adaptation.apply(frozen, params), batch, keys, 0.0)

    def _losses(self, parts, batch, keys, caption_dropout):
        networks, config = self.networks, self.config
        return latent_losses(
            networks.unet, networks.vae, networks.encoders, parts, batch, keys,
            denoising=config.denoising, schedule=self.schedule, caption_dropout=caption_dropout,
            clip_skip=config.clip_skip, control=networks.control,
            conditions=self.adaptation.conditions,
        )


def check_few_bits(adaptation: Adaptation) -> None:
    """SdjaxError where an adaptation cannot be trained on weights of few bits."""
    if not isinstance(adaptation, LoRA):
        raise SdjaxError(
            f"{type(adaptation).__name__} cannot be trained on weights of few bits: a LoRA can; "
            "else take the model wide, without quantize"
        )


def _base(frozen):
    return {name: tree for name, tree in frozen.items() if not name.startswith("empty_")}


def tuned(
    config: TuningRun, networks: Networks, scheduler_config, zero_negative=False
) -> TuningObjective | DistilledObjective:
    """The objective of a run on top of a model of these networks.

    zero_negative: whether no negative prompt is an embedding of zeros for the model, as for SDXL.

    The schedule and the prediction are those of `scheduler_config`, a diffusers
    scheduler_config.json as a dict, where the run has none of its own. Raises SdjaxError where the
    model is not one that the adaptation can be trained on.
    """
    def make(config, networks):
        return _tuned(config, networks, scheduler_config)

    if config.distillation is not None:
        return distilled(config, networks, make, zero_negative)
    return make(config, networks)


def _tuned(config, networks, scheduler_config):
    denoising = config.denoising
    if str(scheduler_config.get("_class_name", "")).startswith("EDM"):
        raise SdjaxError(
            "models with EDM's preconditioning (Playground 2.5, CosXL) cannot be trained on yet"
        )
    if denoising.schedule is None:
        schedule = diffusion.schedule_from_config(scheduler_config)
    else:
        schedule = denoising.schedule.build()
    if denoising.prediction is None:
        prediction = prediction_name(scheduler_config.get("prediction_type", "epsilon"))
        denoising = replace(denoising, prediction=prediction)
    if denoising.prediction == "epsilon" and not np.asarray(schedule.alphas_cumprod)[-1] > 0:
        raise SdjaxError(
            "epsilon cannot be learned where the last timestep is pure noise: this model's "
            "schedule has no signal there; train v_prediction"
        )
    adaptation, networks = config.adaptation.fitted(networks)
    adaptation = with_channels(adaptation, networks)
    if config.cache_texts and (config.captions.varies or adaptation.trains_texts):
        raise SdjaxError(
            "cache_texts keeps what captions are embedded as: neither may the text encoders be "
            "trained, nor captions vary; set cache_texts to False"
        )
    networks = networks.in_dtype(config.dtype, config.remat_kind)
    if config.clip_skip and len(networks.encoders) > 1:
        last = min(encoder.config.num_hidden_layers for encoder in networks.encoders.values()) - 2
    else:
        encoders = networks.encoders.values()
        last = min(encoder.config.num_hidden_layers for encoder in encoders) - 1
    if config.clip_skip > last:
        raise SdjaxError(f"clip_skip must be at most {last} for this model, got {config.clip_skip}")
    return TuningObjective(replace(config, denoising=denoising), adaptation, networks, schedule)


def empty_ids(networks: Networks) -> dict:
    """The ids of the empty prompt, int32 [L] for each text encoder, as the frozen tree has them."""
    return {
        f"empty_{IDS[name]}": tokenizer.encode([""])[0]
        for name, tokenizer in networks.tokenizers.items()
    }
