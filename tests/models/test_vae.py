import dataclasses
import json

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from sdjax.errors import SdjaxError
from sdjax.models.tiny_vae import TinyVAE
from sdjax.models.vae import DOWN_BLOCK, UP_BLOCK, VAE, Level, Middle, VAEConfig
from tests.models.peers import (
    manifest,
    nchw,
    nhwc,
    params_of,
    randomised,
    relative_error,
    state_shapes,
)


def config_of(*widths, **fields):
    return VAEConfig(
        block_out_channels=widths,
        down_block_types=(DOWN_BLOCK,) * len(widths),
        up_block_types=(UP_BLOCK,) * len(widths),
        **fields,
    )


SMALL = config_of(8, 16, norm_num_groups=4, layers_per_block=1)
VARIANTS = {
    "stable diffusion, smaller": config_of(8, 16, 24, norm_num_groups=4, layers_per_block=2),
    "sixteen channels": config_of(8, 8, norm_num_groups=8, latent_channels=16),
    "no 1x1 convolutions": config_of(
        8, 16, norm_num_groups=4, use_quant_conv=False, use_post_quant_conv=False
    ),
    "no attention": config_of(8, 16, norm_num_groups=4, mid_block_add_attention=False),
    "one level, other channels": config_of(8, norm_num_groups=2, in_channels=4, out_channels=2),
}
FULL = {
    "sd_vae": (config_of(128, 256, 512, 512, layers_per_block=2), 83_653_863),
    "sd_x4_vae": (config_of(128, 256, 512, layers_per_block=2), 55_325_927),
}

posterior_of = jax.jit(VAE.posterior, static_argnums=0)
encode = jax.jit(VAE.encode, static_argnums=0)
decode = jax.jit(VAE.decode, static_argnums=0)


@pytest.fixture(scope="module")
def params():
    return params_of(peer_of(SMALL))


def peer_of(config):
    torch.manual_seed(0)
    return randomised(diffusers.AutoencoderKL.from_config(config.to_dict()))


def images_for(config, batch=2, side=16):
    shape = (batch, side, side, config.in_channels)
    return jax.random.uniform(jax.random.key(1), shape, minval=-1.0)


@pytest.mark.parametrize("name", FULL)
def test_published_models_have_every_key_and_shape(name):
    config, count = FULL[name]
    params = jax.eval_shape(VAE(config).init, jax.random.key(0))
    assert state_shapes(params) == manifest(name)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == count


def test_encoder_and_decoder_have_the_published_sizes():
    params = jax.eval_shape(VAE(FULL["sd_vae"][0]).init, jax.random.key(0))
    sizes = {name: sum(leaf.size for leaf in jax.tree.leaves(params[name])) for name in params}
    assert sizes == {
        "encoder": 34_163_592,
        "quant_conv": 72,
        "decoder": 49_490_179,
        "post_quant_conv": 20,
    }


@pytest.mark.parametrize("name", VARIANTS)
def test_posterior_and_decoder_equal_diffusers(name):
    config = VARIANTS[name]
    peer, images = peer_of(config), images_for(config)
    vae, params = VAE(config), params_of(peer)
    with torch.no_grad():
        theirs = peer.encode(nchw(images)).latent_dist
        decoded = peer.decode(theirs.mean).sample
    mean, log_variance = posterior_of(vae, params, images)
    assert relative_error(mean, nhwc(theirs.mean)) <= 5e-5
    assert relative_error(log_variance, nhwc(theirs.logvar)) <= 5e-5
    ours = decode(vae, params, jnp.asarray(nhwc(theirs.mean)))
    assert relative_error(ours, nhwc(decoded)) <= 5e-5


@pytest.mark.parametrize("part", ["down_blocks.0", "mid_block", "down_blocks.2"])
def test_single_blocks_equal_diffusers(part):
    config = VARIANTS["stable diffusion, smaller"]
    peer = peer_of(config).encoder
    seen = []
    peer.get_submodule(part).register_forward_hook(
        lambda _, inputs, output: seen.append((inputs[0], output))
    )
    with torch.no_grad():
        peer(nchw(images_for(config)))
    ((x, theirs),) = seen
    block = block_of(config, part)
    ours = jax.jit(block.apply)({"params": params_of(peer)[part]}, nhwc(x))
    assert relative_error(ours, nhwc(theirs)) <= 1e-5


def block_of(config, part):
    if part == "mid_block":
        return Middle(config.norm_num_groups, True)
    i = int(part[-1])
    resize = "down" if i < len(config.block_out_channels) - 1 else None
    return Level(
        config.block_out_channels[i], config.layers_per_block, config.norm_num_groups, resize
    )


def test_log_variance_is_clipped(params):
    bias = jnp.array([0.0, 0, 0, 0, -999, 999, 0, 0])
    params = {**params, "quant_conv": {**params["quant_conv"], "bias": bias}}
    _, log_variance = posterior_of(VAE(SMALL), params, images_for(SMALL))
    assert (log_variance[..., 0] == -30).all() and (log_variance[..., 1] == 20).all()


