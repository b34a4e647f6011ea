"""The picture transformer of CLIP (Radford et al. 2021, arXiv:2103.00020; ViT: arXiv:2010.11929).

Parameters carry the names of transformers' `CLIPVisionModel`, or of `CLIPVisionModelWithProjection`
where `architectures` in the configuration names that class.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from sdjax.errors import SdjaxError
from sdjax.models.clip_layers import (
    ClipLayers,
    as_json,
    check_fields,
    fields_of,
    scaled_normal,
)
from sdjax.models.inputs import check_floats
from sdjax.models.layers import Conv, Dense, Embedding
from sdjax.models.norms import LayerNorm

PLAIN = "CLIPVisionModel"
PROJECTED = "CLIPVisionModelWithProjection"


@dataclasses.dataclass(frozen=True)
class CLIPVisionConfig:
    """The fields of transformers' `CLIPVisionConfig` that shape the network, with its defaults."""

    hidden_size: int = 768
    intermediate_size: int = 3072
    projection_dim: int = 512
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_channels: int = 3
    image_size: int = 224
    patch_size: int = 32
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    initializer_range: float = 0.02
    architectures: tuple[str, ...] = (PLAIN,)

    def __post_init__(self):
        check_fields(self, (PLAIN, PROJECTED))
        for name in ("image_size", "patch_size"):
            if type(getattr(self, name)) is not int or getattr(self, name) < 1:
                raise SdjaxError(
                    f"{name} must be one whole number, the side of a square, got "
                    f"{getattr(self, name)!r}"
                )

    @property
    def projected(self) -> bool:
        """Whether the pooled state goes through `visual_projection`."""
        return self.architectures == (PROJECTED,)

    @property
    def tokens(self) -> int:
        """Length of a state: one token for the whole picture, then one for each patch."""
        return 1 + (self.image_size // self.patch_size) ** 2

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> "CLIPVisionConfig":
        """Reads a transformers config.json; keys that do not shape the network are left out.

        Of a whole CLIP, and of Stable Diffusion's safety checker, the encoder with its projection
        is taken. Raises SdjaxError for a value that this network cannot follow.
        """
        if isinstance(config.get("vision_config"), Mapping):
            outer, config = config, config["vision_config"]
            # The one outside counts, as in transformers; the inner one may be a default.
            width = outer.get("projection_dim") or config.get("projection_dim")
            config = {**config, "projection_dim": width, "architectures": [PROJECTED]}
        return cls(**fields_of(cls, config, "picture encoder"))

    def to_dict(self) -> dict[str, Any]:
        """A config.json that transformers loads."""
        return as_json(self, "clip_vision_model")


class VisionOutput(NamedTuple):
    """What a picture encoder gives for B pictures.

    hidden_states: the embeddings after their norm, then the state after each layer, each
        [B, tokens, hidden_size]; IP-Adapter "plus" takes `hidden_states[-2]`.
    last_hidden_state: the last of them, as in transformers without the final LayerNorm.
    pooled: the first token of it after the final LayerNorm, [B, hidden_size], or its projection
        [B, projection_dim] where the architecture has one: transformers' `image_embeds`.
    """

    hidden_states: tuple[jax.Array, ...]
    last_hidden_state: jax.Array
    pooled: jax.Array


class VisionEmbeddings(nn.Module):
    """Patches as tokens after a learned first one, with their positions: -> [B, tokens, C]."""

    config: CLIPVisionConfig
    dtype: jax.typing.DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, pictures: jax.Array) -> jax.Array:
        config, width = self.config, self.config.hidden_size
        side = config.patch_size
        first = self.param("class_embedding", scaled_normal(width**-0.5), (width,), jnp.float32)
        patches = Conv(
            width,
            side,
            stride=side,
            padding=0,
            use_bias=False,
            dtype=self.dtype,
            kernel_init=nn.initializers.normal(config.initializer_range),
            name="patch_embedding",
        )(pictures)
        batch = pictures.shape[0]
        tokens = jnp.concatenate(
            [
                jnp.broadcast_to(first.astype(self.dtype), (batch, 1, width)),
                patches.reshape(batch, -1, width),
            ],
            axis=1,
        )
        init = nn.initializers.normal(config.initializer_range)
        positions = Embedding(config.tokens, width, self.dtype, init, name="position_embedding")
        return tokens + positions(jnp.arange(config.tokens))


class VisionModel(nn.Module):
    """transformers' `CLIPVisionModel`: see `CLIPVision`, which every caller uses."""

    config: CLIPVisionConfig
    dtype: jax.typing.DTypeLike = jnp.float32
    remat: bool | str = False

    @nn.compact
    def __call__(self, pictures: jax.Array) -> VisionOutput:
        config = self.config

        def norm(name):
            return LayerNorm(epsilon=config.layer_norm_eps, dtype=self.dtype, name=name)

        x = VisionEmbeddings(config, self.dtype, name="embeddings")(pictures)
        x = norm("pre_layrnorm")(x)  # transformers' spelling
        states = ClipLayers(config, False, self.dtype, self.remat, name="encoder")(x)
        return VisionOutput(states, states[-1], norm("post_layernorm")(states[-1][:, 0]))


class CLIPVision(nn.Module):
    """CLIP's picture transformer, with or without the projection of its pooled state.

    `apply({"params": params}, pictures)` takes float [B, image_size, image_size, 3] as
    `sdjax.data.clip_picture` makes them, and gives a `VisionOutput` in `dtype`; parameters are
    float32. `remat` recomputes each layer in the backward pass.
    """

    config: CLIPVisionConfig
    dtype: jax.typing.DTypeLike = jnp.float32
    remat: bool | str = False

    @nn.compact
    def __call__(self, pictures: jax.Array) -> VisionOutput:
        config = self.config
        check_floats(": sdjax.data.clip_picture prepares a picture", pictures=pictures)
        expected = (config.image_size, config.image_size, config.num_channels)
        if pictures.ndim != 4 or pictures.shape[1:] != expected:
            raise SdjaxError(
                f"pictures must be [batch, {', '.join(map(str, expected))}], "
                f"got shape {pictures.shape}"
            )
        if not config.projected:
            plain = VisionModel(config, self.dtype, self.remat)
            # transformers' plain model has no prefix: its parameters sit at the root of the tree.
            nn.share_scope(self, plain)
            return plain(pictures)
        output = VisionModel(config, self.dtype, self.remat, name="vision_model")(pictures)
        projection = Dense(
            config.projection_dim,
            use_bias=False,
            dtype=self.dtype,
            kernel_init=scaled_normal(config.hidden_size**-0.5),
            name="visual_projection",
        )
        return output._replace(pooled=projection(output.pooled))
