"""`StableDiffusion`: prompts to images, with a checkpoint in and out."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from PIL import Image

from sdjax import parallel
from sdjax.diffusion.torch_noise import torch_normal
from sdjax.errors import SdjaxError
from sdjax.pipeline import programs
from sdjax.pipeline.scheduling import sampler_table
from sdjax.text.tokenizer import Tokenizer
from sdjax.weights.folder import read_json, read_model_index, write_json
from sdjax.weights.parts import VAE, TextEncoder, UNet

Prompt = str | Sequence[str]


class StableDiffusion:
    """A latent text-to-image model: networks, tokenizers, parameters and scheduler settings.

    unet, vae, text_encoder: the networks, with what they compute in as their dtype.
    scheduler_config: a diffusers scheduler_config.json as a dict.
    params: {"unet", "vae", "text_encoder"} and "text_encoder_2" where there are two encoders
        (SDXL). Assigning `params` again changes the model without compiling anything anew.
    zero_negative: whether no negative prompt means an embedding of zeros (SDXL) rather than that
        of the empty prompt.
    """

    def __init__(
        self,
        unet: UNet,
        vae: VAE,
        text_encoder: TextEncoder,
        tokenizer: Tokenizer,
        scheduler_config: Mapping[str, Any],
        params: Mapping[str, Any],
        *,
        text_encoder_2: TextEncoder | None = None,
        tokenizer_2: Tokenizer | None = None,
        zero_negative: bool = False,
    ):
        second = text_encoder_2 is not None
        self.networks = programs.Networks(
            unet, vae, (text_encoder, text_encoder_2) if second else (text_encoder,)
        )
        self.tokenizers = (tokenizer, tokenizer_2 or tokenizer) if second else (tokenizer,)
        self.scheduler_config = dict(scheduler_config)
        self.zero_negative = zero_negative
        self.params = params

    @property
    def unet(self) -> UNet:
        return self.networks.unet

    @property
    def vae(self) -> VAE:
        return self.networks.vae

    @property
    def params(self) -> dict[str, Any]:
        """Parameters of all networks, a copy on each local device."""
        return self._params

    @params.setter
    def params(self, params: Mapping[str, Any]):
        expected = {"unet", "vae", *self._encoder_parts()}
        if set(params) != expected:
            raise SdjaxError(f"params must have {sorted(expected)}, got {sorted(params)}")
        self._params = jax.device_put(dict(params), parallel.replicated())

    def _encoder_parts(self) -> tuple[str, ...]:
        return ("text_encoder", "text_encoder_2")[: len(self.networks.text_encoders)]

    @classmethod
    def from_pretrained(
        cls, folder: str | os.PathLike, *, dtype: str = "float32", variant: str | None = None
    ) -> "StableDiffusion":
        """Reads a diffusers folder; networks compute in `dtype` and hold their parameters so."""
        folder = Path(folder)
        index = read_model_index(folder)
        scheduler = read_json(folder / "scheduler" / "scheduler_config.json")
        options = {"dtype": dtype, "variant": variant}
        unet, unet_params = UNet.from_pretrained(folder / "unet", **options)
        vae, vae_params = VAE.from_pretrained(folder / "vae", **options)
        params = {"unet": unet_params, "vae": vae_params}
        encoders, tokenizers = [], []
        for suffix in ("", "_2") if index.get("text_encoder_2") else ("",):
            part = f"text_encoder{suffix}"
            encoder, params[part] = TextEncoder.from_pretrained(folder / part, **options)
            encoders.append(encoder)
            tokenizers.append(Tokenizer.from_pretrained(folder / f"tokenizer{suffix}"))
        second = {}
        if len(encoders) == 2:
            second = {"text_encoder_2": encoders[1], "tokenizer_2": tokenizers[1]}
        zero = bool(index.get("force_zeros_for_empty_prompt"))
        return cls(
            unet, vae, encoders[0], tokenizers[0], scheduler, params, zero_negative=zero, **second
        )

    def save_pretrained(
        self, folder: str | os.PathLike, dtype: str = "float32", variant: str | None = None
    ) -> None:
        """Writes a diffusers folder that PyTorch diffusers loads, parameters in `dtype`."""
        folder = Path(folder)
        self.unet.save_pretrained(self.params["unet"], folder / "unet", dtype, variant)
        self.vae.save_pretrained(self.params["vae"], folder / "vae", dtype, variant)
        double = len(self.networks.text_encoders) == 2
        index = {
            "_class_name": "StableDiffusionXLPipeline" if double else "StableDiffusionPipeline",
            "unet": ["diffusers", self.unet.config.class_name],
            "vae": ["diffusers", "AutoencoderKL"],
            "scheduler": ["diffusers", self.scheduler_config.get("_class_name", "DDIMScheduler")],
            "feature_extractor": [None, None],
            "image_encoder": [None, None],
        }
        index |= (
            {"force_zeros_for_empty_prompt": self.zero_negative}
            if double
            else {"safety_checker": [None, None], "requires_safety_checker": False}
        )
        for part, encoder, tokenizer in zip(
            self._encoder_parts(), self.networks.text_encoders, self.tokenizers, strict=True
        ):
            encoder.save_pretrained(self.params[part], folder / part, dtype, variant)
            index[part] = ["transformers", encoder.config.architectures[0]]
            name = part.replace("text_encoder", "tokenizer")
            tokenizer.save_pretrained(folder / name)
            index[name] = ["transformers", "CLIPTokenizer"]
        write_json(folder / "scheduler" / "scheduler_config.json", self.scheduler_config)
        write_json(folder / "model_index.json", index)

    def generate(
        self,
        prompt: Prompt,
        negative_prompt: Prompt | None = None,
        *,
        steps: int = 30,
        guidance_scale: float = 7.5,
        guidance_rescale: float = 0.0,
        sampler: str | None = None,
        seed: int | Sequence[int] = 0,
        count: int = 1,
        height: int | None = None,
        width: int | None = None,
        latents: np.ndarray | None = None,
        noise: Literal["torch", "jax"] = "torch",
        clip_skip: int = 0,
        output: Literal["pil", "numpy", "latents"] = "pil",
        **sampler_options,
    ) -> list[Image.Image] | np.ndarray:
        """Makes `count` images of each prompt, all in one batch over the local devices.

        Only shapes, `clip_skip` and whether guidance is on choose the compiled program; steps (up
        to the next power of two from 64 on), sampler, scale, prompts and seeds run the same one.

        negative_prompt: one for all images, one a prompt, or None.
        guidance_scale: 1 turns guidance off and halves the work.
        sampler: a name of `sdjax.sampler`, or None for the model's own; `sampler_options` (spacing,
            sigmas, eta, order, …) take precedence over the model's.
        seed: of the first image, the others take seed + 1, …; or one for each image. An image
            depends on its own seed only, not on the batch around it.
        height, width: in pixels; None for the size the model was trained at.
        latents: unit-variance noise [N, height / f, width / f, C] to start from.
        noise: where that noise comes from otherwise: "torch" draws it as PyTorch on a CPU does, so
            that a seed gives the picture it gives in diffusers, "jax" by JAX.
        output: "pil", "numpy" (float32[N, height, width, 3] in [-1, 1]), or "latents" (float32, in
            the U-Net's scale).

        Raises SdjaxError for arguments that do not fit, before anything is compiled.
        """
        prompts = _listed(prompt, "prompt")
        negatives = [None if negative_prompt is None else negative_prompt]
        if negative_prompt is not None:
            negatives = _listed(negative_prompt, "negative_prompt")
        if len(negatives) not in (1, len(prompts)):
            raise SdjaxError(
                f"negative_prompt must be one or one a prompt: {len(prompts)} prompts, "
                f"{len(negatives)} negative prompts"
            )
        if count < 1:
            raise SdjaxError(f"count must be at least 1, got {count}")
        if output not in ("pil", "numpy", "latents"):
            raise SdjaxError(f"output must be pil, numpy or latents, got {output!r}")
        total = len(prompts) * count
        size = self._size(height, width)
        seeds = _seeds(seed, total)
        table = sampler_table(self.scheduler_config, steps, sampler, **sampler_options)
        latents = self._noise(seeds, size, noise) if latents is None else latents
        latents = self._checked(latents, total, size)

        negatives = negatives * (len(prompts) // len(negatives))
        repeat = [p for p in prompts for _ in range(count)]
        embedded = self._embedded(repeat, clip_skip)
        negative = None
        if guidance_scale != 1:
            negative = self._embedded([p for p in negatives for _ in range(count)], clip_skip)
        images = programs.Images(
            latents=programs.split(latents),
            keys=programs.split(_key_data(seeds)),
            prompt=embedded,
            negative=negative,
            time_ids=self._time_ids(size, total),
        )
        settings = programs.Settings(
            table, np.float32(guidance_scale), np.float32(guidance_rescale)
        )
        run = programs.compiled(
            programs.noise_to_latents, self.networks, in_axes=(None, None, 0)
        )
        result = run(self.params["unet"], settings, images)
        if output == "latents":
            return programs.joined(result, total)
        decode = programs.compiled(programs.latents_to_pixels, self.networks, in_axes=(None, 0))
        pixels = programs.joined(decode(self.params["vae"], result), total)
        if output == "numpy":
            return pixels
        return [Image.fromarray(np.uint8(np.round((image + 1) * 127.5))) for image in pixels]

    def _embedded(self, prompts: Sequence[str | None], skip: int):
        """Embeddings of one prompt an image, split over the devices; None is no prompt."""
        ids = tuple(t.encode([p or "" for p in prompts]) for t in self.tokenizers)
        keep = [0.0 if p is None and self.zero_negative else 1.0 for p in prompts]
        run = programs.compiled(
            programs.prompts_to_embeddings, self.networks, skip, in_axes=(None, 0)
        )
        params = tuple(self.params[part] for part in self._encoder_parts())
        return run(params, programs.split(programs.Prompts(ids, np.float32(keep))))

    def _size(self, height: int | None, width: int | None) -> tuple[int, int]:
        """Height and width in pixels, checked."""
        factor = self.vae.config.downsampling
        trained = self.unet.config.sample_size or 512 // factor
        default = trained if isinstance(trained, tuple) else (trained, trained)
        size = tuple(
            side * factor if given is None else given
            for given, side in zip((height, width), default, strict=True)
        )
        for name, side in zip(("height", "width"), size, strict=True):
            if side < factor or side % factor:
                nearest = max(1, round(side / factor)) * factor
                raise SdjaxError(
                    f"{name} must be a multiple of {factor}, got {side}; the nearest is {nearest}"
                )
        return size

    def _latent_shape(self, size: tuple[int, int]) -> tuple[int, int, int]:
        config = self.vae.config
        height, width = (side // config.downsampling for side in size)
        return height, width, config.latent_channels

    def _noise(self, seeds: np.ndarray, size: tuple[int, int], source: str) -> np.ndarray:
        """Unit-variance noise, float32[N, h, w, C], each image's from its own seed."""
        height, width, channels = self._latent_shape(size)
        if source == "torch":
            drawn = [torch_normal(seed, (channels, height, width)) for seed in seeds]
            return np.stack(drawn).transpose(0, 2, 3, 1)
        if source != "jax":
            raise SdjaxError(f"noise must be torch or jax, got {source!r}")
        return np.stack(
            [jax.random.normal(key, (height, width, channels)) for key in _first_keys(seeds)]
        )

    def _checked(self, latents, total: int, size: tuple[int, int]) -> np.ndarray:
        latents = np.asarray(latents, np.float32)
        expected = (total, *self._latent_shape(size))
        if latents.shape != expected:
            raise SdjaxError(f"latents must have shape {expected}, got {latents.shape}")
        wanted = self.unet.config.in_channels
        if wanted != expected[-1]:
            raise SdjaxError(
                f"this U-Net takes {wanted} channels, the latents have {expected[-1]}: "
                "it needs an image condition and cannot make images from a prompt alone"
            )
        return latents

    def _time_ids(self, size: tuple[int, int], total: int):
        if self.unet.config.addition_embed_type is None:
            return None
        height, width = size
        row = np.float32([height, width, 0, 0, height, width])
        return programs.split(np.tile(row, (total, 1)))


def _listed(prompt: Prompt, name: str) -> list[str]:
    """A list of prompts, checked."""
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    if not prompts:
        raise SdjaxError(f"{name} is an empty list: give at least one prompt")
    for one in prompts:
        if not isinstance(one, str):
            raise SdjaxError(f"{name} must be text, got {one!r}")
    return prompts


def _seeds(seed: int | Sequence[int], total: int) -> np.ndarray:
    """One seed an image, uint64[total]."""
    seeds = list(seed) if np.ndim(seed) else [seed + i for i in range(total)]
    if len(seeds) != total:
        raise SdjaxError(f"seed must be one number or {total}, one an image, got {len(seeds)}")
    for one in seeds:
        if not 0 <= int(one) < 2**64:
            raise SdjaxError(f"a seed must lie in 0 … 2^64 - 1, got {one}")
    return np.array([int(one) for one in seeds], np.uint64)


def _key_data(seeds: np.ndarray) -> np.ndarray:
    """The data of `jax.random.key(seed)` for each seed, uint32[N, 2]."""
    return np.stack([seeds >> np.uint64(32), seeds & np.uint64(0xFFFFFFFF)], 1).astype(np.uint32)


def _first_keys(seeds: np.ndarray):
    """Keys of the initial noise, apart from those of any sampler row."""
    keys = jax.random.wrap_key_data(_key_data(seeds))
    return jax.vmap(jax.random.fold_in, (0, None))(keys, np.uint32(0xFFFFFFFF))
