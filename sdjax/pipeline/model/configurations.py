"""The configurations of a model's networks, without its weights."""

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

from sdjax.text.tokenizer import Tokenizer
from sdjax.text.vocabulary import clip_tokenizer
from sdjax.weights.parts import VAE, TextEncoder, UNet, configuration
from sdjax.weights.published import PUBLISHED, published

from .files import read_model

NETWORKS = {"unet": UNet, "vae": VAE, "text_encoder": TextEncoder, "text_encoder_2": TextEncoder}


class Configurations(NamedTuple):
    """What a model is, by its parts."""

    parts: dict[str, Any]
    """Configurations of "unet", "vae" and its text encoders."""
    tokenizers: dict[str, Tokenizer]
    """By the names of the text encoders; of published models one that knows a single word."""
    scheduler: Mapping
    """Its scheduler_config.json."""


def configurations(source: str | os.PathLike) -> Configurations:
    """Those of a model's folder or file, or of a name of `sdjax.weights.published`.

    Raises SdjaxError where there is no such model, or one whose networks are of other kinds.
    """
    if source in PUBLISHED:
        found = published(source)
        scheduler = found.pop("scheduler")
        parts = {part: NETWORKS[part].config_class.from_dict(own) for part, own in found.items()}
        words = {part: clip_tokenizer("!") for part in parts if part.startswith("text")}
        return Configurations(parts, words, scheduler)
    model = read_model(source)
    parts = {
        part: configuration(model.checkpoint.parts[part], NETWORKS[part].config_class, source)
        for part in ("unet", "vae", *model.tokenizers)
    }
    return Configurations(parts, model.tokenizers, model.checkpoint.scheduler)
