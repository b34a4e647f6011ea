"""The U-Net: of DDPM (arXiv 2006.11239) and of Stable Diffusion (arXiv 2112.10752), by configuration."""

import flax.linen as nn
import jax.numpy as jnp

from sdjax.errors import SdjaxError
from sdjax.models.attention import Attention
from sdjax.models.blocks import ConvNextBlock, Downsample, ResnetBlock, Upsample
from sdjax.models.embeddings import (
    Projection,
    TextTimeEmbedding,
    TimestepEmbedding,
    sinusoidal_embedding,
)
from sdjax.models.inputs import check_floats, check_integers
from sdjax.models.layers import Conv, Embedding, zeros_init
from sdjax.models.motion import MotionConfig, MotionModule
from sdjax.models.norms import GroupNorm
from sdjax.models.remat import rematted
from sdjax.models.spatio_temporal import SpatioTemporalResnet, SpatioTemporalTransformer
from sdjax.models.transformer import SpatialTransformer
from sdjax.models.unet_config import MID_BLOCKS, UNetConfig, stage_of


class Stage(nn.Module):
    """What the blocks of one level share: which block and attention, at which size."""

    config: UNetConfig
    level: int
    block: str
    attention: str | None
    dtype: jnp.dtype = jnp.float32
    remat: bool | str = False
    tile: tuple[bool, bool] = (False, False)
    motion: MotionConfig | None = None
    frames: int = 1

    def residual(self, index, x, emb, side="down"):
        """The residual block `resnets.index`: [B, H, W, *], [B, E] -> [B, H, W, features]."""
        config, features = self.config, self.config.block_out_channels[self.level]
        name = f"resnets.{index}"
        options = {"dropout": config.dropout, "dtype": self.dtype, "tile": self.tile}
        if self.block == "convnext":
            return self.rematted(ConvNextBlock)(features, name=name, **options)(x, emb)
        if self.block == "spatiotemporal":
            # As diffusers has it, whatever the configuration says.
            finer = side == "up" or (side == "down" and self.attention == "cross")
            block = self.rematted(SpatioTemporalResnet)(
                features, self.frames, config.norm_num_groups, 1e-6 if finer else 1e-5,
                dtype=self.dtype, tile=self.tile, name=name,
            )  # fmt: skip
            return block(x, emb)
        block = self.rematted(ResnetBlock)(
            features,
            config.norm_num_groups,
            config.norm_eps,
            config.resnet_time_scale_shift == "scale_shift",
            frames=norm_frames(self.motion, self.frames),
            name=name,
            **options,
        )
        return block(x, emb)

    def attend(self, index, x, context, side, only_cross=False, groups=None):
        """The attention `attentions.index`, if this level has one; x [B, H, W, C] -> the same.

        side: "down", "mid" or "up".
        """
        config, channels, name = self.config, x.shape[-1], f"attentions.{index}"
        heads = config.per_level("attention_head_dim")[self.level]
        if self.block == "spatiotemporal" and self.attention == "cross":
            block = self.rematted(SpatioTemporalTransformer)(
                heads, self.frames, config.depths(self.level, side)[index],
                config.norm_num_groups, self.dtype, name=name,
            )  # fmt: skip
            return block(x, context)
        if self.attention == "cross":
            block = self.rematted(SpatialTransformer)(
                heads or 1,
                config.depths(self.level, side)[index],
                config.norm_num_groups,
                config.use_linear_projection,
                only_cross,
                self.dtype,
                name=name,
            )
            return block(x, context)
        if self.attention is None:
            return x
        head_dim = heads or channels
        block = self.rematted(Attention)(
            channels // head_dim,
            head_dim,
            qkv_bias=True,
            norm_groups=groups or config.norm_num_groups,
            norm_epsilon=config.norm_eps,
            residual=True,
            linear=self.attention == "linear",
            dtype=self.dtype,
            name=name,
        )
        return block(x)

    def move(self, x, index=None):
        """The motion module `motion_modules.index`, the middle's where None; x -> the same."""
        motion = self.motion
        if motion is None or (index is None and not motion.use_motion_mid_block):
            return x
        depth = motion.mid_depth if index is None else motion.depth(self.level, index)
        module = self.rematted(MotionModule)(
            motion, self.frames, self.config.norm_num_groups, motion.heads(self.level), depth,
            self.dtype, name=f"motion_modules.{index or 0}",
        )  # fmt: skip
        return module(x)

    def rematted(self, module):
        """The module, recomputed in the backward pass where the network was asked to."""
        return rematted(module, self.remat)