def test_encode_is_the_mode_or_a_draw_from_the_posterior(params):
    images = images_for(SMALL)
    mean, log_variance = posterior_of(VAE(SMALL), params, images)
    np.testing.assert_allclose(encode(VAE(SMALL), params, images), mean, rtol=1e-5, atol=1e-5)
    key = jax.random.key(3)
    drawn = encode(VAE(SMALL), params, images, key)
    noise = (drawn - mean) / jnp.exp(0.5 * log_variance)
    np.testing.assert_allclose(noise, jax.random.normal(key, mean.shape), rtol=1e-3, atol=1e-3)


def test_an_image_with_its_own_key_does_not_depend_on_the_batch(params):
    images, keys = images_for(SMALL), jax.random.split(jax.random.key(3), 2)
    whole = encode(VAE(SMALL), params, images, keys)
    alone = encode(VAE(SMALL), params, images[1:], keys[1:])
    np.testing.assert_allclose(whole[1:], alone, rtol=1e-5, atol=1e-5)
    assert not np.allclose(whole[0] - whole[1], 0, atol=0.1)


def test_remat_changes_neither_values_nor_gradients(params):
    images = images_for(SMALL)

    def loss(params, vae):
        return jnp.square(vae.decode(params, vae.encode(params, images)) - images).mean()

    gradient = jax.jit(jax.value_and_grad(loss), static_argnums=1)
    plain, remat = gradient(params, VAE(SMALL)), gradient(params, VAE(SMALL, remat=True))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), plain, remat)


def test_remat_keeps_less():
    config = config_of(8, 8, norm_num_groups=2, layers_per_block=2)
    images = jax.ShapeDtypeStruct((4, 16, 16, 3), jnp.float32)
    params = jax.eval_shape(VAE(config).init, jax.random.key(0))

    def kept(remat):
        vae = VAE(config, remat=remat)

        def reconstruct(params, images):
            return vae.decode(params, vae.encode(params, images))

        residuals = jax.eval_shape(lambda *args: jax.vjp(reconstruct, *args)[1], params, images)
        return sum(leaf.size for leaf in jax.tree.leaves(residuals))

    assert kept(True) < 0.3 * kept(False)


def test_bfloat16_computes_in_it_and_gives_float32(params):
    images = images_for(SMALL)
    vae = VAE(SMALL, dtype=jnp.bfloat16)
    latents = encode(vae, params, images)
    decoded = jax.eval_shape(vae.decode, params, latents)
    assert latents.dtype == decoded.dtype == jnp.float32
    error = relative_error(latents, encode(VAE(SMALL), params, images))
    assert 1e-4 < error < 0.05


def test_configuration_survives_diffusers(tmp_path):
    config = VARIANTS["no 1x1 convolutions"]
    peer_of(config).save_config(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert VAEConfig.from_dict(saved) == config
    assert VAEConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"act_fn": "relu"}, "act_fn"),
        ({"down_block_types": ["AttnDownEncoderBlock2D"] * 2}, "down_block_types"),
        ({"up_block_types": [UP_BLOCK]}, "up_block_types"),
        ({"norm_num_groups": 5}, "norm_num_groups"),
        ({"patch_size": 2}, "AutoencoderKL configuration: unknown field patch_size = 2"),
    ],
)
def test_configurations_it_cannot_follow_are_refused(change, message):
    with pytest.raises(SdjaxError, match=message):
        VAEConfig.from_dict({**SMALL.to_dict(), **change})


def test_fields_that_ask_for_nothing_are_passed_over():
    nothing = {"patch_size": None, "use_tiling": False}
    assert VAEConfig.from_dict(SMALL.to_dict() | nothing) == SMALL


def test_arrays_of_a_wrong_shape_are_refused():
    vae, params = VAE(SMALL), {}
    with pytest.raises(SdjaxError, match="multiples of 2"):
        vae.encode(params, jnp.zeros((1, 15, 16, 3)))
    with pytest.raises(SdjaxError, match="3"):
        vae.encode(params, jnp.zeros((1, 16, 16, 4)))
    with pytest.raises(SdjaxError, match="batch, height"):
        vae.encode(params, jnp.zeros((16, 16, 3)))
    with pytest.raises(SdjaxError, match="latents must be"):
        vae.decode(params, jnp.zeros((1, 8, 8, 3)))


@pytest.mark.parametrize("vae", [VAE(SMALL), TinyVAE()])
def test_pictures_of_bytes_are_refused(vae):
    """As if 0 … 255 were -1 … 1 they would come out as another picture."""
    for dtype in (np.uint8, np.int32, bool):
        with pytest.raises(SdjaxError, match=rf"floating-point numbers, got {np.dtype(dtype)}: by"):
            vae.encode({}, np.zeros((1, 16, 16, 3), dtype))
        with pytest.raises(SdjaxError, match="latents: expected an array of floating-point"):
            vae.decode({}, np.zeros((1, 8, 8, 4), dtype))
    with pytest.raises(SdjaxError, match="images: expected an array .* got list"):
        vae.encode({}, [[0.0]])


def test_a_vae_is_a_static_argument():
    assert hash(VAE(SMALL)) == hash(VAE(dataclasses.replace(SMALL)))
