"""IP-Adapter (arXiv 2308.06721): pictures as more keys and values of the U-Net's cross-attention.

Parameters carry the names of the published files.
"""

import dataclasses
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from sdjax.errors import SdjaxError
from sdjax.models.attention import attention
from sdjax.models.inputs import check_floats
from sdjax.models.layers import Dense, gelu
from sdjax.models.norms import LayerNorm
from sdjax.models.unet_config import UNetConfig

PLAIN, PLUS, WHOLE = "plain", "plus", "full"
HEAD_WIDTH = 64


@dataclasses.dataclass(frozen=True)
class IPAdapterConfig:
    """What the shapes of a published file say.

    kind: "plain" makes tokens of CLIP's embedding of a picture, "plus" of the states before its
    last layer by a resampler, "full" each of these by itself. input_width: of what CLIP gives;
    context_width: of the tokens, the U-Net's. tokens: how many, as many as CLIP gives for "full".
    width, heads, depth: of the resampler, whose heads are 64 wide. layers: the U-Net's widths at
    its cross-attentions, in the order of `cross_attentions`.
    """

    kind: str
    input_width: int
    context_width: int
    layers: tuple[int, ...]
    tokens: int | None = None
    width: int | None = None
    heads: int | None = None
    depth: int | None = None


class Resampler(nn.Module):
    """The resampler: learned queries look at x and at themselves.

    [B, L, *] -> [B, tokens, context_width].
    """

    config: IPAdapterConfig
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        config, width = self.config, self.config.width
        inner = HEAD_WIDTH * config.heads

        def dense(features, name, **options):
            return Dense(features, dtype=self.dtype, name=name, **options)

        def norm(name):
            return LayerNorm(dtype=self.dtype, name=name)

        def heads(y):
            return y.reshape(*y.shape[:2], config.heads, HEAD_WIDTH)

        init = nn.initializers.normal(width**-0.5)
        queries = self.param("latents", init, (1, config.tokens, width), jnp.float32)
        queries = jnp.broadcast_to(queries.astype(self.dtype), (len(x), config.tokens, width))
        x = dense(width, "proj_in")(x)
        for i in range(config.depth):
            look, change = f"layers.{i}.0", f"layers.{i}.1"
            block = Perceiver(inner, self.dtype, name=look)
            queries = queries + block(x, queries, heads)
            h = norm(f"{change}.0")(queries)
            h = gelu(dense(4 * width, f"{change}.1", use_bias=False)(h))
            queries = queries + dense(width, f"{change}.3", use_bias=False)(h)
        return norm("norm_out")(dense(config.context_width, "proj_out")(queries))


class Perceiver(nn.Module):
    """Attention of queries to x and to themselves."""

    inner: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x, queries, heads):
        def dense(features, name):
            return Dense(features, use_bias=False, dtype=self.dtype, name=name)

        width = queries.shape[-1]
        x = LayerNorm(dtype=self.dtype, name="norm1")(x)
        queries = LayerNorm(dtype=self.dtype, name="norm2")(queries)
        seen = dense(2 * self.inner, "to_kv")(jnp.concatenate([x, queries], axis=1))
        keys, values = jnp.split(seen, 2, axis=-1)
        q = dense(self.inner, "to_q")(queries)
        y = attention(heads(q), heads(keys), heads(values))
        return dense(width, "to_out")(y.reshape(*q.shape))


class ImageProjection(nn.Module):
    """What CLIP gives of a picture to tokens [B, tokens, context_width]: see `IPAdapterConfig`."""

    config: IPAdapterConfig
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        config = self.config
        if config.kind == PLUS:
            resampler = Resampler(config, self.dtype)
            nn.share_scope(self, resampler)
            return resampler(x)
        if config.kind == WHOLE:
            x = gelu(Dense(config.input_width, dtype=self.dtype, name="proj.0")(x))
            x = Dense(config.context_width, dtype=self.dtype, name="proj.2")(x)
            return LayerNorm(dtype=self.dtype, name="proj.3")(x)
        x = Dense(config.tokens * config.context_width, dtype=self.dtype, name="proj")(x)
        x = x.reshape(len(x), config.tokens, config.context_width)
        return LayerNorm(dtype=self.dtype, name="norm")(x)


class KeysAndValues(nn.Module):
    """Tokens [B, M, D] as one cross-attention looks at them: two [B, M, features]."""

    features: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, tokens):
        return tuple(
            Dense(self.features, use_bias=False, dtype=self.dtype, name=name)(tokens)
            for name in ("to_k_ip", "to_v_ip")
        )


class IPAdapter(nn.Module):
    """The network: what CLIP gives of pictures to keys and values for each cross-attention.

    embedded: float [B, P, input_width], CLIP's embeddings of P pictures together, or their states
    [B, P, L, input_width] where the kind is not plain. Returns for each of `config.layers` the keys
    and the values of all their tokens, [B, P · tokens, width] in `dtype`.
    """

    config: IPAdapterConfig
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, embedded):
        config = self.config
        check_floats(embedded=embedded)
        axes = 3 if config.kind == PLAIN else 4
        if embedded.ndim != axes or embedded.shape[-1] != config.input_width:
            raise SdjaxError(
                f"IP-Adapter: expected {axes} axes, the last of {config.input_width}, got shape "
                f"{embedded.shape}"
            )
        batch, pictures = embedded.shape[:2]
        projection = ImageProjection(config, self.dtype, name="image_proj")
        tokens = projection(embedded.reshape(batch * pictures, *embedded.shape[2:]))
        tokens = tokens.reshape(batch, -1, config.context_width)
        return tuple(
            # The files count self-attentions too, which take no part.
            KeysAndValues(width, self.dtype, name=f"ip_adapter.{2 * i + 1}")(tokens)
            for i, width in enumerate(config.layers)
        )


def cross_attentions(unet: UNetConfig) -> list[tuple[tuple[str, ...], int]]:
    """(path in the parameters, width) of each attention to the context, in the files' order: down,
    up, middle."""
    levels, stages = len(unet.block_out_channels), unet.all_stages()
    layers, found = unet.per_level("layers_per_block"), []

    def add(block, level, side, attentions):
        for i, depth in enumerate(unet.depths(level, side)[:attentions]):
            for j in range(depth):
                path = (block, f"attentions.{i}", f"transformer_blocks.{j}", "attn2")
                found.append((path, unet.block_out_channels[level]))

    for level in range(levels):
        if stages[level][1] == "cross":
            add(f"down_blocks.{level}", level, "down", layers[level])
    for i in range(levels):
        level = levels - 1 - i
        if stages[i - levels][1] == "cross":
            add(f"up_blocks.{i}", level, "up", layers[level] + 1)
    if unet.mid_block_type == "UNetMidBlock2DCrossAttn":
        add("mid_block", levels - 1, "mid", 1)
    return found


def placed(unet: UNetConfig, adapters: Sequence[tuple], scales: Sequence[jax.Array]) -> dict:
    """The keys and values of one or several IP-Adapters as the U-Net takes them.

    adapters: of each what `IPAdapter` gives. scales: of each float [B]. Give the result to the
    U-Net beside its parameters: `unet.apply({"params": params, "references": placed(…)}, …)`.
    """
    tree: dict = {}
    for i, (path, _) in enumerate(cross_attentions(unet)):
        place = tree
        for name in path:
            place = place.setdefault(name, {})
        place["seen"] = tuple(
            (*layers[i], scale) for layers, scale in zip(adapters, scales, strict=True)
        )
    return tree