class DownBlock(Stage):
    """Blocks of one level on the way down; returns x and what it leaves for the way up.

    A picture's `feature` is added after the last attention, or where the level has no attention to
    the context, at its end.
    """

    @nn.compact
    def __call__(self, x, emb, context, feature=None, count=None):
        """count: only so many layers, and not the way down; all where it is None."""
        config, level, skips = self.config, self.level, []
        only_cross = config.per_level("only_cross_attention")[level]
        layers = config.per_level("layers_per_block")[level]
        for i in range(layers if count is None else count):
            x = self.residual(i, x, emb)
            x = self.attend(i, x, context, "down", only_cross)
            x = self.move(x, i)
            if self.attention == "cross" and i == layers - 1:
                x, feature = with_feature(x, feature), None
            skips.append(x)
        if count is not None:
            return x, skips
        if level + 1 < len(config.block_out_channels):
            down = Downsample(
                config.downsample_padding, self.dtype, self.tile, name="downsamplers.0"
            )
            x = down(x)
            skips.append(x)
        if feature is not None:
            skips[-1] = x = with_feature(x, feature)
        return x, skips


def with_feature(x, feature):
    """x with a picture's feature of the same shape added, where there is one."""
    if feature is None:
        return x
    if feature.shape != x.shape:
        raise SdjaxError(f"U-Net features: expected {x.shape} at this level, got {feature.shape}")
    return x + feature.astype(x.dtype)


class MidBlock(Stage):
    """Residual block, attention, residual block at the coarsest level."""

    @nn.compact
    def __call__(self, x, emb, context):
        config = self.config
        x = self.residual(0, x, emb, "mid")
        if config.cross_attention_dim is not None and config.mid_block_type == "UNetMidBlock2D":
            return x  # diffusers' conditional network has a single residual block here
        if self.attention == "cross" or config.add_attention:
            x = self.attend(0, x, context, "mid", groups=config.attn_norm_num_groups)
        x = self.move(x)
        return self.residual(1, x, emb, "mid")


class UpBlock(Stage):
    """Blocks of one level on the way up; `skips` are consumed from their end.

    `level` counts from the finest, as on the way down; `size` is that of the next finer level.
    Returns x, and what enters the second layer.
    """

    @nn.compact
    def __call__(self, x, skips, emb, context, size, first=0):
        """first: 1 where x is what enters the second layer."""
        config, level, deep = self.config, self.level, None
        only_cross = config.per_level("only_cross_attention")[level]
        for i in range(first, config.per_level("layers_per_block")[level] + 1):
            deep = x if i == 1 else deep
            x = self.residual(i, jnp.concatenate([x, skips.pop()], axis=-1), emb, "up")
            x = self.attend(i, x, context, "up", only_cross)
            x = self.move(x, i)
        if level > 0:
            x = Upsample(self.dtype, self.tile, name="upsamplers.0")(x, size)
        return x, deep


def norm_frames(motion: MotionConfig | None, frames: int) -> int:
    """Frames that the U-Net's own norms take together."""
    return frames if motion is not None and motion.unet_norm_over_frames else 1


