"""The text encoder of CLAP (arXiv 2211.06687): RoBERTa with a projection of its first state.

Parameters carry the names of transformers' `ClapTextModelWithProjection`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from sdjax.errors import SdjaxError
from sdjax.models.attention import attention
from sdjax.models.clip_layers import fields_of
from sdjax.models.inputs import check_integers
from sdjax.models.layers import ACTIVATIONS, Dense, Embedding
from sdjax.models.norms import LayerNorm

NAME = "ClapTextModelWithProjection"
WHOLE = "ClapModel"


@dataclasses.dataclass(frozen=True)
class ClapTextConfig:
    """The fields of transformers' `ClapTextConfig` that shape the network, with its defaults."""

    vocab_size: int = 50265
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    max_position_embeddings: int = 514
    type_vocab_size: int = 1
    layer_norm_eps: float = 1e-12
    projection_dim: int = 512
    pad_token_id: int = 1
    projection_hidden_act: str = "relu"

    def __post_init__(self):
        for name in ("hidden_act", "projection_hidden_act"):
            if getattr(self, name) not in ACTIVATIONS:
                raise SdjaxError(
                    f"{name} must be one of {', '.join(ACTIVATIONS)}, got {getattr(self, name)!r}"
                )
        if self.hidden_size % self.num_attention_heads:
            raise SdjaxError(
                f"hidden_size must be a multiple of num_attention_heads, got {self.hidden_size} "
                f"and {self.num_attention_heads}"
            )

    @property
    def length(self) -> int:
        """The most tokens that a text may have: positions count from the padding's id on."""
        return self.max_position_embeddings - self.pad_token_id - 1

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> "ClapTextConfig":
        """Reads a transformers config.json; keys that do not shape the network are left out."""
        return cls(**fields_of(cls, config, "text encoder"))

    def to_dict(self) -> dict[str, Any]:
        """A config.json that transformers loads."""
        own = {"architectures": [NAME], "model_type": "clap_text_model"}
        return {**dataclasses.asdict(self), **own}


class ClapOutput(NamedTuple):
    """Of ids int32[B, L]: the last state [B, L, hidden_size], and its projection [B, P]."""

    last_hidden_state: jax.Array
    pooled: jax.Array


class TextModel(nn.Module):
    """RoBERTa's layers, each normalised after it is added, and the pooling of the first state."""

    config: ClapTextConfig
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        self.embeddings = Embeddings(self.config, self.dtype)
        self.encoder = Layers(self.config, self.dtype)
        self.pooler = Named(self.config.hidden_size, self.dtype)

    def __call__(self, ids):
        mask = ids != self.config.pad_token_id
        states = self.encoder(self.embeddings(ids, mask), mask)
        return states, jnp.tanh(self.pooler(states[:, 0]))


class Named(nn.Module):
    """A dense layer within a module of a name of its own."""

    features: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        return Dense(self.features, dtype=self.dtype, name="dense")(x)


class Embeddings(nn.Module):
    """Sums of words, positions and the one type, normalised: int32[B, L] to [B, L, C]."""

    config: ClapTextConfig
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, ids, mask):
        config = self.config

        def table(size, name):
            return Embedding(size, config.hidden_size, self.dtype, name=name)

        positions = jnp.cumsum(mask, axis=1) * mask + config.pad_token_id
        x = table(config.vocab_size, "word_embeddings")(ids)
        x = x + table(config.type_vocab_size, "token_type_embeddings")(jnp.zeros_like(ids))
        x = x + table(config.max_position_embeddings, "position_embeddings")(positions)
        return LayerNorm(epsilon=config.layer_norm_eps, dtype=self.dtype, name="LayerNorm")(x)


class Layers(nn.Module):
    """The stack of layers, [B, L, C] with a mask [B, L] to the same."""

    config: ClapTextConfig
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x, mask):
        for i in range(self.config.num_hidden_layers):
            x = Layer(self.config, self.dtype, name=f"layer.{i}")(x, mask)
        return x


class Layer(nn.Module):
    """Attention and two dense layers."""

    config: ClapTextConfig
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x, mask):
        config, dtype = self.config, self.dtype
        x = ClapAttention(config, dtype, name="attention")(x, mask)
        h = Named(config.intermediate_size, dtype, name="intermediate")(x)
        h = ACTIVATIONS[config.hidden_act](h)
        return Added(config, dtype, name="output")(h, x)


class ClapAttention(nn.Module):
    """Attention to the tokens of a mask, added and normalised."""

    config: ClapTextConfig
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x, mask):
        found = Lookup(self.config, self.dtype, name="self")(x, mask)
        return Added(self.config, self.dtype, name="output")(found, x)


class Lookup(nn.Module):
    """The attention itself."""

    config: ClapTextConfig
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x, mask):
        heads = self.config.num_attention_heads

        def project(name):
            y = Dense(x.shape[-1], dtype=self.dtype, name=name)(x)
            return y.reshape(*y.shape[:-1], heads, -1)

        q, k, v = map(project, ("query", "key", "value"))
        return attention(q, k, v, mask=mask[:, None, None, :]).reshape(x.shape)


class Added(nn.Module):
    """A dense layer of h, added to x and normalised."""

    config: ClapTextConfig
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, h, x):
        h = Dense(x.shape[-1], dtype=self.dtype, name="dense")(h)
        epsilon = self.config.layer_norm_eps
        return LayerNorm(epsilon=epsilon, dtype=self.dtype, name="LayerNorm")(h + x)


class Projection(nn.Module):
    """Two dense layers to the space that texts and sounds share."""

    config: ClapTextConfig
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        features = self.config.projection_dim
        x = Dense(features, dtype=self.dtype, name="linear1")(x)
        x = ACTIVATIONS[self.config.projection_hidden_act](x)
        return Dense(features, dtype=self.dtype, name="linear2")(x)


class ClapText(nn.Module):
    """CLAP's text encoder: int32[B, L] to a `ClapOutput`; the padding's id is hidden from all.

    The projection is not normalised. An id outside the vocabulary gives NaN.
    """

    config: ClapTextConfig
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, ids: jax.Array) -> ClapOutput:
        config = self.config
        check_integers(ids=ids)
        if ids.ndim != 2 or ids.shape[1] > config.length:
            raise SdjaxError(
                f"ids must be [batch, length] with length at most {config.length}, got shape "
                f"{ids.shape}"
            )
        states, pooled = TextModel(config, self.dtype, name="text_model")(ids)
        return ClapOutput(states, Projection(config, self.dtype, name="text_projection")(pooled))
