"""`sdjax sample`: prompts to pictures."""

from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from sdjax.words import WORDS

from . import sample_molecules, sample_run
from .common import MODEL_WORDS, parsed
from .sample_options import axis, cells, like_a_picture

# Beside the words for arguments of `generate`.
_WORDS = {
    **MODEL_WORDS, "controls": "control", "control_image": "control", "controlnet": "control",
    "controlnet_conditioning_scale": "control", "adapter": "control", "t2i_adapter": "control",
    "adapter_conditioning_scale": "control", "ip_adapter": "reference",
    "ip_adapter_image": "reference", "ip_adapter_scale": "reference", "references": "reference",
    "loras": "lora", "lora_path": "lora", "lora_weights": "lora", "lora_scale": "lora",
    "embedding": "word", "embeddings": "word", "textual_inversion": "word",
}  # fmt: skip
_SEVERAL = (
    "--prompt", "--prompt-2", "--negative-prompt", "--negative-prompt-2", "--image", "--mask",
    "--depth", "--control", "--reference", "--region", "--lora", "--word",
)  # fmt: skip


def sample(
    prompt: tuple[str, ...] = (),
    model: str | None = None,
    config: Path | None = None,
    negative_prompt: tuple[str, ...] = (),
    weighting: Literal["a1111", "comfy", "compel", "none"] = "a1111",
    preset: str | None = None,
    steps: int | None = None,
    guidance_scale: tuple[float, ...] = (),
    first_guidance_scale: float | None = None,
    guidance_rescale: float = 0.0,
    sampler: str | None = None,
    spacing: Literal["leading", "trailing", "linspace"] | None = None,
    sigmas: str | None = None,
    eta: float | None = None,
    seed: tuple[int, ...] = (0,),
    variation_seed: int | None = None,
    variation_strength: float | None = None,
    count: int = 1,
    lora: tuple[str, ...] = (),
    word: tuple[Path, ...] = (),
    motion: str | None = None,
    motion_like: Literal["diffusers", "authors"] | None = None,
    frames: int | None = None,
    frame_windows: tuple[int, ...] = (),
    fps: float | None = None,
    seconds: float | None = None,
    motion_bucket: float | None = None,
    noise_augmentation: float | None = None,
    height: int | None = None,
    width: int | None = None,
    clip_skip: int = 0,
    batch_size: int = 8,
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    quantize: Literal["int8", "fp8", "int4", "nf4"] | None = None,
    image: tuple[Path, ...] = (),
    strength: tuple[float, ...] = (),
    mask: tuple[Path, ...] = (),
    mask_blur: float | None = None,
    only_masked: int | None = None,
    paste: bool = True,
    extend: tuple[int, int, int, int] | None = None,
    image_guidance_scale: float | None = None,
    depth: tuple[Path, ...] = (),
    noise_level: int | None = None,
    control: tuple[str, ...] = (),
    reference: tuple[str, ...] = (),
    image_encoder: Path | None = None,
    region: tuple[str, ...] = (),
    prompt_2: tuple[str, ...] = (),
    negative_prompt_2: tuple[str, ...] = (),
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
    windows: tuple[int, ...] = (),
    vae_tile: int | None = None,
    vae_frames: int | None = None,
    hires: float | None = None,
    hires_strength: float | None = None,
    hires_steps: int | None = None,
    hires_by: str | None = None,
    refiner: str | None = None,
    handoff: float | None = None,
    noise: Literal["torch", "jax"] | None = None,
    out: Path = Path("images"),
    like: Path | None = None,
    format: Literal["png", "webp", "jpeg", "gif", "mp4", "wav", "flac"] | None = None,
    sound: Literal["riffusion", "speech"] | None = None,
    json: bool = False,
    grid: int | None = None,
    x: str | None = None,
    y: str | None = None,
    preview: int | None = None,
    preview_vae: str | None = None,
    safety_checker: str | None = None,
    blank: bool = False,
    offload: bool = False,
    fsdp: Annotated[int, tyro.conf.arg(name="placement.fsdp")] = 1,
    tensor: Annotated[int, tyro.conf.arg(name="placement.tensor")] = 1,
) -> dict[str, Any]:
    """Turn prompts into pictures, each a numbered file, and one captioned sheet of them all.

    sdjax sample --prompt "grinning cat"

    sdjax sample --prompt "red heart" "penguin" --count 4 --seed 7 --out pictures

    sdjax sample --prompt "tiger face" --image pictures/00000.png --strength 0.7

    sdjax sample --prompt "large red circle" --model runs/shapes/model --sampler dpmpp_2m --steps 20

    Args:
        prompt: One or more prompts, each in quotes; the option may also be given several times. Of
            all models but those that move a picture, which take none.
        model: A diffusers folder, a .safetensors or .ckpt file, or a hub id; the emoji model that
            comes with the project where not given.
        config: Of a single file, if its networks are of other sizes than the published: a
            diffusers folder of the same sizes, such as the one it was made from.
        negative_prompt: What to steer away from; one, or one for each prompt.
        weighting: How (word:1.3) and the other signs of docs/prompts.md weigh in prompts: as in the
            web UI, ComfyUI or compel; none takes prompts as they are.
        preset: Steps, sampler and guidance of a model distilled to few steps: lcm, lcm-lora, turbo,
            lightning-1, -2, -4 or -8, hyper-1, -2, -4 or -8, hyper-1-unet, hyper-8-cfg or
            hyper-12-cfg, dmd2-1 or -4; other options given come before it.
        steps: Sampling steps; 30 where not given.
        guidance_scale: How much the prompt counts; 1 turns guidance off and halves the work. The
            model's own where not given: 2 for the emoji, 7.5 for models that have none. One, or
            one for each prompt or picture.
        first_guidance_scale: Of a clip's first frame, from which it goes evenly to that of the last;
            1 where not given for a model that moves a picture, else the same for all.
        guidance_rescale: Share of the contrast added by guidance that is taken back, 0 to 1.
        sampler: ddim, euler, euler_a, dpmpp_2m, unipc, …; the model's own where not given.
        spacing: How the timesteps are laid out; the sampler's own way where not given.
        sigmas: Noise levels: karras, exponential, beta, …; the sampler's own where not given.
        eta: Noise of a stochastic sampler, 0 to 1.
        seed: Of the first picture; the others take seed + 1, seed + 2, …; or one for each picture;
            -1 draws one, which is printed and kept in the PNG's text.
        variation_seed: Makes variations of the picture of the seed, which stays the same: the first
            takes this one, the others the next.
        variation_strength: How far a variation goes, 0 to 1.
        count: Pictures of each prompt.
        lora: A LoRA or another adapter for the model, as FILE or FILE:WEIGHT; several add up.
        word: A learned word (textual inversion) for prompts, which is written in them as the file
            has it.
        motion: Motion modules of AnimateDiff for the model: a diffusers folder, the authors' file or
            a hub id; with --frames clips are made in place of pictures.
        motion_like: Whose norms and betas the motion modules are run with; those of the program that
            the file is for where not given.
        frames: Frames of each clip; a model that moves a picture has a number of its own.
        frame_windows: Frames that are seen at a time of a longer clip, and how many of them overlap.
        fps: Frames a second of the file, which a model that moves a picture is told; 8 where not
            given, or 7 for such a model.
        motion_bucket: How much moves, for a model that moves a picture; 127 where not given.
        noise_augmentation: Of the picture that is moved; 0.02 where not given.
        seconds: How long a sound is to be, of a model of sound; as long as it was trained at where
            not given.
        height: In pixels; the size the model was trained at where not given.
        width: In pixels; the size the model was trained at where not given.
        clip_skip: Layers of the text encoder left out at its end.
        batch_size: Pictures made at once.
        dtype: What the networks compute in.
        quantize: Holds the model's large weights in few bits, for less memory.
        image: A picture to start from, to repaint, to edit or to enlarge, as the model and the other
            options have it; one, or one for each prompt; of a clip one for all frames or one a frame.
        strength: How much of the picture changes, 0 to 1; 0.8 where not given, 1 with a mask. One,
            or one for each prompt or picture.
        mask: White where the picture is repainted.
        mask_blur: Radius in pixels by which the mask's edge is softened.
        only_masked: Pixels around the mask; that part is painted at the size of the result and put
            back.
        paste: Whether what is not masked comes back from the picture, pixel for pixel; otherwise as
            the autoencoder gives it.
        extend: Pixels by which the picture is enlarged at its left, top, right and bottom.
        image_guidance_scale: How much the picture counts for a model that edits; 1.5 where not
            given.
        depth: A map of the picture's depths, lighter is nearer, for a model that takes one.
        noise_level: Of the picture that a model enlarges; 20 where not given.
        control: A ControlNet or T2I-Adapter and its picture as FOLDER:PICTURE or
            FOLDER:PICTURE:SCALE; several add up. `sdjax draw` makes such pictures.
        reference: An IP-Adapter and a picture of a subject or a style as FILE:PICTURE or
            FILE:PICTURE:SCALE; several add up.
        image_encoder: Folder of the CLIP that the IP-Adapters were trained with; image_encoder
            beside the file where not given.
        region: A prompt for a part of the picture as MASK.png:PROMPT, white where it counts.
        prompt_2: Of SDXL's second text encoder; the prompt where not given.
        negative_prompt_2: Of SDXL's second text encoder; the negative prompt where not given.
        original_size: Height and width that SDXL is told the picture had; its own where not given.
        crop: Top and left that SDXL is told were cut off; none where not given.
        target_size: Height and width that SDXL is told to draw; its own where not given.
        aesthetic_score: How beautiful SDXL's refiner is told the picture is; 6 where not given.
        negative_original_size: The same of the negative prompt; the prompt's where not given.
        negative_crop: The same of the negative prompt.
        negative_target_size: The same of the negative prompt; the prompt's where not given.
        negative_aesthetic_score: The same of the negative prompt; 2.5 where not given.
        tile: Makes a picture that goes on without a seam at its other side: x from right to left, y
            from bottom to top, xy both.
        reuse_every: Compute the whole U-Net at each n-th evaluation only, and its finest level at the
            others (DeepCache): faster, and no longer the same picture.
        windows: For pictures larger than the model was trained at: the side in pixels of the
            windows that the U-Net sees, and by how many they overlap, half where not given.
        vae_tile: Side in pixels of the tiles in which the autoencoder takes a picture; 1024 for
            more than 2048x2048 pixels where not given, 0 for all at once.
        vae_frames: Frames of a clip that the autoencoder of such a model takes at once; all where not
            given.
        hires: Makes pictures, enlarges them by this factor, and refines them in a second pass.
        hires_strength: How much the second pass changes, 0 to 1; 0.7 where not given.
        hires_steps: Sampling steps of the second pass; those of the first where not given.
        hires_by: How they are enlarged: latent (where not given), latent-bicubic, latent-nearest,
            lanczos, bicubic, bilinear or nearest.
        refiner: A second model that ends what the first begins, as SDXL's refiner does: a folder, a
            file or a hub id.
        handoff: The share of the noise after which the refiner goes on, 0 to 1; 0.8 where not given.
        noise: Who draws the noise: with torch a seed gives the picture that it gives in PyTorch, or
            the sampler is refused. Torch, for every sampler, where not given.
        out: Folder of the pictures; numbers go on after those that are there.
        like: A picture made here, or with A1111's parameters: its prompt and settings are taken
            where no option says otherwise.
        format: Of the files, png, gif or wav where not given; the settings are inside each.
        sound: Also writes what is heard of each picture beside it, a WAV file, of models whose
            pictures are spectrograms: laid out as Riffusion's, or as those of configs/spoken_digits.py.
        json: Also writes each picture's settings beside it.
        grid: Pictures in a row of the sheet.
        x: A setting and its values for a grid of pictures, such as sampler=ddim,euler; a value with
            a comma stands in double quotes.
        y: Another one, for the rows.
        preview: Also writes small pictures on the way, after every so many steps, and a sheet of
            them, into a folder previews beside the pictures.
        preview_vae: A folder or file of TAESD, which makes them large.
        safety_checker: A folder of Stable Diffusion's safety checker, which tells what it flags.
        blank: Whether pictures that are flagged become black.
        offload: Keeps each network on the device only while it is used, where its memory is small.
        fsdp: Devices that share out the parameters of the model and its refiner, and the pictures;
            -1 for all there are. For models larger than a device.
        tensor: Devices that share out each large product.
    """
    return dict(locals())


def run(arguments: list[str], program: str) -> int:
    """Reads the options, and draws; with a model of molecules makes these."""
    if sample_molecules.is_meant(arguments):
        return sample_molecules.run(arguments, program)
    words = {**WORDS, **_WORDS}
    arguments = like_a_picture(arguments, sample)

    def options(arguments: list[str]) -> dict[str, Any]:
        return parsed(
            sample, arguments, program, words=words, several=_SEVERAL, required=["--prompt"]
        )

    given = options(arguments)
    axes = {side: axis(side, given[side], sample) for side in ("x", "y") if given[side]}
    sample_run.carry_out(given, cells(arguments, axes, options), axes)
    return 0