class UNet(nn.Module):
    """The denoising network; parameters carry diffusers' names.

    Computes in `dtype`, returns float32. `remat` recomputes residual blocks and transformers in
    the backward pass, for memory. A random stream named "dropout" turns dropout on. `tile` (y, x)
    makes the result go on over the edges of these axes as on a wall of equal tiles: rolling x by
    multiples of `2 ** (levels - 1)` rolls it, to rounding. `motion` adds modules that look along
    the frames of clips.
    """

    config: UNetConfig
    dtype: jnp.dtype = jnp.float32
    remat: bool | str = False
    tile: tuple[bool, bool] = (False, False)
    motion: MotionConfig | None = None

    @nn.compact
    def __call__(
        self, x, t, context=None, added=None, timestep_cond=None, class_labels=None, controls=None,
        features=(), deep=None, keeps_deep=False,
    ):  # fmt: skip
        """x [B, H, W, in_channels], t float [] or [B], context [B, L, cross_attention_dim].

        Of clips x is [B, F, H, W, in_channels]; controls and features then have B·F items.
        added: {"text_embeds" [B, D], "time_ids" [B, N]} of SDXL, or the numbers alone of Stable
        Video Diffusion; timestep_cond [B, D] of a
        distilled network; class_labels int [B], or what class_embed_type asks for; controls:
        (one residual for each skip, in the order they are made; one for the middle); features:
        of a T2I-Adapter, one for each level on the way down, and maybe one for the middle.
        deep: [B, H, W, block_out_channels[0]], what entered the second of the last blocks at an
        evaluation before this one: only the finest level is computed then, without its way down
        and up (DeepCache, arXiv 2312.00858). keeps_deep: also return that.
        Returns float32 of x's shape, with out_channels; raises SdjaxError where an input that the
        configuration needs is missing or has another width.
        """
        config, dtype, shape = self.config, self.dtype, x.shape
        frames = shape[1] if x.ndim == 5 else 1
        x = x.reshape(-1, *shape[2:]) if x.ndim == 5 else x
        self.check(x, context, added, timestep_cond, class_labels)
        emb = self.embed(shape[0], t, context, added, timestep_cond, class_labels)
        context = None if context is None else context.astype(dtype)
        if frames > 1:
            emb = jnp.repeat(emb, frames, axis=0)
            context = None if context is None else jnp.repeat(context, frames, axis=0)
        if config.center_input_sample:
            x = 2 * x - 1

        if deep is None:
            x, skips = self.encode(x, emb, context, features=features, frames=frames)
        else:
            skips = self.finest(x, emb, context, frames)
        if controls is not None:
            down, middle = controls
            down = down[: len(skips)]
            skips = [skip + control.astype(dtype) for skip, control in zip(skips, down, strict=True)]
            x = x + middle.astype(dtype) if deep is None else x
        last = len(config.up_block_types) - 1
        x, first = (x, 0) if deep is None else (deep.astype(dtype), last)
        for i, name in list(enumerate(config.up_block_types))[first:]:
            level = len(config.up_block_types) - 1 - i
            count = config.per_level("layers_per_block")[level] + 1
            own, skips = skips[-count:], skips[:-count]
            kinds = stage_of(name)
            size = skips[-1].shape[1:3] if skips else None
            x, left = self.stage(UpBlock, level, kinds, f"up_blocks.{i}", frames)(
                x, own, emb, context, size, int(deep is not None)
            )
        norm = GroupNorm(
            config.norm_num_groups, config.norm_eps, True, norm_frames(self.motion, frames),
            dtype=dtype, name="conv_norm_out",
        )  # fmt: skip
        out = Conv(
            config.out_channels,
            config.conv_out_kernel,
            dtype=dtype,
            kernel_init=zeros_init,
            tile=self.tile,
            name="conv_out",
        )
        x = out(norm(x)).astype(jnp.float32).reshape(*shape[:-1], config.out_channels)
        return (x, left) if keeps_deep else x

    def finest(self, x, emb, context, frames):
        """What the last blocks, but their first, take from the first ones."""
        config = self.config
        x = Conv(config.block_out_channels[0], config.conv_in_kernel, dtype=self.dtype,
                 tile=self.tile, name="conv_in")(x)  # fmt: skip
        skips, count = [x], config.per_level("layers_per_block")[0] - 1
        if count:
            kinds = stage_of(config.down_block_types[0])
            block = self.stage(DownBlock, 0, kinds, "down_blocks.0", frames)
            skips += block(x, emb, context, count=count)[1]
        return skips

    def encode(self, x, emb, context, hint=None, features=(), frames=1):
        """The way down and the middle, `hint` added after the first convolution.

        Returns the middle's result and what the way up takes from each block before it.
        """
        config, dtype, levels = self.config, self.dtype, len(self.config.down_block_types)
        if len(features) not in (0, levels, levels + 1):
            raise SdjaxError(
                f"U-Net features: expected {levels}, one for each level, or one more for the "
                f"middle, got {len(features)}"
            )
        width, kernel = config.block_out_channels[0], config.conv_in_kernel
        x = Conv(width, kernel, dtype=dtype, tile=self.tile, name="conv_in")(x)
        x = x if hint is None else x + hint
        skips = [x]
        for i, name in enumerate(config.down_block_types):
            kinds = stage_of(name)
            block = self.stage(DownBlock, i, kinds, f"down_blocks.{i}", frames)
            x, left = block(x, emb, context, features[i] if features else None)
            skips += left
        if config.mid_block_type is not None:
            last = len(config.block_out_channels) - 1
            kinds = MID_BLOCKS[config.mid_block_type]
            x = self.stage(MidBlock, last, kinds, "mid_block", frames)(x, emb, context)
        return with_feature(x, features[levels] if len(features) > levels else None), skips

    def stage(self, kind, level, kinds, name, frames):
        """The module of one level, `kinds` being its kind of block and of attention."""
        options = self.dtype, self.remat, self.tile, self.motion, frames
        return kind(self.config, level, *kinds, *options, name=name)

    def embed(self, batch, t, context, added, timestep_cond, class_labels):
        """The embedding of everything that is not an image, after its SiLU: [B, E].

        The text is in it where `addition_embed_type` says so.
        """
        config, width = self.config, self.config.block_out_channels[0]
        features = config.time_embedding_dim or 4 * width

        def sinusoid(values, size):
            return sinusoidal_embedding(
                values,
                size,
                cosine_first=config.flip_sin_to_cos,
                frequency_shift=config.freq_shift,
            )

        def embedding(name):
            return TimestepEmbedding(features, self.dtype, name=name)

        t = jnp.broadcast_to(jnp.asarray(t, jnp.float32), (batch,))
        if config.time_cond_proj_dim is not None and timestep_cond is None:
            timestep_cond = jnp.zeros((batch, config.time_cond_proj_dim), self.dtype)
        emb = embedding("time_embedding")(sinusoid(t, width), timestep_cond)
        kind, label = config.class_embed_type, None
        if kind == "timestep":
            label = embedding("class_embedding")(sinusoid(class_labels, width))
        elif kind == "projection":
            label = embedding("class_embedding")(class_labels)
        elif kind == "simple_projection":
            label = Projection(features, self.dtype, name="class_embedding")(class_labels)
        elif kind == "identity":
            label = class_labels.astype(self.dtype)
        elif config.num_class_embeds is not None:
            table = Embedding(config.num_class_embeds, features, self.dtype, name="class_embedding")
            label = table(class_labels)
        if label is not None and config.class_embeddings_concat:
            emb = jnp.concatenate([emb, label], axis=-1)
        elif label is not None:
            emb += label
        if config.addition_embed_type == "text_time":
            ids = sinusoid(added["time_ids"], config.addition_time_embed_dim).reshape(batch, -1)
            vector = jnp.concatenate([added["text_embeds"].astype(self.dtype), ids], axis=-1)
            emb += embedding("add_embedding")(vector)
        elif config.addition_embed_type == "time_ids":
            ids = sinusoid(added["time_ids"], config.addition_time_embed_dim).reshape(batch, -1)
            emb += embedding("add_embedding")(ids)
        elif config.addition_embed_type == "text":
            heads = config.addition_embed_type_num_heads
            pooled = TextTimeEmbedding(features, heads, self.dtype, name="add_embedding")
            emb += pooled(context.astype(self.dtype))
        return nn.silu(emb)

    def check(self, x, context, added, timestep_cond, class_labels):
        """Raises SdjaxError where the inputs are not those that the configuration asks for."""
        config = self.config
        check_floats(x=x, context=context, timestep_cond=timestep_cond)
        if x.ndim != 4 or x.shape[-1] != config.in_channels:
            raise SdjaxError(
                f"U-Net input: expected [batch, height, width, {config.in_channels}], got {x.shape}"
            )
        if config.without_context and context is not None:
            raise SdjaxError(f"U-Net: this configuration takes no context, got {context.shape}")
        cross = any(attention == "cross" for _, attention in config.all_stages())
        if cross and not config.without_context:
            width = config.context_width
            shape = None if context is None else context.shape
            if shape is None or len(shape) != 3 or shape[-1] != width:
                raise SdjaxError(f"U-Net context: expected [batch, tokens, {width}], got {shape}")
        if config.addition_embed_type == "text_time" and not (
            added and {"text_embeds", "time_ids"} <= set(added)
        ):
            raise SdjaxError("U-Net: expected added={'text_embeds', 'time_ids'} for this network")
        if config.addition_embed_type == "time_ids" and "time_ids" not in (added or ()):
            raise SdjaxError("U-Net: expected added={'time_ids'} for this network")
        needs_class = config.class_embed_type is not None or config.num_class_embeds is not None
        if needs_class != (class_labels is not None):
            verb = "needs" if needs_class else "takes no"
            raise SdjaxError(f"U-Net: this configuration {verb} class_labels")
        if config.class_embed_type is None:
            check_integers(class_labels=class_labels)
        if timestep_cond is not None and config.time_cond_proj_dim is None:
            raise SdjaxError("U-Net: this configuration takes no timestep_cond")
