"""The objective of a distillation: its loss, on the latents and prompts of any training."""

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from sdjax.diffusion.guidance import classifier_free_guidance
from sdjax.errors import SdjaxError
from sdjax.models.embeddings import sinusoidal_embedding
from sdjax.models.unet import UNet
from sdjax.text.encode import Embedded

from .denoising import DenoisingConfig, dropped, network_key
from .distillation import Distillation, Task
from .latent_loss import clean_latents, prompt_of


@dataclass(frozen=True)
class DistilledObjective:
    """What `within` trains, by a distillation in place of denoising.

    within: the `TuningObjective` of the student, whose U-Net may take a scale of guidance where the
    model's does not. teacher: the model's own U-Net. zero_negative: whether the teacher without a
    caption has an embedding of zeros. The trained parameters are {"student": the adaptation's tree,
    …}; the frozen tree is that of `within`.
    """

    within: Any
    distillation: Distillation
    teacher: UNet
    zero_negative: bool = False

    @property
    def config(self):
        """The run."""
        return self.within.config

    @property
    def adaptation(self):
        """What is trained."""
        return self.within.adaptation

    @property
    def networks(self):
        """The student's."""
        return self.within.networks

    @property
    def schedule(self):
        """The model's."""
        return self.within.schedule

    @property
    def given(self):
        """What the loss needs of the training's state."""
        return self.distillation.given

    def init(self, key, frozen):
        """The adaptation's tree, and what the distillation has beside it."""
        base = {**frozen, "unet": self._begun(frozen["unet"])}
        tree = self.within.init(key, base)
        beside = self.distillation.beside(
            jax.random.fold_in(key, 1), tree, frozen, self.teacher)
        return {"student": tree, **beside}

    def _begun(self, unet):
        """The student's U-Net at first: what it is told of the scale counts nothing."""
        width = self.distillation.scale_embedding
        embedding = unet["time_embedding"]
        if not width or "cond_proj" in embedding:
            return unet
        shape = (width, self.teacher.config.block_out_channels[0])
        kernel = jnp.zeros(shape, jnp.float32)
        return {**unet, "time_embedding": {**embedding, "cond_proj": {"kernel": kernel}}}

    def kept(self, frozen):
        """What of the frozen tree the loss needs: that of `within`, and the teacher's U-Net where
        nothing else holds it."""
        kept = self.within.kept(frozen)
        whole = jax.tree.structure(kept.get("unet", {})) == jax.tree.structure(frozen["unet"])
        return kept if whole else {**kept, "teacher": frozen["unet"]}

    def rates(self, params):
        """The adaptation's for the student, 1 for the others."""
        ones = {name: jax.tree.map(lambda _: 1.0, own) for name, own in params.items()}
        student = params["student"]
        if not jax.tree.leaves(student):
            return ones
        return {**ones, "student": self.within.rates(student)}

    def optimizer(self):
        """The distillation's."""
        return self.distillation.optimizer(self.config, self.rates)

    def learning_rate(self, step):
        """The student's at a step."""
        return self.distillation.learning_rate(self.config, step)

    def begin(self, state, optimizer):
        """The state before an update."""
        return self.distillation.begin(self.config, state, optimizer)

    def result(self, params):
        """What the adaptation applies and exports."""
        return params["student"]

    def loss(self, params, frozen, batch, keys):
        """Of a batch as `latent_losses` takes it, without pictures beside it."""
        state = {name: frozen[name] for name in self.given}
        x_0 = clean_latents(self.networks.vae, frozen, batch, keys)
        task = self.task(params, frozen, batch, keys, x_0, state)
        return self.distillation.loss(task, params)

    def task(self, params, frozen, batch, keys, x_0, state) -> Task:
        """The batch as the distillation sees it."""
        networks, config = self.networks, self.config

        def embedded(lost):
            return prompt_of(networks.encoders, frozen, batch, lost, config.clip_skip)

        prompt = embedded(dropped(keys, config.caption_dropout))
        if self.zero_negative:
            nothing = jax.tree.map(jnp.zeros_like, prompt)
        else:
            nothing = embedded(jnp.ones(len(x_0), bool))
        prompt, nothing = jax.lax.stop_gradient((prompt, nothing))
        rngs = {"dropout": network_key(keys)} if networks.unet.config.dropout else None

        def ask(unet, weights, x, t, prompt: Embedded, scale=None, **options):
            times, added = len(x) // len(x_0), None
            if "time_ids" in batch:
                time_ids = jnp.tile(batch["time_ids"], (times, 1))
                added = {"text_embeds": prompt.pooled, "time_ids": time_ids}
            width = unet.config.time_cond_proj_dim
            told = None
            if width is not None and scale is not None:
                told = sinusoidal_embedding(
                    1000 * (scale - 1), width, cosine_first=False, frequency_shift=1)
            return unet.apply(
                {"params": weights}, x, t, prompt.context, added, told, **options)

        def student(tree, x, t, scale):
            whole = self.adaptation.apply(frozen, tree, keys[0])["unet"]
            return ask(networks.unet, whole, x, t, prompt, scale, rngs=rngs)

        frozen_unet = frozen.get("teacher", frozen["unet"])

        def teacher(x, t, scale):
            own = self.teacher.config.time_cond_proj_dim is not None
            if scale is None or own:
                return ask(self.teacher, frozen_unet, x, t, prompt, scale)
            both = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), prompt, nothing)
            found = ask(self.teacher, frozen_unet, *(jnp.tile(a, (2,) + (1,) * (a.ndim - 1))
                                                     for a in (x, t)), both)
            return classifier_free_guidance(*jnp.split(found, 2), scale)

        def untrained(weights, x, t, middle):
            if not middle:
                return ask(self.teacher, weights, x, t, prompt), None
            config = self.teacher.config
            last = f"down_blocks.{len(config.down_block_types) - 1}"
            name = last if config.mid_block_type is None else "mid_block"
            found, inside = ask(
                self.teacher, weights, x, t, prompt, mutable=["intermediates"],
                capture_intermediates=lambda module, _: module.name == name,
            )
            value = inside["intermediates"][name]["__call__"][0]
            return found, value[0] if isinstance(value, tuple) else value

        kind = config.denoising.prediction
        return Task(self.within.schedule, kind, x_0, keys, student, teacher, untrained, state)


