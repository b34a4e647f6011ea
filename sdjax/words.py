"""What other programs call the arguments of `generate`, of what loads and saves files, and the
options of commands; and what they are called here.
"""

import difflib
import functools
import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

from sdjax.errors import SdjaxError

WORDS = {
    # diffusers
    "num_inference_steps": "steps",
    "num_images_per_prompt": "count",
    "output_type": "output",
    "generator": "seed",
    "scheduler": "sampler",
    "callback": "progress",
    "callback_on_step_end": "progress",
    "callback_steps": "progress",
    "timestep_spacing": "spacing",
    "use_karras_sigmas": 'sigmas="karras"',
    "use_exponential_sigmas": 'sigmas="exponential"',
    "use_beta_sigmas": 'sigmas="beta"',
    "ip_adapter_image": "controls",
    "ip_adapter_image_embeds": "controls",
    "adapter_conditioning_factor": "controls",
    "control_guidance_start": "controls",
    "control_guidance_end": "controls",
    "guess_mode": "controls",
    "depth_map": "depth",
    "original_inference_steps": "original_steps",
    "callback_on_step_end_tensor_inputs": "progress",
    "mask_image": "mask",
    "num_frames": "frames",
    "motion_bucket_id": "motion_bucket",
    "noise_aug_strength": "noise_augmentation",
    "augmentation_level": "noise_augmentation",
    "min_guidance_scale": "first_guidance_scale",
    "max_guidance_scale": "guidance_scale",
    "min_cfg": "first_guidance_scale",
    "decode_chunk_size": "vae_frames",
    "video_frames": "frames",
    "video": "image",
    "video_length": "frames",
    "conditioning_frames": "controls",
    "padding_mask_crop": "only_masked",
    "control_image": "controls",
    "circular_padding": 'tile="x"',
    "enable_vae_tiling": "vae_tile",
    "view_batch_size": "windows",
    "cache_interval": "reuse_every",
    "controlnet_conditioning_scale": "controls",
    "crops_coords_top_left": "crop",
    "negative_crops_coords_top_left": "negative_crop",
    "adapter_conditioning_scale": "controls",
    "ip_adapter_scale": "controls",
    # A1111 and Forge
    "cfg_scale": "guidance_scale",
    "sampler_name": "sampler",
    "sampler_index": "sampler",
    "sampling_method": "sampler",
    "sampling_steps": "steps",
    "n_iter": "count",
    "batch_count": "count",
    "denoising_strength": "strength",
    "inpaint_full_res_padding": "only_masked",
    "outpaint": "extend",
    "prompt_weighting": "weighting",
    "weight_interpretation": "weighting",
    "init_images": "image",
    "clip_stop_at_last_layers": "clip_skip, which counts from 0",
    "subseed": "variation_seed",
    "subseed_strength": "variation_strength",
    "tiling": 'tile="xy"',
    # ComfyUI
    "cfg": "guidance_scale",
    "noise_seed": "seed",
    "denoise": "strength",
    "latent_image": "latents",
    "positive": "prompt",
    "negative": "negative_prompt",
    "rescale_cfg": "guidance_rescale",
    # CompVis' scripts
    "ddim_steps": "steps",
    "ddim_eta": "eta",
    "n_samples": "count",
    "scale": "guidance_scale",
    "init_img": "image",
    # what people also write
    "guidance": "guidance_scale",
    "cfg_rescale": "guidance_rescale",
    "rescale": "guidance_rescale",
    "num_steps": "steps",
    "n_steps": "steps",
    "inference_steps": "steps",
    "num_images": "count",
    "num_samples": "count",
    "h": "height",
    "w": "width",
    "seeds": "seed",
    "random_seed": "seed",
    "manual_seed": "seed",
    "prompts": "prompt",
    "text": "prompt",
    "negative_prompts": "negative_prompt",
    "neg_prompt": "negative_prompt",
    "n_prompt": "negative_prompt",
    "init_image": "image",
    "input_image": "image",
    "method": "sampler",
    "solver_name": "sampler",
    "schedule": "sigmas",
    "show_progress": "progress",
    "progress_bar": "progress",
    "callback_function": "progress",
    "images": "image",
    "denoising_end": "handoff",
    "denoising_start": "handoff",
    "enable_hr": "hires",
    "hr_scale": "hires",
    "hr_second_pass_steps": "hires_steps",
    "hr_upscaler": "hires_by",
    "refiner_switch_at": "handoff",
    "refiner_checkpoint": "refiner",
}
"""A word of another program, plain as of `plain` -> ours."""


