"""Seamless pictures, windows and tiles of the autoencoder, through `generate`."""

import diffusers
import jax
import numpy as np
import pytest
import torch

import sdjax
from sdjax.pipeline import run
from sdjax.pipeline.compiled.arrays import Coder
from sdjax.pipeline.compiled.coding import latents_to_pixels, pixels_to_moments
from sdjax.pipeline.given.tiling import Tiling, tiling
from tests.models.peers import nchw, nhwc
from tests.pipeline import peers
from tests.pipeline.peers import PROMPTS
from tests.pipeline.test_conditions import mask, picture

SIZE = {"height": 24, "width": 32}  # latents of 12x16


def ours(model, **options):
    options = {**SIZE, "steps": 4, "guidance_scale": 5.0, "output": "numpy", **options}
    return model.generate(PROMPTS[0], **options)


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


TILED = {
    "both": {"tile": "xy"},
    "windows": {"tile": "x", "windows": (16, 8)},
    "tiles": {"tile": "x", "vae_tile": 16},
}


@pytest.mark.parametrize("name", TILED)
def test_rolling_the_latents_rolls_the_picture(model, name):
    latents, options = random(1, 12, 16, 4), TILED[name]

    made = ours(model, latents=latents, **options)
    for axis, side in (("y", 1), ("x", 2)):
        # Windows begin at every fourth of the 16 latents, tiles at 0, 5 and 10.
        shift = 4
        other = ours(model, latents=np.roll(latents, shift, side), **options)
        error = np.abs(np.roll(made, 2 * shift, side) - other).max()
        if axis not in options["tile"] or name == "tiles":
            assert error > 1e-3
        else:
            assert error < 2e-4


def test_another_request_of_the_kind_compiles_nothing(model):
    compilations = []
    options = {"height": 8, "width": 16, "tile": "x", "windows": (8, 4), "vae_tile": 8}
    ours(model, **options)
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, *_, **__: compilations.append(name) if "backend_compile" in name else None
    )
    ours(model, seed=3, **{**options, "steps": 7})
    assert compilations == []
    ours(model, seed=3, **{**options, "tile": "y"})
    assert compilations


@pytest.mark.parametrize("circular", [False, True])
def test_windows_give_the_picture_of_multidiffusion(model, folder, circular):
    pipeline = diffusers.StableDiffusionPanoramaPipeline
    theirs = pipeline.from_pretrained(folder, safety_checker=None)
    views = theirs.get_views
    # It counts 8 pixels a latent, and this autoencoder has 2.
    theirs.get_views = lambda height, width, circular_padding: views(
        4 * height, 4 * width, 8, 4, circular_padding
    )
    # Of a ring, theirs gives a window that begins further down no place in the sum.
    size = {**SIZE, "height": 16} if circular else SIZE
    expected = peers.quiet(theirs)(
        PROMPTS[0], num_inference_steps=4, guidance_scale=5.0, output_type="latent",
        circular_padding=circular, generator=torch.Generator().manual_seed(7), **size,
    ).images  # fmt: skip
    made = ours(
        model, windows=(16, 8), seed=7, noise="torch", output="latents",
        tile="x" if circular else None, sampler="ddim", **size,
    )  # fmt: skip
    np.testing.assert_allclose(made, nhwc(expected), atol=2e-5 * np.abs(made).max())


def test_windows_with_conditions_and_images_of_a_batch(model):
    options = {"image": picture(), "mask": mask(), "windows": 16, "steps": 2, "output": "numpy"}
    options |= {"paste": False, "tile": "y"}
    batch = model.generate(PROMPTS, seed=3, **options)
    for i in range(2):
        alone = model.generate(PROMPTS[i], seed=3 + i, **options)
        np.testing.assert_allclose(batch[i], alone[0], atol=2e-5)


@pytest.fixture(scope="module")
def autoencoders(model, folder):
    """Ours with its parameters, and theirs in tiles of 16 pixels."""
    theirs = diffusers.AutoencoderKL.from_pretrained(folder, subfolder="vae").eval()
    theirs.enable_tiling()
    theirs.tile_sample_min_size, theirs.tile_latent_min_size = 32, 16
    return model.vae, jax.tree.map(np.asarray, model.params["vae"]), theirs


