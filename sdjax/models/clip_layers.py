"""The transformer layers that CLIP's text and picture encoders share, under transformers' names.

`config` is either encoder's configuration: both have the fields that are read here.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from sdjax.errors import SdjaxError
from sdjax.models.attention import attention
from sdjax.models.layers import ACTIVATIONS, Dense
from sdjax.models.norms import LayerNorm
from sdjax.models.remat import rematted

HIDDEN_ACTS = ("gelu", "quick_gelu")


def check_fields(config, architectures: tuple[str, str]) -> None:
    """SdjaxError for values of either encoder's configuration that no layers can be made of.

    architectures: the names of the encoder without and with a projection.
    """
    if config.hidden_act not in HIDDEN_ACTS:
        raise SdjaxError(f"hidden_act must be one of {HIDDEN_ACTS}, got {config.hidden_act!r}")
    if config.hidden_size % config.num_attention_heads:
        raise SdjaxError(
            f"hidden_size must be a multiple of num_attention_heads, got "
            f"{config.hidden_size} and {config.num_attention_heads}"
        )
    plain, projected = architectures
    if config.architectures not in ((plain,), (projected,)):
        raise SdjaxError(
            f"architectures must be [{plain!r}] or [{projected!r}], "
            f"got {list(config.architectures)}"
        )


def fields_of(cls, config: Mapping[str, Any], encoder: str) -> dict[str, Any]:
    """The fields of a configuration class that a transformers config.json gives.

    encoder: what the network is called where the configuration asks for what it does not have.
    """
    if config.get("attention_dropout"):
        raise SdjaxError(
            f"attention_dropout must be 0, got {config['attention_dropout']}: the {encoder} has no "
            "dropout"
        )
    names = {field.name for field in dataclasses.fields(cls)}
    known = {k: v for k, v in config.items() if k in names and v is not None}
    if "architectures" in known:
        known["architectures"] = tuple(known["architectures"])
    return known


def as_json(config, model_type: str) -> dict[str, Any]:
    """A config.json that transformers loads."""
    fields = {**dataclasses.asdict(config), "architectures": list(config.architectures)}
    return {**fields, "attention_dropout": 0.0, "model_type": model_type}


def scaled_normal(std: float):
    """Normal initialisation of one standard deviation, as CLIP gives each projection its own."""
    return nn.initializers.normal(std)


class ClipAttention(nn.Module):
    """Multi-head self-attention on [B, L, hidden_size] to the tokens of a mask [B, L].

    `causal` hides later tokens.
    """

    config: Any
    causal: bool
    dtype: jax.typing.DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        width, heads = self.config.hidden_size, self.config.num_attention_heads
        std = width**-0.5

        def project(name: str) -> jax.Array:
            init = scaled_normal(std * (2 * self.config.num_hidden_layers) ** -0.5)
            y = Dense(width, dtype=self.dtype, kernel_init=init, name=name)(x)
            return y.reshape(*y.shape[:-1], heads, width // heads)

        seen = None if mask is None else mask[:, None, None, :]
        q, k, v = project("q_proj"), project("k_proj"), project("v_proj")
        y = attention(q, k, v, mask=seen, causal=self.causal)
        y = y.reshape(x.shape)
        return Dense(width, dtype=self.dtype, kernel_init=scaled_normal(std), name="out_proj")(y)


class ClipMLP(nn.Module):
    """Two dense layers with the configured activation between."""

    config: Any
    dtype: jax.typing.DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = self.config.hidden_size
        inner = scaled_normal((2 * width) ** -0.5)
        outer = scaled_normal(width**-0.5 * (2 * self.config.num_hidden_layers) ** -0.5)
        x = Dense(
            self.config.intermediate_size, dtype=self.dtype, kernel_init=inner, name="fc1"
        )(x)
        x = ACTIVATIONS[self.config.hidden_act](x)
        return Dense(width, dtype=self.dtype, kernel_init=outer, name="fc2")(x)


class ClipLayer(nn.Module):
    """One pre-norm transformer layer on [B, L, hidden_size]; mask as for its attention."""

    config: Any
    causal: bool
    dtype: jax.typing.DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        eps = self.config.layer_norm_eps
        y = LayerNorm(epsilon=eps, dtype=self.dtype, name="layer_norm1")(x)
        x = x + ClipAttention(self.config, self.causal, self.dtype, name="self_attn")(y, mask)
        y = LayerNorm(epsilon=eps, dtype=self.dtype, name="layer_norm2")(x)
        return x + ClipMLP(self.config, self.dtype, name="mlp")(y)


class ClipLayers(nn.Module):
    """The stack of layers; gives the input and the state after each layer."""

    config: Any
    causal: bool
    dtype: jax.typing.DTypeLike = jnp.float32
    remat: bool | str = False

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> tuple[jax.Array, ...]:
        layer = rematted(ClipLayer, self.remat)
        states = [x]
        for i in range(self.config.num_hidden_layers):
            block = layer(self.config, self.causal, self.dtype, name=f"layers.{i}")
            states.append(block(states[-1], mask))
        return tuple(states)
