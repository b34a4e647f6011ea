"""Stable Diffusion's safety checker: whether CLIP finds certain concepts in a picture."""

import dataclasses
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from sdjax import parallel
from sdjax.errors import SdjaxError
from sdjax.pipeline.compiled import places
from sdjax.weights.clip_vision import CLIPVision, concepts

CARE = 0.01
"""What is added to the scores of the concepts where one that needs special care was found."""
PART = "safety_checker"


class Verdict(NamedTuple):
    """What a checker finds in N pictures."""

    special: np.ndarray
    """float32 [N, 3] of the published one: by how much a picture is nearer to each concept that
    needs special care than its threshold."""
    concepts: np.ndarray
    """float32 [N, 17]: the same of the concepts themselves."""

    @property
    def flagged(self) -> np.ndarray:
        """bool [N]: whether any of the concepts is found, counted to three digits as published."""
        return (np.round(self.concepts, 3) > 0).any(axis=1)


@dataclasses.dataclass(frozen=True, eq=False)
class SafetyChecker:
    """CLIP's picture encoder with concepts, in the published layout (diffusers'
    `StableDiffusionSafetyChecker`). Given as `generate(safety_checker=…)` it only tells.

    network, params: the encoder with its projection. concepts: {"concept_embeds" [K, D],
    "concept_embeds_weights" [K], "special_care_embeds" [S, D], "special_care_embeds_weights" [S]},
    the weights being thresholds. blank: whether a picture that is flagged is returned black.
    """

    network: CLIPVision
    params: Any
    concepts: dict[str, np.ndarray]
    blank: bool = False

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike,
        *,
        blank: bool = False,
        dtype: str = "float32",
        variant: str | None = None,
        revision: str | None = None,
    ) -> "SafetyChecker":
        """Reads a diffusers folder, the checker's own or of a pipeline that has one, or a hub id.

        Raises SdjaxError where there is none.
        """
        network, params = CLIPVision.from_pretrained(
            source, part=PART, dtype=dtype, variant=variant, revision=revision
        )
        if not network.config.projected:
            raise SdjaxError(f"{source} is no safety checker: its encoder has no projection")
        found = concepts(source, PART, variant, revision, network.config.projection_dim)
        return cls(network, jax.device_put(params, parallel.replicated()), found, blank)

    def check(self, pictures: Sequence[Image.Image]) -> Verdict:
        """The scores of pictures, each prepared as CLIP wants it."""
        from sdjax.data.clip_picture import clip_picture  # which loads what data loaders need

        run = places.compiled(scores, self.network, in_axes=(None, None, 0))
        devices, size = jax.local_device_count(), self.network.config.image_size
        prepared = np.stack([clip_picture(picture, size) for picture in pictures])
        made = []
        for first in range(0, len(prepared), devices):
            rows = np.minimum(np.arange(first, first + devices), len(prepared) - 1)
            special, plain = run(self.params, self.concepts, prepared[rows][:, None])
            made.append((np.asarray(special)[:, 0], np.asarray(plain)[:, 0]))
        special, plain = (np.concatenate(part)[: len(prepared)] for part in zip(*made, strict=True))
        return Verdict(special, plain)


def scores(network: CLIPVision, params, concepts, pictures) -> tuple[jax.Array, jax.Array]:
    """(special, concepts) of a `Verdict` for prepared pictures [N, size, size, 3]."""
    found = network.apply({"params": params}, pictures).pooled.astype(jnp.float32)

    def over(name):
        wanted = jnp.asarray(concepts[name], jnp.float32)
        near = _unit(found) @ _unit(wanted).T
        return near - jnp.asarray(concepts[f"{name}_weights"], jnp.float32)

    # Each that was found counts for those after it.
    special, total = over("special_care_embeds"), jnp.zeros(len(found))
    columns = []
    for i in range(special.shape[1]):
        columns.append(special[:, i] + total)
        total = jnp.where(jnp.round(columns[-1], 3) > 0, CARE, total)
    return jnp.stack(columns, axis=1), over("concept_embeds") + total[:, None]


def _unit(x):
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def checker(name: str, value: object) -> SafetyChecker:
    """The check of the argument `safety_checker`."""
    if not isinstance(value, SafetyChecker):
        raise SdjaxError(
            f"{name} must be SafetyChecker.from_pretrained(…) or None, got {repr(value)[:80]}"
        )
    return value


def marked(checker: SafetyChecker, pictures: list[Image.Image]) -> list[Image.Image]:
    """Pictures with `info["nsfw"]`, True where one is flagged; black if the checker says so."""
    result = []
    for picture, flagged in zip(pictures, checker.check(pictures).flagged, strict=True):
        if flagged and checker.blank:
            black = Image.new(picture.mode, picture.size)
            black.info.update(picture.info)
            picture = black
        picture.info["nsfw"] = bool(flagged)
        result.append(picture)
    return result
