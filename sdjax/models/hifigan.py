"""HiFi-GAN, which makes sound of mel spectrograms (arXiv 2010.05646, section 2.2 and table 5).

Parameters carry the names of transformers' `SpeechT5HifiGan`, but for its buffer `scale`, which is
`spread` here.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from sdjax.errors import SdjaxError
from sdjax.models.config_fields import hashable
from sdjax.models.inputs import check_floats
from sdjax.models.layers import default_init, zeros_init

LAST_SLOPE = 0.01  # of the activation before the last convolution, PyTorch's default


@dataclasses.dataclass(frozen=True)
class VocoderConfig:
    """The fields of transformers' `SpeechT5HifiGanConfig`, with its defaults.

    model_in_dim: bins of the spectrogram; each frame becomes as many samples as `hop` says.
    """

    model_in_dim: int = 80
    sampling_rate: int = 16_000
    upsample_initial_channel: int = 512
    upsample_rates: tuple[int, ...] = (4, 4, 4, 4)
    upsample_kernel_sizes: tuple[int, ...] = (8, 8, 8, 8)
    resblock_kernel_sizes: tuple[int, ...] = (3, 7, 11)
    resblock_dilation_sizes: tuple[tuple[int, ...], ...] = ((1, 3, 5),) * 3
    initializer_range: float = 0.01
    leaky_relu_slope: float = 0.1
    normalize_before: bool = True

    def __post_init__(self):
        for first, second in (
            ("upsample_rates", "upsample_kernel_sizes"),
            ("resblock_kernel_sizes", "resblock_dilation_sizes"),
        ):
            counts = [len(getattr(self, name)) for name in (first, second)]
            if counts[0] != counts[1] or not counts[0]:
                raise SdjaxError(f"{first} and {second} must be as many, got {counts}")
        for rate, kernel in zip(self.upsample_rates, self.upsample_kernel_sizes, strict=True):
            if kernel < rate or (kernel - rate) % 2:
                raise SdjaxError(
                    f"upsample_kernel_sizes must be upsample_rates and an even number more, got "
                    f"{kernel} for {rate}"
                )

    @property
    def hop(self) -> int:
        """Samples of a frame."""
        return math.prod(self.upsample_rates)

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> "VocoderConfig":
        """Reads transformers' config.json, or the one beside the authors' files.

        The authors' first kind of residual blocks is the one that is known; SdjaxError for others.
        """
        if str(config.get("resblock", "1")) != "1":
            raise SdjaxError(f'resblock must be "1", got {config["resblock"]!r}')
        given = {"model_in_dim": config.get("num_mels"), **config}
        if "num_mels" in config:  # the authors' spectrograms are taken as they are
            given = {"normalize_before": False, **given}
        names = {field.name for field in dataclasses.fields(cls)}
        known = {k: hashable(v) for k, v in given.items() if k in names and v is not None}
        return cls(**known)

    def to_dict(self) -> dict[str, Any]:
        """A config.json that transformers loads."""
        own = {"architectures": ["SpeechT5HifiGan"], "model_type": "hifigan"}
        return {**dataclasses.asdict(self), **own}


class Conv1d(nn.Module):
    """Convolution along sound, of the input's length: x [B, T, in] -> [B, T, features]."""

    features: int
    kernel: int
    dilation: int = 1
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        shape = (self.kernel, x.shape[-1], self.features)
        kernel = self.param("kernel", default_init, shape, jnp.float32).astype(self.dtype)
        around = self.dilation * (self.kernel - 1) // 2
        y = jax.lax.conv_general_dilated(
            x.astype(self.dtype), kernel, (1,), [(around, around)],
            rhs_dilation=(self.dilation,), dimension_numbers=("NWC", "WIO", "NWC"),
        )  # fmt: skip
        bias = self.param("bias", zeros_init, (self.features,), jnp.float32)
        return y + bias.astype(self.dtype)


class ConvTranspose1d(nn.Module):
    """PyTorch's transposed convolution with (kernel - rate) / 2 samples cut off at each end.

    x [B, T, in] -> [B, rate · T, features]; the parameter is [kernel, features, in].
    """

    features: int
    kernel: int
    rate: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        shape = (self.kernel, self.features, x.shape[-1])
        kernel = self.param("kernel", default_init, shape, jnp.float32).astype(self.dtype)
        around = self.kernel - 1 - (self.kernel - self.rate) // 2
        y = jax.lax.conv_general_dilated(
            x.astype(self.dtype), jnp.flip(kernel, 0).swapaxes(1, 2), (1,), [(around, around)],
            lhs_dilation=(self.rate,), dimension_numbers=("NWC", "WIO", "NWC"),
        )  # fmt: skip
        bias = self.param("bias", zeros_init, (self.features,), jnp.float32)
        return y + bias.astype(self.dtype)


class SoundBlock(nn.Module):
    """Pairs of convolutions, the first of each dilated, each pair added to its input."""

    kernel: int
    dilations: tuple[int, ...]
    slope: float
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        for i, dilation in enumerate(self.dilations):
            h, options = x, {"dtype": self.dtype}
            for name, own in (("convs1", dilation), ("convs2", 1)):
                h = nn.leaky_relu(h, self.slope)
                h = Conv1d(x.shape[-1], self.kernel, own, **options, name=f"{name}.{i}")(h)
            x = x + h
        return x


class Vocoder(nn.Module):
    """Log-mel spectrograms [B, T, model_in_dim] to sound float32 [B, hop · T] in [-1, 1]."""

    config: VocoderConfig
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, mel: jax.Array) -> jax.Array:
        config, dtype = self.config, self.dtype
        check_floats(mel=mel)
        if mel.ndim != 3 or mel.shape[-1] != config.model_in_dim:
            raise SdjaxError(
                f"mel must be [batch, frames, {config.model_in_dim}], got shape {mel.shape}"
            )
        mean = self.param("mean", zeros_init, mel.shape[-1:], jnp.float32)
        spread = self.param("spread", nn.initializers.ones, mel.shape[-1:], jnp.float32)
        x = (mel - mean) / spread if config.normalize_before else mel
        width, kinds = config.upsample_initial_channel, len(config.resblock_kernel_sizes)
        x = Conv1d(width, 7, dtype=dtype, name="conv_pre")(x)
        for i, rate in enumerate(config.upsample_rates):
            width //= 2
            size = config.upsample_kernel_sizes[i]
            up = ConvTranspose1d(width, size, rate, dtype, name=f"upsampler.{i}")
            x = up(nn.leaky_relu(x, config.leaky_relu_slope))
            shapes = zip(config.resblock_kernel_sizes, config.resblock_dilation_sizes, strict=True)
            x = sum(
                SoundBlock(
                    *shape, config.leaky_relu_slope, dtype, name=f"resblocks.{i * kinds + j}"
                )(x)
                for j, shape in enumerate(shapes)
            ) / kinds
        x = Conv1d(1, 7, dtype=dtype, name="conv_post")(nn.leaky_relu(x, LAST_SLOPE))
        return jnp.tanh(x.astype(jnp.float32))[..., 0]
