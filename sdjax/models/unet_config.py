"""The U-Net's configuration, field for field that of diffusers' config.json."""

import dataclasses

from sdjax.errors import SdjaxError
from sdjax.models.config_fields import known_fields

CONDITION_MODEL, PIXEL_MODEL, OWN_MODEL = "UNet2DConditionModel", "UNet2DModel", "sdjax.UNet"
VIDEO_MODEL = "UNetSpatioTemporalConditionModel"

# Block type without "DownBlock2D" or "UpBlock2D" -> (kind of block, kind of attention).
STAGES = {
    "": ("resnet", None),
    "Attn": ("resnet", "full"),
    "LinearAttn": ("resnet", "linear"),
    "CrossAttn": ("resnet", "cross"),
    "ConvNext": ("convnext", None),
    "ConvNextAttn": ("convnext", "full"),
    "ConvNextLinearAttn": ("convnext", "linear"),
    "ConvNextCrossAttn": ("convnext", "cross"),
}
MID_BLOCKS = {
    "UNetMidBlock2D": ("resnet", "full"),
    "UNetMidBlock2DLinearAttn": ("resnet", "linear"),
    "UNetMidBlock2DCrossAttn": ("resnet", "cross"),
    "UNetMidBlock2DConvNext": ("convnext", "full"),
    "UNetMidBlock2DConvNextLinearAttn": ("convnext", "linear"),
    "UNetMidBlock2DConvNextCrossAttn": ("convnext", "cross"),
    "UNetMidBlockSpatioTemporal": ("spatiotemporal", "cross"),
}
# Those of Stable Video Diffusion by their whole names.
_VIDEO_STAGES = {
    f"{prefix}{side}BlockSpatioTemporal": ("spatiotemporal", attention)
    for prefix, attention in (("", None), ("CrossAttn", "cross"))
    for side in ("Down", "Up")
}
DIFFUSERS_STAGES = ("", "Attn", "CrossAttn")
DIFFUSERS_MIDS = (None, "UNetMidBlock2D", "UNetMidBlock2DCrossAttn")

# Fields of diffusers that this network has in one value only.
FIXED = {
    "act_fn": ("silu", "swish"),
    "attention_type": ("default",),
    "cross_attention_norm": (None,),
    "downsample_type": ("conv",),
    "dual_cross_attention": (False,),
    "encoder_hid_dim": (None,),
    "encoder_hid_dim_type": (None,),
    "mid_block_only_cross_attention": (None, False),
    "mid_block_scale_factor": (1,),
    "num_attention_heads": (None,),
    "resnet_out_scale_factor": (1,),
    "resnet_skip_time_act": (False,),
    "time_embedding_act_fn": (None,),
    "time_embedding_type": ("positional",),
    "timestep_post_act": (None,),
    "upsample_type": ("conv",),
}
IGNORED = ("num_train_timesteps", "upcast_attention")

PIXEL_DEFAULTS = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ("DownBlock2D",) + ("AttnDownBlock2D",) * 3,
    "mid_block_type": "UNetMidBlock2D",
    "up_block_types": ("AttnUpBlock2D",) * 3 + ("UpBlock2D",),
    "block_out_channels": (224, 448, 672, 896),
    "cross_attention_dim": None,
}
# What diffusers' UNet2DModel has no field for, and what only it has.
CONDITION_ONLY = (
    "only_cross_attention",
    "cross_attention_dim",
    "transformer_layers_per_block",
    "reverse_transformer_layers_per_block",
    "use_linear_projection",
    "addition_embed_type",
    "addition_embed_type_num_heads",
    "addition_time_embed_dim",
    "class_embeddings_concat",
    "projection_class_embeddings_input_dim",
    "time_cond_proj_dim",
    "conv_in_kernel",
    "conv_out_kernel",
)
PIXEL_ONLY = ("add_attention", "attn_norm_num_groups")

