"""Single layers against PyTorch, with their gradients, and ConvNeXt against its definition."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers.models.embeddings import get_timestep_embedding

from sdjax.models import layers, norms
from sdjax.models.blocks import ConvNextBlock, Downsample, Upsample
from sdjax.models.depthwise import depthwise
from sdjax.models.embeddings import sinusoidal_embedding
from sdjax.weights.names import state_from_params
from tests.models.peers import nchw, nhwc, relative_error


def random(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def torch_group_norm(x, scale, bias, groups, silu):
    y = torch.nn.functional.group_norm(x, groups, scale, bias, eps=1e-5)
    return torch.nn.functional.silu(y) if silu else y


@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize(("mean", "tolerance"), [(0.5, 1e-5), (300.0, 1e-4)])
def test_group_norm_and_its_gradients(silu, mean, tolerance):
    x, scale, bias = random(0, 2, 6, 5, 32) + mean, random(1, 32), random(2, 32)

    def ours(x, scale, bias):
        return norms.group_norm(x, scale, bias, groups=8, epsilon=1e-5, silu=silu)

    tensors = [nchw(x).double(), torch.tensor(scale).double(), torch.tensor(bias).double()]
    tensors = [tensor.requires_grad_() for tensor in tensors]
    out = torch_group_norm(*tensors, 8, silu)
    torch.sin(out).sum().backward()
    assert relative_error(jax.jit(ours)(x, scale, bias), nhwc(out)) < tolerance
    loss = jax.jit(jax.grad(lambda *a: jnp.sin(ours(*a)).sum(), argnums=(0, 1, 2)))
    expected = [nhwc(tensors[0].grad), tensors[1].grad, tensors[2].grad]
    for gradient, reference in zip(loss(x, scale, bias), expected, strict=True):
        assert relative_error(gradient, reference) < 10 * tolerance


def test_group_norm_of_one_value_and_of_sequences():
    constant = norms.group_norm(
        jnp.full((1, 4, 4, 8), 3e4), jnp.ones(8), jnp.ones(8), groups=2, epsilon=1e-5
    )
    np.testing.assert_allclose(constant, 1.0, atol=1e-3)
    x = random(0, 2, 7, 16)
    flat = norms.group_norm(x, jnp.ones(16), jnp.zeros(16), groups=4, epsilon=1e-5)
    image = norms.group_norm(x[:, :, None], jnp.ones(16), jnp.zeros(16), groups=4, epsilon=1e-5)
    np.testing.assert_allclose(flat, image[:, :, 0], atol=1e-6)


def test_modulation_scales_and_shifts_the_normalised():
    x, extra = random(0, 2, 3, 3, 8), (random(1, 2, 8), random(2, 2, 8))
    norm = norms.GroupNorm(4)
    params = norm.init(jax.random.key(0), x)
    plain = np.asarray(norm.apply(params, x))
    expected = plain * (1 + extra[0][:, None, None]) + extra[1][:, None, None]
    np.testing.assert_allclose(norm.apply(params, x, extra), expected, rtol=1e-4, atol=1e-5)


def test_layer_norm_and_its_gradients():
    x = random(0, 3, 5, 32) + 20
    norm = norms.LayerNorm()
    params = {"params": {"scale": random(1, 32), "bias": random(2, 32)}}
    peer = torch.nn.LayerNorm(32).double()
    peer.load_state_dict(
        {"weight": torch.tensor(params["params"]["scale"]), "bias": torch.tensor(params["params"]["bias"])}
    )
    tensor = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    out = peer(tensor)
    torch.sin(out).sum().backward()
    assert relative_error(norm.apply(params, x), out.detach()) < 1e-5
    gradients = jax.grad(lambda p, x: jnp.sin(norm.apply(p, x)).sum(), argnums=(0, 1))(params, x)
    assert relative_error(gradients[0]["params"]["scale"], peer.weight.grad) < 1e-4
    assert relative_error(gradients[0]["params"]["bias"], peer.bias.grad) < 1e-4
    assert relative_error(gradients[1], tensor.grad) < 1e-4


def torch_conv(x, kernel, bias, **options):
    weight = torch.tensor(np.ascontiguousarray(kernel.transpose(3, 2, 0, 1)))
    return nhwc(torch.nn.functional.conv2d(nchw(x), weight, torch.tensor(bias), **options))


@pytest.mark.parametrize(
    ("size", "stride", "groups"), [(3, 1, 1), (3, 2, 1), (1, 1, 1), (7, 1, 8), (5, 1, 1)]
)
def test_convolution(size, stride, groups):
    x, bias = random(0, 2, 9, 8, 8), random(2, 16)
    kernel = random(1, size, size, 8 // groups, 16)
    module = layers.Conv(16, size, stride, groups=groups)
    got = module.apply({"params": {"kernel": kernel, "bias": bias}}, x)
    expected = torch_conv(x, kernel, bias, stride=stride, padding=size // 2, groups=groups)
    assert relative_error(got, expected) < 1e-5


def test_depthwise_convolution_and_its_gradients():
    x, kernel = random(0, 3, 6, 5, 8), random(1, 7, 3, 1, 8)
    tensors = [nchw(x).requires_grad_(), torch.tensor(kernel.transpose(3, 2, 0, 1)).requires_grad_()]
    out = torch.nn.functional.conv2d(*tensors, padding=(3, 1), groups=8)
    torch.sin(out).sum().backward()
    assert relative_error(depthwise(x, kernel), nhwc(out)) < 1e-5
    got = jax.jit(jax.grad(lambda *a: jnp.sin(depthwise(*a)).sum(), argnums=(0, 1)))(x, kernel)
    assert relative_error(got[0], nhwc(tensors[0].grad)) < 1e-5
    assert relative_error(got[1], tensors[1].grad.permute(2, 3, 1, 0)) < 1e-5


def test_resampling_as_the_original_code_pads():
    x, kernel, bias = random(0, 1, 6, 8, 4), random(1, 3, 3, 4, 4), random(2, 4)
    params = {"params": {"conv": {"kernel": kernel, "bias": bias}}}
    padded = np.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)))
    expected = torch_conv(padded, kernel, bias, stride=2)
    assert relative_error(Downsample(padding=0).apply(params, x), expected) < 1e-5
    larger = nhwc(torch.nn.functional.interpolate(nchw(x), scale_factor=2.0, mode="nearest"))
    expected = torch_conv(larger, kernel, bias, padding=1)
    assert relative_error(Upsample().apply(params, x), expected) < 1e-5
    assert Upsample().apply(params, x, (11, 15)).shape == (1, 11, 15, 4)


def convnext(x, emb, p):
    """ConvNeXt's definition in PyTorch, with the time embedding after the depthwise convolution."""
    functional, channels = torch.nn.functional, x.shape[1]
    h = functional.conv2d(x, p["dwconv.weight"], p["dwconv.bias"], padding=3, groups=channels)
    h = h + functional.linear(emb, p["time_emb_proj.weight"], p["time_emb_proj.bias"])[:, :, None, None]
    h = functional.layer_norm(
        h.permute(0, 2, 3, 1), (channels,), p["norm.weight"], p["norm.bias"], eps=1e-6
    )
    h = functional.gelu(functional.linear(h, p["pwconv1.weight"], p["pwconv1.bias"]))
    h = p["gamma"] * functional.linear(h, p["pwconv2.weight"], p["pwconv2.bias"])
    shortcut = functional.conv2d(x, p["conv_shortcut.weight"], p["conv_shortcut.bias"])
    return shortcut + h.permute(0, 3, 1, 2)


