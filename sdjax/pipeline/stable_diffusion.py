"""`StableDiffusion`: prompts to images, with a checkpoint in and out."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from PIL import Image

from sdjax import diffusion, parallel
from sdjax.errors import SdjaxError
from sdjax.models.motion import MotionConfig
from sdjax.pipeline import hires as hires_fix
from sdjax.pipeline import run
from sdjax.pipeline.compiled import coding, sizes
from sdjax.pipeline.compiled.program import Program
from sdjax.pipeline.compiled.progress import reported
from sdjax.pipeline.compiled.sounding import Heard
from sdjax.pipeline.given.inputs import Pictures
from sdjax.pipeline.given.regions import Region
from sdjax.pipeline.model.adapted import Adapted
from sdjax.pipeline.model.captions import warn_of_unseen
from sdjax.pipeline.model.files import GUIDANCE_SCALE, Model, read_model, write_model
from sdjax.pipeline.plans.plan import Plan, plan
from sdjax.pipeline.plans.prompts import plain
from sdjax.pipeline.plans.request import ARGUMENTS, Prompt, Request
from sdjax.pipeline.results.pictures import (
    check_finite_images,
    to_clips,
    to_pictures,
    to_sounds,
)
from sdjax.pipeline.results.previews import Preview, Show
from sdjax.pipeline.results.safety import SafetyChecker, marked
from sdjax.pipeline.steering.base import Steering
from sdjax.room import told_when_full
from sdjax.sound.sounds import Sound
from sdjax.text.chunks import Weighting
from sdjax.text.roberta import RobertaTokenizer
from sdjax.text.tokenizer import Tokenizer
from sdjax.weights.checkpoint import Checkpoint, Part
from sdjax.weights.clap import is_clap
from sdjax.weights.clip_vision import CLIPVision
from sdjax.weights.motion import LINEAR, still
from sdjax.weights.motion_parts import PART
from sdjax.weights.names import state_from_params
from sdjax.weights.parts import VAE, TextEncoder, TinyVAE, UNet, configuration, load
from sdjax.weights.single_file import family_of
from sdjax.weights.sound import ClapText, Vocoder
from sdjax.weights.tensors import dtype_of
from sdjax.words import told_words

_WHEN_FULL = "ask for a smaller batch_size or smaller pictures, or load the model in bfloat16"


class StableDiffusion(Adapted):
    """A latent text-to-image model: networks, tokenizers, parameters and scheduler settings.

    unet, vae, text_encoder: the networks, with what they compute in as their dtype; a float16
        autoencoder whose configuration says `force_upcast` computes in float32. text_encoder_2:
        SDXL's second; its refiner has no other, and None for the first. vocoder: of a model that
        makes sound, whose text encoder is CLAP's.
    scheduler_config: a diffusers scheduler_config.json as a dict; low_res_scheduler_config: the
        x4 upscaler's second one.
    params: {"unet", "vae"} and "text_encoder", "text_encoder_2", "vocoder" as they are there.
        Assigning `params` again changes the model without compiling anything anew.
    zero_negative: whether no negative prompt means an embedding of zeros (SDXL) rather than that
        of the empty prompt.
    guidance_scale: what `generate` takes where it is given none; saved with the model.
    offload: whether parameters stay in the host's memory and are on the devices only while they are
        used, for devices with little memory. Pictures are the same.
    placement: whether each local device has a copy of the parameters, as by default, or several
        share one, for models larger than a device: `sdjax.parallel.Placement(fsdp=-1)`. Pictures
        are the same to 1e-5.
    captions: all that the model was trained on, where that is known; saved with the model. A
        warning tells of prompts without a word of them.
    """

    def __init__(
        self,
        unet: UNet,
        vae: VAE,
        text_encoder: TextEncoder | ClapText | None,
        tokenizer: Tokenizer | RobertaTokenizer | None,
        scheduler_config: Mapping[str, Any],
        params: Mapping[str, Any],
        *,
        image_encoder: CLIPVision | None = None,
        text_encoder_2: TextEncoder | None = None,
        tokenizer_2: Tokenizer | None = None,
        vocoder: Vocoder | None = None,
        zero_negative: bool = False,
        low_res_scheduler_config: Mapping[str, Any] | None = None,
        guidance_scale: float = GUIDANCE_SCALE,
        captions: Sequence[str] = (),
        offload: bool = False,
        placement: parallel.Placement = parallel.Placement(),
    ):
        parallel.use_compile_cache()
        self.unet, self.vae, self.vocoder = unet, coding.upcast(vae), vocoder
        encoders = {
            "text_encoder": (text_encoder, tokenizer),
            "text_encoder_2": (text_encoder_2, tokenizer_2 or tokenizer),
        }
        encoders = {name: pair for name, pair in encoders.items() if pair[0] is not None}
        self.encoder_parts, self.image_encoder = tuple(encoders), image_encoder
        self.text_encoders = tuple(encoder for encoder, _ in encoders.values())
        self.tokenizers = tuple(tokenizer for _, tokenizer in encoders.values())
        self.scheduler_config = dict(scheduler_config)
        self.low_res_scheduler_config = dict(low_res_scheduler_config or {})
        self.zero_negative = zero_negative
        self.guidance_scale = guidance_scale
        self.captions = tuple(captions)
        self.offload = offload
        self.placement, self.place = placement, placement.here()
        self.params = params

    @classmethod
    @told_words
    def from_pretrained(
        cls,
        source: str | os.PathLike,
        *,
        dtype: str = "float32",
        variant: str | None = None,
        revision: str | None = None,
        quantize: str | None = None,
        offload: bool = False,
        placement: parallel.Placement = parallel.Placement(),
    ) -> "StableDiffusion":
        """Reads a diffusers folder, an original single file, or a hub id such as "owner/name".

        Of a folder of AnimateDiff the motion modules are loaded too.

        dtype: what the networks compute in and hold their parameters in. variant: "fp16" reads
        those weights. revision: a branch, tag or commit of the hub. quantize: holds the large
        weights in few bits, "int8", "fp8", "int4" or "nf4", see `sdjax.quantize`. offload: keeps
        the parameters in the host's memory and each part on the devices only while it is used.
        placement: see `StableDiffusion`.
        """
        model = read_model(source, variant, revision)
        return cls.from_model(model, dtype, source, offload, placement, quantize)

    @classmethod
    @told_words
    def from_single_file(
        cls,
        path: str | os.PathLike,
        *,
        dtype: str = "float32",
        config: str | os.PathLike | None = None,
        prediction_type: str | None = None,
        quantize: str | None = None,
        offload: bool = False,
        placement: parallel.Placement = parallel.Placement(),
    ) -> "StableDiffusion":
        """Reads an original .safetensors, .ckpt or .gguf file of SD1, SD2 or SDXL.

        config: a diffusers folder whose configurations and tokenizers are used, where the file is
        of another size than the published models. prediction_type: "epsilon" or "v_prediction";
        by default the file's metadata or the published model's. quantize, offload, placement: see
        `from_pretrained`.
        """
        model = read_model(path, config=config, prediction_type=prediction_type)
        return cls.from_model(model, dtype, path, offload, placement, quantize)

    @classmethod
    def from_model(
        cls, model: Model, dtype: str, source, offload: bool = False,
        placement: parallel.Placement = parallel.Placement(), quantize: str | None = None,
    ) -> "StableDiffusion":  # fmt: skip
        """The networks of what `read_model` read from a source, with their parameters."""
        check_whole(model, source)
        parts = model.checkpoint.parts
        kind = dtype_of(dtype)

        place = placement.here()

        def read(name, network, few=quantize):
            with place.reading():
                config, params = load(
                    parts[name], network.config_class, network.shapes, dtype, source, few
                )
            # One part at a time passes through the devices.
            return config, parallel.to_host(params) if offload else place.placed(params)

        unet, unet_params = read("unet", UNet)
        kind_of_vae = _kind_of_vae(parts["vae"])
        vae, vae_params = read("vae", kind_of_vae)
        params, encoders = {"unet": unet_params, "vae": vae_params}, {}
        if "image_encoder" in parts:
            config, params["image_encoder"] = read("image_encoder", CLIPVision)
            encoders["image_encoder"] = CLIPVision(config, kind)
        for name in model.tokenizers:
            reads = kind_of_text(parts[name])
            config, params[name] = read(name, reads)
            encoders[name] = reads(config, kind)
        vocoder = None
        if "vocoder" in parts:
            config, params["vocoder"] = read("vocoder", Vocoder, few=None)
            vocoder = Vocoder(config, kind)
        made = cls(
            UNet(unet, kind),
            kind_of_vae(vae, kind),
            encoders.get("text_encoder"),
            model.tokenizers.get("text_encoder"),
            model.checkpoint.scheduler,
            params,
            image_encoder=encoders.get("image_encoder"),
            text_encoder_2=encoders.get("text_encoder_2"),
            tokenizer_2=model.tokenizers.get("text_encoder_2"),
            vocoder=vocoder,
            zero_negative=model.zero_negative,
            low_res_scheduler_config=model.checkpoint.low_res_scheduler,
            guidance_scale=model.guidance_scale,
            captions=model.captions,
            offload=offload,
            placement=placement,
        )
        if PART in parts:
            made._take_motion(parts[PART], False, source)
        return made

    @told_words
    def save_pretrained(
        self, folder: str | os.PathLike, dtype: str = "float32", variant: str | None = None
    ) -> None:
        """Writes a diffusers folder that PyTorch diffusers loads, parameters in `dtype`.

        Weights of few bits are written as they are, for `from_pretrained` here.
        """
        write_model(self._model(), folder, dtype, variant)

    @told_words
    def save_single_file(self, path: str | os.PathLike, dtype: str = "float32") -> None:
        """Writes an original single .safetensors file, as other interfaces read it."""
        write_model(self._model(), path, dtype)

    def _model(self) -> Model:
        names = self.encoder_parts
        networks = dict(zip(names, self.text_encoders, strict=True))
        networks |= {"unet": self.unet, "vae": self.vae}
        networks |= {"vocoder": self.vocoder} if self.vocoder else {}
        if self.image_encoder is not None:
            networks["image_encoder"] = self.image_encoder
        # Motion modules are a part of their own: `save_motion`.
        params = {**self.params, "unet": still(self.params["unet"])}
        parts = {
            name: Part(networks[name].config.to_dict(), state_from_params(params[name]))
            for name in networks
        }
        schedulers = self.scheduler_config, self.low_res_scheduler_config
        checkpoint = Checkpoint(parts, family_of(parts), *schedulers)
        tokenizers = dict(zip(names, self.tokenizers, strict=True))
        own = {"guidance_scale": self.guidance_scale, "captions": self.captions}
        own["aesthetics"] = checkpoint.family == "refiner"
        return Model(checkpoint, tokenizers, self.zero_negative, **own)

    def generate(
        self,
        prompt: Prompt | None = None,
        negative_prompt: Prompt | None = None,
        *,
        prompt_2: Prompt | None = None,
        negative_prompt_2: Prompt | None = None,
        preset: str | None = None,
        weighting: Weighting | None = "a1111",
        steps: int | None = None,
        guidance_scale: float | Sequence[float] | None = None,
        first_guidance_scale: float | None = None,
        guidance_rescale: float = 0.0,
        sampler: str | None = None,
        seed: int | Sequence[int] | None = 0,
        variation_seed: int | Sequence[int] | None = None,
        variation_strength: float | None = None,
        count: int = 1,
        frames: int | None = None,
        frame_windows: int | tuple[int, int] | None = None,
        seconds: float | None = None,
        fps: float | None = None,
        motion_bucket: float | None = None,
        noise_augmentation: float | None = None,
        height: int | None = None,
        width: int | None = None,
        image: Pictures | None = None,
        strength: float | Sequence[float] | None = None,
        mask: Pictures | None = None,
        mask_blur: float | None = None,
        only_masked: int | None = None,
        paste: bool = True,
        extend: tuple[int, int, int, int] | None = None,
        image_guidance_scale: float | None = None,
        depth: Pictures | None = None,
        noise_level: int | None = None,
        controls: Sequence[Steering] = (),
        regions: Sequence[Region] = (),
        original_size: tuple[int, int] | None = None,
        crop: tuple[int, int] | None = None,
        target_size: tuple[int, int] | None = None,
        aesthetic_score: float | None = None,
        negative_original_size: tuple[int, int] | None = None,
        negative_crop: tuple[int, int] | None = None,
        negative_target_size: tuple[int, int] | None = None,
        negative_aesthetic_score: float | None = None,
        tile: Literal["x", "y", "xy"] | None = None,
        reuse_every: int | None = None,
        windows: int | tuple[int, int] | None = None,
        vae_tile: int | None = None,
        vae_frames: int | None = None,
        hires: float | None = None,
        hires_strength: float | None = None,
        hires_steps: int | None = None,
        hires_by: str | None = None,
        refiner: "StableDiffusion | None" = None,
        handoff: float | None = None,
        latents: np.ndarray | None = None,
        noise: Literal["torch", "jax"] | None = None,
        clip_skip: int = 0,
        batch_size: int | None = None,
        output: Literal["pil", "numpy", "latents"] = "pil",
        progress: bool | Callable[[int, int], None] = True,
        preview: Preview | Show | None = None,
        safety_checker: SafetyChecker | None = None,
        **sampler_options,
    ) -> list[Image.Image] | list[list[Image.Image]] | list[Sound] | np.ndarray:
        """Makes `count` images of each prompt, a batch at a time over the local devices.

        Only shapes, `clip_skip`, whether guidance is on and which kinds of conditions are present
        choose the compiled program; sampler, steps, scale, prompts, pictures, masks, strength and
        seeds run the same one, as long as a picture takes up to 64 evaluations of the U-Net (and
        from there up to the next power of two); heun and some others take two a step.

        prompt: what to make, one or several. A model that moves a picture (Stable Video Diffusion)
            reads none: it makes a clip of each `image`.
        negative_prompt: one for all images, one a prompt, or None.
        prompt_2, negative_prompt_2: for SDXL's second text encoder, as the first two; None for the
            same text as the first encoder's.
        preset: the settings of a model distilled to few steps, by a name of
            `sdjax.pipeline.given.presets.PRESETS` ("lcm", "lightning-4", …): its steps, sampler with
            options, and guidance scale, each unless it is given here.
        weighting: how the signs of `docs/prompts.md` in prompts weigh: "a1111", "comfy" or
            "compel"; None takes prompts literally, and cuts them to what is encoded at once.
        steps: None for 30, 25 of a model that moves a picture, for what a distilled model's
            scheduler asks for, or for as many as
            `timesteps=` or `sigmas=` lists.
        guidance_scale: 1, or 0 as other programs have it, turns guidance off and halves the work;
            None for the model's own, 7.5 where it has none, or 3 where it moves a picture. One, or
            one for each prompt or image.
        first_guidance_scale: of the first frame of a clip, from which it goes to `guidance_scale`
            of the last in even steps; None for the same for all, or 1 where the model moves a picture.
        sampler: a name of `sdjax.sampler`, or None for the model's own; `sampler_options` (spacing,
            sigmas, eta, order, …) take precedence over the model's.
        seed: of the first image, the others take seed + 1, …; or one for each image; None draws
            one. A PIL image has its own as `info["seed"]`, and `seeds` lists those of the last
            call. An image depends on its own seed only, not on the batch around it.
        variation_seed, variation_strength: makes variations of the picture of `seed`, which is then
            the same for all: the noise that an image starts from is moved towards that of
            variation_seed, variation_seed + 1, … or one for each image. Of the strength, 0 is the
            picture itself and 1 another one.
        frames: of clips in place of pictures, with motion modules (`load_motion`): each image is
            then a clip of so many frames, a list of PIL images, or arrays with an axis for the
            frames after the first. A ControlNet's and a T2I-Adapter's pictures are one for all
            frames, or one a frame, and so is `image`, to start from. A model that moves a picture
            makes clips always, of its own number of frames where none is given.
        frame_windows: how many frames the networks see at a time of a longer clip, or that and
            how many of them overlap, half where it is not given; the predictions are averaged.
        seconds: of a model of sound, how long it is to be; None for as long as it was trained at.
            Each image is then an `sdjax.sound.Sound`, or a row of waveforms [N, samples].
        fps, motion_bucket, noise_augmentation: what a model that moves a picture is told: frames a
            second (None for 7), how much moves (127), and the noise added to the picture (0.02).
        height, width: in pixels; None for the size of `image`, cut to what the latents divide, or
            without one the size the model was trained at. Pictures are resized to it.
        image: a picture to start from, to repaint, to edit or to enlarge, as the model and the
            other arguments have it: a PIL image, a path, uint8 [H, W, 3] or floats in [-1, 1]; one,
            or one for each prompt or image.
        strength: of the change, 0 … 1: the share of the steps that are taken, from the noised
            `image` on; None for 0.8, or with a mask for 1, which starts from noise. One, or one
            for each prompt or image.
        mask: white, or 1, where `image` is repainted. Greys from the middle on are repainted too,
            and all blend the result with `image`. For models with channels for it and for ordinary
            ones.
        mask_blur: radius in pixels by which a mask's edge is softened (Gaussian).
        only_masked: pixels around the mask. What is so near is cut out, painted at the size of the
            result, `height` and `width`, and put back: each image has the size of its `image`.
            Pictures of `controls` and `regions` and `depth` are of the whole image, and cut with it.
        paste: puts the pixels of `image` back where the mask is black; False leaves them as the
            autoencoder gives them, and with `only_masked` what was painted by itself.
        extend: pixels at the left, top, right and bottom by which `image` is enlarged; what is new
            is painted, and passes into `image` at its edge. Otherwise all its pixels are kept.
        image_guidance_scale: how much `image` counts for a model that edits; None for 1.5.
        depth: for a model that takes them: larger is nearer, of any range; [H, W] or a grey picture.
        noise_level: of the small picture of an upscaler, as a timestep; None for 20.
        controls: pictures that steer, each a `sdjax.Control`, `sdjax.T2IAdapter` or
            `sdjax.IPAdapter` called with one; they add up.
        regions: prompts for parts of the picture, each an `sdjax.Region`.
        original_size, crop, target_size: what SDXL is told of the picture: (height, width) before
            it was made smaller, (top, left) of what was cut out of it, and (height, width) of the
            result; None for the size of the result and no crop. The refiner is told an
            `aesthetic_score` (None for 6) in place of the last.
        negative_original_size, …: the same for the negative prompt. None for all is what the
            prompt has, and a score of 2.5; where one is given, None for the crop is no crop.
        tile: makes pictures that go on without a seam at their other side: "x" from right to left,
            "y" from bottom to top, "xy" both.
        reuse_every: evaluations 1, 1 + n, 1 + 2n … compute the whole U-Net; the others only its
            finest level, with what the last whole one found beneath it (DeepCache, arXiv
            2312.00858): faster, and no longer the same picture; 1 computes each whole.
        windows: for pictures larger than the model was trained at (MultiDiffusion): the side in
            pixels of the windows that the U-Net sees, one after the other, or (side, overlap);
            half the side where no overlap is given. What it predicts is averaged.
        vae_tile: side in pixels of the tiles in which the autoencoder takes a picture; they overlap
            by a quarter and fade into each other. None for 1024 where a picture has more than
            2048x2048 pixels, 0 for all at once.
        vae_frames: of a clip, that a decoder which looks along the frames takes at once; None for
            all.
        hires: makes pictures first, then enlarges them by this factor, 1 or more, and refines them
            by image to image in a second pass of the same seeds ("hires fix").
        hires_strength, hires_steps: of the second pass; None for 0.7, and for `steps`.
        hires_by: "latent" (None), "latent-bicubic" or "latent-nearest" to enlarge latents; "lanczos",
            "bicubic", "bilinear" or "nearest" for pictures of 8 bits.
        refiner: another model with the same latents, such as SDXL's refiner, that ends what this one
            begins; each takes its own sampler where none is given. ControlNets steer this model
            alone.
        handoff: the share of the noise's timesteps after which the refiner goes on, 0 … 1; None for
            0.8.
        latents: unit-variance noise [N, height / f, width / f, C] to start from.
        noise: where other noise comes from, to start from and what samplers add. "torch" draws it
            as diffusers does with a generator on the CPU for each image, so that a seed gives the
            picture it gives there, and refuses samplers whose noise diffusers draws otherwise
            (dpmpp_sde) or does not have (dpmpp_2s_a). None draws the same for every sampler, for
            these two without that promise. "jax" draws by JAX, another program.
        clip_skip: layers left out at the end of the text encoder.
        batch_size: images made at once, at most. None for all, rounded up to a few numbers, and as
            many as an earlier call where that saves compiling and computes at most twice the images;
            what is too much is dropped.
        output: "pil", "numpy" (float32[N, height, width, 3] in [-1, 1]), or "latents" (float32, in
            the U-Net's scale).
        progress: True for a bar where there is a terminal or a notebook, False for none, or a
            function of (evaluations of the U-Net done, evaluations in all). The pictures and the
            compiled programs are the same.
        preview: a function of (evaluations done, evaluations of the batch, small PIL images of what
            they are to become), called after each evaluation, or an `sdjax.Preview` that says how
            often and how they are decoded. The pictures and the program are the same.
        safety_checker: an `sdjax.SafetyChecker`, which tells as `info["nsfw"]` of each PIL image
            whether it is flagged, and changes it only if it was made with blank=True.

        Whole numbers may be floats, and numbers those of NumPy or JAX. Raises SdjaxError for
        arguments that do not fit, before anything is compiled, and for images that are not finite.
        """
        given = {name: value for name, value in locals().items() if name in ARGUMENTS}
        made = []
        for _, images in self.generated(Request(**given, options=sampler_options)):
            made.append(images)
        if output == "pil":
            return [image for batch in made for image in batch]
        return np.concatenate(made)

    def program(
        self,
        prompt: Prompt,
        negative_prompt: Prompt | None = None,
        *,
        remat: bool = False,
        output: Literal["numpy", "latents"] = "numpy",
        **arguments,
    ) -> tuple[Program, dict[str, Any]]:
        """What `generate` does on the devices, as a pure function: (program, its parameters).

        `program(params, program.inputs)` gives the pictures of all prompts at once, as a JAX array
        float32[N, height, width, 3], or latents; under jit, grad, vmap, pmap or export. See
        `Program`.

        prompt, negative_prompt, arguments: as `generate` takes them, but for `progress`, `preview`,
            `safety_checker`, `batch_size`, `hires`, `refiner` and `paste`: what is not masked comes
            from the autoencoder. Another prompt or other values of the same kinds give a program with
            inputs of the same shapes.
        remat: whether a gradient through the sampler computes each evaluation anew, so that its
            memory is that of one evaluation and the x of each.
        output: "numpy" for pixels in [-1, 1], "latents" for the U-Net's scale.

        Raises SdjaxError for arguments that do not fit.
        """
        names = {name: arguments.pop(name) for name in ARGUMENTS if name in arguments}
        own = ("progress", "preview", "safety_checker", "batch_size", "paste")
        for name in (*own, "hires", "refiner", "handoff"):
            if name in names:
                raise SdjaxError(f"program takes no {name}: it is one function of one batch")
        if output not in ("numpy", "latents"):
            raise SdjaxError(f"output must be 'numpy' or 'latents', got {output!r}")
        asked = Request(prompt, negative_prompt, output=output, **names, options=arguments)
        if self.vocoder is not None and output != "latents":
            raise SdjaxError('a model of sound as a function gives latents: take output="latents"')
        planned = self.planned(asked)
        encoded = run.encode(self, asked, planned)
        inputs = run.inputs_of(self, asked, planned, encoded, np.arange(asked.total))
        moving = planned.frames is not None
        networks, params = run.networks_of(self, planned.controls, planned.tiling, moving)
        coder = run.coder(self, planned.tiling) if output == "numpy" else None
        return Program(networks, coder, remat, inputs), {**params, "vae": self.params["vae"]}

    def generated(
        self, asked: Request
    ) -> Iterator[tuple[int, list[Image.Image] | list[Sound] | np.ndarray]]:
        """The images of a request as they are made: (number of its first, images) of each batch.

        Raises SdjaxError as `generate`, of images that are not finite when their batch is made.
        """
        legs, *later = passes = hires_fix.passes(self, asked)
        self.seeds = [int(seed) for seed in asked.seeds]
        planned = legs[0].planned
        said = planned.texts.texts[:, planned.negatives :].ravel()
        if not self._loras:  # what they were taught is not known
            learned = [word for one in self.tokenizers for word in getattr(one, "learned", ())]
            warn_of_unseen([plain(text, asked.weighting) for text in said], self.captions, learned)
        with told_when_full(_WHEN_FULL):
            encoded = [run.encode(*leg) for leg in legs]
            texts = [[run.encode(*leg, pictures=False) for leg in some] for some in later]
        known = sizes.compiled(*run.kind_of(legs, encoded))
        size = sizes.at_once(asked.total, asked.batch_size, known)
        starts = range(0, asked.total, size)
        # The last batch is filled up, so that all run the program of one shape.
        batches = [np.minimum(first + np.arange(size), asked.total - 1) for first in starts]
        plans = [leg.planned for some in passes for leg in some]
        total = sum(own.tables_of(batch).evaluations for own in plans for batch in batches)
        with reported(asked.progress, total) as advance:
            for first, batch in zip(starts, batches, strict=True):
                with told_when_full(_WHEN_FULL):
                    made = run.batch(legs, encoded, batch, advance)
                    known.add(size)
                    for some, own in zip(later, texts, strict=True):
                        check_finite_images(made, [self.seeds[i] for i in batch])
                        made = run.batch(*hires_fix.onto(some, own, made, batch), batch, advance)
                left, seeds = asked.total - first, self.seeds[first : first + size]
                if isinstance(made, Heard):
                    made = Heard(*(part[:left] for part in made))
                    check_finite_images(made.sound, seeds)
                    rate = self.vocoder.config.sampling_rate
                    pil = asked.output == "pil"
                    yield first, to_sounds(made, rate, seeds) if pil else made.sound
                    continue
                made = made[:left]
                check_finite_images(made, seeds)
                if asked.output == "pil":
                    made = to_clips(made, seeds) if planned.frames else to_pictures(made, seeds)
                if asked.safety_checker is not None:
                    made = marked(asked.safety_checker, made)
                yield first, made

    def planned(self, asked: Request) -> Plan:
        """How this model carries a request out; SdjaxError where it cannot."""
        return plan(
            asked,
            self.scheduler_config if asked.frames is None else self.clip_scheduler,
            self.unet.config,
            self.vae.config,
            [encoder.config for encoder in self.text_encoders],
            self.guidance_scale,
            self.unet.dtype,
            self.motion,
            self.vocoder.config if self.vocoder else None,
        )

    @property
    def clip_scheduler(self) -> dict[str, Any]:
        """The scheduler's settings for clips: with linear betas where the authors' code has them."""
        return {**self.scheduler_config, **({"beta_schedule": LINEAR} if self._linear else {})}


def check_whole(model: Model, source):
    """SdjaxError where a part is missing, or a schedule wrong, that pictures of prompts need."""
    parts = model.checkpoint.parts
    if not model.is_whole:
        raise SdjaxError(
            f"{source} holds {', '.join(parts)}: expected a U-Net, an autoencoder and a text "
            "encoder, SDXL's both, to make images from prompts, or a picture encoder for clips"
        )
    try:
        diffusion.schedule_from_config(model.checkpoint.scheduler)
    except SdjaxError as error:
        raise SdjaxError(f"{source}: {error}") from error


def plan_for(
    model: Model, asked: Request, source, dtype: str, motion: MotionConfig | None = None
) -> Plan:
    """`plan` for a model on disk, and motion modules for it, before their weights are read."""
    check_whole(model, source)
    parts = model.checkpoint.parts
    if motion is None and PART in parts:
        motion = configuration(parts[PART], MotionConfig, source)
    return plan(
        asked,
        model.checkpoint.scheduler,
        configuration(parts["unet"], UNet.config_class, source),
        configuration(parts["vae"], _kind_of_vae(parts["vae"]).config_class, source),
        [
            configuration(parts[name], kind_of_text(parts[name]).config_class, source)
            for name in model.tokenizers
        ],
        model.guidance_scale,
        dtype,
        motion,
        configuration(parts["vocoder"], Vocoder.config_class, source)
        if "vocoder" in parts
        else None,
    )


def kind_of_text(part: Part) -> type[TextEncoder | ClapText]:
    """The network of a text encoder's part."""
    return ClapText if is_clap(part.config) else TextEncoder


def _kind_of_vae(part: Part) -> type[VAE | TinyVAE]:
    return TinyVAE if part.config.get("_class_name") == "AutoencoderTiny" else VAE