# What diffusers' UNetSpatioTemporalConditionModel has a field for, its defaults, and what is the
# same of all of its kind.
_VIDEO_LEVELS = 3 * ("CrossAttnDownBlockSpatioTemporal",), 3 * ("CrossAttnUpBlockSpatioTemporal",)
VIDEO_DEFAULTS = {
    "sample_size": None,
    "in_channels": 8,
    "out_channels": 4,
    "down_block_types": (*_VIDEO_LEVELS[0], "DownBlockSpatioTemporal"),
    "up_block_types": ("UpBlockSpatioTemporal", *_VIDEO_LEVELS[1]),
    "block_out_channels": (320, 640, 1280, 1280),
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 768,
    "layers_per_block": 2,
    "cross_attention_dim": 1024,
    "transformer_layers_per_block": 1,
    "num_attention_heads": (5, 10, 20, 20),
    "num_frames": 25,
}
_VIDEO_FIXED = {
    "mid_block_type": "UNetMidBlockSpatioTemporal",
    "addition_embed_type": "time_ids",
    "use_linear_projection": True,
}


def stage_of(name: str) -> tuple[str, str | None]:
    """(kind of block, kind of attention) of a level's block type."""
    if name in _VIDEO_STAGES:
        return _VIDEO_STAGES[name]
    return STAGES[name.removesuffix("DownBlock2D").removesuffix("UpBlock2D")]