def test_tiles_equal_those_of_diffusers(autoencoders):
    """Latents of 28x28: whole tiles at 0 and 12. Theirs has more, of what is left, from 24 on."""
    vae, params, theirs = autoencoders
    tiles = tiling(None, None, 32, (56, 56), 2).tiles
    assert [axis.starts for axis in tiles] == [(0, 12)] * 2
    coder = Coder(vae, tiles)
    z = random(2, 28, 28, 4)
    scaled = z * vae.config.scaling_factor

    def whole(z):
        with torch.no_grad():
            return nhwc(theirs.decoder(theirs.post_quant_conv(nchw(z))))

    with torch.no_grad():
        decoded = nhwc(theirs.decode(nchw(z)).sample)
    made = np.asarray(jax.jit(lambda p, z: latents_to_pixels(coder, p, z))(params, scaled))
    # Where four tiles meet theirs blends one of them twice, so there it is put together here.
    meeting = np.zeros((48, 48), bool)
    meeting[24:32, 24:32] = True
    difference = np.abs(made - np.clip(decoded, -1, 1))[:, :48, :48]
    assert difference[:, ~meeting].max() < 2e-5
    parts = [[whole(z[:, i:i+16, j:j+16]) for j in (0, 12)] for i in (0, 12)]
    ramp = np.arange(8) / 8
    expected = sum(
        (ramp if i else 1 - ramp)[:, None, None] * (ramp if j else 1 - ramp)[:, None]
        * parts[i][j][:, 24 * (1 - i):][:, :8, 24 * (1 - j):][:, :, :8]
        for i in (0, 1) for j in (0, 1)
    )  # fmt: skip
    np.testing.assert_allclose(made[:, 24:32, 24:32], np.clip(expected, -1, 1), atol=2e-5)
    pictures = np.tanh(random(2, 56, 56, 3))
    with torch.no_grad():
        mean = nhwc(theirs.encode(nchw(pictures)).latent_dist.mean)
        std = nhwc(theirs.encode(nchw(pictures)).latent_dist.std)
    own = jax.jit(lambda p, x: pixels_to_moments(coder, p, x))(params, pictures)
    outside = ~meeting[::2, ::2]
    for made, expected in zip(own, (mean, std), strict=True):
        np.testing.assert_allclose(
            made[:, :24, :24][:, outside], expected[:, :24, :24][:, outside], atol=2e-5
        )


def test_a_picture_in_tiles_is_near_the_whole_one(model):
    whole = ours(model, seed=1)
    np.testing.assert_array_equal(ours(model, seed=1, vae_tile=64), whole)  # one tile
    assert 0 < np.abs(ours(model, seed=1, vae_tile=16) - whole).max() < 1


def test_large_pictures_are_decoded_in_tiles_without_being_told():
    assert tiling(None, None, None, (2048, 2048), 8).tiles == ()
    assert tiling(None, None, 0, (4096, 4096), 8).tiles == ()
    assert tiling("x", (512, 256), 512, (2**40, 2**40), 8) == Tiling((False, True))
    rows, columns = tiling(None, None, None, (2048, 2056), 8).tiles
    assert rows.window == columns.window == 128 and rows.starts == (0, 64, 128)


def test_windows_of_a_whole_axis_go_on_at_its_end():
    seen = tiling("xy", (16, 8), None, (16, 64), 2)
    assert seen.network(FakeNetwork()).tile == (True, False)
    assert Tiling((True, True)).network(FakeNetwork()).tile == (True, True)


class FakeNetwork:
    def clone(self, tile):
        self.tile = tile
        return self


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tile": "z"}, "tile must be x, y or xy, got 'z'"),
        ({"windows": (16, 16)}, "windows: the overlap must be less than the side 16, got 16"),
        ({"windows": (16, 8, 4)}, r"windows must be the side of a window in pixels, or \(side"),
        ({"windows": 15}, "windows: the side must be a multiple of 2 pixels, got 15; the nearest is 16"),
        ({"vae_tile": 7}, "vae_tile: the side must be a multiple of 2 pixels, got 7"),
        ({"tiling": True}, 'it is tile="xy" here'),
    ],
)
def test_what_does_not_fit_is_refused(model, monkeypatch, options, message):
    monkeypatch.setattr(run, "batch", None)
    with pytest.raises(sdjax.SdjaxError, match=message):
        model.generate(PROMPTS[0], **SIZE, **options)
