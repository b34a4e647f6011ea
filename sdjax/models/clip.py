"""The text transformer of CLIP (Radford et al. 2021, arXiv:2103.00020, section 2.4).

Parameters carry the names of transformers' `CLIPTextModel`, or of `CLIPTextModelWithProjection`
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
from sdjax.models.inputs import check_integers
from sdjax.models.layers import Dense, Embedding
from sdjax.models.norms import LayerNorm

PLAIN = "CLIPTextModel"
PROJECTED = "CLIPTextModelWithProjection"
# Published configurations carry this value where the true end token is the vocabulary's last one.
LEGACY_EOS = 2


@dataclasses.dataclass(frozen=True)
class TextEncoderConfig:
    """The fields of transformers' `CLIPTextConfig` that shape the network, with its defaults.

    `initializer_range` is the standard deviation of fresh embeddings. CLIP's own is small beside
    what the first attention layer adds, which hides the words from a small network for long.
    """

    vocab_size: int = 49408
    hidden_size: int = 512
    intermediate_size: int = 2048
    projection_dim: int = 512
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    max_position_embeddings: int = 77
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    initializer_range: float = 0.02
    pad_token_id: int = 1
    bos_token_id: int = 49406
    eos_token_id: int = 49407
    architectures: tuple[str, ...] = (PLAIN,)

    def __post_init__(self):
        check_fields(self, (PLAIN, PROJECTED))

    @property
    def projected(self) -> bool:
        """Whether the pooled state goes through `text_projection`."""
        return self.architectures == (PROJECTED,)

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> "TextEncoderConfig":
        """Reads a transformers config.json; keys that do not shape the network are left out.

        transformers writes dozens of keys that concern generation and bookkeeping, so unknown
        keys are no error. Raises SdjaxError for a value that this network cannot follow.
        """
        return cls(**fields_of(cls, config, "text encoder"))

    def to_dict(self) -> dict[str, Any]:
        """A config.json that transformers loads."""
        return as_json(self, "clip_text_model")


class TextOutput(NamedTuple):
    """What a text encoder gives for ids int32[B, L].

    hidden_states: the embeddings, then the state after each layer, each [B, L, hidden_size] and
        without the final LayerNorm; the SDXL U-Net takes `hidden_states[-2]`.
    last_hidden_state: [B, L, hidden_size], after the final LayerNorm.
    pooled: the last state after the final LayerNorm at the first end token, [B, hidden_size], or
        its projection [B, projection_dim] where the architecture has one.
    """

    hidden_states: tuple[jax.Array, ...]
    last_hidden_state: jax.Array
    pooled: jax.Array


def end_positions(ids: jax.Array, eos_token_id: int) -> jax.Array:
    """Index of the first end token of each row, int32[B], from ids int32[B, L].

    With the legacy `eos_token_id` 2 it is the first place of the row's largest id, as in
    transformers; a row without end token gives 0.
    """
    marked = ids if eos_token_id == LEGACY_EOS else ids == eos_token_id
    return jnp.argmax(marked, axis=-1)


class TextEmbeddings(nn.Module):
    """Sum of token and position embeddings: int32[B, L] to [B, L, hidden_size]."""

    config: TextEncoderConfig
    dtype: jax.typing.DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, ids: jax.Array) -> jax.Array:
        config = self.config

        def table(size, name):
            init = nn.initializers.normal(config.initializer_range)
            return Embedding(size, config.hidden_size, self.dtype, init, name=name)

        tokens = table(config.vocab_size, "token_embedding")(ids)
        positions = table(config.max_position_embeddings, "position_embedding")
        return tokens + positions(jnp.arange(ids.shape[-1]))


class TextModel(nn.Module):
    """transformers' `CLIPTextModel`: see `TextEncoder`, which every caller uses."""

    config: TextEncoderConfig
    dtype: jax.typing.DTypeLike = jnp.float32
    remat: bool | str = False

    @nn.compact
    def __call__(
        self, ids: jax.Array, skip: int = 0, mask: jax.Array | None = None
    ) -> TextOutput:
        config = self.config
        embedded = TextEmbeddings(config, self.dtype, name="embeddings")(ids)
        states = ClipLayers(config, True, self.dtype, self.remat, name="encoder")(embedded, mask)
        norm = LayerNorm(epsilon=config.layer_norm_eps, dtype=self.dtype, name="final_layer_norm")
        last = norm(states[-1])
        ends = end_positions(ids, config.eos_token_id)
        pooled = jnp.take_along_axis(last, ends[:, None, None], axis=1)[:, 0]
        return TextOutput(states, norm(states[-1 - skip]) if skip else last, pooled)


class TextEncoder(nn.Module):
    """CLIP's text transformer, with or without the projection of its pooled state.

    `apply({"params": params}, ids)` takes int32[B, L], L at most `max_position_embeddings`, and
    gives a `TextOutput` in `dtype`; parameters are float32. An id outside the vocabulary gives
    NaN. `skip` (CLIP skip, static) takes `last_hidden_state` that many layers earlier; `pooled`
    always comes from the last layer. `mask`, bool[B, L], hides the tokens where it is False from
    all others; transformers calls it `attention_mask`. `remat` recomputes each layer in the
    backward pass.
    """

    config: TextEncoderConfig
    dtype: jax.typing.DTypeLike = jnp.float32
    remat: bool | str = False

    @nn.compact
    def __call__(
        self, ids: jax.Array, skip: int = 0, mask: jax.Array | None = None
    ) -> TextOutput:
        config = self.config
        check_integers(ids=ids)
        if ids.ndim != 2 or ids.shape[1] > config.max_position_embeddings:
            raise SdjaxError(
                f"ids must be [batch, length] with length at most "
                f"{config.max_position_embeddings}, got shape {ids.shape}"
            )
        if not 0 <= skip < config.num_hidden_layers:
            raise SdjaxError(
                f"skip must lie in 0..{config.num_hidden_layers - 1}, got {skip}"
            )
        if not config.projected:
            plain = TextModel(config, self.dtype, self.remat)
            # transformers' plain model has no prefix: its parameters sit at the root of the tree.
            nn.share_scope(self, plain)
            return plain(ids, skip, mask)
        output = TextModel(config, self.dtype, self.remat, name="text_model")(ids, skip, mask)
        projection = Dense(
            config.projection_dim,
            use_bias=False,
            dtype=self.dtype,
            kernel_init=scaled_normal(config.hidden_size**-0.5),
            name="text_projection",
        )
        return output._replace(pooled=projection(output.pooled))