@dataclasses.dataclass(frozen=True)
class UNetConfig:
    """Fields and defaults of diffusers' UNet2DConditionModel; cross_attention_dim None makes it a
    UNet2DModel, without text.

    Block types are diffusers' (DownBlock2D, AttnDownBlock2D, CrossAttnDownBlock2D, the same with
    Up, UNetMidBlock2D, UNetMidBlock2DCrossAttn) and, for pixel models, ours: LinearAttn… has
    linear attention, ConvNext… has ConvNeXt blocks, alone or before Attn, LinearAttn or CrossAttn.
    `attention_head_dim` is, as in diffusers, the **number** of heads in CrossAttn blocks and the
    channels of a head elsewhere (None: one head). `addition_embed_type` adds to the time embedding
    SDXL's pooled text and sizes ("text_time"), a pooling of the context ("text"), or numbers alone
    ("time_ids"). `class_embeddings_concat` sets the class beside the time embedding in place of
    adding it.

    With diffusers' SpatioTemporal blocks it is the UNetSpatioTemporalConditionModel of Stable Video
    Diffusion, for clips of `num_frames` frames, or other numbers.

    `transformer_layers_per_block` has one number for all levels, or for each level one or one for
    each of its attentions. `reverse_transformer_layers_per_block` has the same for the way up,
    coarsest level first; left out, the way up mirrors the way down.
    """

    sample_size: int | tuple[int, int] | None = None
    in_channels: int = 4
    out_channels: int = 4
    center_input_sample: bool = False
    flip_sin_to_cos: bool = True
    freq_shift: int = 0
    down_block_types: tuple[str, ...] = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)
    mid_block_type: str | None = "UNetMidBlock2DCrossAttn"
    up_block_types: tuple[str, ...] = ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3
    only_cross_attention: bool | tuple[bool, ...] = False
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers_per_block: int | tuple[int, ...] = 2
    downsample_padding: int = 1
    dropout: float = 0.0
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    cross_attention_dim: int | tuple[int, ...] | None = 1280
    transformer_layers_per_block: int | tuple[int | tuple[int, ...], ...] = 1
    reverse_transformer_layers_per_block: tuple[int | tuple[int, ...], ...] | None = None
    attention_head_dim: int | tuple[int, ...] | None = 8
    use_linear_projection: bool = False
    class_embed_type: str | None = None
    class_embeddings_concat: bool = False
    num_class_embeds: int | None = None
    addition_embed_type: str | None = None
    addition_embed_type_num_heads: int = 64
    addition_time_embed_dim: int | None = None
    resnet_time_scale_shift: str = "default"
    time_embedding_dim: int | None = None
    time_cond_proj_dim: int | None = None
    conv_in_kernel: int = 3
    conv_out_kernel: int = 3
    projection_class_embeddings_input_dim: int | None = None
    add_attention: bool = True
    attn_norm_num_groups: int | None = None
    num_frames: int | None = None

    def __post_init__(self):
        levels = len(self.block_out_channels)
        for side, types in (("Down", self.down_block_types), ("Up", self.up_block_types)):
            known = [f"{prefix}{side}Block2D" for prefix in STAGES]
            known += [name for name in _VIDEO_STAGES if f"{side}Block" in name]
            if len(types) != levels:
                raise SdjaxError(
                    f"{side.lower()}_block_types: expected {levels} entries, one for each of "
                    f"block_out_channels, got {len(types)}"
                )
            for name in types:
                _one_of(f"{side.lower()}_block_types", name, known)
        _one_of("mid_block_type", self.mid_block_type, [None, *MID_BLOCKS])
        _one_of("resnet_time_scale_shift", self.resnet_time_scale_shift, ["default", "scale_shift"])
        added = [None, "text", "text_time", "time_ids"]
        _one_of("addition_embed_type", self.addition_embed_type, added)
        _one_of(
            "class_embed_type",
            self.class_embed_type,
            [None, "timestep", "identity", "projection", "simple_projection"],
        )
        for field in (
            "only_cross_attention",
            "layers_per_block",
            "cross_attention_dim",
            "transformer_layers_per_block",
            "reverse_transformer_layers_per_block",
            "attention_head_dim",
        ):
            value = getattr(self, field)
            if isinstance(value, tuple) and len(value) != levels:
                raise SdjaxError(f"{field}: expected one value or {levels}, got {len(value)}")
        self._check_depths()
        for channels in self.block_out_channels:
            if channels % self.norm_num_groups:
                raise SdjaxError(
                    f"block_out_channels: expected multiples of norm_num_groups "
                    f"{self.norm_num_groups}, got {channels}"
                )
        cross = any(attention == "cross" for _, attention in self.all_stages())
        if cross and not (self.context_width or self.without_context):
            raise SdjaxError(
                "cross_attention_dim: expected one width for all CrossAttn blocks, got "
                f"{self.cross_attention_dim}"
            )
        if self.addition_embed_type == "text":
            width, heads = self.context_width, self.addition_embed_type_num_heads
            if width is None or heads < 1 or width % heads:
                raise SdjaxError(
                    f"addition_embed_type_num_heads: expected a divisor of the context's width "
                    f"{width}, got {heads}"
                )
        if self.addition_embed_type in ("text_time", "time_ids") and (
            not self.addition_time_embed_dim
        ):
            raise SdjaxError(
                "addition_time_embed_dim: expected a width for "
                f"{self.addition_embed_type}, got {self.addition_time_embed_dim}"
            )
        kinds = {kind == "spatiotemporal" for kind, _ in self.all_stages()}
        if len(kinds) > 1:
            raise SdjaxError(
                "SpatioTemporal blocks go with each other only, got "
                f"{self.down_block_types}, {self.mid_block_type}, {self.up_block_types}"
            )

    def _check_depths(self):
        forward = self.per_level("transformer_layers_per_block")
        reverse = self.reverse_transformer_layers_per_block
        nested = any(isinstance(entry, tuple) for entry in forward)
        mirrored = reverse is None and any("CrossAttn" in name for name in self.up_block_types)
        if nested and mirrored or not isinstance(reverse, tuple | None):
            raise SdjaxError(
                "reverse_transformer_layers_per_block: expected a list of the levels on the way "
                f"up, coarsest first, beside transformer_layers_per_block {forward}, got {reverse}"
            )
        stages, layers = self.all_stages(), self.per_level("layers_per_block")
        levels = len(layers)
        sides = {"transformer_layers_per_block": (forward, stages[:levels], layers)}
        if reverse is not None:
            counts = [layer + 1 for layer in reversed(layers)]
            sides["reverse_transformer_layers_per_block"] = (reverse, stages[-levels:], counts)
        for field, side in sides.items():
            for entry, (_, attention), count in zip(*side, strict=True):
                listed = entry if isinstance(entry, tuple) else (entry,)
                wanted = count if attention == "cross" and isinstance(entry, tuple) else 1
                if len(listed) < wanted or not all(type(n) is int and n >= 0 for n in listed):
                    raise SdjaxError(
                        f"{field}: expected whole numbers, or lists of one for each of a level's "
                        f"attentions (here {count}), got {getattr(self, field)}"
                    )

    def all_stages(self):
        """(kind of block, kind of attention) of every level down, the middle, and every level up."""
        down = [stage_of(name) for name in self.down_block_types]
        up = [stage_of(name) for name in self.up_block_types]
        mid = [MID_BLOCKS[self.mid_block_type]] if self.mid_block_type else []
        return [*down, *mid, *up]

    def per_level(self, field):
        """The value of `field` at every level, whether it was given once or as a tuple."""
        value = getattr(self, field)
        return value if isinstance(value, tuple) else (value,) * len(self.block_out_channels)

    def depths(self, level, side):
        """Transformer layers of each attention of a level on one side: "down", "mid" or "up"."""
        given, count = self.per_level("transformer_layers_per_block"), 1
        if side == "up" and self.reverse_transformer_layers_per_block is not None:
            given = self.reverse_transformer_layers_per_block[::-1]
        if side != "mid":
            count = self.per_level("layers_per_block")[level] + (side == "up")
        entry = given[level]
        return entry[:count] if isinstance(entry, tuple) else (entry,) * count

    @property
    def context_width(self):
        """The width of the context: that of the levels that look at it; None where they differ, and
        where none does."""
        if self.without_context:
            return None
        sides = (self.down_block_types, self.up_block_types[::-1])
        looks = [any("CrossAttn" in name for name in names) for names in zip(*sides, strict=True)]
        looks[-1] |= MID_BLOCKS.get(self.mid_block_type, ("", ""))[1] == "cross"
        widths = self.per_level("cross_attention_dim")
        found = {width for width, look in zip(widths, looks, strict=True) if look or not any(looks)}
        return found.pop() if len(found) == 1 else None

    @property
    def without_context(self):
        """Whether the CrossAttn blocks have no context, and look at the picture itself once more.

        Told by `cross_attention_dim`, which then has the width of each level's picture, and by what
        such networks are given in place of a context.
        """
        own = self.cross_attention_dim == self.block_out_channels
        return own and self.class_embed_type == "simple_projection"

    @property
    def of_clips(self):
        """Whether it makes clips by itself, as Stable Video Diffusion's does."""
        return self.all_stages()[0][0] == "spatiotemporal"

    @property
    def class_name(self):
        """The diffusers class that loads this network, or ours where none does."""
        if self.of_clips:
            return VIDEO_MODEL
        stages = [name.removesuffix("DownBlock2D") for name in self.down_block_types]
        stages += [name.removesuffix("UpBlock2D") for name in self.up_block_types]
        if set(stages) - set(DIFFUSERS_STAGES) or self.mid_block_type not in DIFFUSERS_MIDS:
            return OWN_MODEL
        return PIXEL_MODEL if self.cross_attention_dim is None else CONDITION_MODEL

    @classmethod
    def from_dict(cls, config):
        """Reads a diffusers config.json given as a dict; missing fields take diffusers' defaults.

        Raises SdjaxError for a field or value that this network does not have.
        """
        if config.get("_class_name") == VIDEO_MODEL:
            values = VIDEO_DEFAULTS | known_fields(config, VIDEO_DEFAULTS, "U-Net")
            values["attention_head_dim"] = values.pop("num_attention_heads")
            return cls(**values, **_VIDEO_FIXED)
        names = {field.name for field in dataclasses.fields(cls)} - {"num_frames"}
        values = known_fields(config, {*names, *FIXED, *IGNORED}, "U-Net")
        if config.get("_class_name") == PIXEL_MODEL:
            values = PIXEL_DEFAULTS | values
        for key, known in FIXED.items():
            # Where false is the value, null is the same.
            _one_of(key, values.get(key, known[0]), (*known, *(None,) * (False in known)))
        return cls(**{key: value for key, value in values.items() if key in names})

    def to_dict(self):
        """The config.json of this network, which diffusers loads where `class_name` is its own."""
        if self.of_clips:
            values = {k: getattr(self, k) for k in VIDEO_DEFAULTS if hasattr(self, k)}
            values["num_attention_heads"] = self.attention_head_dim
            return {"_class_name": VIDEO_MODEL} | values
        absent = {PIXEL_MODEL: CONDITION_ONLY, CONDITION_MODEL: PIXEL_ONLY}.get(self.class_name, ())
        absent = (*absent, "num_frames")
        values = {k: v for k, v in dataclasses.asdict(self).items() if k not in absent}
        return {"_class_name": self.class_name, "act_fn": "silu"} | values


def _one_of(field, value, known):
    if value not in known:
        raise SdjaxError(f"{field}: expected one of {list(known)}, got {value!r}")
