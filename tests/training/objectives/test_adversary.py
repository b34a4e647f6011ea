"""The autoencoder's adversary against a transcription of latent diffusion's in PyTorch."""

import diffusers
import jax
import numpy as np
import pytest
import torch

from sdjax.errors import SdjaxError
from sdjax.models import VAE, VAEConfig
from sdjax.training import AdversaryConfig, AutoencoderObjective, AutoencoderRun
from sdjax.training.loop.step import image_keys
from sdjax.training.objectives.denoising import sampled_posterior
from sdjax.weights.names import state_from_params
from tests.training.adaptations.peers import to_torch

CONFIG = VAEConfig(
    latent_channels=4, block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2,
    up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=2, sample_size=32,
)
IMAGES = np.random.default_rng(0).uniform(-1, 1, (2, 32, 32, 3)).astype(np.float32)
ADVERSARY = AdversaryConfig(width=4, layers=2, weight=0.5, start=3)
RUN = AutoencoderRun(vae=CONFIG, adversary=ADVERSARY, log_variance=True, kl_weight=1e-3,
                     perceptual="pixels", perceptual_weight=0.7)


def corners(images):
    """A perceptual term that PyTorch has too."""
    return images[:, ::4, ::4] ** 2


def discriminator(width, layers):
    """PatchGAN as in taming-transformers: norms from the second convolution on."""
    modules = [torch.nn.Conv2d(3, width, 4, 2, 1), torch.nn.LeakyReLU(0.2)]
    before = width
    for layer in range(1, layers + 1):
        now = width * min(2**layer, 8)
        modules += [torch.nn.Conv2d(before, now, 4, 2 if layer < layers else 1, 1, bias=False),
                    torch.nn.BatchNorm2d(now), torch.nn.LeakyReLU(0.2)]
        before = now
    return torch.nn.Sequential(*modules, torch.nn.Conv2d(before, 1, 4, 1, 1))


def loaded(network, state):
    network.load_state_dict({k: torch.from_numpy(np.array(v.load())) for k, v in state.items()},
                            strict=False)
    return network


@pytest.fixture(scope="module")
def params():
    tree = AutoencoderObjective(RUN, corners).init(jax.random.key(0))
    random = np.random.default_rng(1)
    return jax.tree.map(
        lambda x: np.asarray(x) + 0.05 * random.normal(size=x.shape).astype(np.float32), tree)


def peer(params, keys, counts):
    """(loss, the network's gradients by our names) of the published formulas."""
    vae_state = state_from_params({k: v for k, v in params.items()
                                   if k not in ("discriminator", "log_variance")})
    vae = loaded(diffusers.AutoencoderKL(**{
        k: v for k, v in CONFIG.to_dict().items() if not k.startswith("_")}), vae_state)
    disc = loaded(discriminator(4, 2), {
        k.removeprefix("main."): v
        for k, v in state_from_params(params["discriminator"]).items()}).train()
    log_variance = torch.nn.Parameter(torch.tensor(float(params["log_variance"])))
    x = to_torch(IMAGES)
    posterior = vae.encode(x).latent_dist
    zeros = np.zeros((2, 16, 16, 4), np.float32)
    z = posterior.mean + posterior.std * to_torch(sampled_posterior(keys, zeros, zeros + 1))
    decoded = vae.decode(z).sample
    batch, size = len(x), x[0].numel()
    perceptual = ((decoded[:, :, ::4, ::4] ** 2 - x[:, :, ::4, ::4] ** 2) ** 2).mean((1, 2, 3))
    rest = (decoded - x).abs() + 0.7 * perceptual[:, None, None, None]
    nll = (rest / log_variance.exp() + log_variance).sum() / batch
    kl = posterior.kl().sum() / batch
    last = vae.decoder.conv_out.weight
    g = -disc(decoded).mean()
    by_rest, by_g = (torch.autograd.grad(term, last, retain_graph=True)[0] for term in (nll, g))
    weight = (by_rest.norm() / (by_g.norm() + 1e-4)).clamp(0, 1e4).detach()
    loss = nll + 1e-3 * kl + counts * 0.5 * weight * g
    networks = [*vae.parameters(), log_variance]
    own = torch.autograd.grad(loss, networks, retain_graph=True)
    hinge = 0.5 * (torch.relu(1 - disc(x)).mean() + torch.relu(1 + disc(decoded.detach())).mean())
    of_disc = torch.autograd.grad(counts * hinge, list(disc.parameters()))
    names = [*(k for k, _ in vae.named_parameters()), "log_variance"]
    gradients = {k: g / size for k, g in zip(names, own)}  # ours is a mean over a picture's values
    gradients |= {f"discriminator.main.{k}": g
                  for (k, _), g in zip(disc.named_parameters(), of_disc)}
    return loss.item() / size + counts * hinge.item(), weight.item(), gradients


