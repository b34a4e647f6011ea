"""`sdjax sample`: prompts to pictures."""

from pathlib import Path
from typing import Literal

import tyro

from .common import check_near, description, prepare_devices


def sample(
    prompt: tuple[str, ...],
    model: str | None = None,
    negative_prompt: str | None = None,
    steps: int = 30,
    guidance_scale: float | None = None,
    guidance_rescale: float = 0.0,
    sampler: str | None = None,
    spacing: Literal["leading", "trailing", "linspace"] | None = None,
    sigmas: str | None = None,
    eta: float | None = None,
    seed: int = 0,
    count: int = 1,
    height: int | None = None,
    width: int | None = None,
    clip_skip: int = 0,
    batch_size: int = 8,
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    noise: Literal["torch", "jax"] | None = None,
    out: Path = Path("images"),
) -> None:
    """Turn prompts into pictures, each a numbered PNG, and one captioned sheet of them all.

    sdjax sample --prompt "a smiling cat"

    sdjax sample --prompt "red heart" "rocket" --count 4 --seed 7 --out pictures

    sdjax sample --prompt "rocket" --model runs/mine/model --sampler dpmpp_2m --steps 20

    Args:
        prompt: One or more prompts, each in quotes.
        model: A diffusers folder, a .safetensors or .ckpt file, or a hub id; the emoji model that
            comes with the project where not given.
        negative_prompt: What to steer away from.
        steps: Sampling steps.
        guidance_scale: How much the prompt counts; 1 turns guidance off and halves the work. The
            model's own where not given: 2 for the emoji, 7.5 for models that have none.
        guidance_rescale: Share of the contrast added by guidance that is taken back, 0 to 1.
        sampler: ddim, euler, euler_a, dpmpp_2m, unipc, …; the model's own where not given.
        spacing: How the timesteps are laid out; the sampler's own way where not given.
        sigmas: Noise levels: karras, exponential, beta, …; the sampler's own where not given.
        eta: Noise of a stochastic sampler, 0 to 1.
        seed: Of the first picture; the others take seed + 1, seed + 2, …
        count: Pictures of each prompt.
        height: In pixels; the size the model was trained at where not given.
        width: In pixels; the size the model was trained at where not given.
        clip_skip: Layers of the text encoder left out at its end.
        batch_size: Pictures made at once.
        dtype: What the networks compute in.
        noise: Who draws the noise: with torch a seed gives the picture that it gives in PyTorch, or
            the sampler is refused. Torch, for every sampler, where not given.
        out: Folder of the pictures; numbers go on after those that are there.
    """
    import sdjax
    from sdjax.folders import check_writable
    from sdjax.pipeline import StableDiffusion
    from sdjax.pipeline.pictures import save_pictures
    from sdjax.pipeline.request import listed

    prepare_devices()
    model = str(sdjax.EMOJI) if model is None else model
    prompts = listed(prompt)
    check_writable(out)
    pipeline = StableDiffusion.from_pretrained(model, dtype=dtype)
    options = {"spacing": spacing, "sigmas": sigmas, "eta": eta}
    chosen = {
        "negative_prompt": negative_prompt,
        "steps": steps,
        "guidance_scale": pipeline.guidance_scale if guidance_scale is None else guidance_scale,
        "guidance_rescale": guidance_rescale,
        "sampler": sampler,
        "height": height,
        "width": width,
        "clip_skip": clip_skip,
        "noise": noise,
        **{name: value for name, value in options.items() if value is not None},
    }
    images = pipeline.generate(prompts, seed=seed, count=count, batch_size=batch_size, **chosen)
    captions = [text for text in prompts for _ in range(count)]
    settings = {name: value for name, value in chosen.items() if value is not None}
    notes = [{**settings, "model": model, "seed": seed + i} for i in range(len(images))]
    *_, overview = save_pictures(out, images, captions, notes)
    print(f"{len(images)} pictures and {overview}")


def run(arguments: list[str], program: str) -> int:
    """Reads the options, and draws."""
    check_near(arguments, "--prompt")
    tyro.cli(
        sample,
        prog=f"{program} sample",
        description=description(sample, program),
        args=arguments,
    )
    return 0