def distilled(config, networks, make, zero_negative) -> DistilledObjective:
    """The objective of a run with a distillation.

    make: (run, networks) -> the `TuningObjective` of these. Raises SdjaxError where the adaptation
    is not one of the U-Net alone.
    """
    distillation, adaptation = config.distillation, config.adaptation
    if config.denoising != DenoisingConfig(schedule=None, prediction=None):
        raise SdjaxError(
            "a distillation has a loss of its own: leave denoising as it is, with the schedule and "
            "the prediction of the model"
        )
    kind = type(adaptation).__name__
    if kind not in ("Full", "LoRA") or adaptation.text_encoder or not adaptation.unet:
        raise SdjaxError(
            "a distillation trains the U-Net alone, by Full or LoRA: expected such an adaptation "
            f"without text_encoder, got {kind}"
        )
    width = distillation.scale_embedding
    if width and (kind != "Full" or adaptation.layers):
        raise SdjaxError(
            "distillation.scale_embedding needs the adaptation Full without layers: others hold no "
            f"embedding of the scale, got {kind}"
        )
    own = networks.unet.config.time_cond_proj_dim
    if own is not None and width != own:
        raise SdjaxError(
            f"this model takes the scale of guidance as an input: expected "
            f"distillation.scale_embedding {own}, got {width}"
        )
    student = networks
    if width:
        config_with = replace(networks.unet.config, time_cond_proj_dim=width)
        student = replace(networks, unet=networks.unet.clone(config=config_with))
    teacher = networks.in_dtype(config.dtype, config.remat_kind).unet
    return DistilledObjective(make(config, student), distillation, teacher, zero_negative)
