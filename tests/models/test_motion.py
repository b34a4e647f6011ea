"""Motion modules: diffusers' U-Net with them, the authors' norms, and the published shapes."""

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from sdjax.errors import SdjaxError
from sdjax.models.motion import MotionConfig, positions
from sdjax.models.unet import UNet
from sdjax.models.unet_config import UNetConfig
from sdjax.weights.names import params_from_state
from sdjax.weights.tensors import lazy
from tests.models.peers import randomised, relative_error, state_shapes

FRAMES = 3
SD = {
    "block_out_channels": (8, 16),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": 2,
    "cross_attention_dim": 12,
}
XL = SD | {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 4,
    "projection_class_embeddings_input_dim": 4 * 6 + 10,
    "transformer_layers_per_block": (1, 2),
    "use_linear_projection": True,
}
SMALL = {
    "block_out_channels": (8, 16), "motion_layers_per_block": 1, "motion_norm_num_groups": 2,
    "motion_num_attention_heads": 2, "motion_max_seq_length": 8,
}  # fmt: skip
CASES = {
    "sd": (SD, SMALL),
    "without the middle": (SD, SMALL | {"use_motion_mid_block": False}),
    "two blocks": (
        SD,
        SMALL | {"motion_transformer_layers_per_block": (2, 1), "motion_num_attention_heads": (1, 4)},
    ),
    "xl": (XL, SMALL),
}


def peer_of(unet, motion):
    torch.manual_seed(0)
    network = diffusers.UNet2DConditionModel(**unet)
    adapter = diffusers.MotionAdapter(**motion)
    return randomised(diffusers.UNetMotionModel.from_unet2d(network, adapter))


def params_of(peer):
    state = {k: v for k, v in peer.state_dict().items() if not k.endswith("pos_embed.pe")}
    return params_from_state({key: lazy(tensor.numpy()) for key, tensor in state.items()})


def inputs(unet):
    random = np.random.RandomState(0)
    x, context = random.randn(2, FRAMES, 8, 6, 4), random.randn(2, 5, 12)
    added = None
    if unet is XL:
        added = {"text_embeds": random.randn(2, 10), "time_ids": random.randint(0, 64, (2, 6))}
    floats = jax.tree.map(np.float32, (x, context, added))
    return floats[0], np.float32([7, 400]), *floats[1:]


def repeated(context):
    """Theirs takes a context for each frame."""
    return torch.from_numpy(context).repeat_interleave(FRAMES, 0)


def both(unet, config, peer):
    """(ours, theirs) of the same clips."""
    x, t, context, added = inputs(unet)
    shown = None if added is None else jax.tree.map(torch.from_numpy, added)
    with torch.no_grad():
        theirs = peer(
            torch.from_numpy(x.transpose(0, 4, 1, 2, 3)), torch.from_numpy(t),
            repeated(context), added_cond_kwargs=shown,
        ).sample  # fmt: skip
    network = UNet(UNetConfig.from_dict(unet), motion=config)
    ours = jax.jit(network.apply)({"params": params_of(peer)}, x, t, context, added)
    return ours, theirs.numpy().transpose(0, 2, 3, 4, 1)


@pytest.mark.parametrize("name", CASES)
def test_clips_equal_diffusers(name):
    unet, motion = CASES[name]
    ours, theirs = both(unet, MotionConfig.from_dict(motion), peer_of(unet, motion))
    assert relative_error(ours, theirs) <= 1e-5


class EachFrame(torch.nn.Module):
    """A norm of [B, C, F, H, W] that is that of each frame, as in the authors' motion modules."""

    def __init__(self, norm):
        super().__init__()
        self.norm = norm

    def forward(self, x):
        return torch.stack([self.norm(frame) for frame in x.unbind(2)], 2)


class AllFrames(EachFrame):
    """A norm of [B·F, C, H, W] over all frames, as in the U-Net of the first version."""

    def forward(self, x):
        clips = x.unflatten(0, (-1, FRAMES)).transpose(1, 2)
        return self.norm(clips).transpose(1, 2).flatten(0, 1)