_OTHERWISE = {
    "prompt_embeds": "sd.program(…) takes embeddings",
    "negative_prompt_embeds": "sd.program(…) takes embeddings",
    "pooled_prompt_embeds": "sd.program(…) takes embeddings",
    "negative_pooled_prompt_embeds": "sd.program(…) takes embeddings",
    "cross_attention_kwargs": "sd.set_lora_weights says how strong a LoRA is",
    "return_dict": "leave it out, pictures come as a list",
}
"""A word for pictures that is no argument here -> what does it."""

FILES = {
    # diffusers and transformers
    "torch_dtype": "dtype",
    "weight_dtype": "dtype",
    "data_type": "dtype",
    "subfolder": "part",
    "original_config": "config",
    "original_config_file": "config",
    "config_file": "config",
    "pretrained_model_name_or_path": "source",
    "pretrained_model_link_or_path": "path",
    "pretrained_model_name_or_path_or_dict": "path",
    "save_directory": "folder",
    "adapter_name": "name",
    "lora_scale": "weight",
    "adapter_weights": "weight",
    # A1111, ComfyUI and others
    "precision": "dtype",
    "half": 'dtype="float16"',
    "fp16": 'dtype="float16"',
    "checkpoint_path": "path",
    "ckpt_path": "path",
    "model_id": "source",
    "strength": "weight",
    "scale": "weight",
    "multiplier": "weight",
}
"""As WORDS, of what loads and saves files."""

_ELSEWHERE = {
    "cache_dir": "the environment variable HF_HUB_CACHE says where",
    "local_files_only": "the environment variable HF_HUB_OFFLINE=1 does that",
    "use_auth_token": "`hf auth login` keeps it",
    "token": "`hf auth login` keeps it",
    "use_safetensors": "the kind of a file is told by its content",
    "safe_serialization": "weights are always written as safetensors",
    "safety_checker": "give generate safety_checker=SafetyChecker.from_pretrained(…)",
    "requires_safety_checker": "none is required here",
    "load_safety_checker": "give generate safety_checker=…",
    "controlnet": "give generate controls=[Control.from_pretrained(…)(picture)]",
    "adapter": "give generate controls=[T2IAdapter.from_pretrained(…)(picture)]",
    "motion_adapter": "load_motion adds it",
    "device_map": "weights go to all local devices",
    "low_cpu_mem_usage": "weights are read one at a time",
    "scheduler": "give generate sampler=",
    "from_flax": "leave it out, both are read",
    "from_pt": "leave it out, both are read",
}
"""A word of another program that needs no argument here -> why."""

Function = TypeVar("Function", bound=Callable)


def plain(word: str) -> str:
    """A word as WORDS has it: "CFG scale" and "--cfg-scale" are cfg_scale."""
    return word.lstrip("-").strip().lower().replace("-", "_").replace(" ", "_")


def meant(
    word: str, ours: Iterable[str], words: Mapping[str, str] = WORDS, spelled=str
) -> str | None:
    """What a word of another program is called here; None where it is none of `words`.

    spelled: how one of ours is written there.
    """
    known = words.get(plain(word))
    if known is None:
        return None
    name = re.match(r"[\w.]+", known)[0]
    if name in ours:
        return f"it is {spelled(name)}{known.removeprefix(name)} here"
    return f"there is no {name} yet"


def hint(word: str, ours: Iterable[str]) -> str:
    """What is meant by a word that is none of `ours`; nothing where it is like no other."""
    near = difflib.get_close_matches(plain(word), list(ours), 1)
    told = _OTHERWISE.get(plain(word)) or meant(word, ours)
    return told or (f"did you mean {near[0]}?" if near else "")


def told_words(function: Function) -> Function:
    """A function that loads or saves files, which tells who calls it with the names of another
    program what they are here: as SdjaxError, in place of Python's TypeError.
    """
    parameters = inspect.signature(function).parameters
    ours = [name for name in parameters if name not in ("self", "cls", "options")]

    @functools.wraps(function)
    def call(*values, **named):
        for word in named:
            if word in ours:
                continue
            told = _ELSEWHERE.get(word) or meant(word, ours, FILES)
            if "options" in parameters and told is None:
                continue
            if told is None or told.startswith("there is no "):
                near = difflib.get_close_matches(plain(word), ours, 1)
                told = f"did you mean {near[0]}?" if near else f"there are {', '.join(ours)}"
            raise SdjaxError(f"{function.__name__} has no argument {word!r}: {told}")
        return function(*values, **named)

    return call
