"""A checkpoint in memory: the parts of a model as configurations and lazy states.

Whatever the files look like, a `Checkpoint` has diffusers' parts, keys and configurations. Files
become one (`single_file`, `folder`) and are written from one, a tensor at a time.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from sdjax.weights.tensors import State

# Parts in the order in which they are written.
PARTS = (
    "unet", "vae", "text_encoder", "text_encoder_2", "image_encoder", "controlnet", "vocoder",
    "motion_adapter",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Part:
    """One network: its config.json and its state under diffusers' or transformers' keys."""

    config: Mapping[str, Any]
    state: State


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A model, or a part of one.

    parts: some of unet, vae, text_encoder, text_encoder_2, image_encoder, controlnet, vocoder,
        motion_adapter.
    family: sd1, sd2, sdxl, refiner, x4, sound or svd: whose conventions a single file of it follows.
    scheduler: scheduler_config.json, where the parts make a pipeline.
    low_res_scheduler: the x4 upscaler's second one.
    metadata: of the file it was read from.
    """

    parts: Mapping[str, Part]
    family: str = "sd1"
    scheduler: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    low_res_scheduler: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    metadata: Mapping[str, str] = dataclasses.field(default_factory=dict)