def test_convnext_block_is_its_definition():
    x, emb = random(0, 2, 8, 6, 12), random(1, 2, 20)
    block = ConvNextBlock(16)
    params = block.init(jax.random.key(0), x, emb)["params"]
    params = jax.tree.map(lambda p: p + random(p.size, *p.shape) / 4, params)
    state = {k: torch.tensor(np.asarray(v.load())) for k, v in state_from_params(params).items()}
    expected = nhwc(convnext(nchw(x), torch.tensor(emb), state))
    assert relative_error(block.apply({"params": params}, x, emb), expected) < 1e-5


@pytest.mark.parametrize("name", ["silu", "gelu", "gelu_tanh", "quick_gelu", "relu", "mish"])
def test_activations(name):
    x = np.linspace(-12, 12, 97, dtype=np.float32)
    tensor = torch.tensor(x, requires_grad=True)
    peers = torch.nn.functional
    expected = {
        "gelu_tanh": lambda x: peers.gelu(x, approximate="tanh"),
        "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    }.get(name, getattr(peers, name, None))(tensor)
    expected.sum().backward()
    function = layers.ACTIVATIONS[name]
    np.testing.assert_allclose(function(x), expected.detach(), atol=2e-6, rtol=1e-5)
    # As programs are compiled outside the tests: less optimised, tanh is coarser.
    optimised = {"xla_backend_optimization_level": 3}
    gradient = jax.jit(jax.vmap(jax.grad(function)), compiler_options=optimised)(x)
    np.testing.assert_allclose(gradient, tensor.grad, atol=4e-6, rtol=1e-5)


@pytest.mark.parametrize(("cosine_first", "shift"), [(True, 0), (False, 1)])
def test_sinusoidal_embedding(cosine_first, shift):
    t = np.array([0.0, 1.5, 999.0], np.float32)
    expected = get_timestep_embedding(torch.tensor(t), 32, cosine_first, shift)
    got = sinusoidal_embedding(t, 32, cosine_first=cosine_first, frequency_shift=shift)
    np.testing.assert_allclose(got, expected, atol=2e-4)


def test_parameters_stay_float32_and_results_take_the_dtype():
    x = jnp.ones((1, 4, 4, 8), jnp.float32)
    for module in (layers.Dense(3), layers.Conv(3), norms.GroupNorm(4), norms.LayerNorm()):
        module = module.clone(dtype=jnp.bfloat16)
        params = module.init(jax.random.key(0), x)
        assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.float32)}
        assert module.apply(params, x).dtype == jnp.bfloat16
    assert isinstance(layers.Dense(3), nn.Module)