def test_norms_as_the_authors_take_them():
    peer = peer_of(SD, SMALL)
    params = params_of(peer)
    for module in list(peer.modules()):
        if isinstance(module, diffusers.models.unets.unet_motion_model.AnimateDiffTransformer3D):
            module.norm = EachFrame(module.norm)
        elif isinstance(module, diffusers.models.resnet.ResnetBlock2D):
            module.norm1, module.norm2 = AllFrames(module.norm1), AllFrames(module.norm2)
    peer.conv_norm_out = AllFrames(peer.conv_norm_out)
    config = MotionConfig.from_dict(
        SMALL | {"motion_norm_over_frames": False, "unet_norm_over_frames": True}
    )
    x, t, context, _ = inputs(SD)
    with torch.no_grad():
        theirs = peer(
            torch.from_numpy(x.transpose(0, 4, 1, 2, 3)), torch.from_numpy(t),
            repeated(context),
        ).sample  # fmt: skip
    network = UNet(UNetConfig.from_dict(SD), motion=config)
    ours = jax.jit(network.apply)({"params": params}, x, t, context)
    assert relative_error(ours, theirs.numpy().transpose(0, 2, 3, 4, 1)) <= 1e-5
    plain, _ = both(SD, MotionConfig.from_dict(SMALL), peer_of(SD, SMALL))
    assert relative_error(ours, plain) > 1e-3


def test_fresh_modules_leave_the_frames_alone():
    x, t, context, _ = inputs(SD)
    moving = UNet(UNetConfig.from_dict(SD), motion=MotionConfig.from_dict(SMALL))
    still = UNet(UNetConfig.from_dict(SD))
    params = jax.jit(moving.init)(jax.random.key(0), x, t, context)["params"]
    params = jax.tree.map(lambda p: p + 0.02, params)
    for block in params.values():
        for name in [name for name in block if name.startswith("motion_modules")]:
            block[name]["proj_out"] = jax.tree.map(jnp.zeros_like, block[name]["proj_out"])
    made = jax.jit(moving.apply)({"params": params}, x, t, context)
    frames = [
        jax.jit(still.apply)({"params": params}, x[:, i], t, context) for i in range(FRAMES)
    ]
    np.testing.assert_allclose(made, np.stack(frames, 1), atol=2e-5)


PUBLISHED = {
    "v2": (UNetConfig(cross_attention_dim=768), {}),
    "v3": (UNetConfig(cross_attention_dim=768), {"use_motion_mid_block": False}),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_modules_have_every_key_and_shape(name):
    unet, motion = PUBLISHED[name]
    config = MotionConfig.from_dict(motion)
    config.check_fits(unet)
    x, context = jnp.zeros((1, 2, 8, 8, 4)), jnp.zeros((1, 1, 768))
    network = UNet(unet, motion=config)
    params = jax.eval_shape(network.init, jax.random.key(0), x, jnp.zeros(1), context)["params"]
    with torch.device("meta"):
        peer = diffusers.MotionAdapter(**motion)
    theirs = {
        key: tuple(tensor.shape)
        for key, tensor in peer.state_dict().items()
        if not key.endswith("pos_embed.pe")
    }
    ours = {key: shape for key, shape in state_shapes(params).items() if "motion_modules" in key}
    assert ours == theirs


def test_positions_are_sines_and_cosines_in_turn():
    i = np.arange(5)
    angles = np.arange(7)[:, None] / 10000 ** (2 * i / 10)
    expected = np.stack([np.sin(angles), np.cos(angles)], -1).reshape(7, 10)
    np.testing.assert_allclose(positions(7, 10), expected, atol=2e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"conv_in_channels": 9}, "those of PIA"),
        ({"motion_mid_block_layers_per_block": 2}, "must be 1, got 2"),
        ({"other": 1}, "unknown field other = 1"),
    ],
)
def test_configurations_it_cannot_follow_are_refused(change, message):
    with pytest.raises(SdjaxError, match=message):
        MotionConfig.from_dict(SMALL | change)


def test_what_does_not_fit_is_refused():
    config = MotionConfig.from_dict(SMALL)
    with pytest.raises(SdjaxError, match=r"another family: they have \[1, 1\] modules of widths"):
        config.check_fits(UNetConfig(cross_attention_dim=768))
    network = UNet(UNetConfig.from_dict(SD), motion=config)
    with pytest.raises(SdjaxError, match="know 8 positions, got a clip of 9 frames"):
        jax.eval_shape(
            network.init, jax.random.key(0), jnp.zeros((1, 9, 8, 8, 4)), jnp.zeros(1),
            jnp.zeros((1, 5, 12)),
        )  # fmt: skip


def test_configuration_survives_diffusers(tmp_path):
    config = MotionConfig.from_dict(SMALL | {"motion_norm_over_frames": False})
    assert MotionConfig.from_dict(config.to_dict()) == config
    theirs = diffusers.MotionAdapter.from_config(config.to_dict())
    assert theirs.config.motion_max_seq_length == 8