@pytest.fixture(scope="module")
def program():
    return jax.jit(jax.value_and_grad(AutoencoderObjective(RUN, corners).loss, has_aux=True))


@pytest.mark.parametrize("counts", [1, 0])
def test_losses_and_gradients_are_latent_diffusions(params, program, counts):
    keys = image_keys(0, 0, 0, 2)
    batch = {"image": IMAGES, "lesson": np.full(2, counts, np.int32)}
    (loss, metrics), gradient = program(params, {}, batch, keys)
    wanted, weight, gradients = peer(params, keys, counts)
    np.testing.assert_allclose(loss, wanted, rtol=1e-5)
    np.testing.assert_allclose(metrics["adaptive_weight"], weight, rtol=1e-4)
    found = {k: v.load() for k, v in state_from_params(
        {k: v for k, v in gradient.items() if k != "log_variance"}).items()}
    found["log_variance"] = np.asarray(gradient["log_variance"])
    assert set(found) == set(gradients)
    whole = np.sqrt(sum(float((g**2).sum()) for g in gradients.values()))
    for key, expected in gradients.items():
        error = np.linalg.norm(found[key].reshape(expected.shape) - expected.numpy())
        # Biases before norms change nothing: their gradients are rounding.
        assert error <= 1e-4 * max(float(expected.norm()), 1e-4 * whole), key


def test_a_decoder_alone_leaves_the_latents_as_they_are(params):
    vae = {k: v for k, v in params.items() if k not in ("discriminator", "log_variance")}
    run = AutoencoderRun(vae=CONFIG, trained="decoder", kl_weight=1.0)
    objective, frozen = AutoencoderObjective(run), {"vae": vae}
    tree = objective.init(jax.random.key(0), frozen)
    assert set(tree) == {"decoder", "post_quant_conv"}
    jax.tree.map(np.testing.assert_array_equal, tree["decoder"], vae["decoder"])
    whole = objective.autoencoder(tree, frozen)
    assert set(whole) == set(vae)
    objective.optimizer().init(tree)
    loss, _ = objective.loss(tree, frozen, {"image": IMAGES}, image_keys(0, 0, 0, 2))
    other = AutoencoderObjective(AutoencoderRun(vae=CONFIG, kl_weight=1.0))
    wanted, _ = other.loss(vae, {}, {"image": IMAGES}, image_keys(0, 0, 0, 2))
    np.testing.assert_allclose(loss, wanted, rtol=1e-6)
    assert VAE(CONFIG).encode(whole, IMAGES).shape == (2, 16, 16, 4)


def test_pictures_that_are_too_small_are_told():
    adversary = AdversaryConfig(width=4, layers=3)
    params = jax.eval_shape(adversary.init, jax.random.key(0), np.zeros((1, 32, 32, 3)))
    with pytest.raises(SdjaxError, match="16x16 are too small for the adversary"):
        jax.eval_shape(adversary.losses, params, *[np.zeros((1, 16, 16, 3))] * 2)
